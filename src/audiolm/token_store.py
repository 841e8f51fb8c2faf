"""Tokens of a corpus on disk: uint16 codes in memory-mapped safetensors shards, an index in Parquet, a key in the header.

    STORE/header.json              the key: which tokenizers made the ids, at which rate; ids mean nothing under others
    STORE/00000.safetensors        per stream one array (frames, levels) of all the shard's recordings
    STORE/00000.parquet            per recording its name, speaker, split, seconds, place in the arrays, checksum

A shard exists when its index does; both are written whole, so a killed job loses one shard at most and goes on.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audiolm.config import difference
from audiolm.data import Placement, read_header, write_header
from audiolm.errors import InputError
from audiolm.files import save_tensors, whole_file
from audiolm.stages import Stage
from audiolm.tokens import Tokens, TokenSpec

Key = dict[str, Any]
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


def store_key(sample_rate: int, tokenizers: Mapping[str, tuple[TokenSpec, str]], **details: Any) -> Key:
    """What identifies a store: per stream its specification and the hash of the tokenizer's weights; layer, k, ..."""
    streams = {name: {"hash": weights, "spec": asdict(spec)} for name, (spec, weights) in tokenizers.items()}
    return {"sample_rate": sample_rate, "streams": streams, **details}


@dataclass(frozen=True)
class TokenEntry:
    """A tokenised recording: for each stream the first of its frames in the shard and their number."""

    name: str
    speaker: str
    split: str
    seconds: float
    shard: int
    starts: Mapping[str, int]
    frames: Mapping[str, int]
    checksum: int
    columns: Mapping[str, str] = field(default_factory=dict)


class TokenStore:
    """Open, read, append to and verify a token store. Streams are named by their specification: "semantic", "acoustic"."""

    def __init__(self, folder: str | os.PathLike[str], expect: Key | None = None) -> None:
        """InputError where the folder is no token store, is damaged, or its key differs from `expect` (it says in what)."""
        self.folder = Path(folder)
        self.key: Key = read_header(self.folder, "token store")["key"]
        changed = difference(self.key, expect) if expect is not None else None
        if changed:
            raise InputError(f"{self.folder}: made by another tokenizer ({changed}); tokenise again into another folder")
        self.specs = {name: TokenSpec(**stream["spec"]) for name, stream in self.key["streams"].items()}
        self.entries: list[TokenEntry] = []
        for index in sorted(self.folder.glob("[0-9]*.parquet")):
            self.entries += _read_index(index, list(self.specs))
            _open_shard(index.with_suffix(".safetensors"))  # a truncated shard is found now, not hours later
        self.names = {entry.name for entry in self.entries}
        self._shard = cache(lambda shard: _open_shard(self.folder / f"{shard:05d}.safetensors"))

    @classmethod
    def create(cls, folder: str | os.PathLike[str], key: Key) -> "TokenStore":
        """Make an empty store, or open the one that is there to append to it; InputError where its key is another."""
        if not (Path(folder) / "header.json").is_file():
            write_header(Path(folder), "token store", {"key": key})
        return cls(folder, expect=key)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def split(self, name: str) -> list[int]:
        """Numbers of the recordings in a split."""
        return [number for number, entry in enumerate(self.entries) if entry.split == name]

    def read(self, number: int, stream: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Codes (Q, F) int64 of frames [start, stop) of a recording; only they are read from disk."""
        entry = self.entries[number]
        first = entry.starts[stream]
        last = first + min(entry.frames[stream], entry.frames[stream] if stop is None else stop)
        codes = self._shard(entry.shard).get_slice(stream)[first + start : last]
        return torch.from_numpy(codes.astype(np.int64)).T

    def tokens(self, number: int) -> dict[str, Tokens]:
        """All streams of a recording."""
        return {name: Tokens(self.read(number, name).contiguous(), spec) for name, spec in self.specs.items()}

    def verify(self) -> None:
        """Read everything; InputError naming the first recording whose codes are not those that were written."""
        for number, entry in enumerate(self.entries):
            if _checksum({name: self.read(number, name) for name in self.specs}) != entry.checksum:
                raise InputError(
                    f"{self.folder}: {entry.name} is damaged (shard {entry.shard:05d}); delete the shard, tokenise again"
                )

    @contextmanager
    def writer(self, shard_seconds: float = 3600.0) -> Iterator["TokenWriter"]:
        """Append: `with store.writer() as writer: writer.add(...)`. A shard is written every `shard_seconds` of sound."""
        writer = TokenWriter(self, shard_seconds)
        yield writer
        writer.flush()

    def summary(self) -> dict[str, Any]:
        """What is in it: recordings and hours of each split, frames of each stream, the key."""
        splits: dict[str, dict[str, float]] = {}
        for entry in self.entries:
            split = splits.setdefault(entry.split, {"recordings": 0, "hours": 0.0})
            split["recordings"] += 1
            split["hours"] += entry.seconds / 3600
        frames = {name: sum(entry.frames[name] for entry in self.entries) for name in self.specs}
        return {"recordings": len(self), "splits": splits, "frames": frames, "key": self.key}


class TokenWriter:
    """Collects recordings into shards. What was not flushed is not there."""

    def __init__(self, store: TokenStore, shard_seconds: float) -> None:
        self.store, self.shard_seconds = store, shard_seconds
        self._begin()

    def _begin(self) -> None:
        self._number = 1 + max((entry.shard for entry in self.store.entries), default=-1)
        self._entries: dict[str, TokenEntry] = {}
        self._codes: dict[str, list[Tensor]] = {name: [] for name in self.store.specs}
        self._frames = dict.fromkeys(self.store.specs, 0)
        self._seconds = 0.0

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
        if name in self.store or name in self._entries:
            raise InputError(f"{self.store.folder}: {name} is in the store already; give each recording its own name")
        if codes.keys() != self.store.specs.keys():
            raise InputError(f"{name}: codes of {sorted(codes)} where the store keeps {sorted(self.store.specs)}")
        for stream, spec in self.store.specs.items():
            Tokens(codes[stream], spec)  # refuses foreign ids
            if len(codes[stream]) != spec.num_codebooks:
                raise InputError(
                    f"{name}: {len(codes[stream])} of {spec.num_codebooks} {stream} levels; a store keeps all of them"
                )
        frames = {stream: each.shape[-1] for stream, each in codes.items()}
        about = (name, speaker, split, seconds, self._number, dict(self._frames), frames, _checksum(codes), dict(columns))
        self._entries[name] = TokenEntry(*about)
        for stream, each in codes.items():
            self._codes[stream].append(each.T.to(torch.uint16))
            self._frames[stream] += frames[stream]
        self._seconds += seconds
        if self._seconds >= self.shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Write the shard and then its index."""
        if not self._entries:
            return
        path = self.store.folder / f"{self._number:05d}.safetensors"
        save_tensors(path, {name: torch.cat(codes) for name, codes in self._codes.items()})
        _write_index(path.with_suffix(".parquet"), list(self._entries.values()))
        self.store.entries += self._entries.values()
        self.store.names |= self._entries.keys()
        self._begin()


def _checksum(codes: Mapping[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(codes):
        checksum = zlib.crc32(codes[name].to(torch.int32).contiguous().numpy().tobytes(), checksum)
    return checksum


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: missing or damaged ({error}); delete it and its .parquet, tokenise again") from error


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("a token store needs pyarrow; run: pip install 'audiolm[train]'") from error
    return pyarrow


def _write_index(path: Path, entries: list[TokenEntry]) -> None:
    rows = []
    for entry in entries:
        row = asdict(entry) | {"columns": json.dumps(dict(entry.columns))}
        for name in entry.starts:
            row |= {f"{name}_start": entry.starts[name], f"{name}_frames": entry.frames[name]}
        rows.append({key: value for key, value in row.items() if key not in ("starts", "frames")})
    arrow = _parquet()
    with whole_file(path) as temporary:
        arrow.parquet.write_table(arrow.Table.from_pylist(rows), temporary)


def _read_index(path: Path, streams: list[str]) -> list[TokenEntry]:
    arrow = _parquet()
    try:
        rows = arrow.parquet.read_table(path).to_pylist()
        plain = ("name", "speaker", "split", "seconds", "shard", "checksum")
        return [
            TokenEntry(
                **{key: row[key] for key in plain},
                starts={name: row[f"{name}_start"] for name in streams},
                frames={name: row[f"{name}_frames"] for name in streams},
                columns=json.loads(row["columns"]),
            )
            for row in rows
        ]
    except (arrow.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path}: not a whole index ({str(error).splitlines()[0]}); delete the shard, tokenise again") from error


# --- Crops -----------------------------------------------------------------------------------------------------------


class Item(TypedDict):
    """A training example of a stage, before it is packed into ids."""

    given: list[Tensor]  # (levels, F) of each given stream
    predicted: Tensor  # (levels, F)
    starts: bool  # the crop begins where the recording begins
    ends: bool  # the crop ends where the recording truly ends: only then is there an EOS


class TokenCrops:
    """Batches of a stage's crops from one split. Every crop starts at an instant where a frame of each stream begins."""

    def __init__(self, store: TokenStore, stage: Stage, split: str, batch_size: int, seed: int = 0) -> None:
        self.store, self.stage, self.batch_size = store, stage, batch_size
        for stream in stage.streams:
            own = store.specs.get(stream.spec.name)
            if own != stream.spec:
                raise InputError(
                    f"{store.folder}: stage {stage.name} needs {stream.spec}, the store has {own or 'no such tokens'}"
                )
        self.recordings = store.split(split)
        if not self.recordings:
            raise InputError(f"{store.folder}: holds no {split} recordings; give more speakers, or a split column")
        # In units of the stage's grid; a last unit may be part-filled, and is then still the recording's end.
        self.frames = [round(stream.spec.frame_rate * stage.grid) for stream in stage.streams]
        self.crop = max(1, round(stage.crop / stage.grid))
        self.placement = Placement([self._units(number) for number in self.recordings], self.crop, seed)

    def _units(self, number: int) -> int:
        frames = self.store.entries[number].frames
        return max(-(-frames[stream.spec.name] // each) for stream, each in zip(self.stage.streams, self.frames, strict=True))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.placement) // self.batch_size)

    def batch(self, step: int) -> list[Item]:
        """Batch of any step from 0 on; nothing but (seed, step) decides it."""
        return [self._item(*self.placement[step * self.batch_size + row]) for row in range(self.batch_size)]

    def _item(self, recording: int, start: int) -> Item:
        number, stop = self.recordings[recording], start + self.crop
        codes = [
            stream.take(self.store.read(number, stream.spec.name, start * frames, stop * frames)).contiguous()
            for stream, frames in zip(self.stage.streams, self.frames, strict=True)
        ]
        ends = stop >= int(self.placement.lengths[recording])
        return {"given": codes[:-1], "predicted": codes[-1], "starts": start == 0, "ends": ends}
