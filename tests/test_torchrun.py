"""The program as it is typed: killed again and again, and under torchrun. Slow: every process loads torch anew."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STEPS = {"steps": 24, "save_every": 2, "valid_every": 8, "batch_size": 2, "valid_batches": 1}
QUICK = ["units.batches=8", "codec.start_batches=8", "encoder.0.fit_batches=2", "listen_every=12"] + [
    f"{part}.{key}={value}" for part in ("codec", "encoder.0", "semantic", "coarse", "fine") for key, value in STEPS.items()
]
TRAIN = ["-m", "audiolm.cli", "train", str(ROOT / "recipes" / "tiny.toml"), "--ignore-gates", f"data={ROOT / 'examples'}"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(out: Path, processes: int = 1, *more: str) -> subprocess.Popen[bytes]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    return subprocess.Popen([sys.executable, *launch, *TRAIN, f"out={out}", *QUICK, *more], env=ENVIRONMENT)


def results(out: Path) -> dict[str, str]:
    found = {path.parent.name: json.loads(path.read_text())["result"] for path in out.glob("*/done.json")}
    found.pop("bundle")  # its card tells how long training took
    return found


def until(sign: str, out: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not list(out.glob(sign)):
        time.sleep(0.05)


def test_killed_at_ten_random_moments_the_same_command_comes_to_the_same(tmp_path: Path) -> None:
    moments, killed = random.Random(0), 0
    assert start(tmp_path / "whole", 1, "threads=1").wait() == 0
    signs = ["prepare", "codec/step-*", "codec/step-*16", "encoder/*/step-*", "encoder/done.json", "tokens"]
    for sign in (*signs, "semantic/step-*04", "semantic/step-*16", "coarse/step-*08", "fine/step-*12"):
        process = start(tmp_path / "killed", 1, "threads=1")
        until(sign, tmp_path / "killed", process)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed == 10
    assert start(tmp_path / "killed", 1, "threads=1").wait() == 0
    assert results(tmp_path / "whole") == results(tmp_path / "killed")


@pytest.mark.parametrize("shard", ["shard=false", "shard=true"])
def test_two_processes_that_the_scheduler_stops_come_to_the_same(tmp_path: Path, shard: str) -> None:
    assert start(tmp_path / "whole", 2, "threads=1", shard).wait() == 0
    for sign in ("codec/step-*04", "semantic/step-*04"):
        process = start(tmp_path / "stopped", 2, "threads=1", shard)
        until(sign, tmp_path / "stopped", process)
        process.terminate()
        assert process.wait() != 0
        assert not list((tmp_path / "stopped").glob("*/.step-*"))
    assert start(tmp_path / "stopped", 2, "threads=1", shard).wait() == 0
    assert results(tmp_path / "whole") == results(tmp_path / "stopped")
