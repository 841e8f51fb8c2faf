"""A run folder: resumed equals uninterrupted bit for bit wherever it was killed; a checkpoint is whole or absent."""

import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import audiolm.training.checkpoint
import audiolm.training.randomness
from audiolm.audio import Waveform, read
from audiolm.config import Config
from audiolm.errors import InputError
from audiolm.training.randomness import random_state, random_untouched
from audiolm.training.run import Diverged, Run, Stopped, learning_rate
from audiolm.training.trackers import TrackerName

TOTAL = 12


class Toy(Config):
    lr: float = 0.01


def state() -> dict[str, object]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    model[2].register_buffer("seen", torch.zeros((), dtype=torch.int64))
    return {"model": model, "optimiser": torch.optim.AdamW(model.parameters(), lr=0.01), "average": 0.0}


def train(folder: Path, total: int = TOTAL, pause: float = 0.0) -> None:
    """A loop that draws from all three generators, so that any state left out of a checkpoint shows."""
    audiolm.training.randomness.seed_all(1)
    with Run(folder, Toy(), tracker="none") as run:
        parts = state()
        model, optimiser = parts["model"], parts["optimiser"]
        assert isinstance(model, nn.Module)
        assert isinstance(optimiser, torch.optim.Optimizer)
        start = run.resume(parts)
        for step in range(start + 1, total + 1):
            batch = torch.randn(3, 4) + random.random() + float(np.random.rand())
            loss = model(batch).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            parts["average"] = 0.9 * float(parts["average"]) + 0.1 * loss.item()  # type: ignore[arg-type]
            run.check(step, loss=loss)
            run.log(step, loss=loss, average=parts["average"])  # type: ignore[arg-type]
            time.sleep(pause)
            run.checkpoint(step, parts, every=2, total=total, score=abs(step - 5))


def result(folder: Path) -> dict[str, object]:
    run = Run(folder, Toy(), tracker="none")
    parts = state()
    step = run.resume(parts)
    model = parts["model"]
    assert isinstance(model, nn.Module)
    weights = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    draws = [torch.rand(3).tolist(), random.random(), float(np.random.rand())]
    return {"step": step, "weights": weights, "draws": draws, "metrics": run.metrics(), "best": run.best}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return result(folder)


def in_child(work: Callable[[], None], kill_after: float | None = None) -> int | None:
    """Run `work` in a forked process (torch is loaded already), SIGKILL it after some seconds; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    if kill_after is not None:
        time.sleep(kill_after)
        child.kill()
    child.join(60)
    return child.exitcode


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("place", ["save_tensors", "torch.save", "write_json", "os.rename", "_sync_folder", "shutil.rmtree"])
def test_killed_inside_a_save(
    tmp_path: Path, uninterrupted: dict[str, object], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at the first call, then at the third, of each thing that a save does; then go on to the end."""
    target = f"audiolm.training.checkpoint.{place}"
    original = audiolm.training.checkpoint
    for part in place.split("."):
        original = getattr(original, part)
    for count in (2, 3, 8):
        calls = iter(range(1, 1000))

        def dies(*args: object, _calls: object = calls, _count: int = count, **kwargs: object) -> object:
            if next(_calls) == _count:  # type: ignore[call-overload]
                die()
            return original(*args, **kwargs)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(target, dies)
            code = in_child(lambda: train(tmp_path / "run"))
        assert code in (-signal.SIGKILL, 0)
    train(tmp_path / "run")
    assert result(tmp_path / "run") == uninterrupted
    assert not list((tmp_path / "run").glob(".*"))


def test_killed_at_random_moments(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    moments, killed = random.Random(0), 0
    for _ in range(6):
        code = in_child(lambda: train(tmp_path / "run", pause=0.1), kill_after=moments.uniform(0.1, 0.4))
        killed += code == -signal.SIGKILL
    assert killed >= 3
    train(tmp_path / "run")
    assert result(tmp_path / "run") == uninterrupted


def test_sigterm_saves_and_stops_in_one_line(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    def work() -> None:
        try:
            train(tmp_path / "run", pause=0.1)
        except Stopped as stop:
            (tmp_path / "said").write_text(str(stop))
            raise

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while not (tmp_path / "run" / "step-00000002").exists():
        time.sleep(0.01)
    assert child.pid
    os.kill(child.pid, signal.SIGTERM)
    child.join(30)
    assert child.exitcode == 1
    said = (tmp_path / "said").read_text()
    assert "rerun the same command to resume" in said
    assert len(said.splitlines()) == 1
    steps = Run(tmp_path / "run", Toy()).steps()
    assert 2 <= steps[-1] < TOTAL
    train(tmp_path / "run")
    assert result(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("limit", [600, 4096], ids=["weights", "optimiser"])
def test_a_full_disk_is_one_error_and_the_last_good_checkpoint_survives(
    tmp_path: Path, uninterrupted: dict[str, object], limit: int
) -> None:
    train(tmp_path / "run", total=4)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # no file may grow longer: writing fails as on a full disk
        try:
            train(tmp_path / "run")
        except InputError as error:
            (tmp_path / "said").write_text(str(error))
            raise SystemExit(7) from error

    assert in_child(work) == 7
    said = (tmp_path / "said").read_text()
    assert re.search(r"step-00000005: cannot be written \(.*\); free disk space and rerun the same command", said)
    assert len(said.splitlines()) == 1
    assert Run(tmp_path / "run", Toy()).steps()[-1] == 4
    assert not list((tmp_path / "run").glob(".*"))
    train(tmp_path / "run")
    assert result(tmp_path / "run") == uninterrupted


def test_nothing_is_saved_once_a_loss_is_not_a_number(tmp_path: Path) -> None:
    run = Run(tmp_path, Toy())
    run.checkpoint(2, state(), every=2, total=9, loss=1.0)
    run.checkpoint(3, state(), every=2, total=9, loss=float("nan"))  # not due: nothing is saved, and nothing looked at
    with pytest.raises(Diverged, match="step-00000002"):
        run.checkpoint(4, state(), every=2, total=9, loss=float("nan"))
    assert run.steps() == [2]


def test_options_newer_than_a_run_count_as_their_defaults(tmp_path: Path) -> None:
    train(tmp_path, total=2)

    class Newer(Toy):
        accumulate: int = 1

    Run(tmp_path, Newer())
    with pytest.raises(InputError, match="accumulate was 1, is 2"):
        Run(tmp_path, Newer(accumulate=2))


@pytest.mark.parametrize("tracker", ["tensorboard", "none"])
def test_samples_are_sounds_and_pictures_by_step(tmp_path: Path, female: Waveform, tracker: TrackerName) -> None:
    before = str(random_state())
    with Run(tmp_path, Toy(), tracker=tracker, listen_every=5, data="0123") as run:
        run.resume({})
        assert [step for step in range(1, 12) if run.listening(step)] == [5, 10]
        run.log(5, loss=1.0)
        run.listen(5, {"voice": female.trim(seconds=0.5)})
    folder = tmp_path / "samples" / "step-00000005"
    assert sorted(path.name for path in folder.iterdir()) == ["voice.flac", "voice.png"]
    assert read(folder / "voice.flac").seconds == 0.5
    events = b"".join(path.read_bytes() for path in tmp_path.glob("events.*"))
    assert [name in events for name in (b"RIFF", b"PNG", b"loss")] == [tracker == "tensorboard"] * 3
    assert json.loads((tmp_path / "versions.json").read_text())[0]["data"] == "0123"
    assert str(random_state()) == before


def test_weights_and_biases_goes_on_in_the_same_run(tmp_path: Path, female: Waveform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in: what is asked of wandb, which is no dependency of the tests."""
    seen: list[Any] = []
    own = SimpleNamespace(define_metric=lambda *_, **__: None, log=seen.append, finish=lambda: seen.append("end"))
    stand_in = SimpleNamespace(
        init=lambda **about: seen.append(about) or own, Audio=lambda *_, **__: "audio", Image=lambda _: "image"
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    for step in (1, 2):
        with Run(tmp_path, Toy(), tracker="wandb", listen_every=1) as run:
            run.log(step, loss=0.5)
            run.listen(step, {"voice": female.trim(seconds=0.2)})
    first, again = (about for about in seen if isinstance(about, dict) and "id" in about)
    assert first == again
    assert (first["config"], first["resume"], first["name"]) == ({"lr": 0.01}, "allow", tmp_path.name)
    assert {"step": 2, "loss": 0.5} in seen
    assert {"step": 2, "voice": "audio"} in seen
    assert seen.count("end") == 2
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'audiolm\[wandb\]'"):
        Run(tmp_path, Toy(), tracker="wandb").log(3, loss=0.5)


def test_stop_keeps_the_handlers_as_they_were(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Run(tmp_path, Toy()) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert run.should_stop
        with pytest.raises(Stopped, match="at step 3;"):
            run.checkpoint(3, state(), every=100, total=9)
        run.checkpoint(9, state(), every=100, total=9)  # the last step is the end, asked or not
    with pytest.raises(Stopped, match="finished, then stopped"):  # once its result is saved
        run.stop_if_asked()
    assert run.steps() == [3, 9]
    assert signal.getsignal(signal.SIGTERM) is before


def test_leftovers_and_damage_are_passed_over(tmp_path: Path) -> None:
    train(tmp_path)
    steps = Run(tmp_path, Toy()).steps()
    assert steps == [5, 11, 12]  # the last two, and the best (score |step - 5|)
    newest = tmp_path / "step-00000012"
    with (newest / "model.safetensors").open("r+b") as file:
        file.truncate(50)
    (tmp_path / ".step-00000014.new").mkdir()
    cut = tmp_path / "step-00000013"  # of which even what says that it is whole is not
    shutil.copytree(tmp_path / "step-00000011", cut)
    (cut / "files.json").write_bytes((cut / "files.json").read_bytes()[:-20])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13, "lo\n' + bytes(300) + b'\n\xff\n{"step": 13, "lo')
    run = Run(tmp_path, Toy())
    assert [line["step"] for line in run.metrics()] == list(range(1, 13))
    assert run.steps() == [5, 11]
    assert run.resume(state()) == 11
    assert not newest.exists()
    assert not cut.exists()
    assert not list(tmp_path.glob(".*"))
    assert [line["step"] for line in run.metrics()] == list(range(1, 12))


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"lr": 0')
    with pytest.raises(InputError, match=r"config\.json: damaged .*; delete its folder") as caught:
        Run(tmp_path, Toy())
    assert "\n" not in str(caught.value)


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    Run(tmp_path, Toy())
    Run(tmp_path, Toy(lr=0.1))  # nothing trained yet: free to change
    train(tmp_path / "run", total=2)
    with pytest.raises(InputError, match=r"lr was 0\.01, is 0\.1"):
        Run(tmp_path / "run", Toy(lr=0.1))


def test_not_a_number_names_step_and_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, Toy())
    with pytest.raises(Diverged, match=r"loss is nan at step 1; no checkpoint"):
        run.check(1, loss=torch.tensor(float("nan")))
    run.save(4, state())
    with pytest.raises(Diverged, match=r"loss is inf at step 7; the last good checkpoint is .*step-00000004"):
        run.check(7, loss=float("inf"))


def test_tied_weights_and_folder_contents(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    run = Run(tmp_path, Toy())
    run.save(1, {"model": model})
    run.log(1, loss=float("nan"))
    copy = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    Run(tmp_path, Toy()).resume({"model": copy})
    assert torch.equal(copy["a"].weight, model["b"].weight)  # type: ignore[arg-type]
    assert run.metrics() == [{"step": 1, "loss": None}]
    assert json.loads((tmp_path / "config.json").read_text()) == {"lr": 0.01}
    versions = (tmp_path / "versions.json").read_text()
    assert torch.__version__ in versions
    assert str(Path.home()) not in versions
    assert "/" not in versions


def test_evaluation_leaves_randomness_alone() -> None:
    before = str(random_state())
    with random_untouched():
        _ = torch.rand(3), random.random(), np.random.rand()
        assert str(random_state()) != before
    assert str(random_state()) == before


def test_progress_is_quiet_off_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(tmp_path / "codec", Toy()).progress(100, start=10) as show:
        for step in range(11, 101):
            show(step, loss=torch.tensor(0.5))
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("codec 100/100 loss 0.5")
    assert len(err.splitlines()) == 1


def test_learning_rate_shape() -> None:
    rates = [learning_rate(step, peak=1.0, total=100, warmup=10, floor=0.1) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
