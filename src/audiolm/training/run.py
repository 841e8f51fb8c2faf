"""A run folder: configuration, versions, metrics, checkpoints. A run killed at any moment resumes as if uninterrupted.

    RUN/config.json       every option, defaults included
    RUN/versions.json     everything a result depends on, git revision and data hash included, and from which step on
    RUN/metrics.jsonl     a line per report; events.out.tfevents.* or wandb/ repeat it for TensorBoard or Weights & Biases
    RUN/samples/          audio samples from a fixed set of prompts, with spectrograms, by step
    RUN/step-00000123/    a checkpoint (audiolm.training.checkpoint)

A loop looks like this; `step` counts finished updates, so a checkpoint's name says how many it holds:

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
    """The run was asked to stop (SIGTERM, Ctrl-C) and has saved; the same command resumes it. Uncaught: one line, exit 1."""


class Diverged(RuntimeError):
    """A loss has become NaN or infinite."""


class Run:
    """The folder a training loop writes to. Under torchrun every rank makes the same calls and reads; only rank 0 writes.

    The last `keep` checkpoints are kept, plus the best-scoring one. Samples are due every `listen_every` steps (0: never).
    `data`: hash of the training data, for the record. As a context manager it handles SIGTERM and Ctrl-C.
    Raises InputError if the folder holds a run with another configuration.
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
            raise InputError(f"{self.folder}: started with another configuration ({changed}); restore it, or delete the folder")
        if self.main:
            write_json(self.folder / "config.json", self.config)

    # Signals: the first asks to stop at the next step boundary, the second has its default effect. Under torchrun, which
    # forwards what the terminal or scheduler has already sent, every signal arrives twice, so each only asks.

    def __enter__(self) -> Self:
        self._install_handlers()
        return self

    def _install_handlers(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._handlers[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread, which receives no signals either
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
        """For work before the first step: a signal ends the program as usual, since there is nothing to save yet."""
        guarded = bool(self._handlers)
        self._restore_handlers()
        yield
        if guarded:
            self._install_handlers()

    @property
    def should_stop(self) -> bool:
        """Whether a signal asked to stop. Under torchrun every rank must query this at the same step; all get one answer."""
        return bool(_highest(int(self._signal is not None)))

    def stop_if_asked(self) -> None:
        """Raise Stopped if a signal came too late for `checkpoint` to stop the run: during its last step or after it."""
        if self.should_stop:
            raise Stopped(f"{self.folder}: finished, then stopped; rerun the same command, without --force, to go on")

    # Metrics

    def log(self, step: int, **metrics: float | Tensor) -> None:
        """Append a line {"step": ..., name: value, ...} to metrics.jsonl, and forward it to the tracker."""
        if not self.main:
            return
        values = {name: _number(value) for name, value in metrics.items()}
        # JSON has no NaN; null keeps the file readable everywhere.
        line = json.dumps({"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()})
        try:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            if tracker := self._open_tracker(step):
                tracker.figures(step, values)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error}); free disk space and rerun the same command") from error

    def listening(self, step: int) -> bool:
        """Whether audio samples are due at this step."""
        return self.listen_every > 0 and step % self.listen_every == 0

    def listen(self, step: int, sounds: Mapping[str, Waveform]) -> None:
        """Write audio samples to samples/step-.../NAME.flac, with a spectrogram beside each if matplotlib is installed."""
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
        """The lines of metrics.jsonl, except any that a crash truncated or filled with NULs."""
        path, found = self.folder / "metrics.jsonl", []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def check(self, step: int, **losses: float | Tensor) -> None:
        """Raise Diverged, naming the step and the last good checkpoint, if a loss is NaN or infinite."""
        for name, value in losses.items():
            if not math.isfinite(_number(value)):
                steps = self.steps()
                good = f"the last good checkpoint is {self._path(steps[-1])}" if steps else "no checkpoint had been written yet"
                raise Diverged(f"{self.folder}: {name} is {_number(value)} at step {step}; {good}; lower the learning rate")

    def _open_tracker(self, step: int) -> Tracker | None:
        if self._tracker is None:
            self._tracker = open_tracker(self._tracker_name, self.folder, self.config, step)
            self._tracker_name = self._tracker_name if self._tracker else "none"
        return self._tracker

    # Checkpoints

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints in the folder, oldest first."""
        matches = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self.folder.iterdir())
        return sorted(step for match in matches if match and is_whole(self._path(step := int(match[1]))))

    @property
    def best(self) -> int | None:
        """Step of the kept checkpoint with the lowest score, the earliest if tied; None if none was scored."""
        scores = {step: read_json(self._path(step) / "files.json")["score"] for step in self.steps()}
        return min((step for step in scores if scores[step] is not None), key=lambda step: (scores[step], step), default=None)

    def save(self, step: int, state: State, score: float | Tensor | None = None) -> None:
        """Write the checkpoint of `step` (finished updates) under a temporary name, rename it, and prune those beyond `keep`.

        state: name -> module (safetensors), anything with a state_dict (an optimiser), or a plain value.
        score: lower is better; the best checkpoint is never pruned. InputError if the disk is full.
        """
        about = {"step": step, "score": None if score is None else _number(score)}
        checkpoint.write(self._path(step), state, about, random_state(), keep=self.main)
        if self.main:
            self._prune()

    def checkpoint(
        self, step: int, state: State, every: int, total: int, score: float | Tensor | None = None, **checked: float | Tensor
    ) -> None:
        """Call at the end of each step: saves when due, when given a score, at the last step, and when asked to stop.

        Raises Stopped in the last case, unless this is the last step (see `stop_if_asked`), and Diverged, saving nothing, if a
        value in `checked` is NaN or infinite.
        """
        stop = self.should_stop
        if stop or score is not None or step % every == 0 or step == total:
            self.check(step, **checked)
            self.save(step, state, score)
        if stop and step < total:
            _highest(0)  # wait until the checkpoint is complete: torchrun kills all processes once one exits
            raise Stopped(f"{self.folder}: stopped and saved at step {step}; rerun the same command to resume")

    def resume(self, state: State) -> int:
        """Load the newest complete checkpoint into `state` and return its step; 0, with `state` untouched, if there is none.

        Half-written leftovers are removed, and metrics after the step are dropped so that no line is written twice.
        """
        steps = self.steps()
        step = _highest(steps[-1] if steps and self.main else 0)  # all processes take rank 0's view of the folder
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
        """Load one checkpoint: modules and optimisers in place, plain values replaced in `state`, random states restored."""
        path = self._path(step)
        if not is_whole(path):
            raise InputError(f"{path}: no complete checkpoint there; the folder holds steps {self.steps() or 'none'}")
        random = checkpoint.read(path, state)
        if self.main:  # other ranks' states are not stored: loops seed their draws by step and rank
            set_random_state(random)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _prune(self) -> None:
        steps = self.steps()
        for step in set(steps[: -self.keep]) - {self.best}:
            gone = self.folder / f".{self._path(step).name}.old"
            os.rename(self._path(step), gone)  # renamed first, so that a crash never leaves half a checkpoint
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
        """Yield show(step, **values): a progress bar with the time left on a terminal, else a line every 30 s; on stderr."""
        with progress(total, start, label or self.folder.name, quiet=not self.main) as show:
            yield show


@contextmanager
def progress(total: int, start: int = 0, label: str = "", quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Like Run.progress, for work without a run folder."""
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
        left = (now - began) / max(1, step - start) * max(0, total - step)  # not below 0: a budget of minutes ends a step late
        times = f"{_clock(now - began)} elapsed, {_clock(left)} left"
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
    """Versions a result depends on. No paths or host names, so that a run folder can be shared."""
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
    """The maximum over all processes; also a barrier."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    highest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
    return int(highest.item())
