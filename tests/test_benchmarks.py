"""The benchmark of generation runs, on a tiny model: its figures mean nothing here, its tables and their rows do. And the
watermark's takes the clips that it says.
"""

import importlib.util
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from audiolm import bundle
from audiolm.audio import Waveform
from audiolm.model import AudioLM

FOLDER = Path(__file__).parents[1] / "benchmarks"


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark() -> Any:
    module = loaded("generation")
    module.SHAPES = {"1x32": (1, 32, 2, 48)}
    module.bandwidth = lambda repeats: 1e10
    return module


@pytest.mark.parametrize(
    ("section", "rows"),
    [
        ("decode", ["| 1x32 | fine | audiolm, plain torch |"]),
        ("packaged", ["| autoregressive, 2 levels | 10 |", "coarse"]),
        pytest.param("batch", ["| autoregressive, 2 levels | 16 |"], marks=pytest.mark.slow),
        ("growth", ["| autoregressive, 2 levels | 1 |", "| autoregressive, 2 levels | 2 |"]),
        ("quality", ["| fine |", "clips of examples"]),
    ],
)
def test_sections_print_their_tables(
    benchmark: Any, tiny_model: AudioLM, tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, rows: list[str]
) -> None:
    bundle.save(tiny_model, tmp_path, "tiny")
    options = Namespace(repeats=1, quick=True, threads=1, peer=[], model=str(tmp_path), longest=2.0, data=benchmark.EXAMPLES)
    options.codebooks = 2
    benchmark.SECTIONS[section](options)
    printed = capsys.readouterr().out
    assert printed.startswith("\n### ")
    for row in rows:
        assert row in printed
    widths = {line.count("|") for line in printed.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_the_watermarks_clips_are_those_held_out(
    female: Waveform, male: Waveform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder with a manifest, however the folder is named on the command line."""
    (tmp_path / "data").mkdir()
    for name, sound in (("a", female), ("b", male)):
        sound.write(tmp_path / "data" / f"{name}.flac")
    (tmp_path / "data" / "manifest.csv").write_text("path,speaker,split\na.flac,a,train\nb.flac,b,test\n")
    monkeypatch.chdir(tmp_path)
    for folder in (Path("data"), tmp_path / "data"):
        (clip,) = loaded("watermark").clips(folder, 5)
        assert torch.equal(clip.samples, male.samples)
