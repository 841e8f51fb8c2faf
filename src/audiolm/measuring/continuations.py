"""Does the model go on as the speaker would? Prompts continued in every way a bundle knows, and what can be measured of it.

AudioLM claims (sections III-B, IV-C, IV-D) that acoustic tokens alone keep the voice and babble, and that semantic tokens give
the words: so a continuation is heard for its voice (speaker) and for its units, as the semantic tokenizer finds them.

    real       what the speaker said: the upper bound          full       the whole chain
    codec      the same through the codec                      acoustic   the paper's baseline, no semantic tokens
    resaid     the true units, said by the acoustic stages     shuffled   the true units in random order, said likewise
    revoiced   the same without a prompt: another voice        parallel   as full, by the parallel stage, where there are both
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audiolm.asking import Request
from audiolm.audio import Waveform, concatenate
from audiolm.errors import InputError
from audiolm.measuring.metrics import Measure, mean, ratio, shuffled, unit_errors
from audiolm.measuring.scoring import nats_of
from audiolm.measuring.speaker import SAMPLE_RATE, similarities, voice_encoder
from audiolm.model import AudioLM
from audiolm.sampling import sample_windows
from audiolm.stages import without_repeats
from audiolm.tokens import Tokens

PROMPT, SHORTEST = 3.0, 1.0  # seconds of a prompt (the paper's), and of what must be left of a recording after it
BATCH = 8  # prompts continued side by side
WAYS = ("real", "codec", "resaid", "revoiced", "full", "parallel", "acoustic", "shuffled")
MADE = ("resaid", "full", "parallel", "acoustic", "shuffled")  # what is made unless something else is asked for


@dataclass(frozen=True, eq=False)
class Continuation:
    """A prompt, what followed it in each way (the same length all), and the units (1, F) that some ways were asked to say."""

    speaker: str
    prompt: Waveform
    sounds: dict[str, Waveform] = field(default_factory=dict)
    asked: dict[str, Tensor] = field(default_factory=dict)

    def units(self, model: AudioLM, way: str) -> tuple[Tensor, Tensor]:
        """The units (1, F) of the prompt and of what followed, heard together."""
        units = model.tokenize(concatenate([self.prompt, self.sounds[way]])).semantic.codes
        frames = round(self.prompt.seconds * model.semantic.spec.frame_rate)
        return units[:, :frames], units[:, frames:]


def continuations(
    model: AudioLM,
    recordings: Sequence[tuple[str, Waveform]],
    seconds: float,
    seed: int,
    tell: Callable[[str, int, int], None] = lambda way, done, total: None,
    ways: Collection[str] = MADE,
) -> list[Continuation]:
    """Continue the first 3 s of (speaker, sound) pairs, mono at the model's rate, by `seconds` or as far as the sound goes.

    Of `ways`, those that the model knows are made, and real and codec always.
    """
    rate = model.semantic.spec.frame_rate
    chain = acoustic_chain(model)
    levels = model.chosen()["codebooks"] if chain else None  # of what is generated
    runs = bool(chain) and model.stages[chain[0]][0].dedup
    made = []
    for speaker, sound in recordings:
        new = math.floor(min(seconds, sound.seconds - PROMPT) * rate + 1e-6) / rate
        each = Continuation(speaker, sound.trim(PROMPT))
        each.sounds["real"] = sound.trim(new, start=PROMPT)
        each.sounds["codec"] = model.reconstruct(sound.trim(PROMPT + new), levels, watermark=False).trim(start=PROMPT)
        units = each.units(model, "real")[1]
        each.asked["codec"] = each.asked["resaid"] = each.asked["revoiced"] = units
        each.asked["shuffled"] = shuffled(units, torch.Generator().manual_seed(seed + len(made)), runs)
        made.append(each)
    for first in range(0, len(made), BATCH):
        batch = made[first : first + BATCH]
        seeds = [seed + first + number for number in range(len(batch))]
        if chain and "semantic" in model.stages and {"full", "parallel"} & set(ways):
            _ask_semantic_stage(model, batch, seeds)
        for way in (way for way in WAYS[2:] if way in ways):
            if chain and way in batch[0].asked:
                words = [Tokens(each.asked[way], model.semantic.spec) for each in batch]
                prompts = [None if way == "revoiced" else each.prompt for each in batch]
                requests = [Request(p, semantic=w, seed=own) for p, w, own in zip(prompts, words, seeds, strict=True)]
                decoder = "parallel" if "parallel" in (way, chain[0]) else "autoregressive"
                sounds = model.generate_batch(requests, decoder=decoder, watermark=False)
            elif way == "acoustic" and way in model.stages:
                requests = [Request(c.prompt, c.sounds["real"].seconds, seed=own) for c, own in zip(batch, seeds, strict=True)]
                sounds = model.generate_batch(requests, only_new=True, chain="acoustic", watermark=False)
            else:
                continue
            for each, sound in zip(batch, sounds, strict=True):
                each.sounds[way] = sound
            tell(way, first + len(batch), len(made))
    return made


def acoustic_chain(model: AudioLM) -> list[str]:
    """The stages by which the model says units, lowest levels first: the paper's where it has them; some bundles have none."""
    found = [name for name in ("coarse", "piano", "parallel") if name in model.stages][:1]
    if found and "fine" in model.stages and model.stages[found[0]][0].predict.last < model.codec.spec.num_codebooks:
        found.append("fine")
    return found


def _ask_semantic_stage(model: AudioLM, batch: Sequence[Continuation], seeds: Sequence[int]) -> None:
    """The first step of `AudioLM.generate` by itself, so that what the acoustic stages were asked to say is known."""
    stage, network = model.stage("semantic")
    prompts = [model.tokenize(each.prompt).semantic.codes for each in batch]
    if stage.dedup:
        prompts = [without_repeats(codes) for codes in prompts]
    frames = [each.asked["resaid"].shape[1] for each in batch]
    run = model.about.get("mean_run", 1.0) if stage.dedup else 1.0
    wanted = [math.ceil(count / run) for count in frames]
    options = model.sampling["semantic"].options
    sampled = sample_windows(network, stage, [[]] * len(batch), prompts, wanted, seeds, **options)
    for each, prompt, codes, count in zip(batch, prompts, sampled, frames, strict=True):
        new = codes[:, prompt.shape[1] :]
        each.asked["full"] = new[:, torch.arange(count) * new.shape[1] // count]
        if "parallel" in model.stages and acoustic_chain(model)[0] != "parallel":
            each.asked["parallel"] = each.asked["full"]


def continuation_figures(model: AudioLM, made: Sequence[Continuation]) -> dict[str, Measure | float | str]:
    """Of each way: the voice's likeness to the prompt's, unit errors, bits a unit, unit changes a second; then the claims.

    claim.MEASURE.WAY is by how much the full chain is better than WAY, recording by recording: above 0 where the claim holds.
    """
    figures: dict[str, Measure | float | str] = {
        "continuation.clips": float(len(made)),
        "continuation.speakers": float(len({each.speaker for each in made})),
    }
    if not made:
        return figures
    figures["continuation.mean_seconds"] = sum(each.sounds["real"].seconds for each in made) / len(made)
    each_clip: dict[tuple[str, str], Tensor] = {}  # (measure, way): (R), where less is worse
    ways = [way for way in WAYS if way in made[0].sounds]
    try:
        figures |= _voices(made, ways, each_clip)
    except InputError as error:
        figures["continuation.voice.missing"] = str(error)
    for way in ways:
        heard = [each.units(model, way) for each in made]
        seconds = torch.tensor([each.sounds[way].seconds for each in made], dtype=torch.float64)
        changes = torch.tensor([len(new[0].unique_consecutive()) - 1 for _, new in heard])
        figures[f"continuation.{way}.changes"] = ratio(changes, seconds)
        if way in made[0].asked:
            errors, asked = torch.tensor(
                [unit_errors(c.asked[way][0], new[0]) for c, (_, new) in zip(made, heard, strict=True)]
            ).T
            figures[f"continuation.{way}.unit_errors"] = ratio(errors, asked)
            each_clip["unit_errors", way] = -errors / asked
        if "semantic" in model.stages:
            nats, counts = torch.tensor([_foretold(model, *units) for units in heard], dtype=torch.float64).T
            figures[f"continuation.{way}.bits"] = ratio(nats / math.log(2), counts)
            each_clip["bits", way] = -nats / math.log(2) / counts
    for (measure, way), values in each_clip.items():
        if way in ("acoustic", "shuffled") and (measure, "full") in each_clip:
            figures[f"claim.{measure}.{way}"] = mean(each_clip[measure, "full"] - values)
    return figures


def _voices(made: Sequence[Continuation], ways: Sequence[str], each_clip: dict[tuple[str, str], Tensor]) -> dict[str, Measure]:
    encoder = voice_encoder()
    figures: dict[str, Measure] = {}
    prompts = [encoder.embed(each.prompt.resample(SAMPLE_RATE).samples) for each in made]
    for way in ways:
        voices = [encoder.embed(each.sounds[way].resample(SAMPLE_RATE).samples) for each in made]
        cosines = similarities(prompts, voices)
        each_clip["similarity", way] = cosines.diagonal()
        figures[f"continuation.{way}.similarity"] = mean(cosines.diagonal())
        if way == "real":
            speakers = [each.speaker for each in made]
            same = torch.tensor([[a == b for b in speakers] for a in speakers])
            own = torch.eye(len(made), dtype=torch.bool)
            for name, pairs in (("same_speaker", same & ~own), ("other_speakers", ~same)):
                figures[f"continuation.{name}.similarity"] = mean((cosines * pairs).sum(1) / pairs.sum(1))  # NaN without pairs
    return figures


def _foretold(model: AudioLM, prompt: Tensor, new: Tensor) -> tuple[float, float]:
    """Nats of the semantic stage for new units (1, F) after a prompt's, and how many they are; within one crop of the stage."""
    stage, network = model.stage("semantic")
    codes = torch.cat([prompt, new], 1)
    start = max(0, codes.shape[1] - stage.predict.frames(stage.crop))
    before = prompt[:, start:]
    score = nats_of(network, stage, [((), codes[:, start:])], (without_repeats(before) if stage.dedup else before).shape[1])
    return float(score.nats.sum()), float(score.counts.sum())
