"""The AudioLM model: tokenizers, stages and sampling settings, and what can be done with them.

    model = audiolm.load()                                    the packaged speech model
    model.generate(prompt, seconds=7)                         continuation (AudioLM section III-D)
    model.generate(seconds=5)                                 unconditional generation
    model.generate(semantic=tokens.semantic)                  acoustic generation: the same words in another voice
    model.generate(prompt, text="Good morning.")              read aloud, in the prompt's voice
    model.reconstruct(sound, codebooks=3)                     the codec alone
    model.generate(prompt, seconds=7, chain="acoustic")       the paper's baseline without semantic tokens
    model.generate(prompt, seconds=7, decoder="parallel")     SoundStorm instead of the coarse and fine stages
    model.generate(prompt, seconds=7, codebooks=4)            without the fine stage
    model.generate(prompt, seconds=30, until_end=True)        as long as the model sees fit, 30 s at most
    model.stream(prompt, seconds=60)                          as `generate`, in blocks while it is generated

For the format on disk, see audiolm.bundle.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import tee
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from audiolm.asking import LONGEST, SHORTEST, TEMPERATURES, How, Job, Progress, Request, Sampling
from audiolm.audio import Waveform
from audiolm.codec import Codec
from audiolm.errors import InputError
from audiolm.generation import Tape, complete, of_length, spread, stacked, stream
from audiolm.kernels import Precision, use
from audiolm.provenance import embed, payload_of
from audiolm.rendering import new_sound
from audiolm.route import Route, ending, existing, route
from audiolm.stages import Stage, Stream
from audiolm.text import SPEC, timed
from audiolm.tokenizers import SemanticTokenizer
from audiolm.tokens import AudioTokens, Tokens
from audiolm.transformer import LanguageModel

BLOCK = 10.0  # seconds of tokens to decode at a time


@dataclass
class AudioLM:
    """See the module docstring. `stages` holds each stage with its network, `sampling` how each is sampled."""

    semantic: SemanticTokenizer
    codec: Codec
    stages: dict[str, tuple[Stage, LanguageModel]]
    sampling: dict[str, Sampling] = field(default_factory=dict)
    # Name, version, licence, data: whatever the card should say. "decoder" and "codebooks" are the defaults for generation.
    about: dict[str, Any] = field(default_factory=dict)
    precision: Precision | Literal["auto"] | None = "auto"  # of the stages' weights on CPU; see audiolm.kernels

    def __post_init__(self) -> None:
        for part in (self.semantic, self.codec, *(network for _, network in self.stages.values())):
            part.eval().requires_grad_(False)
        for name in self.stages:
            self.sampling.setdefault(name, Sampling(temperature=TEMPERATURES.get(name, 0.8)))

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of all output."""
        return self.codec.sample_rate

    @property
    def device(self) -> torch.device:
        return next(self.codec.parameters()).device

    @property
    def payload(self) -> int:
        """The watermark payload of everything this model generates; see audiolm.provenance."""
        return payload_of(self.about)

    def to(self, device: str | torch.device) -> "AudioLM":
        """Move every part to a device; returns self."""
        for part in (self.semantic, self.codec, *(network for _, network in self.stages.values())):
            part.to(device)
        return self

    # Sound <-> tokens

    def tokenize(self, sound: Waveform) -> AudioTokens:
        """Semantic and acoustic tokens of a recording, padded with silence at the end to a whole semantic frame (40 ms)."""
        return self._tokenize(self._tensor(sound))

    @torch.inference_mode()
    def _tokenize(self, audio: Tensor, show: Callable[[int, int], object] = lambda done, total: None) -> AudioTokens:
        audio = nn.functional.pad(audio, (0, -audio.shape[-1] % self.semantic.hop))
        return AudioTokens(
            Tokens(self.semantic.encode(audio, show)[0].cpu(), self.semantic.spec),
            Tokens(self.codec.encode(audio)[0].cpu(), self.codec.spec),
        )

    def semantic_tokens(self, sound: Waveform, progress: Progress | None = None) -> Tokens:
        """What a recording says, or its melody: its semantic tokens alone. progress("tokens", done, total) counts frames."""
        with torch.inference_mode():
            codes = self.semantic.encode(self._tensor(sound), _of("tokens", progress) or (lambda done, total: None))
        return Tokens(codes[0].cpu(), self.semantic.spec)

    def decode(self, acoustic: Tokens) -> Waveform:
        """Decode acoustic tokens (any prefix of the levels) to sound."""
        if acoustic.spec != self.codec.spec:
            raise InputError(
                f"tokens are {acoustic.spec}, this model's codec makes {self.codec.spec}; decode them with their own codec"
            )
        with torch.inference_mode():
            return Waveform(self.codec.decode(acoustic.codes[None].to(self.device))[0].float().cpu(), self.sample_rate)

    def reconstruct(
        self, sound: Waveform, codebooks: int | None = None, watermark: bool = True, progress: Progress | None = None
    ) -> Waveform:
        """Encode and decode with `codebooks` levels (default: all): the same length to the sample, at the model's rate.

        progress("reconstruct", done, total) counts samples.
        """
        levels = self.codec.spec.num_codebooks
        if codebooks is not None and not 1 <= codebooks <= levels:
            raise InputError(f"codebooks={codebooks}: give 1 to {levels} for this codec")
        audio, show, parts, done = self._tensor(sound), _of("reconstruct", progress), [], 0
        encoder, decoder = self.codec.encoder_stream(codebooks), self.codec.decoder_stream()
        with torch.inference_mode():
            for block in audio.split(round(BLOCK * self.sample_rate), -1):
                parts.append(decoder.push(encoder.push(block)).float().cpu())
                done += block.shape[-1]
                if show:
                    show(done, audio.shape[-1])
            parts += [decoder.push(encoder.flush()).float().cpu(), decoder.flush().float().cpu()]
        made = Waveform(torch.cat(parts, -1)[0, :, : audio.shape[-1]], self.sample_rate)
        return embed(made, self.payload) if watermark else made

    # Generation

    def generate(
        self,
        prompt: Waveform | None = None,
        seconds: float | None = None,
        semantic: Tokens | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        text: str | None = None,
        **how: Unpack[How],
    ) -> Waveform:
        """Continue a prompt by `seconds`, generate without one, or say the words of `semantic` or `text` (in the prompt's voice).

        A continuation begins with the prompt itself, resampled. The same seed gives the same sound. how: see `How`.
        """
        return self.generate_batch([Request(prompt, seconds, semantic, seed, text)], progress, **how)[0]

    def generate_batch(self, requests: Sequence[Request], progress: Progress | None = None, **how: Unpack[How]) -> list[Waveform]:
        """`generate` for a batch of requests of any lengths; each result is what the request gives alone."""
        route = self._route(requests, **how)
        with torch.inference_mode():
            jobs = self._jobs(self._read(requests, route, progress), progress)
            if route.speaks:
                self._sample_semantic(jobs, route, progress)
            self._sample_acoustic(jobs, route, progress)
            return self._render(jobs, route, progress)

    def stream(
        self,
        prompt: Waveform | None = None,
        seconds: float | None = None,
        semantic: Tokens | None = None,
        seed: int = 0,
        block: float = 0.25,
        text: str | None = None,
        **how: Unpack[How],
    ) -> Iterator[Waveform]:
        """`generate` in blocks of about `block` seconds, each as soon as it is ready; joined, they equal `generate`'s result.

        The prompt comes first, immediately. Memory is that of one window per stage, however long the sound.
        """
        request = Request(prompt, seconds, semantic, seed, text)
        route = self._route([request], **how)
        frames = self.codec.spec.frame_rate * block
        if not 1 <= frames < math.inf:
            raise InputError(f"block={block}: give at least {1 / self.codec.spec.frame_rate:g} s")
        with torch.inference_mode():
            (job,) = self._jobs(self._read([request], route))
        return self._stream(job, route, round(frames))

    @torch.inference_mode()
    def _stream(self, job: Job, route: Route, frames: int) -> Iterator[Waveform]:
        if job.followed is not None and not route.only_new:
            yield Waveform(job.followed.cpu(), self.sample_rate)
        for sound in self._new_sound(job, of_length(self._codes(job, route), frames), route):
            yield Waveform(sound, self.sample_rate)

    def revoice(self, sound: Waveform, voice: Waveform | None = None, seed: int = 0, **options: Any) -> Waveform:
        """Acoustic generation: the words of `sound` in the voice of `voice` or a random one; options as for `generate`."""
        return self.generate(voice, semantic=self.semantic_tokens(sound), seed=seed, **options)

    def reading_seconds(self, text: str, pace: float = 1.0) -> float:
        """How long reading a text takes. InputError if it has no words, or none can be read at this pace."""
        return self._timed(text, pace).shape[1] / SPEC.frame_rate

    def _timed(self, text: str, pace: float) -> Tensor:
        return timed(text, {int(byte): each for byte, each in self.about.get("letter_seconds", {}).items()}, pace)

    def _read(self, requests: Sequence[Request], route: Route, progress: Progress | None = None) -> list[Request]:
        """The requests, texts being replaced by the semantic tokens of their being read aloud."""
        due = [request for request in requests if request.text is not None]
        if not due:
            return list(requests)
        stage, network = self.stage("text")
        lines = [self._timed(request.text or "", route.pace) for request in due]
        longest = max(line.shape[1] for line in lines) / SPEC.frame_rate
        if longest > LONGEST:
            raise InputError(f"text: reading it takes {longest:.0f} s; give what takes at most {LONGEST:.0f} s")
        nothing, frames = torch.zeros(1, 0, dtype=torch.int64), [line.shape[1] for line in lines]
        seeds, options = [request.seed for request in due], route.options("text", stage)
        read = complete(
            network, stage, [[line] for line in lines], [nothing] * len(due), frames, seeds, _of("text", progress), **options
        )
        words = iter([Tokens(codes.cpu(), self.semantic.spec) for codes in read])
        return [each if each.text is None else replace(each, text=None, semantic=next(words)) for each in requests]

    def record(self, **how: Unpack[How]) -> dict[str, Any]:
        """How sound is made with these options and this model's defaults for all others: JSON-ready, for a sound's tags."""
        route = self._route([], **how)
        return {
            "chain": how.get("chain", "full"),
            "decoder": route.decoder,
            "codebooks": route.codebooks,
            "sampling": {name: each.plain() for name, each in route.settings.items()},
            "until_end": route.until_end,
            "precision": self.precision,
            "watermark": f"{self.payload:04x}" if route.watermark else None,
        }

    def _tensor(self, sound: Waveform) -> Tensor:
        """(1, 1, T) at the model's rate. InputError if the sound is too short to tokenize."""
        if sound.seconds < SHORTEST:
            raise InputError(f"the sound is {sound.seconds * 1000:.0f} ms long; give at least {SHORTEST * 1000:.0f} ms")
        return sound.mono().resample(self.sample_rate).samples[None].to(self.device)

    def _jobs(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Job]:
        """Check the requests and tokenize their prompts, each once, however many requests share it."""
        step, done = self.semantic.hop, 0  # samples per semantic frame; both kinds of tokens start on this grid
        prompts = {id(each.prompt): self._tensor(each.prompt)[0] for each in requests if each.prompt is not None}
        total, tokens = sum(each.shape[-1] // step for each in prompts.values()), {}
        for key, prompt in prompts.items():
            frames = prompt.shape[-1] // step
            show = None if progress is None else lambda count, _, before=done: progress("prompt", before + count, total)
            # Samples after the last whole frame are kept but not tokenized: padding would put silence into a frame.
            tokens[key] = self._tokenize(prompt[None, :, : frames * step], show or (lambda count, total: None))
            done += frames
        return [self._job(each, prompts.get(id(each.prompt)), tokens.get(id(each.prompt))) for each in requests]

    def _job(self, request: Request, prompt: Tensor | None, tokens: AudioTokens | None) -> Job:
        step = self.semantic.hop
        if request.semantic is not None:
            if not request.semantic.codes.shape[-1]:
                raise InputError("semantic tokens: there are none, so nothing to say; give some")
            if request.semantic.spec != self.semantic.spec:
                raise InputError(f"semantic tokens are {request.semantic.spec}, this model needs {self.semantic.spec}")
            samples = request.semantic.codes.shape[-1] * step
        else:
            samples = request.length(self.sample_rate, only_new=True)
        spare = 0 if prompt is None or request.semantic is not None else prompt.shape[-1] % step
        job = Job(request, prompt, samples, frames=-(-(samples + spare) // step))
        empty = torch.zeros(1, 0, dtype=torch.int64)
        job.semantic = empty if tokens is None else tokens.semantic.codes
        job.acoustic = empty.expand(self.codec.spec.num_codebooks, 0) if tokens is None else tokens.acoustic.codes
        if request.semantic is not None:
            job.semantic = torch.cat([job.semantic, request.semantic.codes], -1)
        return job

    def _sample_semantic(self, jobs: Sequence[Job], route: Route, progress: Progress | None) -> None:
        due = [job for job in jobs if job.request.semantic is None]
        if due:
            prompts, frames, seeds = zip(*((job.semantic, job.frames, job.request.seed) for job in due), strict=True)
            made = self.continue_units(prompts, frames, seeds, route.settings["semantic"], progress, route.until_end)
            for job, new in zip(due, made, strict=True):
                job.semantic, job.frames = torch.cat([job.semantic, new], 1), new.shape[1]

    def continue_units(
        self,
        prompts: Sequence[Tensor],
        frames: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        progress: Progress | None = None,
        until_end: bool = False,
    ) -> list[Tensor]:
        """The semantic stage alone: `frames` new units (1, F) after each prompt's (1, P), which may be none.

        until_end: or fewer, if the recording ends before, but not in the first second.
        """
        stage, network, run = self._semantic()
        known, counts = [stage.kept(codes) for codes in prompts], [math.ceil(count / run) for count in frames]
        options = (sampling or self.sampling["semantic"]).options
        if until_end:
            options |= ending(stage)
        sampled = complete(network, stage, [[]] * len(known), known, counts, seeds, _of("semantic", progress), **options)
        new = [codes[:, before.shape[1] :] for codes, before in zip(sampled, known, strict=True)]
        return [torch.cat(list(spread([codes], *own)), 1) for codes, *own in zip(new, counts, frames, strict=True)]

    def _semantic(self) -> tuple[Stage, LanguageModel, float]:
        """The semantic stage, its network, and how many frames a token takes on average.

        Deduplicated tokens have no duration, and a crop of training has fewer of them than frames, so windows have fewer too.
        """
        stage, network = self.stage("semantic")
        run = self.about.get("mean_run", 1.0) if stage.dedup else 1.0
        crop = max(stage.crop / run, stage.grid)
        return replace(stage, crop=crop, overlap=min(stage.overlap / run, crop - stage.grid)), network, run

    def _sample_acoustic(self, jobs: Sequence[Job], route: Route, progress: Progress | None) -> None:
        """Run the stages in turn; each predicts the levels that follow those of the stage before."""
        prompts = [job.acoustic for job in jobs]
        done = [codes[:0] for codes in prompts]  # (levels so far, F)
        frames = [job.frames * self._ratio for job in jobs]
        for name, stage in route.stages.items():
            network = self.stage(name)[1]
            given = [
                [job.semantic if self._is_semantic(stream) else stream.take(codes) for stream in stage.given]
                for job, codes in zip(jobs, done, strict=True)
            ]
            sampled = complete(
                network, stage, given, [route.known(stage, codes) for codes in prompts],
                frames, [job.request.seed for job in jobs], _of(name, progress), **route.options(name, stage),
            )  # fmt: skip
            done = [torch.cat([codes, new]) if len(codes) else new for codes, new in zip(done, sampled, strict=True)]
            frames = [codes.shape[1] - old.shape[1] for codes, old in zip(done, prompts, strict=True)]
        for job, codes in zip(jobs, done, strict=True):
            job.acoustic = codes

    def _codes(self, job: Job, route: Route) -> Iterator[Tensor]:
        """Acoustic codes (levels, n), lazily, starting with the prompt's: each stage pulls from the one before."""
        codes, semantic = None, tee(self._semantic_codes(job, route), len(route.stages))
        for (name, stage), units in zip(route.stages.items(), map(Tape, semantic), strict=True):
            network = self.stage(name)[1]
            lower = units if codes is None else Tape(codes)
            given = [units if self._is_semantic(each) else lower for each in stage.given]
            known, frames = route.known(stage, job.acoustic), job.frames * self._ratio
            new = stream(network, stage, given, known, frames, job.request.seed, **route.options(name, stage))
            codes = new if codes is None else stacked(lower, new)
        assert codes is not None
        return codes

    def _semantic_codes(self, job: Job, route: Route) -> Iterator[Tensor]:
        yield job.semantic
        if job.request.semantic is None:
            stage, network, run = self._semantic()
            prompt, count = stage.kept(job.semantic), math.ceil(job.frames / run)
            new = stream(network, stage, [], prompt, count, job.request.seed, **route.options("semantic", stage))
            next(new)  # the prompt
            yield from spread(new, count, job.frames)

    @property
    def _ratio(self) -> int:
        """Acoustic frames per semantic frame."""
        return round(self.codec.spec.frame_rate / self.semantic.spec.frame_rate)

    def _is_semantic(self, stream: Stream) -> bool:
        return stream.spec.name == self.semantic.spec.name

    def _route(self, requests: Sequence[Request], sampling: Mapping[str, Sampling] | None = None, **how: Any) -> Route:
        """Resolve the options (`How`) for this model. InputError if it cannot satisfy them."""
        stages = {name: stage for name, (stage, _) in self.stages.items()}
        return route(stages, self.sampling, self.about, requests, settings=sampling, **how)

    def stage(self, name: str) -> tuple[Stage, LanguageModel]:
        """A stage and its network, its weights packed for generation. InputError if the model has no such stage."""
        stage, network = existing(self.stages, name)
        if network.packed is None:
            use(network, self.precision)
        return stage, network

    def _render(self, jobs: Sequence[Job], route: Route, progress: Progress | None) -> list[Waveform]:
        """The jobs' sounds, once all tokens are there. progress("sound", done, total) counts frames."""
        done, total, sounds = 0, sum(job.acoustic.shape[1] for job in jobs), []

        def blocks(codes: Tensor) -> Iterator[Tensor]:
            nonlocal done
            for block in codes.split(round(BLOCK * self.codec.spec.frame_rate), 1):
                yield block
                done += block.shape[1]
                if progress:
                    progress("sound", done, total)

        for job in jobs:
            parts = list(self._new_sound(job, blocks(job.acoustic), route))
            if job.followed is not None and not route.only_new:
                parts.insert(0, job.followed.cpu())
            sounds.append(Waveform(torch.cat(parts, 1), self.sample_rate))
        return sounds

    def _new_sound(self, job: Job, codes: Iterable[Tensor], route: Route) -> Iterator[Tensor]:
        """See audiolm.rendering. With given semantic tokens, the prompt's whole frames only set the voice and are left out."""
        old, last = 0 if job.prompt is None else job.prompt.shape[1], None
        if job.request.semantic is not None:
            old = old // self.semantic.hop * self.semantic.hop
        if job.followed is not None:
            last = job.followed[:, -1:]
        levels = (part[: route.codebooks] for part in codes)
        return new_sound(self.codec, levels, job.samples, old, last, self.payload if route.watermark else None)


def _of(stage: str, progress: Progress | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)
