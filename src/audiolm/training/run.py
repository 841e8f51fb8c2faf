"""A run folder: configuration, versions, metrics, checkpoints. A run killed at any moment goes on as if it never was.

    RUN/config.json       every option, defaults too
    RUN/versions.json     of whatever a result depends on, the git revision and the data's hash among them, from which step on
    RUN/metrics.jsonl     a line per report; events.out.tfevents.* or wandb/ repeat it for TensorBoard or Weights & Biases
    RUN/samples/          sounds of a fixed set of prompts, with their pictures, by step
    RUN/step-00000123/    a checkpoint (audiolm.training.checkpoint)

A loop looks like this; `step` counts finished updates, so that a checkpoint's name says what it holds:

    with Run(folder, config) as run:
        start = run.resume(state)
        with run.progress(total, start) as show:
            for step in range(start + 1, total + 1):
                loss = update(batches.batch(step))
                run.log(step, loss=loss)
                show(step, loss=loss)
                run.checkpoint(step, state, every=500, total=total, loss=loss)
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from audiolm.audio import Waveform
from audiolm.config import Config, completed, difference
from audiolm.errors import InputError
from audiolm.files import read_json, whole_file, write_json
from audiolm.plots import picture
from audiolm.training import checkpoint
from audiolm.training.checkpoint import State, is_whole
from audiolm.training.randomness import random_state, random_untouched, seed_all, set_random_state
from audiolm.training.trackers import Tracker, TrackerName, open_tracker

__all__ = ["Diverged", "Run", "Stopped", "learning_rate", "progress", "random_untouched", "seed_all", "versions"]


class Stopped(SystemExit):
    """The run was asked to stop (SIGTERM, Ctrl-C), has saved, and the same command goes on. Uncaught: one line, exit 1."""


class Diverged(RuntimeError):
    """A loss is not a number any more."""


class Run:
    """A folder that a training loop writes into. Under torchrun only rank 0 writes; every rank calls the same and reads.

    `keep` checkpoints are kept, and the one of the best score besides. `listen_every` steps samples are due (0: never).
    `data`: the hash of what is trained on, for the record. As a context manager it listens to SIGTERM and Ctrl-C.
    Raises InputError where the folder holds a run of another configuration.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Config | Mapping[str, Any],
        keep: int = 2,
        tracker: TrackerName = "tensorboard",
        listen_every: int = 1000,
        data: str | None = None,
    ) -> None:
        self.folder, self.keep, self.listen_every, self.data = Path(folder), keep, listen_every, data
        self.config = config.plain() if isinstance(config, Config) else dict(config)
        self.main = int(os.environ.get("RANK", 0)) == 0
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._tracker_name: TrackerName = tracker
        self._tracker: Tracker | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        recorded = read_json(self.folder / "config.json")
        if isinstance(config, Config) and recorded is not None:
            recorded = completed(recorded, config)
        changed = difference(recorded, self.config) if recorded is not None and self.steps() else None
        if changed:
            raise InputError(f"{self.folder}: begun with another configuration ({changed}); set it back, or delete the folder")
        if self.main:
            write_json(self.folder / "config.json", self.config)

    # Signals: the first asks for a stop at the next step boundary, the second does what it always did. Under torchrun, which
    # passes on what the terminal or the scheduler has sent already, every signal comes twice and only asks.

    def __enter__(self) -> Self:
        self._install_handlers()
        return self

    def _install_handlers(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._handlers[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread: then nobody sends it here either
                break

    def __exit__(self, *_: object) -> None:
        self._restore_handlers()
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    def _on_signal(self, number: int, _: object) -> None:
        self._signal = number
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    @contextmanager
    def unguarded(self) -> Iterator[None]:
        """For what comes before the first step: a signal ends it as it ends any program, since there is nothing to save."""
        guarded = bool(self._handlers)
        self._restore_handlers()
        yield
        if guarded:
            self._install_handlers()

    @property
    def should_stop(self) -> bool:
        """Whether a signal has asked for the end. Under torchrun every rank must ask at the same step: all get one answer."""
        return bool(_highest(int(self._signal is not None)))

    # Metrics

    def log(self, step: int, **metrics: float | Tensor) -> None:
        """Append one line {"step": ..., name: value, ...} to metrics.jsonl, and tell the tracker."""
        if not self.main:
            return
        values = {name: _number(value) for name, value in metrics.items()}
        # JSON has no NaN; null keeps the file readable by everything.
        line = json.dumps({"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()})
        try:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            if tracker := self._open_tracker(step):
                tracker.figures(step, values)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error}); free space and give the same command") from error

    def listening(self, step: int) -> bool:
        """Whether samples are due."""
        return self.listen_every > 0 and step % self.listen_every == 0

    def listen(self, step: int, sounds: Mapping[str, Waveform]) -> None:
        """Keep sounds to be listened to: samples/step-.../NAME.flac, and a picture beside each where matplotlib is installed."""
        if not self.main or not sounds:
            return
        folder = self.folder / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        tracker = self._open_tracker(step)
        for name, sound in sounds.items():
            sound.write(folder / f"{name}.flac")
            if tracker:
                tracker.sound(step, name, sound)
            try:
                drawn = picture(sound.mono().samples[0], sound.sample_rate, title=f"{name}, step {step}")
            except ImportError:
                continue
            with whole_file(folder / f"{name}.png") as temporary:
                temporary.write_bytes(drawn)
            if tracker:
                tracker.picture(step, name, drawn)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, less those that a crash has cut or filled with NULs."""
        path, found = self.folder / "metrics.jsonl", []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def check(self, step: int, **losses: float | Tensor) -> None:
        """Raise Diverged, naming the step and the last good checkpoint, where a loss is NaN or infinite."""
        for name, value in losses.items():
            if not math.isfinite(_number(value)):
                steps = self.steps()
                good = f"the last good checkpoint is {self._path(steps[-1])}" if steps else "no checkpoint was written yet"
                raise Diverged(f"{self.folder}: {name} is {_number(value)} at step {step}; {good}; lower the learning rate")

    def _open_tracker(self, step: int) -> Tracker | None:
        if self._tracker is None:
            self._tracker = open_tracker(self._tracker_name, self.folder, self.config, step)
            self._tracker_name = self._tracker_name if self._tracker else "none"
        return self._tracker

    # Checkpoints

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints in the folder, oldest first."""
        matches = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self.folder.iterdir())
        return sorted(step for match in matches if match and is_whole(self._path(step := int(match[1]))))

    @property
    def best(self) -> int | None:
        """Step of the kept checkpoint with the lowest score, the earliest of equals; None where none was scored."""
        scores = {step: read_json(self._path(step) / "files.json")["score"] for step in self.steps()}
        return min((step for step in scores if scores[step] is not None), key=lambda step: (scores[step], step), default=None)

    def save(self, step: int, state: State, score: float | Tensor | None = None) -> None:
        """Write the checkpoint of `step` (finished updates), beside first, then renamed; drop what `keep` no longer keeps.

        state: name -> module (safetensors), anything with a state_dict (an optimiser), or a plain value.
        score: lower is better; the best checkpoint outlives `keep`. InputError where the disk is full.
        """
        about = {"step": step, "score": None if score is None else _number(score)}
        checkpoint.write(self._path(step), state, about, random_state(), keep=self.main)
        if self.main:
            self._prune()

    def checkpoint(
        self, step: int, state: State, every: int, total: int, score: float | Tensor | None = None, **checked: float | Tensor
    ) -> None:
        """Call at the end of each step: saves when it is due or has a score, at the last step, and when asked to stop.

        Raises Stopped after the latter, and Diverged, with nothing saved, where what is `checked` is not a number.
        """
        stop = self.should_stop
        if stop or score is not None or step % every == 0 or step == total:
            self.check(step, **checked)
            self.save(step, state, score)
        if stop and step < total:
            _highest(0)  # nobody leaves before the checkpoint is whole: torchrun ends all as soon as one has ended
            raise Stopped(f"{self.folder}: stopped and saved at step {step}; the same command goes on from there")

    def resume(self, state: State) -> int:
        """Load the newest whole checkpoint into `state` and return its step; 0, and nothing touched, where there is none.

        Half-written leftovers are removed; metrics are cut back to the step, so that no line is written twice.
        """
        steps = self.steps()
        step = _highest(steps[-1] if steps and self.main else 0)  # as the first process sees the folder, and so do all
        if self.main:
            damaged = [path for path in self.folder.glob("step-*") if not is_whole(path)]
            for leftover in [*self.folder.glob(".step-*"), *damaged]:
                shutil.rmtree(leftover, ignore_errors=True)
            kept = [line for line in self.metrics() if line["step"] <= step]
            with whole_file(self.folder / "metrics.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            self._record_versions(step)
        if step:
            self.load(step, state)
        return step

    def load(self, step: int, state: State) -> None:
        """Load one checkpoint into `state`: modules and optimisers in place, plain values replaced; random states too."""
        path = self._path(step)
        if not is_whole(path):
            raise InputError(f"{path}: no whole checkpoint there; the folder holds {self.steps() or 'none'}")
        random = checkpoint.read(path, state)
        if self.main:  # another rank's own state is not stored: the loops draw by the step and the rank
            set_random_state(random)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _prune(self) -> None:
        steps = self.steps()
        for step in set(steps[: -self.keep]) - {self.best}:
            gone = self.folder / f".{self._path(step).name}.old"
            os.rename(self._path(step), gone)  # first out of sight, so that a crash never leaves half of one
            shutil.rmtree(gone, ignore_errors=True)

    def _record_versions(self, step: int) -> None:
        recorded = [entry for entry in read_json(self.folder / "versions.json") or [] if entry["from_step"] < step]
        now = versions() | ({"data": self.data} if self.data else {})
        if not recorded or difference(recorded[-1] | {"from_step": step}, now | {"from_step": step}):
            recorded.append({"from_step": step, **now})
        write_json(self.folder / "versions.json", recorded)

    # Progress

    @contextmanager
    def progress(self, total: int, start: int = 0, label: str | None = None) -> Iterator[Callable[..., None]]:
        """Yield show(step, **values): a bar with the time left on a terminal, a line every 30 s elsewhere; on stderr."""
        with progress(total, start, label or self.folder.name, quiet=not self.main) as show:
            yield show


@contextmanager
def progress(total: int, start: int = 0, label: str = "", quiet: bool = False) -> Iterator[Callable[..., None]]:
    """As Run.progress, for work that has no run folder."""
    if not quiet and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[values]}"), console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, completed=start, values="")
            yield lambda step, **values: bar.update(task, completed=step, values=_shown(values))
        return
    began = last = time.monotonic()

    def show(step: int, **values: float | Tensor) -> None:
        nonlocal last
        now = time.monotonic()
        if quiet or (now - last < 30 and step < total):
            return
        last = now
        left = (now - began) / max(1, step - start) * max(0, total - step)  # a budget of minutes ends a step late
        times = f"{_clock(now - began)} gone, {_clock(left)} left"
        print(f"{label} {step}/{total} {_shown(values)} {times}", file=sys.stderr, flush=True)

    yield show


def _shown(values: Mapping[str, float | Tensor]) -> str:
    return " ".join(f"{name} {_number(value):.4g}" for name, value in values.items())


def _number(value: float | Tensor) -> float:
    return float(value.item() if isinstance(value, Tensor) else value)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def learning_rate(step: int, peak: float, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Linear warm-up to `peak`, then half a cosine down to `floor * peak` at `total`: a pure function of the step (from 1)."""
    if step < warmup:
        return peak * step / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def versions() -> dict[str, str]:
    """Versions a result depends on. No paths, no host: a run folder can be given away."""
    try:
        package = importlib.metadata.version("audiolm")
    except importlib.metadata.PackageNotFoundError:
        package = "source"
    found = {"audiolm": package, "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return found | {"machine": platform.machine()} | _git_revision()


def _git_revision() -> dict[str, str]:
    root = Path(__file__).resolve().parents[3]  # src/audiolm/training/run.py; an installed copy has no .git there
    if not (root / ".git").exists():
        return {}
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        found = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:
        return {}
    return {"git": found.stdout.strip()} if found.returncode == 0 else {}


def _highest(number: int) -> int:
    """The highest of all processes' numbers: one answer for all, and all have come this far."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    highest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
    return int(highest.item())
