"""The AudioLM bundle: tokenizers, stages and sampling settings in one folder, and what can be done with them.

    model = audiolm.load()                                    the packaged speech model
    model.generate(prompt, seconds=7)                         continuation (AudioLM section III-D)
    model.generate(seconds=5)                                 unconditional
    model.generate(semantic=tokens.semantic)                  acoustic generation: the same words in another voice
    model.reconstruct(sound, codebooks=3)                     the codec alone
    model.generate(prompt, seconds=7, chain="acoustic")       the paper's baseline without semantic tokens

How it is kept on disk: audiolm.bundle.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from audiolm.audio import Waveform
from audiolm.codec import Codec
from audiolm.config import Config
from audiolm.errors import InputError
from audiolm.sampling import Options, sample_chunks, sample_windows
from audiolm.stages import Stage, without_repeats
from audiolm.tokenizers import SemanticTokenizer
from audiolm.tokens import Tokens
from audiolm.transformer import LanguageModel

SHORTEST, LONGEST = 0.1, 24 * 3600.0  # seconds of a prompt, and of what one call generates
TEMPERATURES = {"semantic": 0.6, "coarse": 0.8, "fine": 0.6, "acoustic": 0.8}  # AudioLM section IV-B

Chain = Literal["full", "acoustic"]
Progress = Callable[[str, int, int], None]  # stage, frames done, frames in all


class Sampling(Config):
    """How one stage is sampled: temperature 0 takes the likeliest code; top_k and top_p cut the unlikely ones off."""

    temperature: float = Field(default=1.0, ge=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)

    @property
    def options(self) -> Options:
        """As arguments of `audiolm.sampling`."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


@dataclass(frozen=True, eq=False)
class AudioTokens:
    """Both kinds of tokens of one recording, on one clock: acoustic frames are a multiple of the semantic ones."""

    semantic: Tokens
    acoustic: Tokens

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.acoustic.seconds


@dataclass(frozen=True, eq=False)
class Request:
    """One thing to generate. With `semantic`, its words and its length; else `seconds` of new sound after the prompt."""

    prompt: Waveform | None = None
    seconds: float | None = None
    semantic: Tokens | None = None
    seed: int = 0


@dataclass
class AudioLM:
    """See the module's docstring. `stages` holds each stage with its network, `sampling` how each is sampled."""

    semantic: SemanticTokenizer
    codec: Codec
    stages: dict[str, tuple[Stage, LanguageModel]]
    sampling: dict[str, Sampling] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)  # name, version, licence, data: whatever the card should say

    def __post_init__(self) -> None:
        for part in (self.semantic, self.codec, *(network for _, network in self.stages.values())):
            part.eval().requires_grad_(False)
        for name in self.stages:
            self.sampling.setdefault(name, Sampling(temperature=TEMPERATURES.get(name, 0.8)))

    @property
    def sample_rate(self) -> int:
        """Rate in Hz of everything that comes out."""
        return self.codec.sample_rate

    @property
    def device(self) -> torch.device:
        return next(self.codec.parameters()).device

    def to(self, device: str | torch.device) -> "AudioLM":
        """Move every part to a device; returns self."""
        for part in (self.semantic, self.codec, *(network for _, network in self.stages.values())):
            part.to(device)
        return self

    # Sound <-> tokens

    def tokenize(self, sound: Waveform) -> AudioTokens:
        """Semantic and acoustic tokens of a recording; its end is padded with silence to a whole semantic frame (40 ms)."""
        return self._tokenize(self._tensor(sound))

    @torch.inference_mode()
    def _tokenize(self, audio: Tensor) -> AudioTokens:
        audio = nn.functional.pad(audio, (0, -audio.shape[-1] % self.semantic.hop))
        return AudioTokens(
            Tokens(self.semantic.encode(audio)[0].cpu(), self.semantic.spec),
            Tokens(self.codec.encode(audio)[0].cpu(), self.codec.spec),
        )

    def decode(self, acoustic: Tokens) -> Waveform:
        """Sound of acoustic tokens, of any prefix of levels."""
        if acoustic.spec != self.codec.spec:
            raise InputError(
                f"tokens are {acoustic.spec}, this model's codec makes {self.codec.spec}; decode them with their own"
            )
        with torch.inference_mode():
            return Waveform(self.codec.decode(acoustic.codes[None].to(self.device))[0].float().cpu(), self.sample_rate)

    def reconstruct(self, sound: Waveform, codebooks: int | None = None) -> Waveform:
        """The codec alone, at `codebooks` levels (default: all); the same length to the sample, at the model's rate."""
        levels = self.codec.spec.num_codebooks
        if codebooks is not None and not 1 <= codebooks <= levels:
            raise InputError(f"codebooks={codebooks}: this codec has 1 to {levels}")
        audio = self._tensor(sound)
        with torch.inference_mode():
            decoded = self.codec.decode(self.codec.encode(audio, codebooks))
        return Waveform(decoded[0, :, : audio.shape[-1]].float().cpu(), self.sample_rate)

    # Generation

    def generate(
        self,
        prompt: Waveform | None = None,
        seconds: float | None = None,
        semantic: Tokens | None = None,
        seed: int = 0,
        only_new: bool = False,
        chain: Chain = "full",
        sampling: Mapping[str, Sampling] | None = None,
        progress: Progress | None = None,
    ) -> Waveform:
        """Continue a prompt by `seconds`, or generate them from nothing, or say the words of `semantic` (in the prompt's voice).

        The result is the prompt itself, resampled, followed by what is new; `only_new` leaves the prompt out, and so
        does `semantic`, whose words are not the prompt's. The same seed gives the same sound.
        """
        request = Request(prompt, seconds, semantic, seed)
        return self.generate_batch([request], only_new, chain, sampling, progress)[0]

    def generate_batch(
        self,
        requests: Sequence[Request],
        only_new: bool = False,
        chain: Chain = "full",
        sampling: Mapping[str, Sampling] | None = None,
        progress: Progress | None = None,
    ) -> list[Waveform]:
        """`generate` for many requests of any lengths at once; each comes out as it would alone."""
        if chain == "acoustic" and any(request.semantic is not None for request in requests):
            raise InputError("chain='acoustic' has no semantic tokens; use the full chain to say given words")
        with torch.inference_mode():
            jobs = [self._job(request) for request in requests]
            settings = {**self.sampling, **(sampling or {})}
            if chain == "full":
                self._sample_semantic(jobs, settings, progress)
            self._sample_acoustic(jobs, chain, settings, progress)
            return [self._render(job, only_new) for job in jobs]

    def revoice(self, sound: Waveform, voice: Waveform | None = None, seed: int = 0, **options: Any) -> Waveform:
        """Acoustic generation: the words of `sound` in a random voice, or in that of `voice`; options as in `generate`."""
        return self.generate(voice, semantic=self.tokenize(sound).semantic, seed=seed, **options)

    def _tensor(self, sound: Waveform) -> Tensor:
        """(1, 1, T) at the model's rate. InputError where the sound is too short to be tokenized."""
        if sound.seconds < SHORTEST:
            raise InputError(f"the sound is {sound.seconds * 1000:.0f} ms long; give at least {SHORTEST * 1000:.0f} ms")
        return sound.mono().resample(self.sample_rate).samples[None].to(self.device)

    def _job(self, request: Request) -> "_Job":
        step = self.semantic.hop  # samples of one semantic frame: both kinds of tokens begin on its grid
        prompt, tokens = None, None
        if request.prompt is not None:
            prompt = self._tensor(request.prompt)[0]
            # What is left over after the last whole frame is heard but not tokenized: no frame may contain invented silence.
            tokens = self._tokenize(prompt[None, :, : prompt.shape[-1] // step * step])
        if request.semantic is not None:
            if request.semantic.spec != self.semantic.spec:
                raise InputError(f"semantic tokens are {request.semantic.spec}, this model's are {self.semantic.spec}")
            samples = request.semantic.codes.shape[-1] * step
        else:
            if request.seconds is None or not 0 < request.seconds <= LONGEST:
                raise InputError(f"seconds={request.seconds}: say how much to generate, above 0 and at most {LONGEST:.0f} s")
            samples = round(request.seconds * self.sample_rate)
        spare = 0 if prompt is None or request.semantic is not None else prompt.shape[-1] % step
        job = _Job(request, prompt, samples, frames=-(-(samples + spare) // step))
        empty = torch.zeros(1, 0, dtype=torch.int64)
        job.semantic = empty if tokens is None else tokens.semantic.codes
        job.acoustic = empty.expand(self.codec.spec.num_codebooks, 0) if tokens is None else tokens.acoustic.codes
        if request.semantic is not None:
            job.semantic = torch.cat([job.semantic, request.semantic.codes], -1)
        return job

    def _sample_semantic(self, jobs: Sequence["_Job"], settings: Mapping[str, Sampling], progress: Progress | None) -> None:
        due = [job for job in jobs if job.request.semantic is None]
        if due:
            stage, network = self._stage("semantic")
            # Without repeats a token has no length of its own: as many are drawn as usually fill the time, and spread over it.
            run = self.about.get("mean_run", 1.0) if stage.dedup else 1.0
            sampled = sample_windows(
                network, stage, [[]] * len(due),
                [without_repeats(job.semantic) if stage.dedup else job.semantic for job in due],
                [math.ceil(job.frames / run) for job in due],
                [job.request.seed for job in due], _of("semantic", progress), **settings["semantic"].options,
            )  # fmt: skip
            for job, codes in zip(due, sampled, strict=True):
                if stage.dedup:
                    new = codes[:, without_repeats(job.semantic).shape[1] :]
                    codes = torch.cat([job.semantic, new[:, torch.arange(job.frames) * new.shape[1] // job.frames]], -1)
                job.semantic = codes

    def _sample_acoustic(
        self, jobs: Sequence["_Job"], chain: Chain, settings: Mapping[str, Sampling], progress: Progress | None
    ) -> None:
        """Coarse and fine levels, or all of them where one stage predicts them all, in the order of their levels."""
        names = ["coarse", "piano"] if chain == "full" else ["acoustic"]
        stages = [name for name in names if name in self.stages] + ["fine"] * ("fine" in self.stages)
        ratio = round(self.codec.spec.frame_rate / self.semantic.spec.frame_rate)
        prompts = [job.acoustic for job in jobs]
        done = [codes[:0] for codes in prompts]  # (levels so far, F)
        levels = 0
        for name in stages:
            stage, network = self._stage(name)
            if stage.predict.first != levels:
                raise InputError(
                    f"stage {name} predicts level {stage.predict.first + 1} on, after {levels}: one between is missing"
                )
            given = [
                [job.semantic if stream.spec.name == self.semantic.spec.name else stream.take(codes) for stream in stage.given]
                for job, codes in zip(jobs, done, strict=True)
            ]
            # Windows that know nothing of each other (the fine stage's) are sampled side by side.
            windows = sample_windows if stage.overlap else sample_chunks
            sampled = windows(
                network, stage, given, [stage.predict.take(codes) for codes in prompts], [job.frames * ratio for job in jobs],
                [job.request.seed for job in jobs], _of(name, progress), **settings[name].options,
            )  # fmt: skip
            done = [torch.cat([codes, new]) if levels else new for codes, new in zip(done, sampled, strict=True)]
            levels = stage.predict.last
        if not levels:
            raise InputError(f"this model has no stage for chain={chain!r}; its stages are {', '.join(self.stages) or 'none'}")
        for job, codes in zip(jobs, done, strict=True):
            job.acoustic = codes

    def _stage(self, name: str) -> tuple[Stage, LanguageModel]:
        try:
            return self.stages[name]
        except KeyError:
            raise InputError(f"this model has no {name} stage; its stages are {', '.join(self.stages) or 'none'}") from None

    def _render(self, job: "_Job", only_new: bool) -> Waveform:
        decoded = self.codec.decode(job.acoustic[None].to(self.device))[0].float().cpu()
        prompt = job.prompt
        if prompt is None:
            return Waveform(decoded[:, : job.samples].contiguous(), self.sample_rate)
        prompt = prompt.cpu()
        if job.request.semantic is not None:
            new = decoded[:, prompt.shape[-1] // self.semantic.hop * self.semantic.hop :][:, : job.samples]
            return Waveform(new.contiguous(), self.sample_rate)
        new = decoded[:, prompt.shape[-1] :][:, : job.samples].clone()
        # The recording and the codec's rendering of it differ by a step at the seam: fade that out over 5 ms.
        fade = torch.linspace(1, 0, min(self.sample_rate // 200, new.shape[-1]))
        new[:, : len(fade)] += (prompt[:, -1:] - decoded[:, prompt.shape[-1] - 1 : prompt.shape[-1]]) * fade
        return Waveform(new if only_new else torch.cat([prompt, new], -1), self.sample_rate)


@dataclass(eq=False)
class _Job:
    """A request on its way: the prompt (1, T) at the model's rate, the new samples and semantic frames it wants, its tokens."""

    request: Request
    prompt: Tensor | None
    samples: int
    frames: int
    semantic: Tensor = field(init=False)  # (1, F)
    acoustic: Tensor = field(init=False)  # (Q, F)


def _of(stage: str, progress: Progress | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)
