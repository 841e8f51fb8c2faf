"""As many threads as the processor bears now, and none of them heard."""

from collections.abc import Iterator

import pytest
import torch

from audiolm import bundle, threads
from audiolm.asking import AcousticDecoder
from audiolm.audio import Waveform


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({8: [7, 7, 7]}, 8),
        ({8: [7, 7, 0.9], 4: [3, 3, 3]}, 4),  # once is enough: what waits once waits again
        ({8: [0.1], 4: [3, 0.1], 2: [1]}, 1),
    ],
)
@pytest.mark.usefixtures("eight")
def test_the_most_that_are_never_slower_than_one(
    rates: dict[int, list[float]], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {number: iter(each) for number, each in {1: [1.0], **rates}.items()}
    monkeypatch.setattr(threads, "_rate", lambda values, number: next(drawn[number]))
    assert threads.bearable() == expected
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("eight")
def test_who_sets_the_environment_has_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(threads, "_rate", lambda values, number: pytest.fail("nothing is to be tried"))
    assert threads.bearable() == 8


@pytest.mark.usefixtures("eight")
def test_a_trial_of_this_machine() -> None:
    assert threads.bearable() in (1, 2, 4, 8)
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize("decoder", ["autoregressive", "parallel"])
@pytest.mark.usefixtures("eight")
def test_a_seed_keeps_its_sound(decoder: AcousticDecoder, female: Waveform) -> None:
    """Of the packaged model, whose products are large enough to be dealt out."""
    model, sounds = bundle.load("speech"), []
    for number in (1, 2):
        torch.set_num_threads(number)
        sounds.append(model.generate(female, 1.0, seed=3, decoder=decoder, watermark=False).samples)
    assert torch.equal(*sounds)
