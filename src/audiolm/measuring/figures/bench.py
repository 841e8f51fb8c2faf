"""What the figures are taken from: a model, the recordings it is measured on, and what several tables need of them."""

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

LONGEST = 30.0  # seconds of a recording that are measured

Progress = Callable[[str, int, int], None]  # what, done, in all
Figures = dict[str, Measure | float | str]


class Missing(Exception):
    """What a table cannot be filled without: one line, which file and from where."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A recording with its tokens; the sound is read when it is wanted."""

    recording: Recording
    sample_rate: int
    tokens: AudioTokens

    @property
    def sound(self) -> Waveform:
        """Mono, at the model's rate."""
        return read_clip(self.recording, self.sample_rate)

    @property
    def transcript(self) -> str | None:
        """What is said, if the manifest knows, and if all of it is in the sound that is measured."""
        text = (self.recording.columns.get("transcript") or "").strip()
        return text if text and self.tokens.seconds < LONGEST else None


@dataclass(eq=False)
class Bench:
    """A model, its clips, and the options of `evaluation.evaluate`, which see. `others`: recordings of other splits."""

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
    own_abx: dict[str, Measure] = field(default_factory=dict, init=False)  # of the layer in use, by mode: two tables show it

    @property
    def train(self) -> list[Recording]:
        """Those of the others that a training would hear."""
        return [recording for recording in self.others if recording.split == "train"]

    @cached_property
    def aligner(self) -> PhoneAligner:
        return PhoneAligner()

    @cached_property
    def sounds(self) -> list[Tensor]:
        """Each clip (1, 1, T) at 16 kHz, kept for all parts: 2 MB for 30 s."""
        return [clip.sound.resample(16_000).samples[None] for clip in self.clips]

    @cached_property
    def phones(self) -> list[list[Phone]]:
        """The phones of each clip, as pocketsphinx finds them."""
        found = []
        for number, (clip, sound) in enumerate(zip(self.clips, self.sounds, strict=True), 1):
            found.append(self.aligner(sound, clip.transcript))
            self.tell("phones", number, len(self.clips))
        return found

    @cached_property
    def chosen(self) -> list[Clip]:
        """`limit` clips that are long enough to be continued, of as many speakers as can be."""
        return by_speaker(self.clips, self.seed)[: self.limit]

    @cached_property
    def continued(self) -> list[Continuation]:
        """The chosen clips, continued in every way that the model knows."""
        chosen = [(clip.recording.speaker, clip.sound) for clip in self.chosen]
        return continuations(self.model, chosen, self.seconds, self.seed, self.tell)


def read_clip(recording: Recording, sample_rate: int) -> Waveform:
    """The first 30 s of a recording, mono."""
    with fetched(recording.path) as path:
        return next(blocks(path, LONGEST, sample_rate, mono=True))


def readable(recordings: Sequence[Recording], sample_rate: int) -> list[Waveform]:
    """`read_clip` of all that can be read: a damaged recording that is learnt from costs no more than itself."""
    sounds = []
    for recording in recordings:
        with suppress(InputError):
            sounds.append(read_clip(recording, sample_rate))
    return sounds


def tokenized(model: AudioLM, recordings: Sequence[Recording], tell: Progress) -> tuple[list[Clip], Skipped]:
    """Clips of all recordings that can be read, and which can't be and why. InputError where none can."""
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
    """Clips that are long enough to be continued, in turn."""
    # Tokens may end a frame after the sound.
    long = [clip for clip in clips if clip.tokens.seconds >= PROMPT + SHORTEST + 0.04]
    return [long[number] for number in in_turn([clip.recording.speaker for clip in long], seed)]


def random_part(recordings: Sequence[Recording], most: int, seed: int) -> list[Recording]:
    """At most so many recordings, all of them as likely."""
    order = torch.randperm(len(recordings), generator=torch.Generator().manual_seed(seed))[:most].tolist()
    return [recordings[number] for number in order]


def at_16k(sound: Waveform) -> Tensor:
    """(T) at 16 kHz."""
    return sound.resample(16_000).samples[0]
