"""Tokens of a corpus on disk: uint16 codes in memory-mapped safetensors shards, an index in Parquet, a key in the header.

    STORE/header.json              the key: which tokenizers made the codes, at which rate; codes mean nothing to others
    STORE/00000.safetensors        per stream one array (frames, levels) of all the shard's recordings
    STORE/00000.parquet            per recording its name, speaker, split, seconds, place in the arrays, checksum; and what
                                   was left out of the shard, and why

A shard counts only once its index is written. Both files are written atomically, so a killed job loses at most one shard and
can be resumed. Shards are independent: many processes may write them in parallel. The store may be in an object store
(s3://...).
"""

import itertools
import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audiolm.config import difference, digest
from audiolm.errors import InputError
from audiolm.files import read_json, save_tensors
from audiolm.stages import Stage
from audiolm.tokens import Tokens, TokenSpec
from audiolm.training.audio_store import Placement, read_header, write_header
from audiolm.training.speeds import original
from audiolm.training.storage import fetched, is_remote, listed, place, stored
from audiolm.training.token_index import TokenEntries, parquet, read_index, schema_of, write_index

Key = dict[str, Any]
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


def store_key(sample_rate: int, tokenizers: Mapping[str, tuple[TokenSpec, str]], **details: Any) -> Key:
    """The key that identifies a store: per stream its specification and the hash of the tokenizer's weights; layer, k, ..."""
    streams = {name: {"hash": weights, "spec": asdict(spec)} for name, (spec, weights) in tokenizers.items()}
    return {"sample_rate": sample_rate, "streams": streams, **details}


def specs_of(key: Key) -> dict[str, TokenSpec]:
    """The specification of each stream of a store."""
    return {name: TokenSpec(**stream["spec"]) for name, stream in key["streams"].items()}


class TokenStore:
    """Open and read a token store. Streams have the names of their specifications: "semantic", "acoustic".

    Codes are read through a memory map, so that any number of processes (given the store by pickle or fork) share one copy;
    the shards of a remote store are copied to a temporary folder when they are first read.
    """

    def __init__(self, folder: str | os.PathLike[str], expect: Key | None = None) -> None:
        """Raises InputError if the folder is not a token store, is damaged, or its key differs from `expect` (it says how)."""
        self.folder = place(folder)
        self.key: Key = read_header(self.folder, "token store")["key"]
        changed = difference(self.key, expect) if expect is not None else None
        if changed:
            raise InputError(f"{self.folder}: made by another tokenizer ({changed}); tokenise again into another folder")
        self.specs = specs_of(self.key)
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        indexes, tables = self.indexes(), []
        self.skipped: dict[str, str] = {}  # recordings that were left out, and why
        for index in indexes:
            table, skipped = read_index(index, list(self.specs))
            tables.append(table)
            self.skipped |= skipped
            if not is_remote(index):
                _open_shard(index.with_suffix(".safetensors"))  # a truncated shard is found now, not hours later
        table = parquet().concat_tables([schema_of(list(self.specs)).empty_table(), *tables]).combine_chunks()
        self.entries = TokenEntries(table, list(self.specs))
        if self.skipped:
            self.skipped = {name: reason for name, reason in self.skipped.items() if name not in self.names}
        self._shard = cache(self._shard_of)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder, self.key)

    @classmethod
    def create(cls, folder: str | os.PathLike[str], key: Key) -> "TokenStore":
        """Make an empty store, or open the existing one to append to it. Raises InputError if that has another key."""
        where = place(folder)
        if not (where / "header.json").is_file():
            write_header(where, "token store", {"key": key})
        return cls(where, expect=key)

    def __len__(self) -> int:
        return len(self.entries)

    def identity(self) -> str:
        """A hash of the key and of all codes, by their checksums."""
        return digest([self.key, self.entries.table["checksum"].to_pylist()])

    @cached_property
    def names(self) -> set[str]:
        """Names of all recordings, loaded only when needed: reading codes does not use them."""
        return set(self.entries.table["name"].to_pylist())

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def indexes(self) -> list[Path]:
        """The index files of all shards, in order."""
        return sorted(listed(self.folder, "[0-9]*.parquet"), key=lambda path: int(path.stem))

    def unused(self) -> Iterator[int]:
        """Unused shard numbers, ascending, without end."""
        used = {int(path.stem) for path in self.indexes()}
        return (number for number in itertools.count() if number not in used)

    def split(self, name: str) -> list[int]:
        """Indices of the recordings in a split."""
        return self.entries.of_split(name)

    def speakers(self) -> dict[str, str]:
        """Split of each speaker who is in only one; recordings of theirs that are added belong to the same."""
        pairs = set(zip(*(self.entries.table[name].to_pylist() for name in ("speaker", "split")), strict=True))
        counts = Counter(speaker for speaker, _ in pairs)
        return {speaker: split for speaker, split in pairs if counts[speaker] == 1}

    def read(self, number: int, stream: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Codes (Q, F) int64 of frames [start, stop) of a recording; no others are read from disk."""
        first, frames = int(self.entries.starts[stream][number]), int(self.entries.frames[stream][number])
        last = first + min(frames, frames if stop is None else stop)
        codes = self._shard(int(self.entries.shard[number])).get_slice(stream)[first + start : last]
        return torch.from_numpy(codes.astype(np.int64)).T

    def summary(self) -> dict[str, Any]:
        """Contents: numbers of recordings, shards and left-out recordings; hours per split, frames per stream, the key."""
        table = self.entries.table.group_by("split").aggregate([("seconds", "sum"), ("seconds", "count")])
        splits = {
            row["split"]: {"recordings": row["seconds_count"], "hours": row["seconds_sum"] / 3600} for row in table.to_pylist()
        }
        frames = {name: int(each.sum()) for name, each in self.entries.frames.items()}
        about = {"recordings": len(self), "shards": len(self.indexes()), "left_out": len(self._left_out())}
        return {**about, "splits": splits, "frames": frames, "key": self.key}

    def _left_out(self) -> set[str]:
        """Names of recordings left out, by a shard's writer or earlier (skipped.json), and not added since."""
        before = read_json(self.folder / "skipped.json") or []
        return ({row["name"] for row in before} | set(self.skipped)) - self.names

    def _shard_of(self, number: int) -> Any:
        path = self.folder / f"{number:05d}.safetensors"
        if is_remote(path):
            self._copies = self._copies or tempfile.TemporaryDirectory(prefix="audiolm-")
            copy = Path(self._copies.name) / path.name
            with fetched(path) as local:
                os.replace(local, copy)
            path = copy
        return _open_shard(path)


def is_token_store(folder: str | os.PathLike[str]) -> bool:
    header = place(folder) / "header.json"
    return header.is_file() and '"token store"' in header.read_text(encoding="utf-8", errors="replace")


def verify(folder: str | os.PathLike[str]) -> int:
    """Read every shard of a store, even one too damaged to open, and compare the checksums; returns the number of shards.

    Raises InputError that names each damaged shard, what is wrong with it, and how to repair it.
    """
    where, damaged = place(folder), {}
    streams = list(specs_of(read_header(where, "token store")["key"]))
    indexes = listed(where, "[0-9]*.parquet")
    for index in indexes:
        try:
            entries = TokenEntries(read_index(index, streams)[0], streams)
            with fetched(index.with_suffix(".safetensors")) as path:
                shard = _open_shard(path)
                for entry in entries:
                    ends = {name: entry.starts[name] + entry.frames[name] for name in streams}
                    codes = {name: shard.get_slice(name)[entry.starts[name] : ends[name]].T for name in streams}
                    if _checksum(codes) != entry.checksum:
                        raise InputError(f"{entry.name} is damaged")
        except InputError as error:
            damaged[index.stem] = str(error)
    if damaged:
        which = "; ".join(f"shard {stem}: {reason}" for stem, reason in damaged.items())
        cure = " and ".join(f"{stem}.*" for stem in damaged)
        raise InputError(f"{where}: {len(damaged)} of {len(indexes)} shards damaged ({which}); delete {cure}, tokenise again")
    return len(indexes)


class TokenWriter:
    """Collects recordings and writes them as shard `number`. Nothing is on disk before `flush`."""

    def __init__(self, folder: Path, specs: Mapping[str, TokenSpec], number: int) -> None:
        self.folder, self.specs, self.number = folder, specs, number
        self._rows: list[dict[str, Any]] = []
        self._skipped: dict[str, str] = {}
        self._codes: dict[str, list[Tensor]] = {name: [] for name in specs}
        self._frames = dict.fromkeys(specs, 0)

    def add(
        self,
        name: str,
        codes: Mapping[str, Tensor],
        *,
        seconds: float,
        speaker: str = "",
        split: str = "train",
        columns: Mapping[str, str] = NO_COLUMNS,
    ) -> None:
        """Add one recording: `codes` (Q, F) for every stream of the store."""
        if codes.keys() != self.specs.keys():
            raise InputError(f"{name}: codes of {sorted(codes)} where the store keeps {sorted(self.specs)}")
        for stream, spec in self.specs.items():
            Tokens(codes[stream], spec)  # rejects codes that do not fit the specification
            if len(codes[stream]) != spec.num_codebooks:
                raise InputError(
                    f"{name}: {len(codes[stream])} of {spec.num_codebooks} {stream} levels; a store keeps all of them"
                )
        about = {"name": name, "speaker": speaker, "split": split, "seconds": seconds}
        row = about | {"checksum": _checksum(codes), "columns": json.dumps(dict(columns))}
        for stream, each in codes.items():
            row |= {f"{stream}_start": self._frames[stream], f"{stream}_frames": each.shape[-1]}
            self._codes[stream].append(each.T.to(torch.uint16))
            self._frames[stream] += each.shape[-1]
        self._rows.append(row)

    def skip(self, name: str, reason: str) -> None:
        """Record in the shard's index that a recording was left out."""
        self._skipped[name] = reason

    def flush(self) -> None:
        """Write the shard and then its index; nothing if no recording was added."""
        if not self._rows:
            return
        path = self.folder / f"{self.number:05d}.safetensors"
        with stored(path) as temporary:
            save_tensors(temporary, {name: torch.cat(codes) for name, codes in self._codes.items()})
        rows = [row | {"shard": self.number} for row in self._rows]
        write_index(path.with_suffix(".parquet"), rows, list(self.specs), self._skipped)


def _checksum(codes: Mapping[str, Tensor | np.ndarray]) -> int:
    checksum = 0
    for name in sorted(codes):
        checksum = zlib.crc32(np.asarray(codes[name], np.int32).tobytes(), checksum)
    return checksum


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: missing or damaged ({error}); delete it and its .parquet, tokenise again") from error


# --- Crops -----------------------------------------------------------------------------------------------------------


class Item(TypedDict):
    """A training example of a stage, before it is packed into a sequence of ids."""

    given: list[Tensor]  # (levels, F) of each given stream
    predicted: Tensor  # (levels, F)
    ends: bool  # whether the crop ends at the recording's end: only then is there an EOS


class Batches(Protocol):
    """Batches that depend only on the step: items with `given` and `predicted` (codes), and `ends` (at a recording's end)."""

    def batch(self, step: int) -> Sequence[Mapping[str, Any]]: ...


class Tokenized(Protocol):
    """What crops are taken from: a `TokenStore`, or one with further streams (audiolm.training.alignment)."""

    folder: Path
    specs: dict[str, TokenSpec]
    entries: TokenEntries

    def split(self, name: str) -> list[int]: ...
    def read(self, number: int, stream: str, start: int = 0, stop: int | None = None) -> Tensor: ...


class TokenCrops:
    """Batches of a stage's crops from one split. Every crop starts where a frame of each stream begins.

    any_speed: give the units of the same recording at a random one of its speeds, stretched to this one's length. Units tell
    something of who speaks; those of another speed are another voice's, so a stage learns to take the voice from the prompt.
    """

    def __init__(
        self, store: Tokenized, stage: Stage, split: str, batch_size: int, seed: int = 0, any_speed: bool = False
    ) -> None:
        self.store, self.stage, self.batch_size, self.seed = store, stage, batch_size, seed
        for stream in stage.streams:
            own = store.specs.get(stream.spec.name)
            if own != stream.spec:
                raise InputError(
                    f"{store.folder}: stage {stage.name} needs {stream.spec}, the store has {own or 'no such tokens'}"
                )
        self.recordings = store.split(split)
        if not self.recordings:
            raise InputError(f"{store.folder}: holds no {split} recordings; give more speakers, or a split column")
        # Frames per unit of the stage's grid. A recording's last unit may be partly filled, and still counts as its end.
        self.frames = [round(stream.spec.frame_rate * stage.grid) for stream in stage.streams]
        self.crop = max(1, round(stage.crop / stage.grid))
        self.placement = Placement([self._units(number) for number in self.recordings], self.crop, seed)
        self.copies = same_at_other_speeds(store, self.recordings) if any_speed else None

    def _units(self, number: int) -> int:
        frames = self.store.entries.frames
        pairs = zip(self.stage.streams, self.frames, strict=True)
        return max(-(-int(frames[stream.spec.name][number]) // each) for stream, each in pairs)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.placement) // self.batch_size)

    def batch(self, step: int) -> list[Item]:
        """The batch of a step, counted from 0; it depends only on (seed, step)."""
        return [self._item(step * self.batch_size + row) for row in range(self.batch_size)]

    def _item(self, place: int) -> Item:
        recording, start = self.placement[place]
        number, stop = self.recordings[recording], start + self.crop
        codes = [
            stream.take(self.store.read(number, stream.spec.name, start * frames, stop * frames)).contiguous()
            for stream, frames in zip(self.stage.streams, self.frames, strict=True)
        ]
        if self.copies is not None:
            copies = self.copies[number]
            other = copies[np.random.default_rng((self.seed, place)).integers(len(copies))]
            codes[0] = self._stretched(other, number, start * self.frames[0], codes[0].shape[1])
        ends = stop >= int(self.placement.lengths[recording])
        return {"given": codes[:-1], "predicted": codes[-1], "ends": ends}

    def _stretched(self, other: int, number: int, start: int, count: int) -> Tensor:
        """Codes of the first given stream in another recording, at the times that `count` frames of `number` have in it."""
        stream = self.stage.given[0]
        frames = self.store.entries.frames[stream.spec.name]
        here, there = int(frames[number]), int(frames[other])
        places = ((torch.arange(start, start + count) + 0.5) * there / here).long().clamp_max(there - 1)
        codes = stream.take(self.store.read(other, stream.spec.name, int(places[0]), int(places[-1]) + 1))
        return codes[:, places - places[0]].contiguous()


def same_at_other_speeds(store: Tokenized, numbers: Sequence[int]) -> dict[int, list[int]]:
    """For each recording its copies at all speeds (see audiolm.training.speeds), itself included."""
    names = store.entries.table["name"].take(np.asarray(numbers, np.int64)).to_pylist()
    known = set(names)
    keys = [original(name, known) for name in names]
    groups: dict[str, list[int]] = {}
    for number, key in zip(numbers, keys, strict=True):
        groups.setdefault(key, []).append(number)
    return {number: groups[key] for number, key in zip(numbers, keys, strict=True)}
