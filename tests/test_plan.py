"""The plan: known from fake tensors, timed by the real loops, nothing written, and what cannot fit is refused by name."""

import json
import math
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from audiolm import doctor
from audiolm.bundle import language_model
from audiolm.cli import run
from audiolm.config import load_config
from audiolm.doctor import USES, extras, memory
from audiolm.errors import InputError
from audiolm.kmeans import KMeans
from audiolm.tokens import TokenSpec
from audiolm.training import plan, rehearsal
from audiolm.training.audio_store import AudioStore
from audiolm.training.data import scan
from audiolm.training.plan import Plan, Row, make_plan
from audiolm.training.recipe import RecipeConfig, stage_of
from audiolm.training.rehearsal import Loop, RandomTokens, loops
from audiolm.training.speeds import AtSpeeds
from audiolm.training.steps import steps
from audiolm.training.token_store import TokenStore, store_key
from audiolm.training.workshop import Workshop

ROOT = Path(__file__).parents[1]
FAST = ["threads=1", "codec.steps=1000", "units.batches=2", "units.epochs=1"]


def tiny(out: Path, *overrides: str) -> RecipeConfig:
    return load_config(
        RecipeConfig, ROOT / "recipes" / "tiny.toml", [f"data={ROOT / 'examples'}", f"out={out}", *FAST, *overrides]
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 0.0)  # a step to warm up, and one


@pytest.mark.usefixtures("quick")
def test_a_plan_has_every_figure_and_leaves_nothing_behind(tmp_path: Path) -> None:
    config = tiny(tmp_path / "out", "stages=['semantic', 'parallel']", "parallel.crop=1.0", "parallel.steps=300")
    state = torch.get_rng_state()
    made = make_plan(config)
    assert torch.equal(state, torch.get_rng_state())
    assert not list(tmp_path.iterdir())
    assert [row.step for row in made.rows] == [step.name for step in steps(config)]
    made.check()
    rows = {row.step: row for row in made.rows}
    assert all(row.seconds is not None and math.isfinite(row.seconds) for row in made.rows)
    assert all(row.memory is not None and row.memory > 1e8 for row in made.rows)
    total = made.total().seconds
    assert total == pytest.approx(sum(row.seconds or 0 for row in made.rows))
    semantic = rows["semantic"]
    assert semantic.steps == config.semantic.steps
    assert semantic.hours == pytest.approx(400 * 8 * 4.0 / 3600)
    assert semantic.tokens == 400 * 8 * (1 + 100)  # START and 4 s of 25 Hz
    network = language_model(stage_of(config, "semantic"), config.semantic.network)
    assert semantic.parameters == sum(each.numel() for each in network.parameters())
    assert rows["codec"].steps == 1000  # in two parts, without and with critics
    assert rows["tokens"].disk == 2 * (rows["tokens"].tokens or 0)
    table = made.table()
    assert all(re.search(rf"^{step} ", table, re.MULTILINE) for step in [*rows, "all"])
    assert "If started now" in table
    json.dumps(made.plain())


def test_what_training_holds_is_known_without_memory(tmp_path: Path) -> None:
    shop = Workshop(tiny(tmp_path / "out"))
    (loop,) = loops("coarse", shop)
    network = loop.build()[0]
    weights = sum(each.nbytes for each in (*network.parameters(), *network.buffers()))
    needs = loop.needs("32-true")
    assert needs.throughout == 4 * weights  # themselves, gradients, two moments
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loop.forward(network)
    own = {each.untyped_storage().data_ptr() for each in (*network.parameters(), *network.buffers())}
    assert needs.activations == pytest.approx(sum(each.nbytes() for name, each in kept.items() if name not in own), rel=0.05)
    (half,) = loops("coarse", Workshop(tiny(tmp_path / "out", "coarse.batch_size=2")))
    assert half.needs("32-true").activations == pytest.approx(needs.activations / 2, rel=0.1)
    assert needs.products == pytest.approx(2 * half.needs("32-true").products, rel=0.01)


def test_the_real_loop_is_timed_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 0.3)
    shop = Workshop(tiny(tmp_path / "out"))
    (loop,) = loops("fine", shop)
    timing = loop.rehearse(shop.fabric.device)
    assert 0 < timing.step < 5
    assert timing.peak is None or timing.peak > 1e8
    assert not list(tmp_path.iterdir())
    # Whatever fake tensors have left in caches, real training does not meet them.
    loop.needs("32-true")
    assert loop.rehearse(shop.fabric.device).step > 0
    items = RandomTokens(stage_of(shop.config, "fine"), 3).batch(0)
    assert [tuple(item["predicted"].shape) for item in items] == [(4, 50)] * 3


def test_what_does_not_fit_is_refused_before_it_is_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rehearse(loop: Loop, _: torch.device) -> rehearsal.Timing:
        assert loop.table == "encoder.0"  # which fits
        return rehearsal.Timing(1.0, 0.0, None)

    monkeypatch.setattr(plan, "memory", lambda: (2 * 10**9, 520 * 10**6))
    monkeypatch.setattr(Loop, "rehearse", rehearse)
    made = make_plan(tiny(tmp_path / "out", "coarse.batch_size=600", "stages=['coarse']", "codec.network.decoder_width=4096"))
    with pytest.raises(InputError) as caught:
        made.check()
    line = str(caught.value)
    assert "\n" not in line
    assert re.search(r"codec: training needs about .* give codec\.network fewer layers or a smaller width", line)
    assert (found := re.search(r"coarse: .* coarse\.batch_size=(\d+) coarse\.accumulate=(\d+) would fit", line))
    assert int(found[1]) * int(found[2]) >= 600
    rows = {row.step: row for row in made.rows}
    assert rows["coarse"].seconds is None
    assert rows["coarse"].note == "does not fit"
    assert (rows["coarse"].memory or 0) > 520e6


def test_a_small_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "rehearse", lambda *_: rehearsal.Timing(1.0, 0.0, 1e9))
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(InputError, match=r"codec: all steps .* larger disk, or keep=1"):
        make_plan(tiny(tmp_path / "out", "stages=['semantic']")).check()


def test_a_step_that_takes_minutes_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PATIENCE", 0.0)
    monkeypatch.setattr(Loop, "rehearse", lambda *_: pytest.fail("tried"))
    made = make_plan(tiny(tmp_path / "out", "stages=['semantic']"))
    assert "at least" in {row.step: row.note for row in made.rows}["semantic"]
    assert (made.total().seconds or 0) > 0


def test_speeds_are_more_to_tokenize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much more as AtSpeeds makes of the same recordings; nothing of it is heard before the tokens."""
    monkeypatch.setattr(Loop, "rehearse", lambda *_: rehearsal.Timing(1.0, 0.0, 1e9))
    monkeypatch.setattr(plan, "_seconds", lambda do: 1.0)
    once, often = (
        {row.step: row for row in make_plan(tiny(tmp_path / "out", "stages=['semantic']", f"tokens.speeds={speeds}")).rows}
        for speeds in ([1.0], [0.8, 1.0, 1.25])
    )
    recordings = scan(ROOT / "examples", valid=0.2, test=0.0, minimum=0.5)
    store = AtSpeeds(AudioStore.prepare(tmp_path / "store", recordings), [0.8, 1.0, 1.25])
    seconds = sum(entry.length for entry in store.entries) / store.sample_rate
    assert 3600 * (often["tokens"].hours or 0) == pytest.approx(seconds, rel=1e-4)
    more = seconds / sum(each.seconds for each in recordings)
    assert more > 2
    for figure in ("hours", "tokens", "disk", "seconds"):
        assert getattr(often["tokens"], figure) == pytest.approx(more * getattr(once["tokens"], figure), rel=1e-4)
    assert often["prepare"].hours == once["prepare"].hours


@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_recording_is_left_out_as_training_leaves_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(Loop, "rehearse", lambda *_: rehearsal.Timing(1.0, 0.0, 1e9))
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", np.full(32_000, np.nan), 16_000, subtype="FLOAT")  # its header is fine
    if whole:
        shutil.copy(ROOT / "examples" / "prompt-female.flac", tmp_path / "in")
    rows = {row.step: row for row in make_plan(tiny(tmp_path / "out", "stages=[]", f"data={tmp_path / 'in'}")).rows}
    assert 0 < (rows["prepare"].seconds or 0) < math.inf


def test_done_steps_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "rehearse", lambda *_: rehearsal.Timing(1.0, 0.0, None))
    config = tiny(tmp_path / "out", "stages=['semantic']")
    for name, done in {"encoder": True, "codec": False}.items():
        step = next(step for step in steps(config) if step.name == name)
        (tmp_path / "out" / name).mkdir(parents=True)
        older = step.config | {"precision": "32-true"}  # records once had it
        kept = {"config": older if done else {"steps": 1}, "result": "0"}
        (tmp_path / "out" / name / "done.json").write_text(json.dumps(kept))
    rows = {row.step: row for row in make_plan(config).rows}
    assert rows["encoder"] == Row("encoder", seconds=0.0, note="already done")
    assert rows["codec"].note == ""
    assert rows["codec"].seconds


def test_loading_scikit_learn_is_not_part_of_every_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first call in a process takes seconds, which the plan multiplied by the number of fits."""
    clock, calls = [0.0], list[None]()

    def fit(*_: object, **__: object) -> KMeans:
        clock[0] += 0.01 if calls else 2.0
        calls.append(None)
        return KMeans(32, 64)

    monkeypatch.setattr(Loop, "rehearse", lambda *_: rehearsal.Timing(1.0, 0.0, None))
    monkeypatch.setattr(plan, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(KMeans, "fit", fit)
    rows = {row.step: row for row in make_plan(tiny(tmp_path / "out", "stages=[]")).rows}
    frames = 2 * 4 * 2.0 * 25  # in two batches of four crops of two seconds
    assert rows["units"].seconds == pytest.approx(0.01 * frames / (2 * 32))


@pytest.mark.usefixtures("quick")
def test_a_changed_recipe_is_not_timed_on_tokens_of_the_old_one(tmp_path: Path) -> None:
    config = tiny(tmp_path / "out", "stages=['semantic']", "units.units=16")
    codes = {"semantic": TokenSpec("semantic", 32, 1, 25.0), "acoustic": TokenSpec("acoustic", 64, 6, 50.0)}
    TokenStore.create(tmp_path / "out" / "tokens", store_key(16_000, {name: (spec, "") for name, spec in codes.items()}))
    (tmp_path / "out" / "tokens" / "done.json").write_text(json.dumps({"config": {}, "result": "0"}))
    (loop,) = loops("semantic", Workshop(config))
    assert loop.rehearse(torch.device("cpu")).step > 0


def test_the_verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's recipe is a dry run where there is no GPU: its figures, and one line that says why it cannot be here."""
    if torch.cuda.is_available():
        pytest.skip("the recipe may run here")
    data = f"data={ROOT / 'examples'}"
    assert run(["plan", str(ROOT / "recipes" / "paper.toml"), data, "--json"]) == 2
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert "device=cuda: not on this machine" in shown.err.splitlines()[-1]
    assert told["refused"]
    rows = {row["step"]: row for row in told["steps"]}
    assert rows["semantic"]["parameters"] == pytest.approx(0.2e9, rel=0.1)
    assert rows["coarse"]["memory"] > 40e9
    assert rows["coarse"]["tokens"] == 1_000_000 * 32 * (1 + 250 + 2000)
    for wrong in ("data=nowhere", "out=/dev/null", "out=/dev/null/deeper"):
        assert run(["plan", str(ROOT / "recipes" / "tiny.toml"), "data=nowhere", wrong]) == 2
        assert wrong.partition("=")[2] in (said := capsys.readouterr().err)
        assert said.count("\n") == 1


def test_doctor_knows_memory_and_the_extras() -> None:
    total, free = memory()
    assert 0 < free <= total
    assert USES.keys() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys() - {
        "dev"
    }
    assert "lightning" in extras()["train"]


def test_doctor_says_what_play_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> ModuleType:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(doctor.importlib, "import_module", without)
    assert doctor._extra("play", ["numpy"]).startswith("missing PortAudio: apt install libportaudio2")
    assert doctor._extra("plot", ["numpy"]).startswith("installed")


@pytest.mark.parametrize(("used", "free"), [(700, 600), (100, 1000), (1500, 0)])
def test_files_that_were_read_are_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int, free: int) -> None:
    """In a container they count as used; beyond its limit nothing is free."""
    monkeypatch.setattr(doctor, "CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    files = min(used, 300)
    (tmp_path / "memory.stat").write_text(f"anon {used - files}\nfile {files}\ninactive_file {files - 100}\nactive_file 100\n")
    assert memory() == (1000, free)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory()[0] > 1000


def test_an_empty_total() -> None:
    made = Plan([Row("a", seconds=None), Row("b", seconds=1.0)], {"memory": 1e9, "disk": 1e9}, [])
    assert made.total().seconds is None
    assert "Begun now" not in made.table()
