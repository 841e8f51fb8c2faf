"""ABX: the distance against a slow twin, the error at its extremes, and item files as ZeroSpeech writes them."""

import math
from pathlib import Path

import pytest
import torch

from audiolm.errors import InputError
from audiolm.measuring import abx
from audiolm.measuring.abx import Item, abx_error, confusions, read_items, triphones, triplets, warp
from audiolm.measuring.metrics import bootstrap
from audiolm.measuring.phonetics import Phone

WORDS = [("B", "AE", "T"), ("B", "IH", "T"), ("K", "AE", "T"), ("K", "IH", "T")]


def slow(costs: torch.Tensor) -> float:
    """Dynamic time warping as the textbook has it, and as Libri-Light's script walks back along it."""
    rows, columns = costs.shape
    total = costs.clone()
    for i in range(rows):
        for j in range(columns):
            if i and j:
                total[i, j] += min(total[i - 1, j], total[i - 1, j - 1], total[i, j - 1])
            elif i or j:
                total[i, j] += total[i - 1, j] if i else total[i, j - 1]
    i, j, length = rows - 1, columns - 1, 1
    while i and j:
        up, left, both = total[i - 1, j], total[i, j - 1], total[i - 1, j - 1]
        if both <= left and both <= up:
            i, j = i - 1, j - 1
        elif left <= up:
            j -= 1
        else:
            i -= 1
        length += 1
    return float(total[-1, -1] / (length + i + j))


def test_warping_is_that_of_the_textbook() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.tensor([7, 3, 1, 5]), torch.tensor([6, 8, 4, 1])
    costs = torch.rand(4, 7, 8, generator=generator, dtype=torch.float64)
    found = warp(costs, rows, columns)
    assert found.tolist() == pytest.approx([slow(costs[n, : rows[n], : columns[n]]) for n in range(4)])
    assert warp(torch.zeros(1, 3, 5), torch.tensor([3]), torch.tensor([5])).tolist() == [0.0]


def spoken(features, speakers: int = 3, repeats: int = 3) -> tuple[list[torch.Tensor], list[Item]]:
    """Recordings, one a repeat of each speaker, of all words; features(speaker, phone) is each of a phone's four frames."""
    recordings, items = [], []
    for number in range(speakers * repeats):
        frames, speaker = [], number % speakers
        for word in WORDS:
            start = len(frames) * 4 / 100
            for phone in word:
                frames.append(features(speaker, phone).expand(4, -1))
            items.append(Item(number, start, len(frames) * 4 / 100, word[1], word[0], word[2], str(speaker)))
        recordings.append(torch.cat(frames))
    return recordings, items


def error(features, mode) -> float:
    recordings, items = spoken(features)
    chosen = triplets(items, mode)
    wrong = confusions(recordings, 100.0, items, chosen)
    return bootstrap(abx_error(chosen, wrong), len(recordings), draws=20)[0].value


PHONE = {name: torch.eye(8)[number] for number, name in enumerate(("B", "AE", "T", "IH", "K"))}


@pytest.mark.parametrize("mode", ["within", "across"])
def test_phones_are_told_apart_and_speakers_are_not(mode) -> None:
    assert error(lambda speaker, phone: PHONE[phone], mode) == 0
    assert error(lambda speaker, phone: torch.eye(8)[speaker], mode) == 0.5


def test_what_changes_with_the_speaker_misleads_across_speakers_alone() -> None:
    """Speaker 1 says the vowels the other way round: X is then always nearer to B."""

    def features(speaker: int, phone: str) -> torch.Tensor:
        turned = {"AE": "IH", "IH": "AE"} if speaker == 1 else {}
        return PHONE[turned.get(phone, phone)]

    assert error(features, "within") == 0
    # Of the six ordered pairs of different speakers, the four with speaker 1 are wrong.
    assert error(features, "across") == pytest.approx(4 / 6)


def test_noise_is_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    assert error(lambda *_: torch.randn(8, generator=generator), "across") == pytest.approx(0.5, abs=0.1)


def test_contexts_then_speakers_then_pairs_are_averaged() -> None:
    """Speaker 0 is wrong in one of two contexts, speaker 1, who knows one context, is right: (1/2 + 0) / 2, for both vowels."""
    items = [
        Item(n, w, w + 0.12, v, c, "T", str(s))
        for n, (s, w, v, c) in enumerate(
            (s, 0.0, v, c) for s, cs in ((0, "BK"), (1, "B")) for c in cs for v in ("AE", "IH") for _ in range(2)
        )
    ]
    chosen = triplets(items, "within")
    bad = torch.tensor([items[a].speaker == "0" and items[a].before == "K" for a in chosen.items[:, 0].tolist()]).double()
    assert bootstrap(abx_error(chosen, bad), len(items), draws=2)[0].value == pytest.approx(0.25)


def test_triphones_stop_at_silence() -> None:
    names = ["SIL", "B", "AE", "T", "SIL", "K", "IH", "+NSN+"]
    phones = [Phone(name, n / 10, (n + 1) / 10) for n, name in enumerate(names)]
    assert triphones(phones, 4, "me") == [Item(4, 0.1, 0.4, "AE", "B", "T", "me")]


def test_item_files(tmp_path: Path) -> None:
    path = tmp_path / "dev.item"
    path.write_text("#file onset offset #phone prev-phone next-phone speaker\n1-2-3 0.1 0.4 AE B T 1\nelse 0 1 AE B T 2\n")
    assert read_items(path, ["x", "1-2-3"]) == [Item(1, 0.1, 0.4, "AE", "B", "T", "1")]
    with pytest.raises(InputError, match="lists none of these"):
        read_items(path, ["y"])
    path.write_text("header\n1-2-3 0.1 oh AE B T 1\n")
    with pytest.raises(InputError, match="line 2"):
        read_items(path, ["1-2-3"])
    with pytest.raises(InputError, match="cannot be read"):
        read_items(tmp_path / "none.item", ["y"])


def test_an_item_without_a_frame_does_not_count() -> None:
    items = [Item(0, 0.0, 0.1, "AE", "B", "T", "0")] * 2 + [Item(0, 0.0, 0.001, "IH", "B", "T", "0")] * 2
    chosen = triplets(items, "within")
    wrong = confusions([torch.ones(10, 2)], 100.0, items, chosen)
    assert len(chosen)
    assert wrong.isnan().all()
    assert math.isnan(float(abx_error(chosen, wrong)(torch.zeros(1, 1, dtype=torch.int64))))


def test_of_too_many_triplets_some_cells_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings, items = spoken(lambda speaker, phone: PHONE[phone])
    whole = triplets(items, "across")
    monkeypatch.setattr(abx, "MOST", 100)
    some = triplets(items, "across")
    assert 100 <= len(some) < 100 + 3**3 < len(whole)
    assert len(some.group) == int(some.cell.max()) + 1
    assert some.items.equal(triplets(items, "across").items)
    wrong = confusions(recordings, 100.0, items, some)
    assert bootstrap(abx_error(some, wrong), len(recordings), draws=2)[0].value == 0
