"""Find recordings in a folder, a manifest or an object store, and split them by speaker.

    recordings = scan("folder or manifest.csv")

A bad file is reported and left out; it never stops the scan and is never dropped silently.
"""

import csv
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from audiolm import audio
from audiolm.errors import InputError
from audiolm.training.storage import fetched, is_remote, place, stored

SPLITS = ("train", "valid", "test")
_SPLIT_NAMES = {name: name for name in SPLITS} | {"val": "valid", "validation": "valid", "dev": "valid", "eval": "test"}

Skipped = list[tuple[str, str]]  # (recording, why it was left out)


@dataclass(frozen=True)
class Recording:
    """One sound file of a corpus. `name` is its path inside the corpus and identifies it."""

    path: Path
    name: str
    speaker: str
    split: str  # train, valid or test
    seconds: float
    columns: Mapping[str, str] = field(default_factory=dict)  # the manifest's other columns, such as transcript


def scan(
    source: str | os.PathLike[str],
    valid: float = 0.05,
    test: float = 0.05,
    seed: int = 0,
    minimum: float = 0.1,
    skipped: Skipped | None = None,
    settled: Mapping[str, str] | None = None,
) -> list[Recording]:
    """Recordings of a folder (any tree of sound files, or one with a manifest.csv at its top), of a manifest, or one sound file.

    Each may be in an object store (s3://...); there a column `seconds` saves fetching every file to learn its length.
    A manifest has a column `path` (relative to it) and may have `speaker`, `split`, `seconds` and others. If no split is
    given, speakers are assigned to train, valid and test by hash, so that no speaker is in two of them; with a single speaker,
    recordings are assigned instead. Unless a column gives them, speakers are the folders at the first level that has more than
    one, whatever lies below them (speaker/session/file). If all folders at the top are named after splits (as dev-clean is),
    train and at least one other, they are no speakers, but the splits; valid or test, if it has no folder, is drawn by the same
    hash from train's speakers, and stderr says so.
    `settled`: splits that speakers were assigned to before, which they keep.
    In a folder, transcripts are read from NAME.txt or (LibriTTS) NAME.normalized.txt beside NAME.wav, from LibriSpeech's
    *.trans.txt, from VCTK's tree txt and from LJSpeech's metadata.csv (id|as written|as said) beside its folder wavs.

    Files that cannot be read or are shorter than `minimum` seconds are left out and appended to `skipped`, or named on stderr
    if it is None. Raises InputError if the source is none of these, or no recording can be used.
    """
    source = _source(source)
    left_out: Skipped = []
    rows = _rows(source, left_out)
    found, names = [], set()
    for row in rows:
        try:
            if row["name"] in names:
                raise InputError(f"{source}: lists {row['name']} twice; the first line is used")
            names.add(row["name"])
            (row["name"] + row["speaker"]).encode()
            found.append((row, _seconds(row, minimum)))
        except UnicodeEncodeError:  # such a name can neither be hashed nor written to an index
            name, path = (str(row[key]).encode(errors="backslashreplace").decode() for key in ("name", "path"))
            left_out.append((name, f"{path}: its name is not UTF-8; rename it"))
        except OSError as error:  # before the file is opened: the name is too long, or the folder is not accessible
            left_out.append((row["name"], f"{row['path']}: cannot be read ({error.strerror})"))
        except InputError as error:
            left_out.append((row["name"], str(error)))
    if not found:
        reason = f": {left_out[0][1]}" if left_out else ""
        raise InputError(f"{source}: none of {len(rows)} recordings can be used{reason}")
    if skipped is None:
        report(left_out)
    else:
        skipped += left_out
    splits = _splits([row for row, _ in found], valid, test, seed, source, settled or {})
    if source.is_dir():
        _transcribe([row for row, _ in found])
    known = ("path", "name", "speaker", "split", "seconds")
    return [
        Recording(
            row["path"], row["name"], row["speaker"], split, seconds, {k: v for k, v in row.items() if k not in known and v}
        )
        for (row, seconds), split in zip(found, splits, strict=True)
    ]


def held_out(about: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with which a model's recipe called `scan`, from the model's `about`; empty if that doesn't tell."""
    said = about.get("split")
    return {name: said[name] for name in ("valid", "test", "seed") if name in said} if isinstance(said, dict) else {}


def listed(source: str | os.PathLike[str]) -> set[str]:
    """Names of the recordings in a folder or a manifest; opens none of them. Raises InputError as `scan` does."""
    return {row["name"] for row in _rows(_source(source), [])}


def in_turn(speakers: Sequence[str], seed: int) -> list[int]:
    """Indices of recordings in rounds: one of each speaker, then a second of each, ...; the seed decides each round's order."""
    order: list[int] = torch.randperm(len(speakers), generator=torch.Generator().manual_seed(seed)).tolist()
    rounds: dict[str, int] = {}
    ranks = {}
    for number in order:
        ranks[number] = rounds[speakers[number]] = rounds.get(speakers[number], -1) + 1
    return sorted(order, key=ranks.__getitem__)


def by_speaker(recordings: Sequence[Recording], seed: int) -> list[Recording]:
    """Recordings in the order of `in_turn`, one speaker after the other."""
    return [recordings[number] for number in in_turn([each.speaker for each in recordings], seed)]


def report(skipped: Skipped, path: Path | None = None) -> None:
    """Print to stderr what was left out, the first five by name, and write the whole list to `path` as JSON."""
    for name, reason in skipped[:5]:
        print(f"left out {name}: {reason}", file=sys.stderr)
    if len(skipped) > 5:
        print(f"left out {len(skipped)} recordings in all{f', listed in {path}' if path else ''}", file=sys.stderr)
    if path is not None:
        with stored(path) as temporary:
            temporary.write_text(json.dumps([{"name": n, "reason": r} for n, r in skipped], indent=1) + "\n", encoding="utf-8")


def _source(path: str | os.PathLike[str]) -> Path:
    """The source's path; a folder's manifest.csv if it has one."""
    source = place(path)
    try:
        if source.is_dir() and (source / "manifest.csv").is_file():
            source = source / "manifest.csv"
        if not source.exists():
            raise InputError(f"{source}: no such folder or manifest; check the path")
    except OSError as error:  # such as a folder without access rights
        raise InputError(f"{source}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return source


def _rows(source: Path, left_out: Skipped) -> list[dict[str, Any]]:
    if source.is_dir():
        return _folder_rows(source, left_out)
    return _with_speakers([_row(source, source.parent)]) if source.suffix.lower() in audio.READABLE else _manifest_rows(source)


def _folder_rows(folder: Path, left_out: Skipped) -> list[dict[str, Any]]:
    if is_remote(folder):
        files = [path for path in folder.rglob("*") if "/." not in f"/{path.relative_to(folder).as_posix()}"]
    else:
        files = list(_files(folder, left_out))
    # A link to nothing is kept, so that it is reported like any other file that cannot be read.
    paths = sorted(p for p in files if p.suffix.lower() in audio.READABLE and (p.is_file() or not p.exists()))
    if not paths:
        reason = f" ({left_out[0][1]})" if left_out else ""
        raise InputError(f"{folder}: no sound files in it{reason}; give a folder with wav, flac, mp3, ogg or opus files")
    rows = [_row(path, folder) for path in paths]
    told = [path for path in files if path.suffix.lower() == ".txt" or path.name == "metadata.csv"]
    texts = {_key(path.relative_to(folder).as_posix()): path for path in told}
    for row in rows:
        row["told"] = next((texts[key] for key in _keys(row["name"]) if key in texts), None)
    splits = [_split_of(row["name"]) for row in rows]
    if None not in splits and {"train"} < set(splits):
        for row, split in zip(rows, splits, strict=True):
            row["split"] = split
    return _with_speakers(rows)


def _files(top: Path, left_out: Skipped) -> Iterator[Path]:
    """All files in a folder tree but hidden ones, those in hidden folders, such as a trash, and those that training made.

    Unlike rglob it follows links to folders; no folder is visited twice.
    """
    seen = {str(above) for above in Path(os.path.realpath(top)).parents}  # a link to a parent would lead out of the corpus
    folders, links = [top], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # links last, so that files in the tree are named by their place
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            inside = [(path, path.is_dir()) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        except OSError as error:
            left_out.append((folder.relative_to(top).as_posix(), f"{folder}: cannot be read ({error.strerror})"))
            continue
        names = {path.name for path, _ in inside}
        if "begun.json" in names and folder != top:  # a step of a recipe (audiolm.training.chain), with samples to listen to
            continue
        for path, is_folder in inside:
            if path.name == "sounds" and "sounds.json" in names:  # what a detector learns from (audiolm.training.train_detector)
                continue
            if is_folder:
                (links if path.is_symlink() else folders).append(path)
            else:
                yield path


def _row(path: Path, folder: Path) -> dict[str, Any]:
    return {"path": path, "name": path.relative_to(folder).as_posix()}


def _key(text: str) -> str:
    """What a text file is looked up by: its name without suffix, or the folder that it is for all recordings of."""
    if text.endswith(".csv"):
        return text.removesuffix("metadata.csv") + "wavs/"
    return f"{text.rpartition('/')[0]}/" if text.endswith(".trans.txt") else text[: -len(".txt")]


def _keys(name: str) -> Iterator[str]:
    """Keys of the text files that may have a recording's transcript. The files are not looked for, but in the tree's listing."""
    stem = name.rpartition(".")[0]
    yield stem
    yield f"{stem}.normalized"  # LibriTTS
    yield f"{name.rpartition('/')[0]}/"  # LibriSpeech, LJSpeech
    yield re.sub(r"(^|/)wav48[^/]*/(.*?)(_mic\d)?$", r"\1txt/\2", stem)  # VCTK: wav48_.../p225/p225_001_mic1.flac


def _transcribe(rows: Sequence[dict[str, Any]]) -> None:
    """Read the transcripts of a folder's recordings from the files `told`. One that cannot be read is named on stderr.

    The rows are in order, so that LibriSpeech's files, one for a chapter, are read once each.
    """

    @lru_cache(1)
    def text_of(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            print(f"{path}: no transcript ({error})", file=sys.stderr)
            return ""

    @lru_cache(1)
    def lines_of(path: Path) -> dict[str, str]:
        lines = text_of(path).splitlines()
        if path.suffix == ".csv":  # LJSpeech: id|as written|as said; quotes are part of the text
            return {name: text.rstrip("|").rpartition("|")[2] for name, _, text in (line.partition("|") for line in lines)}
        return {name: text for name, _, text in (line.partition(" ") for line in lines)}

    for row in rows:
        if path := row.pop("told"):
            of_many = path.name.endswith((".trans.txt", ".csv"))
            told = lines_of(path).get(row["path"].stem, "") if of_many else text_of(path)
            row["transcript"] = " ".join(told.split())


def _split_of(name: str) -> str | None:
    """The split that a file's top folder is named after."""
    return _SPLIT_NAMES.get(re.split(r"[-_. /]", name.lower())[0]) if "/" in name else None


def _with_speakers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    folders = [row["name"].split("/")[:-1] for row in rows]
    begin = 1 if all(_split_of(row["name"]) for row in rows) else 0
    levels = range(begin, max(map(len, folders), default=0))
    level = next((n for n in levels if len({tuple(each[begin : n + 1]) for each in folders}) > 1), None)
    for row, each in zip(rows, folders, strict=True):
        own = row["path"].parent.name if level is None or len(each) <= level else each[level]
        row["speaker"] = row.get("speaker") or own
    return rows


def _manifest_rows(manifest: Path) -> list[dict[str, Any]]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file, restval="", restkey="_", skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{manifest}: cannot be read as CSV ({error}); save it as UTF-8 text with commas") from error
    if not rows or "path" not in rows[0]:
        raise InputError(f"{manifest}: a manifest needs a header line of column names including 'path', and a line per recording")
    for number, row in enumerate(rows, 2):
        if "_" in row or not row["path"]:
            raise InputError(f"{manifest}: line {number} has {'too many columns' if '_' in row else 'no path'}; correct it")
        row["name"] = row["path"]
        row["path"] = manifest.parent / row["path"]
    return _with_speakers(rows)


def _seconds(row: Mapping[str, Any], minimum: float) -> float:
    path, said = row["path"], row.get("seconds")
    if said and (is_remote(path) or path.is_file()):
        # Trusting the manifest saves opening every file of a large corpus; a file that is too short is left out when decoded.
        try:
            seconds = float(said)
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            raise InputError(f"{path}: seconds is {said!r}; correct it or leave it empty")
    else:
        seconds = _probed(path)
    if not seconds >= minimum:
        raise InputError(f"{path}: only {seconds:.3g} s long; at least {minimum:g} s are needed")
    return seconds


def _probed(path: Path) -> float:
    with fetched(path) as local:
        return audio.probe(local).seconds


def _splits(
    rows: Sequence[Mapping[str, Any]], valid: float, test: float, seed: int, source: Path, settled: Mapping[str, str]
) -> list[str]:
    given = [str(row.get("split") or "").strip().lower() for row in rows]
    if any(given):
        for row, split in zip(rows, given, strict=True):
            if split not in _SPLIT_NAMES:
                raise InputError(f"{source}: split of {row['name']} is {split!r}; give train, valid or test to all, or to none")
        splits = [_SPLIT_NAMES[split] for split in given]
        shares = {name: share for name, share in (("valid", valid), ("test", test)) if share and name not in splits}
        if not source.is_dir() or not shares:  # a manifest is taken at its word
            return splits
        found = ", ".join(name for name in SPLITS if name in splits)
        print(f"{source}: has folders for {found}; {' and '.join(shares)} drawn from train's speakers", file=sys.stderr)
        ours = [row for row, split in zip(rows, splits, strict=True) if split == "train"]
        settled = {who: split for who, split in settled.items() if split in ("train", *shares)}
        drawn = iter(_dealt(ours, shares.get("valid", 0.0), shares.get("test", 0.0), seed, settled))
        return [next(drawn) if split == "train" else split for split in splits]
    return _dealt(rows, valid, test, seed, settled)


def _dealt(rows: Sequence[Mapping[str, Any]], valid: float, test: float, seed: int, settled: Mapping[str, str]) -> list[str]:
    """A split for each row, by its speaker's hash."""
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise InputError(f"valid={valid} and test={test}: must be shares of the speakers, at least 0 and together below 1")
    by = "speaker" if len({row["speaker"] for row in rows} | set(settled)) > 1 else "name"
    settled = settled if by == "speaker" else {}
    # A hash, not a shuffle: a speaker keeps its split when others join the corpus.
    draws = {row[by]: int(hashlib.sha256(f"{seed}/{row[by]}".encode()).hexdigest()[:12], 16) / 16**12 for row in rows}
    dealt = {who: "valid" if draw < valid else "test" if draw < valid + test else "train" for who, draw in draws.items()}
    dealt |= settled
    wanted = [split for split, share in zip(SPLITS, (1.0, valid, test), strict=True) if share]
    for rank, split in enumerate(wanted):
        # With few speakers a split may be empty: it takes one of the largest split, or the last of a less important one.
        counts = {name: list(dealt.values()).count(name) for name in SPLITS}
        free = {name: [who for who in dealt if dealt[who] == name and who not in settled] for name in SPLITS}
        donors = [name for name in SPLITS if free[name] and (counts[name] > 1 or name in wanted[rank:])]
        if not counts[split] and donors:
            donor = max(donors, key=lambda name: counts[name])
            dealt[min(free[donor], key=lambda who: draws[who])] = split
    return [dealt[row[by]] for row in rows]
