"""Which letter of its transcript a recording is at in each frame, found from its units and the text alone, in any language.

    reading = Reading.fit(lines, units)        lines: (text as bytes, units) of many recordings
    reading.align(text, units)                 a letter for every frame
    reading.seconds                            how long each letter lasts on average: what generation goes by

As acoustic models are trained from a flat start: at first a text is spread evenly over its recording, whose edges are silent.
Then, in turns, count how often each unit occurs at each letter (and at each letter before each other one), and find the
likeliest path through the letters by these counts (Viterbi). A frame stays at its letter or goes on by up to `MOST` letters,
since some are not heard; spaces, where pauses are, have probabilities of their own for that.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from audiolm import text
from audiolm.errors import InputError
from audiolm.training.speeds import original
from audiolm.training.token_store import TokenStore

MOST = 2
EDGE = 8  # frames of silence at either end, to begin with
ROUNDS = 8
PAIRS_FROM = 3  # the round from which pairs of letters are counted too: before, the paths are too rough
PRIOR = 20.0  # counts that stand for what is known without a letter, or without the one that follows
FITTED = 2000  # recordings that the tables are made from, at most: more add little
PAUSE = 5  # frames at a space that are a pause, not the end of a word

Line = tuple[bytes, np.ndarray]  # a normalised text, and the units (F,) of its recording


class Reading:
    """See the module docstring."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.letters: dict[int, int] = {}  # byte -> row of the tables
        self.steps = np.zeros((MOST + 1, 2))  # probability of going on by 0, 1, ... from letters, from spaces
        self.fits = np.zeros((0, 0, units), np.float32)  # log-probabilities of units at a letter before another
        self.seconds: dict[int, float] = {}

    @classmethod
    def fit(cls, lines: Sequence[Line], units: int, show: Callable[[int], None] = lambda turns: None) -> Self:
        """Learn from recordings and their transcripts; `show(turns)` is called after each of the `ROUNDS`."""
        reading = cls(units)
        reading.letters = {byte: row for row, byte in enumerate(sorted({*b"".join(said for said, _ in lines), text.SPACE}))}
        paths = [reading._evenly(reading._states(said), len(heard)) for said, heard in lines]
        for turn in range(ROUNDS):
            reading._count(lines, paths, pairs=turn >= PAIRS_FROM)
            paths = [reading._path(said, heard) for said, heard in lines]
            show(turn + 1)
        reading.seconds = reading._durations(lines, paths)
        return reading

    def align(self, said: bytes, heard: np.ndarray) -> np.ndarray:
        """The byte of a text that each frame of units (F,) is at, (F,); spaces before the first word and after the last."""
        bytes_ = np.array([text.SPACE, *said, text.SPACE])
        return bytes_[self._path(said, heard)] if len(heard) else bytes_[:0]

    def _states(self, said: bytes) -> np.ndarray:
        """Rows of the tables for a text between two spaces; letters never met in training count as spaces."""
        space = self.letters[text.SPACE]
        return np.array([space, *(self.letters.get(byte, space) for byte in said), space])

    def _evenly(self, states: np.ndarray, frames: int) -> np.ndarray:
        edge = min(EDGE, frames // 4)
        inner = 1 + np.arange(frames - 2 * edge) * (len(states) - 2) // max(1, frames - 2 * edge)
        return np.concatenate([np.zeros(edge, np.int64), inner, np.full(edge, len(states) - 1)])

    def _count(self, lines: Sequence[Line], paths: Sequence[np.ndarray], pairs: bool) -> None:
        count = len(self.letters)
        single, pair = np.zeros((count, self.units), np.float32), np.zeros((count, count, self.units), np.float32)
        steps = np.ones((MOST + 1, 2))
        for (said, heard), path in zip(lines, paths, strict=True):
            states = self._states(said)
            following = np.append(states[1:], states[-1])
            np.add.at(single, (states[path], heard), 1)
            if pairs:
                np.add.at(pair, (states[path], following[path], heard), 1)
            at_space = (states == self.letters[text.SPACE])[path[:-1]].astype(int)
            np.add.at(steps, (np.diff(path).clip(0, MOST), at_space), 1)
        self.steps = steps / steps.sum(0)
        overall = (single.sum(0) + 1) / (single.sum() + self.units)
        by_letter = (single + PRIOR * overall) / (single.sum(1, keepdims=True) + PRIOR)
        self.fits = np.log((pair + PRIOR * by_letter[:, None]) / (pair.sum(2, keepdims=True) + PRIOR))

    def _path(self, said: bytes, heard: np.ndarray) -> np.ndarray:
        """The likeliest index into the text's states for each frame, ascending; evenly spread if no path is long enough."""
        states = self._states(said)
        if len(states) > MOST * (len(heard) - 1):
            return self._evenly(states, len(heard))
        fits = self.fits[states, np.append(states[1:], states[-1])][:, heard]  # (states, F)
        goes = np.log(self.steps)[:, (states == self.letters[text.SPACE]).astype(int)]  # (steps, states)
        score = np.full(len(states), -np.inf)
        score[:2] = fits[:2, 0]
        came = np.zeros((len(heard), len(states)), np.int8)
        before = np.full((MOST + 1, len(states)), -np.inf)
        for frame in range(1, len(heard)):
            for step in range(MOST + 1):
                before[step, step:] = (score + goes[step])[: len(states) - step]
            came[frame] = before.argmax(0)
            score = before.max(0) + fits[:, frame]
        place = len(states) - 2 + int(score[-2:].argmax())
        path = np.empty(len(heard), np.int64)
        for frame in range(len(heard) - 1, -1, -1):
            path[frame] = place
            place -= int(came[frame, place])
        return path

    def _durations(self, lines: Sequence[Line], paths: Sequence[np.ndarray]) -> dict[int, float]:
        """Mean seconds of each letter, those not heard included; spaces without the pauses."""
        count = len(self.letters)
        frames, times = np.zeros(count), np.zeros(count)
        for (said, _), path in zip(lines, paths, strict=True):
            states, lasts = self._states(said)[1:-1], np.bincount(path, minlength=len(said) + 2)[1:-1]
            counts = (states != self.letters[text.SPACE]) | (lasts < PAUSE)
            np.add.at(frames, states[counts], lasts[counts])
            np.add.at(times, states[counts], 1)
        return {byte: float(frames[row] / max(1, times[row]) / text.SPEC.frame_rate) for byte, row in self.letters.items()}


class ReadStore:
    """The recordings of a token store that have transcripts, with a third stream "text": the letter that each frame is at.

    show: as for `Reading.fit`.
    """

    def __init__(self, store: TokenStore, show: Callable[[int], None] = lambda turns: None) -> None:
        self.store, self.folder = store, store.folder
        self.specs = {**store.specs, text.SPEC.name: text.SPEC}
        self.entries = store.entries.with_stream(text.SPEC.name, "semantic")
        self.said = [text.normalised(each.get("transcript") or "").encode() for each in store.entries.columns()]
        names = store.entries.table["name"].to_pylist()
        # A copy at another speed tells the tables nothing new.
        told = [n for n in self.split("train") if original(names[n], store.names) == names[n]][:FITTED]
        if not told:
            raise InputError(f"{store.folder}: no train recording has a transcript to align; add the column to the manifest")
        lines = [(self.said[number], self._heard(number)) for number in told]
        self.reading = Reading.fit(lines, store.specs["semantic"].codebook_size, show)
        self._codes = lru_cache(100_000)(self._aligned)

    def split(self, name: str) -> list[int]:
        """Indices of the recordings in a split that have a transcript."""
        return [number for number in self.store.split(name) if self.said[number]]

    def read(self, number: int, stream: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `TokenStore.read`."""
        if stream != text.SPEC.name:
            return self.store.read(number, stream, start, stop)
        return torch.from_numpy(self._codes(number)[start:stop].astype(np.int64))[None]

    def _heard(self, number: int) -> np.ndarray:
        return self.store.read(number, "semantic")[0].numpy()

    def _aligned(self, number: int) -> np.ndarray:
        return self.reading.align(self.said[number], self._heard(number)).astype(np.uint8)
