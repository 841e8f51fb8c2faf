"""The common inputs of all figures: a model, the recordings it is measured on, and intermediate results that tables share."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from audiolm.audio import Waveform, blocks
from audiolm.errors import InputError
from audiolm.measuring.continuations import PROMPT, SHORTEST, Continuation, continuations
from audiolm.measuring.metrics import Measure
from audiolm.measuring.phonetics import Phone, PhoneAligner
from audiolm.model import AudioLM, AudioTokens
from audiolm.training.data import Recording, Skipped, in_turn
from audiolm.training.storage import fetched

LONGEST = 30.0  # seconds measured of a recording, at most

Progress = Callable[[str, int, int], None]  # what, done, total
Figures = dict[str, Measure | float | str]


class Missing(Exception):
    """An input that a table needs is missing: one line that says what is needed and, if a download, where to get it."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A recording with its tokens. The sound is read from the file at each access."""

    recording: Recording
    sample_rate: int
    tokens: AudioTokens

    @property
    def sound(self) -> Waveform:
        """Mono, at the model's rate."""
        return read_clip(self.recording, self.sample_rate)

    @property
    def transcript(self) -> str | None:
        """The manifest's transcript, if there is one and the recording is measured in full."""
        text = (self.recording.columns.get("transcript") or "").strip()
        return text if text and self.tokens.seconds < LONGEST else None


@dataclass(eq=False)
class Bench:
    """A model, its clips, and the options of `evaluation.evaluate` (see there). others: recordings that are not measured."""

    model: AudioLM
    clips: Sequence[Clip]
    others: Sequence[Recording] = ()
    levels: Sequence[int] = (3, 4, 12)
    limit: int = 16
    seconds: float = 7.0
    seed: int = 0
    items: Path | None = None
    pairs: Path | None = None
    tell: Progress = field(default=lambda what, done, total: None)
    own_abx: dict[str, Measure] = field(default_factory=dict, init=False)  # of the layer in use, by mode, for two tables

    @property
    def train(self) -> list[Recording]:
        """The others that belong to the train split."""
        return [recording for recording in self.others if recording.split == "train"]

    @cached_property
    def aligner(self) -> PhoneAligner:
        return PhoneAligner()

    @cached_property
    def sounds(self) -> list[Tensor]:
        """Each clip (1, 1, T) at 16 kHz, cached for all parts: 2 MB for 30 s."""
        return [clip.sound.resample(16_000).samples[None] for clip in self.clips]

    @cached_property
    def phones(self) -> list[list[Phone]]:
        """The phones of each clip, found by pocketsphinx."""
        found = []
        for number, (clip, sound) in enumerate(zip(self.clips, self.sounds, strict=True), 1):
            found.append(self.aligner(sound, clip.transcript))
            self.tell("phones", number, len(self.clips))
        return found

    @cached_property
    def chosen(self) -> list[Clip]:
        """Up to `limit` clips that are long enough to be continued, from as many speakers as possible."""
        return by_speaker(self.clips, self.seed)[: self.limit]

    @cached_property
    def continued(self) -> list[Continuation]:
        """The chosen clips, continued in the default ways that the model can."""
        chosen = [(clip.recording.speaker, clip.sound) for clip in self.chosen]
        return continuations(self.model, chosen, self.seconds, self.seed, self.tell)


def read_clip(recording: Recording, sample_rate: int) -> Waveform:
    """The first 30 s of a recording, mono."""
    with fetched(recording.path) as path:
        return next(blocks(path, LONGEST, sample_rate, mono=True))


def readable(recordings: Sequence[Recording], sample_rate: int) -> list[Waveform]:
    """`read_clip` of all recordings that can be read; damaged ones are skipped."""
    sounds = []
    for recording in recordings:
        with suppress(InputError):
            sounds.append(read_clip(recording, sample_rate))
    return sounds


def tokenized(model: AudioLM, recordings: Sequence[Recording], tell: Progress) -> tuple[list[Clip], Skipped]:
    """Clips of all readable recordings, and the unreadable ones with the reasons. InputError if none is readable."""
    clips: list[Clip] = []
    left_out: Skipped = []
    for number, recording in enumerate(recordings, 1):
        try:
            tokens = model.tokenize(read_clip(recording, model.sample_rate))
            clips.append(Clip(recording, model.sample_rate, tokens))
        except InputError as error:
            left_out.append((recording.name, str(error)))
        tell("tokens", number, len(recordings))
    if not clips:
        raise InputError(f"evaluation: none of {len(recordings)} recordings can be used: {left_out[0][1]}")
    return clips, left_out


def by_speaker(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """Clips long enough to be continued: one of each speaker, then a second of each, and so on."""
    # Tokens may end a frame later than the sound.
    long = [clip for clip in clips if clip.tokens.seconds >= PROMPT + SHORTEST + 0.04]
    return [long[number] for number in in_turn([clip.recording.speaker for clip in long], seed)]


def random_part(recordings: Sequence[Recording], most: int, seed: int) -> list[Recording]:
    """A random sample of at most `most` recordings."""
    order = torch.randperm(len(recordings), generator=torch.Generator().manual_seed(seed))[:most].tolist()
    return [recordings[number] for number in order]


def at_16k(sound: Waveform) -> Tensor:
    """Mono samples (T) at 16 kHz."""
    return sound.resample(16_000).samples[0]
