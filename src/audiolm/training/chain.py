"""A chain of steps, each done once, on disk. It knows nothing about audio.

    OUT/<step>/begun.json   what the step started from: its configuration, and the hashes of its inputs' results
    OUT/<step>/done.json    the same plus the hash of its own result, once finished; it is then never run again
    OUT/<step>/time.json    seconds spent on it, interrupted sessions included
    OUT/.<step>.old/        what a step that is being redone replaces; it is deleted once that is finished

A step started or finished with another configuration or other inputs is refused, naming the difference, never silently redone.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from audiolm.config import difference
from audiolm.errors import InputError
from audiolm.files import one_at_a_time, read_json, write_json
from audiolm.training.run import seed_all, versions

LITTLE = 100_000  # bytes; a step that fails on a wrong input and leaves less than this counts as never started

RECORDS = ("done.json", "begun.json")


@dataclass(frozen=True)
class Step:
    """`do(shop)` makes the step's result in OUT/<name>/ and returns its hash; if interrupted, it resumes when called again.

    config: JSON-ready; all that the result depends on besides the results of `inputs`.
    together: under torchrun every process takes part; otherwise the first one works and the others wait.
    completed: fills a recorded configuration with the defaults of options added since, so that an update invalidates nothing.
    """

    name: str
    inputs: tuple[str, ...]
    config: dict[str, Any]
    do: Callable[[Any], str]
    together: bool = False
    completed: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def differs(self, recorded: dict[str, Any]) -> str | None:
        """How the recorded configuration differs from the present one, in words; None if it does not."""
        return difference(self.completed(recorded), json.loads(json.dumps(self.config)), self.name)


class Chain:
    """Runs steps in a folder. `shop` is whatever they share."""

    def __init__(self, out: Path, steps: Sequence[Step], fabric: Fabric, seed: int = 0) -> None:
        self.out, self.steps, self.fabric, self.seed = out, {step.name: step for step in steps}, fabric, seed
        self.first = fabric.global_rank == 0

    def run(
        self, shop: Any, only: str | None = None, force: bool = False, then: Callable[[str], None] = lambda step: None
    ) -> None:
        """Run every unfinished step, or just the step `only`, whose inputs must be done.

        force: redo a step made from other inputs or options; the step in `only` is redone in any case. The earlier one is
            deleted once the new one is finished, and put back if a wrong input prevents that.
        then: called with the name of each finished step, whether finished now or before; what it raises stops the chain.
        InputError if a step was made from other inputs or options, an input is not done, or there is no such step.
        """
        if only is not None and only not in self.steps:
            raise InputError(f"--only {only}: no such step; this recipe has {', '.join(self.steps)}")
        made = not self.out.exists()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.out}: cannot be created ({(error.strerror or 'error').lower()}); choose another out="
            ) from error
        try:
            with one_at_a_time(self.out) if self.first else nullcontext():
                if self.first:
                    self._settle()
                self.fabric.barrier()
                for step in self.steps.values():
                    if only in (None, step.name):
                        self._run(step, shop, force, again=force and only is not None)
                        then(step.name)
        except InputError:
            if made and self.first and {path.name for path in self.out.iterdir()} == {".lock"}:
                shutil.rmtree(self.out)  # leave nothing behind after a wrong input
            raise

    def _run(self, step: Step, shop: Any, force: bool, again: bool) -> None:
        folder, old = self.out / step.name, self._old(step.name)
        inputs = {name: self._result(name, step) for name in step.inputs}
        now = json.loads(json.dumps({"config": step.config, "inputs": inputs}))
        done = read_json(folder / "done.json")
        before = done or read_json(folder / "begun.json")
        changed = _changed(step, before, now) if before else None
        self.fabric.barrier()  # everyone must look before anything is written
        if changed and not force:
            back = f", delete {folder} to have back what it was to replace" if old.exists() else ""
            cure = f"undo the change{back}, or redo the step: --only {step.name} --force"
            raise InputError(f"{folder}: was made differently ({changed}); {cure}")
        if done and not changed and not again:
            return self._say(f"{step.name}: already done")
        fresh = not before or bool(changed) or (again and bool(done))  # what --force started but did not finish resumes
        if self.first:
            if before and fresh and not old.exists():
                folder.rename(old)
            elif fresh:  # what was never finished is worth less than what it was to replace
                _delete(folder)
            folder.mkdir(exist_ok=True)
            write_json(folder / "begun.json", now)
        self.fabric.barrier()
        self._say(f"{step.name}: {'starting' if fresh else 'resuming'}")
        seed_all(self.seed + self.fabric.global_rank)
        try:
            result, spent = self._do(step, shop)
        except InputError:
            if self.first and fresh and _size(folder) < LITTLE:
                _delete(folder)  # so that the corrected input is not refused as a change
                self._settle()
            raise
        if self.first:
            write_json(folder / "done.json", {**now, "result": result, "versions": versions()})
            self._settle()
        self.fabric.barrier()
        self._say(f"{step.name}: done in {spent:.0f} s")

    def _do(self, step: Step, shop: Any) -> tuple[str, float]:
        """The step's result and the seconds spent on it, which are recorded whatever happens."""
        folder, began = self.out / step.name, time.monotonic()
        before = (read_json(folder / "time.json") or {"seconds": 0.0})["seconds"]
        try:
            result = step.do(shop) if step.together or self.first else ""
        finally:
            spent = before + time.monotonic() - began
            if self.first and folder.is_dir():
                write_json(folder / "time.json", {"seconds": round(spent, 1)})
        return result, spent

    def _settle(self) -> None:
        """Delete what finished steps have replaced, and put back what those that were never begun were to replace."""
        for name in self.steps:
            folder, old = self.out / name, self._old(name)
            if not old.is_dir():
                continue
            if (folder / "done.json").is_file() or not _recorded(old):
                _delete(old)
            elif not _recorded(folder):
                _delete(folder)
                old.rename(folder)

    def _old(self, name: str) -> Path:
        return self.out / f".{name}.old"

    def _result(self, name: str, step: Step) -> str:
        done = read_json(self.out / name / "done.json")
        if done is None:
            raise InputError(f"{step.name} needs {name}, which is not done in {self.out}; run it first: --only {name}")
        return done["result"]

    def _say(self, text: str) -> None:
        if self.first:
            print(text, file=sys.stderr, flush=True)


def _recorded(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RECORDS)


def _delete(folder: Path) -> None:
    """Delete a step's folder if there is one; killed halfway, what is left counts as never begun."""
    for name in RECORDS:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _changed(step: Step, before: dict[str, Any], now: dict[str, Any]) -> str | None:
    config = step.differs(before["config"])
    given, due = before["inputs"], now["inputs"]
    for name in () if config else {**due, **given}:
        if given.get(name) != due.get(name):
            gone = "is no longer an input" if name not in due else "has been redone since"
            return f"{name} {'was not an input then' if name not in given else gone}"
    return config
