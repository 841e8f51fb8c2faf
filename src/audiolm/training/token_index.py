"""The index of a token store: per shard a Parquet table, a row per recording; its metadata says what was left out, and why."""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audiolm.errors import InputError
from audiolm.training.storage import stored

PLAIN = ("name", "speaker", "split", "seconds", "shard", "checksum", "columns")


@dataclass(frozen=True)
class TokenEntry:
    """A tokenised recording: for each stream, its first frame in the shard and its number of frames."""

    name: str
    speaker: str
    split: str
    seconds: float
    shard: int
    starts: Mapping[str, int]
    frames: Mapping[str, int]
    checksum: int
    columns: Mapping[str, str] = field(default_factory=dict)


class TokenEntries:
    """The index of a store, by column: about a hundred bytes per recording. Entries are made when they are accessed."""

    def __init__(self, table: Any, streams: Sequence[str]) -> None:
        self.table, self.streams = table, streams
        self.shard: np.ndarray = table["shard"].to_numpy()
        self.starts: dict[str, np.ndarray] = {name: table[f"{name}_start"].to_numpy() for name in streams}
        self.frames: dict[str, np.ndarray] = {name: table[f"{name}_frames"].to_numpy() for name in streams}

    def __len__(self) -> int:
        return len(self.shard)

    def of_split(self, split: str) -> list[int]:
        """Indices of the recordings in a split."""
        equal = parquet().compute.equal(self.table["split"], split)
        return np.flatnonzero(equal.to_numpy()).tolist()

    def columns(self) -> list[dict[str, str]]:
        """The further columns of each recording's row in the manifest, such as its transcript."""
        return [json.loads(each) for each in self.table["columns"].to_pylist()]

    def with_stream(self, name: str, like: str) -> "TokenEntries":
        """The same index, with a further stream of as many frames as the stream `like` has."""
        wider = copy(self)
        wider.frames = {**self.frames, name: self.frames[like]}
        return wider

    def __iter__(self) -> Iterator[TokenEntry]:
        for batch in self.table.to_batches(max_chunksize=1000):
            yield from map(self._entry, batch.to_pylist())

    def __getitem__(self, number: int) -> TokenEntry:
        return self._entry(self.table.slice(range(len(self))[number], 1).to_pylist()[0])

    def _entry(self, row: dict[str, Any]) -> TokenEntry:
        starts, frames = ({name: row[f"{name}_{what}"] for name in self.streams} for what in ("start", "frames"))
        plain = {name: row[name] for name in PLAIN} | {"columns": json.loads(row["columns"])}
        return TokenEntry(**plain, starts=starts, frames=frames)


def parquet() -> Any:
    """pyarrow, with the submodules used here imported."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("a token store needs pyarrow; run: pip install 'audiolm[train]'") from error
    return pyarrow


def schema_of(streams: Sequence[str]) -> Any:
    """The columns of an index."""
    arrow = parquet()
    text, whole = arrow.string(), arrow.int64()
    kinds = zip(PLAIN, (text, text, text, arrow.float64(), whole, whole, text), strict=True)
    places = [(f"{name}_{what}", whole) for name in streams for what in ("start", "frames")]
    return arrow.schema([*kinds, *places])


def write_index(path: Path, rows: list[dict[str, Any]], streams: Sequence[str], skipped: Mapping[str, str]) -> None:
    """Write the index of a shard; the shard counts from then on."""
    arrow = parquet()
    schema = schema_of(streams).with_metadata({"skipped": json.dumps(dict(skipped))})
    with stored(path) as temporary:
        arrow.parquet.write_table(arrow.Table.from_pylist(rows, schema), temporary)


def read_index(path: Path, streams: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """The rows of an index, and what was left out of its shard."""
    arrow = parquet()
    try:
        # From memory and in this thread, unlike read_table, whose threads may outlive the program and abort its exit.
        table = arrow.parquet.ParquetFile(arrow.BufferReader(path.read_bytes())).read(use_threads=False)
        skipped = json.loads((table.schema.metadata or {}).get(b"skipped", b"{}"))
        return table.select(schema_of(streams).names).cast(schema_of(streams)), skipped
    except (arrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged index ({str(error).splitlines()[0]}); delete the shard, tokenise again") from error
