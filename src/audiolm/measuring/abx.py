"""Phonetic ABX (Schatz et al. 2013; AudioLM Table I): is X nearer to A, which has the same phone, than to B, which has another?

A, B and X are triphones in the same context: they differ in the middle phone only. "Within" takes all three from one speaker,
"across" takes X from another. Distances, limits and averages follow the scripts of Libri-Light and ZeroSpeech: angles between
frames, aligned by dynamic time warping and divided by the path length; errors averaged over contexts, then over speakers, then
over pairs of phones. 0 is perfect, 0.5 is chance.

T triplets, R recordings; features are (F, D), one row per frame.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from audiolm.errors import InputError
from audiolm.measuring.phonetics import PHONES, Phone

Mode = Literal["within", "across"]
GROUP, OTHERS = 10, 5  # at most: items per phone, context and speaker; speakers to take X from (the limits of those scripts)
MOST = 300_000  # triplets; cells (speaker, context, two phones) are drawn at random until there are this many
BATCH = 4096  # pairs of items aligned at once


class Item(NamedTuple):
    """A triphone: its place (times in seconds), its phone with context, and its speaker."""

    recording: int
    start: float
    end: float
    phone: str
    before: str
    after: str
    speaker: str


@dataclass(frozen=True, eq=False)
class Triplets:
    """Triplets of items A, B, X. A cell is a speaker, a context, two phones and, across speakers, X's speaker."""

    items: Tensor  # (T, 3)
    recordings: Tensor  # (T, 3), recording of each item
    cell: Tensor  # (T), index into group
    group: Tensor  # (cells), index into pair: each cell's speaker and pair of phones
    pair: Tensor  # (groups), number of each group's pair of phones

    def __len__(self) -> int:
        return len(self.items)


def triphones(phones: Sequence[Phone], recording: int, speaker: str) -> list[Item]:
    """The items of a recording, from its phones; none spans silence or noise."""
    spoken = [phone.name in PHONES and phone.name != "SIL" for phone in phones]
    return [
        Item(recording, phones[i - 1].start, phones[i + 1].end, phones[i].name, phones[i - 1].name, phones[i + 1].name, speaker)
        for i in range(1, len(phones) - 1)
        if all(spoken[i - 1 : i + 2])
    ]


def read_items(path: str | Path, recordings: Sequence[str]) -> list[Item]:
    """Items of a ZeroSpeech or Libri-Light .item file (file onset offset phone before after speaker) for these recordings.

    recordings: names without suffix; items of others are ignored. InputError if a line is malformed, or if no item is left.
    """
    number = {name: index for index, name in enumerate(recordings)}
    items = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()[1:]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a ZeroSpeech .item file") from error
    for place, line in enumerate(lines, 2):
        try:
            file, start, end, phone, before, after, speaker = line.split()
            if file in number:
                items.append(Item(number[file], float(start), float(end), phone, before, after, speaker))
        except ValueError as error:
            raise InputError(
                f"{path}, line {place}: not 'file onset offset phone before after speaker'; give a ZeroSpeech .item file"
            ) from error
    if not items:
        raise InputError(f"{path}: lists none of these recordings; give the recordings that it belongs to")
    return items


def triplets(items: Sequence[Item], mode: Mode, seed: int = 0) -> Triplets:
    """All triplets of the items, within the limits above. The same seed gives the same triplets."""
    random = Random(seed)
    where: dict[tuple[str, str], dict[str, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number, item in enumerate(items):  # context -> speaker -> phone -> items
        where[item.before, item.after][item.speaker][item.phone].append(number)
    cells = []
    for by_speaker in where.values():
        for speaker, by_phone in by_speaker.items():
            for phone, of_a in by_phone.items():
                others = [other for other, theirs in by_speaker.items() if other != speaker and phone in theirs]
                of_x = [by_speaker[each][phone] for each in random.sample(others, min(OTHERS, len(others)))]
                for other, of_b in by_phone.items():
                    if other != phone:
                        cells += [((speaker, phone, other), of_a, of_b, x) for x in ([of_a] if mode == "within" else of_x)]
    cells = [each for each in cells if mode == "across" or len(each[1]) > 1]
    random.shuffle(cells)
    found, of_cell = [], []
    for number, (_, *parts) in enumerate(cells):
        a, b = (random.sample(part, min(GROUP, len(part))) for part in parts[:2])
        x = a if mode == "within" else random.sample(parts[2], min(GROUP, len(parts[2])))
        rows = [(i, j, k) for i in a for j in b for k in x if i != k]
        found += rows
        of_cell += [number] * len(rows)
        if len(found) >= MOST:
            cells = cells[: number + 1]
            break
    groups = {name: index for index, name in enumerate(dict.fromkeys(cell[0] for cell in cells))}
    pairs = {name: index for index, name in enumerate(dict.fromkeys(name[1:] for name in groups))}
    numbers = torch.tensor(found, dtype=torch.int64).view(-1, 3)
    return Triplets(
        numbers,
        torch.tensor([item.recording for item in items], dtype=torch.int64)[numbers],
        torch.tensor(of_cell, dtype=torch.int64),
        torch.tensor([groups[cell[0]] for cell in cells], dtype=torch.int64),
        torch.tensor([pairs[name[1:]] for name in groups], dtype=torch.int64),
    )


def confusions(features: Sequence[Tensor], frame_rate: float, items: Sequence[Item], chosen: Triplets) -> Tensor:
    """For each triplet 1 if X is nearer to B, 0.5 if equally near to A and B, else 0: (T). NaN if an item has no frame.

    features: (F, D) of each recording at `frame_rate` Hz. The frames of an item are those whose middle lies within it, without
    the last of them, as Libri-Light's script rounds.
    """
    parts = []
    for item in items:
        first, last = math.ceil(item.start * frame_rate - 0.5), math.floor(item.end * frame_rate - 0.5)
        parts.append(nnf.normalize(features[item.recording][max(0, first) : max(0, first, last)].float(), dim=1))
    there = torch.tensor([bool(len(part)) for part in parts])
    count = len(items)
    wanted = torch.cat([chosen.items[:, 2] * count + chosen.items[:, 0], chosen.items[:, 2] * count + chosen.items[:, 1]])
    unique, place = wanted.unique(return_inverse=True)
    ends = torch.stack([unique // count, unique % count])
    distance = torch.full((len(unique),), math.nan)
    sizes = torch.tensor([len(part) for part in parts])
    alike = (sizes[ends[0]] * 1000 + sizes[ends[1]]).argsort()  # sorted by length, for little padding
    for index in alike[there[ends].all(0)[alike]].split(BATCH):
        left, right = ([parts[number] for number in side] for side in ends[:, index].tolist())
        distance[index] = _aligned(left, right)
    same, other = distance[place].view(2, -1)
    return torch.where((same + other).isnan(), math.nan, (same > other).double() + 0.5 * (same == other).double())


def _aligned(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Mean angle, in units of pi, along the cheapest alignment of each pair of normalised sequences: (N)."""
    lengths = [torch.tensor([len(part) for part in side]) for side in (left, right)]
    cosines = pad_sequence(list(left), True) @ pad_sequence(list(right), True).mT
    return warp(cosines.clamp(-1, 1).acos() / math.pi, *lengths)


def warp(costs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cost of the cheapest corner-to-corner path divided by its length, (N), for the rows x columns used of each (N, L, M)."""
    height, width = costs.shape[1:]
    never = torch.full(costs.shape[:1], math.inf, dtype=costs.dtype)
    total = [[never] * (width + 1) for _ in range(height + 1)]
    steps = [[torch.zeros_like(never)] * (width + 1) for _ in range(height + 1)]
    total[0][0] = torch.zeros_like(never)
    for i in range(height):
        for j in range(width):
            # This order breaks ties: diagonal, along the columns, along the rows.
            before = torch.stack([total[i][j], total[i + 1][j], total[i][j + 1]])
            least, way = before.min(0)
            taken = torch.stack([steps[i][j], steps[i + 1][j], steps[i][j + 1]]).gather(0, way[None])[0]
            total[i + 1][j + 1], steps[i + 1][j + 1] = least + costs[:, i, j], taken + 1
    number = torch.arange(len(costs))
    cost, length = (torch.stack([torch.stack(row[1:]) for row in table[1:]]) for table in (total, steps))
    return (cost / length)[rows - 1, columns - 1, number]


def abx_error(chosen: Triplets, wrong: Tensor) -> Callable[[Tensor], Tensor]:
    """The error rate as a statistic for `metrics.bootstrap`: indices of recordings (draws, R) -> (draws, 1)."""
    known = ~wrong.isnan()
    wrong, cell, recordings = wrong[known].double(), chosen.cell[known], chosen.recordings[known]
    pairs = int(chosen.pair.max()) + 1 if len(chosen.pair) else 0
    levels = ((cell, len(chosen.group)), (chosen.group, len(chosen.pair)), (chosen.pair, pairs))

    def statistic(draws: Tensor) -> Tensor:
        found = []
        for index in draws:
            times = index.bincount(minlength=draws.shape[1]).double()
            values, weights = wrong, times[recordings].prod(1)
            for level, size in levels:
                sums = torch.zeros(size, dtype=torch.float64).index_add(0, level, weights)
                values = torch.zeros_like(sums).index_add(0, level, values * weights) / sums.clamp_min(1e-12)
                weights = (sums > 0).double()
            found.append((values * weights).sum() / weights.sum())
        return torch.stack(found)[:, None]

    return statistic
