"""The sounds a detector is trained and measured on: recordings, their codec reconstructions, and what a model generates.

A list of plans, made from the corpus's own splits, says which recordings are used and what is generated from each. Only
missing sounds are written, so a killed command can be resumed. No sound is watermarked: the detector must learn to hear the
model itself.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from audiolm import bundle
from audiolm.asking import How, Request
from audiolm.audio import Waveform, blocks, read
from audiolm.classifier import SAMPLE_RATE
from audiolm.config import Config, Seed
from audiolm.errors import InputError
from audiolm.model import AudioLM
from audiolm.route import decoders
from audiolm.training.data import Recording, by_speaker
from audiolm.training.run import progress

PROMPT = 3.0  # seconds, the paper's
# Used in rotation; "parallel" is a continuation by the parallel decoder, "acoustic" one by acoustic tokens alone.
KINDS = ("continued", "revoiced", "parallel", "unconditional", "continued", "acoustic")
NEEDS = {"parallel": {"semantic", "parallel"}, "acoustic": {"acoustic"}}  # stages that a kind needs; the others: semantic
NOTHING = "nothing"  # the kind of an extra negative
OTHER = "other"  # of a recording of another kind (music, noise), a negative too
BATCH = 16  # sounds generated in one batch


class SoundsConfig(Config):
    """How many clips, and how long."""

    clips: int = Field(default=72, ge=1)  # of the train split
    measured: int | None = Field(default=None, ge=1)  # of the test split, half as many of valid; default: two thirds of `clips`
    negatives: int = Field(default=0, ge=0)  # extra train clips from which nothing is generated, since real ones cost little
    seconds: float = Field(default=4.0, ge=1)  # of each generated sound; less if its recording is shorter
    seed: Seed = 0


@dataclass(frozen=True)
class Plan:
    """A piece of a recording and what is made from it: files NAME.real.flac, NAME.codec.flac and NAME.KIND.flac."""

    name: str
    split: str
    recording: Recording
    kind: str
    seed: int
    start: float = 0.0  # seconds into the recording, where the prompt begins
    codebooks: int | None = None  # RVQ levels, the same for reconstruction and generated sound so that they give nothing away

    @property
    def sounds(self) -> tuple[str, ...]:
        """The kinds of its files."""
        return ("real", "codec", *([self.kind] if self.kind not in (NOTHING, OTHER) else []))

    def plain(self) -> list[str | float | None]:
        """Everything that determines its sounds, ready for JSON."""
        of = self.recording
        return [self.name, of.name, of.seconds, self.start, self.kind, self.seed, self.codebooks]

    def path(self, folder: Path, kind: str) -> Path:
        return folder / f"{self.name}.{kind}.flac"


@dataclass(frozen=True)
class Clip:
    """The sounds of a plan, mono at 16 kHz."""

    plan: Plan
    real: Waveform
    codec: Waveform
    generated: Waveform | None = None


def levels_of(stages: Mapping[str, Mapping[str, Any]]) -> list[int | None]:
    """Numbers of RVQ levels a model can generate: those before its fine stage, if it has coarse and fine stages, and all (None).

    `stages`: those of config.json.
    """
    before = [stages["fine"]["stage"]["predict"]["first"]] if {"coarse", "fine"} <= set(stages) else []
    return [*before, None]


def plan(
    recordings: Sequence[Recording], config: SoundsConfig, stages: Sequence[str], levels: Sequence[int | None] = (None,)
) -> list[Plan]:
    """Which pieces of recordings, of as many speakers as possible, and what is generated from each; the splits are the corpus's.

    The second pieces of recordings are used only after the first pieces of all, and so on.
    """
    kinds = [kind for kind in KINDS if NEEDS.get(kind, {"semantic"}) <= set(stages)]
    if not kinds:
        raise InputError(f"this model cannot generate on its own (stages: {', '.join(stages) or 'none'}); train its stages first")
    plans = []
    measured = config.measured or math.ceil(config.clips * 2 / 3)
    for split, wanted in (("train", config.clips), ("valid", math.ceil(measured / 2)), ("test", measured)):
        found = [each for each in recordings if each.split == split and each.seconds >= PROMPT + 1]
        if not found:
            raise InputError(f"no {split} recording is {PROMPT + 1:g} s or longer; give more recordings, or a split column")
        # With fewer levels generated sound is harder to detect: the first (lowest) number gets three quarters of training.
        turns = [levels[0]] * 3 + [*levels[1:]] if split == "train" and len(levels) > 1 else levels
        pieces = _pieces(by_speaker(found, config.seed), config.seconds)
        for number, (recording, start) in enumerate(pieces[: wanted + config.negatives * (split == "train")]):
            turn, place = divmod(number, len(kinds))
            kind = kinds[place] if number < wanted else NOTHING
            codebooks = turns[(turn + place) % len(turns)]  # so that every kind has the same mix of numbers
            plans.append(Plan(f"{split}-{number:04d}", split, recording, kind, config.seed + len(plans), start, codebooks))
    return plans


def plan_others(recordings: Sequence[Recording], config: SoundsConfig, levels: Sequence[int | None] = (None,)) -> list[Plan]:
    """A piece of each recording of another kind than the model's, from which nothing is generated."""
    long = [each for each in recordings if each.seconds >= PROMPT + 1]
    return [
        Plan(f"{OTHER}-{number:04d}", each.split, each, OTHER, config.seed, 0.0, levels[number % len(levels)])
        for number, each in enumerate(by_speaker(long, config.seed))
    ]


def _pieces(recordings: Sequence[Recording], seconds: float) -> list[tuple[Recording, float]]:
    """Recordings with starts `seconds` apart, while a prompt and at least one second after it remain."""
    longest = max(each.seconds for each in recordings)
    starts = [turn * seconds for turn in range(1 + int((longest - PROMPT - 1) / seconds))]
    return [(each, start) for start in starts for each in recordings if each.seconds >= start + PROMPT + 1]


def make_sounds(folder: Path, plans: Sequence[Plan], out: Path, seconds: float, workers: int = 0) -> None:
    """Write the missing sounds, in batches of one kind. workers: number of processes of one thread each; below 2: this one."""
    due = [each for each in plans if not all(each.path(out, kind).is_file() for kind in each.sounds)]
    batches = []
    for kind, codebooks in dict.fromkeys((each.kind, each.codebooks) for each in due):
        same = [each for each in due if (each.kind, each.codebooks) == (kind, codebooks)]
        batches += [same[first : first + BATCH] for first in range(0, len(same), BATCH)]
    with progress(len(due), label="sounds") as show:
        done = 0
        for count in _each_done(folder, batches, out, seconds, workers):
            show(done := done + count)


def _each_done(folder: Path, batches: Sequence[Sequence[Plan]], out: Path, seconds: float, workers: int) -> Iterator[int]:
    if workers < 2:
        model = _loaded(folder) if batches else None
        for batch in batches:
            assert model is not None
            yield make_batch(model, batch, out, seconds)
        return
    # One thread each: two processes are faster than one with two threads. Spawned, because torch does not survive a fork.
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (folder,)) as pool:
        for future in as_completed([pool.submit(_work, batch, out, seconds) for batch in batches]):
            yield future.result()


def _loaded(folder: Path) -> AudioLM:
    """The model, generating all its levels unless told otherwise."""
    model = bundle.load(folder)
    model.about.pop("codebooks", None)
    return model


def _begin_worker(folder: Path) -> None:
    torch.set_num_threads(1)
    _worker["model"] = _loaded(folder)


def _work(batch: Sequence[Plan], out: Path, seconds: float) -> int:
    return make_batch(_worker["model"], batch, out, seconds)


_worker: dict[str, AudioLM] = {}


def make_batch(model: AudioLM, batch: Sequence[Plan], out: Path, seconds: float) -> int:
    """Write the sounds of plans of one kind and number of levels, without watermark; returns the number of plans."""
    kind, codebooks, requests = batch[0].kind, batch[0].codebooks, []
    chain = "acoustic" if kind == "acoustic" or "semantic" not in model.stages else "full"
    both = len(decoders(model.stages)) == 2 and chain == "full"
    decoder = ("parallel" if kind == "parallel" else "autoregressive") if both else None
    # Reconstructions get no more levels than generated sound.
    levels = model.record(chain=chain, decoder=decoder, codebooks=codebooks)["codebooks"]
    for each in batch:
        read_to = each.start + PROMPT + seconds
        sound = next(blocks(each.recording.path, read_to, model.sample_rate, mono=True)).trim(start=each.start)
        prompt, real = sound.trim(PROMPT), sound.trim(start=PROMPT)
        real.write(each.path(out, "real"))
        model.reconstruct(sound, levels, watermark=False).trim(start=PROMPT).write(each.path(out, "codec"))
        if kind == "revoiced":
            requests.append(Request(semantic=model.tokenize(real).semantic, seed=each.seed))
        else:
            requests.append(Request(None if kind == "unconditional" else prompt, real.seconds, seed=each.seed))
    if kind in (NOTHING, OTHER):
        return len(batch)
    how: How = {"only_new": True, "chain": chain, "decoder": decoder, "codebooks": codebooks, "watermark": False}
    for each, sound in zip(batch, model.generate_batch(requests, **how), strict=True):
        sound.write(each.path(out, kind))
    return len(batch)


def load_clips(plans: Sequence[Plan], split: str, folder: Path) -> list[Clip]:
    """The sounds of a split."""
    return [
        Clip(each, *(read(each.path(folder, kind)).resample(SAMPLE_RATE) for kind in each.sounds))
        for each in plans
        if each.split == split
    ]
