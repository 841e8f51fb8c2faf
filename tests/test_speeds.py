"""Recordings at other speeds: whole voices, of training recordings alone."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from audiolm.audio import Waveform
from audiolm.training.audio_store import AudioStore
from audiolm.training.data import Recording
from audiolm.training.recipe import TokensConfig
from audiolm.training.speeds import AtSpeeds, original

RATE = 16_000


def store_of(folder: Path) -> AudioStore:
    recordings = []
    for name, split, pitch in (("a", "train", 1000), ("b", "valid", 500)):
        path = folder / f"{name}.wav"
        Waveform(0.5 * torch.sin(2 * torch.pi * pitch * torch.arange(2 * RATE) / RATE)[None], RATE).write(path)
        recordings.append(Recording(path, name, f"speaker-{name}", split, 2.0))
    return AudioStore.prepare(folder / "store", recordings)


def pitch_of(samples: torch.Tensor) -> float:
    spectrum = torch.fft.rfft(samples[:RATE] * torch.hann_window(RATE)).abs()
    return float(spectrum.argmax())


def test_training_recordings_alone_are_played_faster_and_slower(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    at = AtSpeeds(store, (0.9, 1.0, 1.1))
    assert {entry.name: (entry.speaker, entry.split) for entry in at.entries} == {
        "a": ("speaker-a", "train"),
        "b": ("speaker-b", "valid"),
        "a@0.9": ("speaker-a@0.9", "train"),
        "a@1.1": ("speaker-a@1.1", "train"),
    }
    for number, entry in enumerate(at.entries):
        speed, (samples, original) = float((*entry.name.split("@"), 1)[1]), (at.read(number), store.read(entry.name[0] == "b"))
        assert len(samples) == pytest.approx(entry.length, abs=1) == pytest.approx(len(original) / speed, abs=1)
        assert pitch_of(samples) == pytest.approx((500 if entry.name == "b" else 1000) * speed, abs=1)
        assert speed != 1 or torch.equal(samples, original)


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("a.wav@1.1", "a.wav"),
        ("a.wav@2", "a.wav"),
        ("a.wav", "a.wav"),
        *((each, each) for each in ("a@b.wav", "b@1.1", "@1", "a.wav@.")),
    ],
)
def test_copies_are_told_from_recordings_that_are_called_so(name: str, of: str) -> None:
    assert original(name, {"a.wav", "a"}) == of


@pytest.mark.parametrize("speeds", [(0.9,), (1.0, 1.0), (1.0, 0.2), ()])
def test_speeds_that_make_no_sense(speeds: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="including 1"):
        TokensConfig(speeds=speeds)
