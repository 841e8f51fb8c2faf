"""A run folder: configuration, versions, metrics, checkpoints. A run killed at any moment goes on as if it never was.

    RUN/config.json  versions.json  metrics.jsonl  events.out.tfevents.*
    RUN/step-00000123/  one safetensors per module, state.pt (optimisers, plain values, random states), files.json

A loop looks like this; `step` counts finished updates, so that a checkpoint's name says what it holds:

    with Run(folder, config) as run:
        start = run.resume(state)
        with run.progress(total, start) as show:
            for step in range(start + 1, total + 1):
                loss = update(batches.batch(step))
                run.check(step, loss=loss)
                run.log(step, loss=loss)
                show(step, loss=loss)
                run.checkpoint(step, state, every=500, total=total)
"""

import importlib.metadata
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from audiolm.config import Config, difference
from audiolm.errors import InputError
from audiolm.files import load_tensors, save_tensors, whole_file


class Stopped(SystemExit):
    """The run was asked to stop (SIGTERM, Ctrl-C), has saved, and the same command goes on. Uncaught: one line, exit 1."""


class Diverged(RuntimeError):
    """A loss is not a number any more."""


State = MutableMapping[str, Any]


class Run:
    """A folder that a training loop writes into. Under torchrun only rank 0 writes; every rank reads.

    `keep` checkpoints are kept, and the one of the best score besides. As a context manager it listens to SIGTERM
    and Ctrl-C. Raises InputError where the folder holds a run of another configuration.
    """

    def __init__(self, folder: str | Path, config: Config | Mapping[str, Any], keep: int = 2, tensorboard: bool = True) -> None:
        self.folder, self.keep = Path(folder), keep
        self.config = config.plain() if isinstance(config, Config) else dict(config)
        self.main = int(os.environ.get("RANK", 0)) == 0
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._tensorboard, self._writer = tensorboard, None
        self.folder.mkdir(parents=True, exist_ok=True)
        recorded = _read_json(self.folder / "config.json")
        changed = difference(recorded, self.config) if recorded is not None and self.steps() else None
        if changed:
            raise InputError(f"{self.folder}: begun with another configuration ({changed}); set it back, or delete the folder")
        if self.main:
            _write_json(self.folder / "config.json", self.config)

    # Signals: the first asks for a stop at the next step boundary, the second does what it always did.

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._handlers[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread: then nobody sends it here either
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_handlers()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _on_signal(self, number: int, _: object) -> None:
        self._signal = number
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    @property
    def should_stop(self) -> bool:
        """Whether a signal has asked for the end. Under torchrun every rank must ask at the same step: all get one answer."""
        stop = self._signal is not None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
            flag = torch.tensor(float(stop), device=device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            stop = bool(flag.item())
        return stop

    # Metrics

    def log(self, step: int, **metrics: float | Tensor) -> None:
        """Append one line {"step": ..., name: value, ...} to metrics.jsonl, and to tensorboard where it is installed."""
        if not self.main:
            return
        values = {name: _number(value) for name, value in metrics.items()}
        # JSON has no NaN; null keeps the file readable by everything.
        line = json.dumps({"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()})
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if writer := self._tensorboard_writer(step):
            for name, value in values.items():
                writer.add_scalar(name, value, step)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that was cut by a crash is left out."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def check(self, step: int, **losses: float | Tensor) -> None:
        """Raise Diverged, naming the step and the last good checkpoint, where a loss is NaN or infinite."""
        for name, value in losses.items():
            if not math.isfinite(_number(value)):
                steps = self.steps()
                good = f"the last good checkpoint is {self._path(steps[-1])}" if steps else "no checkpoint was written yet"
                raise Diverged(f"{self.folder}: {name} is {_number(value)} at step {step}; {good}; lower the learning rate")

    def _tensorboard_writer(self, step: int) -> Any:
        if self._tensorboard and self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder), purge_step=step)
            except ImportError:
                self._tensorboard = False
        return self._writer

    # Checkpoints

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints in the folder, oldest first."""
        matches = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self.folder.iterdir())
        return sorted(step for match in matches if match and _is_whole(self._path(step := int(match[1]))))

    @property
    def best(self) -> int | None:
        """Step of the kept checkpoint with the lowest score, the earliest of equals; None where none was scored."""
        scores = {step: _read_json(self._path(step) / "files.json")["score"] for step in self.steps()}
        return min((step for step in scores if scores[step] is not None), key=lambda step: (scores[step], step), default=None)

    def save(self, step: int, state: State, score: float | Tensor | None = None) -> None:
        """Write the checkpoint of `step` (finished updates), beside first, then renamed; drop what `keep` no longer keeps.

        state: name -> module (safetensors), anything with a state_dict (an optimiser), or a plain value.
        score: lower is better; the best checkpoint outlives `keep`.
        """
        path = self._path(step)
        if not self.main or _is_whole(path):
            return
        shutil.rmtree(path, ignore_errors=True)
        beside = self.folder / f".{path.name}.new"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        plain: dict[str, Any] = {}
        for name, value in state.items():
            if isinstance(value, nn.Module):
                # Copied: safetensors refuses tensors that share memory, as tied embeddings do.
                tensors = {key: tensor.detach().to("cpu", copy=True) for key, tensor in value.state_dict().items()}
                save_tensors(beside / f"{name}.safetensors", tensors)
            else:
                plain[name] = value.state_dict() if hasattr(value, "state_dict") else value
        with whole_file(beside / "state.pt") as temporary:
            torch.save({"state": plain, "random": random_state()}, temporary)
        sizes = {file.name: file.stat().st_size for file in sorted(beside.iterdir())}
        _write_json(beside / "files.json", {"step": step, "score": None if score is None else _number(score), "sizes": sizes})
        os.rename(beside, path)
        _sync_folder(self.folder)
        self._prune()

    def checkpoint(self, step: int, state: State, every: int, total: int, score: float | Tensor | None = None) -> None:
        """Call at the end of each step: saves when it is due, at the last step, and before a requested stop (raises Stopped)."""
        stop = self.should_stop
        if stop or step % every == 0 or step == total:
            self.save(step, state, score)
        if stop and step < total:
            raise Stopped(f"{self.folder}: stopped and saved at step {step} of {total}; the same command goes on from there")

    def resume(self, state: State) -> int:
        """Load the newest whole checkpoint into `state` and return its step; 0, and nothing touched, where there is none.

        Half-written leftovers are removed; metrics are cut back to the step, so that no line is written twice.
        """
        steps = self.steps()
        step = steps[-1] if steps else 0
        if self.main:
            damaged = [path for path in self.folder.glob("step-*") if not _is_whole(path)]
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
        if not _is_whole(path):
            raise InputError(f"{path}: no whole checkpoint there; the folder holds {self.steps() or 'none'}")
        saved = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        for name, value in state.items():
            if isinstance(value, nn.Module):
                value.load_state_dict(load_tensors(path / f"{name}.safetensors")[0])
            elif hasattr(value, "load_state_dict"):
                value.load_state_dict(saved["state"][name])
            else:
                state[name] = saved["state"][name]
        if self.main:  # another rank's own state is not stored; it goes on from its seed
            set_random_state(saved["random"])

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _prune(self) -> None:
        steps = self.steps()
        for step in set(steps[: -self.keep]) - {self.best}:
            gone = self.folder / f".{self._path(step).name}.old"
            os.rename(self._path(step), gone)  # first out of sight, so that a crash never leaves half of one
            shutil.rmtree(gone, ignore_errors=True)

    def _record_versions(self, step: int) -> None:
        recorded = [entry for entry in _read_json(self.folder / "versions.json") or [] if entry["from_step"] < step]
        now = versions()
        if not recorded or difference(recorded[-1] | {"from_step": step}, now | {"from_step": step}):
            recorded.append({"from_step": step, **now})
        _write_json(self.folder / "versions.json", recorded)

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
        left = (now - began) / max(1, step - start) * (total - step)
        times = f"{_clock(now - began)} gone, {_clock(left)} left"
        print(f"{label} {step}/{total} {_shown(values)} {times}", file=sys.stderr, flush=True)

    yield show


def _shown(values: Mapping[str, float | Tensor]) -> str:
    return " ".join(f"{name} {_number(value):.4g}" for name, value in values.items())


def _number(value: float | Tensor) -> float:
    return float(value.item() if isinstance(value, Tensor) else value)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


# Randomness


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """All random states as plain values and tensors (nothing that needs unpickling of code)."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def random_untouched() -> Iterator[None]:
    """Whatever is drawn inside (an evaluation, a sample to listen to) leaves the training's randomness as it was."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


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
    root = Path(__file__).resolve().parents[2]  # src/audiolm/run.py; an installed copy has no .git there
    if not (root / ".git").exists():
        return {}
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        found = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:
        return {}
    return {"git": found.stdout.strip()} if found.returncode == 0 else {}


# Small files


def _is_whole(path: Path) -> bool:
    files = _read_json(path / "files.json")
    return files is not None and all((path / n).is_file() and (path / n).stat().st_size == s for n, s in files["sizes"].items())


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write_json(path: Path, value: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
