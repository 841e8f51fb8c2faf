"""sWUGGY and sBLIMP (ZeroSpeech 2021; AudioLM section IV-E, Table IV): is the real word or the grammatical sentence likelier?

    FOLDER/lexical/dev/gold.csv, *.wav      filename, id, voice, correct, ...; frequency 0: not a word of LibriSpeech's texts
    FOLDER/syntactic/dev/gold.csv, *.wav    filename, id, voice, correct, ...

A pair is one id spoken by one voice, once correctly and once not. The score of an id is its mean over voices, the score of a
set is the mean over ids, and a tie counts half a point. The data set is `sLM21-dataset` from zerospeech.com (pip install
zerospeech-benchmarks; zrc datasets:pull sLM21-dataset); scripts/spoken_pairs.py makes small sets with the same layout by
speech synthesis.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from audiolm.errors import InputError

TASKS = {"lexical": "sWUGGY", "syntactic": "sBLIMP"}
WANTED = (
    "sLM21-dataset of ZeroSpeech 2021 (pip install zerospeech-benchmarks; zrc datasets:pull sLM21-dataset), "
    "or a set made by scripts/spoken_pairs.py"
)


class Pair(NamedTuple):
    """A correct and an incorrect recording by one voice. `known`: the word occurs in LibriSpeech (None: not stated)."""

    id: str
    right: Path
    wrong: Path
    known: bool | None


def read_pairs(folder: str | os.PathLike[str], task: str) -> list[Pair]:
    """The pairs of a task; none if the folder lacks it. InputError if gold.csv is malformed or a recording is missing."""
    place = Path(folder) / task / "dev"
    gold = place / "gold.csv"
    if not gold.is_file():
        return []
    sides: dict[tuple[str, str], dict[str, tuple[Path, bool | None]]] = defaultdict(dict)
    with gold.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                # Ids are unique only within a type and subtype of sentences.
                key = (f"{row.get('type', '')} {row.get('subtype', '')} {row['id']}".strip(), row["voice"])
                side, name = row["correct"].strip(), row["filename"]
                known = int(float(row["frequency"])) > 0 if row.get("frequency") and side == "1" else None
            except (KeyError, ValueError) as error:
                raise InputError(f"{gold}: not a list of pairs ({error}); give the folder of {WANTED}") from error
            path = place / (name if name.endswith(".wav") else f"{name}.wav")
            if not path.is_file():
                raise InputError(f"{path}: missing, but listed in {gold.name}; unpack the data set again")
            sides[key][side] = (path, known)
    return [
        Pair(key[0], each["1"][0], each["0"][0], each["1"][1]) for key, each in sorted(sides.items()) if each.keys() >= {"0", "1"}
    ]


def score(pairs: Sequence[Pair], likelihood: Mapping[Path, float]) -> dict[str, float]:
    """For each id, the share of voices whose correct recording is likelier; ties count half."""
    points: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        right, wrong = likelihood[pair.right], likelihood[pair.wrong]
        points[pair.id].append(float(right > wrong) + 0.5 * float(right == wrong))
    return {name: sum(each) / len(each) for name, each in points.items()}
