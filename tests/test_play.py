"""--play hands the loudspeaker what -o writes to a file, and says in one line what keeps it from that. No sound card needed."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from audiolm import bundle
from audiolm.audio import read
from audiolm.cli import run
from audiolm.model import AudioLM


class Speaker(ModuleType):
    """Stands for sounddevice: keeps what is written."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, device: bool = True) -> None:
        super().__init__("sounddevice")
        self.heard: list[np.ndarray] = []
        self.opened: dict[str, Any] = {}
        self.device = device

    def check_output_settings(self, channels: int) -> None:
        if not self.device:
            raise self.PortAudioError("Error querying device -1")

    def OutputStream(self, samplerate: int, **settings: Any) -> "Speaker":
        self.opened = {"samplerate": samplerate, **settings}
        return self

    def __enter__(self) -> "Speaker":
        return self

    def __exit__(self, *_: object) -> None:
        self.device = False

    def write(self, samples: np.ndarray) -> None:
        self.heard.append(samples.copy())


def outcome(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    return run([str(each) for each in arguments]), capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tiny_model: AudioLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    bundle.save(tiny_model, folder, "tiny")
    return folder


def test_what_is_heard_is_what_is_written(capsys, tmp_path: Path, model: Path, female_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", speaker := Speaker())
    what = ("continue", female_path, "--prompt-seconds", "1.5", "--seconds", "1.2", "-m", model)
    assert outcome(capsys, *what, "--play") == (0, "")
    assert outcome(capsys, *what, "-o", tmp_path / "file.wav")[0] == 0
    heard, written = np.concatenate(speaker.heard), read(tmp_path / "file.wav").samples[0].numpy()
    assert len(speaker.heard) > 2
    assert speaker.opened["samplerate"] == 16_000
    assert heard.shape == written.shape
    assert np.abs(heard - written).max() <= 1 / 32768


def test_what_keeps_it_from_playing_is_said(capsys, model: Path, monkeypatch) -> None:
    what = ("generate", "--seconds", "1", "-m", model, "--play")
    monkeypatch.setitem(sys.modules, "sounddevice", Speaker(device=False))
    assert outcome(capsys, *what) == (2, "audiolm: --play: no audio output (Error querying device -1); "
                                  "write a file, or pipe --stream to another machine\n")  # fmt: skip
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert outcome(capsys, *what) == (2, "audiolm: --play needs sounddevice; install it: pip install 'audiolm[play]'\n")
    code, told = outcome(capsys, *what, "--json")
    assert code == 2
    assert "omit -o, --samples" in told
