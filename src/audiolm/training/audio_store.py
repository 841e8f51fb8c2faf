"""Recordings for training: decoded once, stored, and cut into crops.

    store = AudioStore.prepare("out/audio", recordings)       # 16-bit samples at one rate, memory-mapped
    crops = AudioCrops(store, "train", seconds=1.0, batch_size=8, seed=0)
    crops.batch(step)                                          # (B, 1, T)

A batch depends only on (seed, step).
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from audiolm import audio
from audiolm.conformer import FRAME
from audiolm.errors import InputError
from audiolm.files import make_folder, whole_file
from audiolm.training.data import Recording, Skipped, report
from audiolm.training.storage import fetched, is_remote, stored

FORMAT = 1  # version of the on-disk format of stores


@dataclass(frozen=True)
class Entry:
    """A recording in an AudioStore: `length` samples from sample `start` of its shard."""

    name: str
    speaker: str
    split: str
    shard: int
    start: int
    length: int
    columns: Mapping[str, str] = field(default_factory=dict)


class AudioStore:
    """Mono recordings at one sample rate, as 16-bit samples in memory-mapped shards: reading a crop needs no decoding.

    FOLDER holds header.json, skipped.json and, for each shard, 00000.i16 (samples) and 00000.json (index). A shard counts
    only once its index is written, so a killed preparation loses at most one shard, and the same call resumes it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        header = read_header(self.folder, "audio store")
        self.sample_rate: int = header["sample_rate"]
        self.entries: list[Entry] = []
        for index in sorted(self.folder.glob("[0-9]*.json")):
            entries = [Entry(**row) for row in json.loads(index.read_text(encoding="utf-8"))]
            samples = index.with_suffix(".i16")
            if not samples.is_file() or samples.stat().st_size != 2 * sum(entry.length for entry in entries):
                raise InputError(f"{samples}: damaged, its length differs from its index; redo it with: --only prepare --force")
            self.entries += entries
        self._shard = cache(lambda shard: np.memmap(self.folder / f"{shard:05d}.i16", np.dtype("<i2"), mode="r"))

    @classmethod
    def prepare(
        cls,
        folder: str | os.PathLike[str],
        recordings: Iterable[Recording],
        sample_rate: int = 16_000,
        minimum: float = 0.1,
        shard_seconds: float = 1800.0,
        skipped: Skipped | None = None,
        show: Callable[..., None] | None = None,
    ) -> "AudioStore":
        """Decode the recordings that the store does not hold yet, mixed to mono and resampled, and open the store.

        Recordings that cannot be decoded are left out and reported, together with those already in `skipped`, on stderr and
        in skipped.json. `show(done)` is called after each recording. Raises InputError if no recording can be used or the
        store has another sample rate.
        """
        write_header(Path(folder), "audio store", {"sample_rate": sample_rate})
        for leftover in Path(folder).glob(".[0-9]*"):  # temporary files of a killed preparation, up to a shard each
            leftover.unlink(missing_ok=True)
        store, skipped = cls(folder), list(skipped or [])
        known = {entry.name for entry in store.entries}
        pending = iter([recording for recording in recordings if recording.name not in known])
        done = len(known)
        while (recording := next(pending, None)) is not None:
            number = 1 + max((entry.shard for entry in store.entries), default=-1)
            entries: list[Entry] = []
            with whole_file(store.folder / f"{number:05d}.i16") as temporary, temporary.open("wb") as file:
                while recording is not None:
                    start = file.tell() // 2
                    try:
                        length = _decode_into(file, recording, sample_rate, minimum)
                        about = (recording.name, recording.speaker, recording.split)
                        entries.append(Entry(*about, number, start, length, dict(recording.columns)))
                    except InputError as error:
                        file.seek(2 * start)
                        file.truncate()
                        skipped.append((recording.name, str(error)))
                    done += 1
                    if show:
                        show(done)
                    recording = next(pending, None) if file.tell() < 2 * shard_seconds * sample_rate else None
            if entries:
                index = store.folder / f"{number:05d}.json"
                with whole_file(index) as temporary:
                    temporary.write_text(json.dumps([asdict(entry) for entry in entries]), encoding="utf-8")
                store.entries += entries
        report(skipped, store.folder / "skipped.json")
        if not store.entries:
            raise InputError(f"{folder}: no recording can be used ({skipped[0][1] if skipped else 'none was given'})")
        return cls(folder)

    def __len__(self) -> int:
        return len(self.entries)

    def split(self, name: str) -> list[int]:
        """Indices of the recordings in a split."""
        return [number for number, entry in enumerate(self.entries) if entry.split == name]

    def hours(self, split: str | None = None) -> float:
        """Hours of audio in a split, or in all splits."""
        return sum(e.length for e in self.entries if split in (None, e.split)) / self.sample_rate / 3600

    def read(self, number: int, start: int = 0, length: int | None = None) -> Tensor:
        """Samples (T,) float32 of a recording: at most `length` of them from `start`; no others are read from disk."""
        entry = self.entries[number]
        stop = entry.length if length is None else min(entry.length, start + length)
        samples = self._shard(entry.shard)[entry.start + start : entry.start + stop]
        return torch.from_numpy(samples.astype(np.float32)) / 32767


def _decode_into(file: Any, recording: Recording, sample_rate: int, minimum: float) -> int:
    length, silent = 0, True
    with fetched(recording.path) as path:
        for block in audio.blocks(path, 30.0, sample_rate, mono=True):
            samples = (block.samples[0].clamp(-1, 1) * 32767).round().numpy().astype("<i2")
            file.write(samples.tobytes())
            length += len(samples)
            silent &= not samples.any()
    if length < minimum * sample_rate:
        raise InputError(f"{recording.path}: only {length / sample_rate:.3g} s long; at least {minimum:g} s are needed")
    if silent:
        raise InputError(f"{recording.path}: digital silence from end to end; there is nothing to learn from it")
    return length


def read_header(folder: Path, kind: str) -> dict[str, Any]:
    """A store's header.json. Raises InputError if the folder is not a store of this kind, or has a newer format."""
    try:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a valid {kind} (its header.json is missing or damaged); check the path") from error
    if header.get("kind") != kind:
        raise InputError(f"{folder}: holds {header.get('kind', 'something else')}, not {kind}; give another folder")
    if header["format"] > FORMAT:
        raise InputError(f"{folder}: written by a newer version (format {header['format']}); update audiolm")
    return header


def write_header(folder: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Make the folder a store of this kind, or check that it already is one with the same header values."""
    if not (folder / "header.json").is_file():
        if not is_remote(folder):
            make_folder(folder)
        with stored(folder / "header.json") as temporary:
            temporary.write_text(json.dumps({"kind": kind, "format": FORMAT, **values}, indent=1) + "\n", encoding="utf-8")
    header = read_header(folder, kind)
    for name, value in values.items():
        if header.get(name) != value:
            raise InputError(f"{folder}: has {name} {header.get(name)}, not {value}; give another folder or delete it")


# --- Crops -----------------------------------------------------------------------------------------------------------


class Placement:
    """An endless shuffled sequence of crop positions: crop n -> (recording, start), a pure function of (seed, n).

    In an epoch a recording of length l gives about l / crop crops, at least one. It is divided into as many equal parts;
    the centre of each crop is drawn uniformly within its part, and the crop is then shifted to lie inside the recording, so
    beginnings and ends are not undersampled. Lengths, crop and starts share one unit, whichever.
    """

    def __init__(self, lengths: Sequence[int], crop: int, seed: int) -> None:
        self.lengths, self.crop, self.seed = np.asarray(lengths, np.int64), crop, seed
        self.counts = np.maximum(1, np.round(self.lengths / crop).astype(np.int64))
        self.firsts = np.cumsum(self.counts) - self.counts
        self._order = lru_cache(2)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(len(self)))

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getitem__(self, number: int) -> tuple[int, int]:
        epoch, place = divmod(number, len(self))
        part = int(self._order(epoch)[place])
        recording = int(np.searchsorted(self.firsts, part, side="right")) - 1
        draw = np.random.default_rng((self.seed, epoch, part)).random()
        length = int(self.lengths[recording])
        middle = (part - int(self.firsts[recording]) + draw) / int(self.counts[recording]) * length
        return recording, max(0, min(int(middle - self.crop / 2), length - self.crop))


class Crops(Protocol):
    """Batches (B, 1, T) float32 that depend only on the step."""

    def batch(self, step: int) -> Tensor: ...


class AudioCrops:
    """Batches (B, 1, T) float32 of crops of `seconds` from one split, without padding.

    A recording that is shorter than the crop is followed by crops of others of the split, drawn by (seed, place), until the
    row is full: statistics, codebooks and units would be fitted to padding otherwise. Whatever changes a row (gain, warp)
    changes all of it, hence each recording in it evenly.
    A crop starts at a multiple of `align` samples, in its recording and in its row: a semantic frame, which is a whole number
    of acoustic frames. What a recording has beyond its last whole frame is cut off where another follows.
    """

    def __init__(self, store: AudioStore, split: str, seconds: float, batch_size: int, seed: int = 0, align: int = FRAME) -> None:
        self.store, self.batch_size, self.align = store, batch_size, align
        self.length = round(seconds * store.sample_rate)
        if self.length < 1 or batch_size < 1:
            raise InputError(f"crops of {seconds} s, {batch_size} at a time: give numbers above 0")
        self.recordings = store.split(split)
        if not self.recordings:
            raise InputError(f"{store.folder}: holds no {split} recordings; give more speakers, or a split column")
        self.placement = Placement([store.entries[number].length for number in self.recordings], self.length, seed)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.placement) // self.batch_size)

    def batch(self, step: int) -> Tensor:
        """The batch of a step, counted from 0."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return torch.stack([self._row(place) for place in places])[:, None]

    def _row(self, place: int) -> Tensor:
        row, filled, epoch = torch.empty(self.length), 0, place - place % len(self.placement)
        draws = np.random.default_rng((self.placement.seed, place))
        while True:
            recording, start = self.placement[place]
            samples = self.store.read(self.recordings[recording], start // self.align * self.align, self.length - filled)
            row[filled : filled + len(samples)] = samples
            if filled + len(samples) == self.length:
                return row
            filled += len(samples) // self.align * self.align or len(samples)  # one below a frame is never cut to nothing
            place = epoch + int(draws.integers(len(self.placement)))
