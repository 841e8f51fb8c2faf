"""The notebook of examples/, and how sounds and tokens show themselves in one."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from audiolm.tokens import Tokens, TokenSpec

nbformat: Any = pytest.importorskip("nbformat")
NOTEBOOK = Path(__file__).parent.parent / "examples" / "continue.ipynb"
SPEC = TokenSpec("acoustic", 1024, 12, 50.0)


def test_tokens_show_themselves() -> None:
    pytest.importorskip("matplotlib")
    codes = torch.randint(1024, (12, 220), generator=torch.Generator().manual_seed(0))
    shown = Tokens(codes, SPEC)._repr_html_()
    assert "acoustic tokens: 12 x 220 of 1024, 4.40 s at 50 Hz" in shown
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', shown)
    assert picture
    png = base64.b64decode(picture[1])
    assert png.startswith(b"\x89PNG")
    assert len(png) < 60_000
    other = Tokens(codes.flip(1), SPEC)._repr_html_()
    assert other != shown


def test_tokens_without_matplotlib_without_frames_and_of_a_strange_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "<img" not in Tokens(torch.zeros(12, 0, dtype=torch.int64), SPEC)._repr_html_()
    strange = Tokens(torch.zeros(1, 5, dtype=torch.int64), TokenSpec("<script>", 2, 1, 25.0))
    assert "<script>" not in strange._repr_html_()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert strange._repr_html_() == "<p>&lt;script&gt; tokens: 1 x 5 of 2, 0.20 s at 25 Hz</p>"


def test_the_notebook_is_kept_without_what_it_shows() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_the_notebook_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("matplotlib")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody answers
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert [("<audio" in each, "<img" in each) for each in shown].count((True, True)) == 5
    assert [("<audio" in each, "<img" in each) for each in shown].count((False, True)) == 2
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert re.search(r"recording: +False\ncontinuation: +True", printed)
