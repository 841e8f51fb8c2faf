"""sWUGGY and sBLIMP (ZeroSpeech 2021; AudioLM section IV-E, Table IV): is the word, or the sentence, likelier than its twin?

    FOLDER/lexical/dev/gold.csv, *.wav      filename, id, voice, correct, ...; frequency 0: the word is in no LibriSpeech text
    FOLDER/syntactic/dev/gold.csv, *.wav    filename, id, voice, correct, ...

A pair is an id said by one voice, once correct and once not; an id's score is its mean over voices, a set's that over ids.
A tie is half a point. The data set is `sLM21-dataset` of zerospeech.com (pip install zerospeech-benchmarks; zrc datasets:pull
sLM21-dataset); scripts/spoken_pairs.py makes small sets of the same layout with a speech synthesiser.
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
    "or what scripts/spoken_pairs.py makes"
)


class Pair(NamedTuple):
    """Two recordings of one voice, of which the first is right. `known`: the word occurs in LibriSpeech (None: nobody says)."""

    id: str
    right: Path
    wrong: Path
    known: bool | None


def read_pairs(folder: str | os.PathLike[str], task: str, split: str = "dev") -> list[Pair]:
    """Pairs of a task; none where the folder lacks it. InputError where gold.csv is something else or a recording is missing."""
    place = Path(folder) / task / split
    gold = place / "gold.csv"
    if not gold.is_file():
        return []
    sides: dict[tuple[str, str], dict[str, tuple[Path, bool | None]]] = defaultdict(dict)
    with gold.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                # The ids of one sort of sentences are those of another's as well.
                key = (f"{row.get('type', '')} {row.get('subtype', '')} {row['id']}".strip(), row["voice"])
                side, name = row["correct"].strip(), row["filename"]
                known = int(float(row["frequency"])) > 0 if row.get("frequency") and side == "1" else None
            except (KeyError, ValueError) as error:
                raise InputError(f"{gold}: no list of pairs ({error}); give the folder of {WANTED}") from error
            path = place / (name if name.endswith(".wav") else f"{name}.wav")
            if not path.is_file():
                raise InputError(f"{path}: missing, though {gold.name} names it; unpack the data set again")
            sides[key][side] = (path, known)
    return [
        Pair(key[0], each["1"][0], each["0"][0], each["1"][1]) for key, each in sorted(sides.items()) if each.keys() >= {"0", "1"}
    ]


def score(pairs: Sequence[Pair], likelihood: Mapping[Path, float]) -> dict[str, float]:
    """Each id's share of voices in which the right recording is the likelier one."""
    points: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        right, wrong = likelihood[pair.right], likelihood[pair.wrong]
        points[pair.id].append(float(right > wrong) + 0.5 * float(right == wrong))
    return {name: sum(each) / len(each) for name, each in points.items()}
