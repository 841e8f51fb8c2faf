"""Import only downwards: a reader may take any file and knows that nothing above it matters."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "audiolm"

ROWS = """
    errors kernels threads files storage tokens config containers plots spectra audio
    text
    quantizer bodies transformer conformer codec adversarial kmeans stages wav provenance attacks randomness checkpoint trackers
    adapters pretraining metrics music speaker classifier zerospeech tables sampling parallel
    asking tokenizers scoring generation rendering detector recognition tables_of_paper
    route
    model bundle report phonetics
    abx data audio_store speeds token_index token_store alignment run engine continuations card batching limits uploads monitoring
    figures page blindtest detector_sounds
    further train_codec train_encoder train_lm train_detector evaluation corpus chain apidocs process listening
    gates
    recipe server doctor cluster
    workshop
    steps
    plan rehearsal
    commands
    cli
    __init__ __main__
"""
# Two files of one subject, and what stands below the rest of row 0. Anything else on one row knows nothing of its neighbours.
BESIDE = {
    *(("kernels", "errors"), ("files", "errors"), ("tokens", "errors"), ("config", "errors")),
    *(("audio", "errors"), ("audio", "files"), ("audio", "plots"), ("audio", "containers")),
    *(("tokens", "plots"), ("containers", "errors"), ("plots", "errors"), ("plots", "files")),
    *(("codec", "quantizer"), ("codec", "bodies")),
    ("parallel", "sampling"),
    ("bundle", "model"),
    ("blindtest", "page"),
    ("audio_store", "data"),
    ("speeds", "audio_store"),
    ("token_store", "audio_store"),
    ("token_store", "speeds"),
    ("token_store", "token_index"),
    *(("alignment", "token_store"), ("alignment", "speeds")),
    *(("storage", "errors"), ("storage", "files")),
    ("plan", "rehearsal"),
    ("__main__", "__init__"),
}
# Folders of modules; a name stands in the rows once, wherever it lies. `adapters`, `bodies`, `commands` and `figures` count as
# one each.
FOLDERS = ("training", "measuring", "serving")
ROW = {name: number for number, row in enumerate(ROWS.strip().splitlines()) for name in row.split()}


def imported(source: str) -> set[str]:
    """Modules of the package that a source imports anywhere, inside functions too; relative imports are called "."."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(".")
        elif isinstance(node, ast.ImportFrom) and node.module == "audiolm":
            # `from audiolm import plots` is a module; any other name is what __init__ offers.
            names = [f"audiolm.{alias.name}" if alias.name in ROW else "audiolm" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module in [f"audiolm.{folder}" for folder in FOLDERS]:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            parts = [part for part in name.split(".") if part not in FOLDERS]
            found |= {[*parts, "__init__"][1]} if parts[0] == "audiolm" else set()
    return found


def violations(module: str, source: str) -> list[str]:
    """What a module may not import. Every module must stand in a row."""
    if module not in ROW:
        return [f"{module} stands in no row: add it to ROWS and to the design"]
    bad = []
    for name in sorted(imported(source) - {module}):
        if name == ".":
            bad.append(f"{module}: relative import; write it absolutely")
        elif ROW.get(name, 99) > ROW[module] or (ROW[name] == ROW[module] and (module, name) not in BESIDE):
            bad.append(f"{module} (row {ROW[module]}) imports {name} (row {ROW.get(name, 'none')})")
    return bad


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    inside = [part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts if part not in FOLDERS]
    module = inside[0]
    assert not violations(module, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("codec", "from audiolm.training.run import Run"),
        ("codec", "def f():\n    from audiolm.model import AudioLM"),
        ("codec", "import audiolm.transformer"),
        ("codec", "from audiolm import model"),
        ("codec", "import audiolm"),
        ("codec", "from audiolm import load"),
        ("codec", "from . import tokens"),
        ("codec", "from .tokens import TokenSpec"),
        ("codec", "from audiolm.nowhere import x"),
        ("codec", "from audiolm.training import run"),
        ("codec", "import audiolm.training.run"),
        ("quantizer", "from audiolm.codec import Codec"),
        ("helpers", ""),
    ],
)
def test_the_test_catches(module: str, source: str) -> None:
    assert violations(module, source)


def test_the_test_lets_pass() -> None:
    assert not violations("codec", "import torch\nfrom audiolm import tokens\nfrom audiolm.quantizer import X\nimport audiolmx")
