"""Ray: a machine that dies in the middle changes nothing, a job that is killed goes on, and no process stays behind.

Ray talks over sockets, which conftest.py watches in this process; so the cluster lives in a child: this file, run as a program.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiolm import bundle
from audiolm.errors import InputError
from audiolm.model import AudioLM
from audiolm.training.cluster import tokenize_on_ray
from audiolm.training.corpus import tokenize_corpus
from audiolm.training.data import scan
from audiolm.training.token_store import TokenStore, verify

SHARD = 20.0  # seconds: each recording is a shard of its own
RECORDINGS = 16
# A node that does not answer three times in a row is dead; Ray's own patience is 15 s.
IMPATIENT = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


def shards(out: Path) -> list[Path]:
    return sorted(out.glob("[0-9]*.parquet"))


def lose_a_node(model: str, source: str, out: str) -> None:
    """Tokenise on two nodes of one processor each; one of them is killed when three shards are written."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster: Any = Cluster(
        initialize_head=True, head_node_args={**small, "include_dashboard": False, "_system_config": IMPATIENT}
    )
    print(json.dumps({"session": cluster.head_node.get_session_dir_path()}), flush=True)
    try:
        second = cluster.add_node(**small)
        cluster.wait_for_nodes()

        def kill() -> None:
            while (written := len(shards(Path(out)))) < 3:
                time.sleep(0.01)
            cluster.remove_node(second, allow_graceful=False)
            print(json.dumps({"killed_at": written}), flush=True)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        networks = bundle.load(model)
        tokenize_on_ray(networks.semantic, networks.codec, scan(source), out, address=cluster.address, shard_seconds=SHARD)
        killer.join(5)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    lose_a_node(*sys.argv[1:])
    sys.exit()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    noise = np.random.default_rng(0)
    for number in range(RECORDINGS):
        (folder / f"s{number % 4}").mkdir(exist_ok=True)
        samples = 0.1 * noise.normal(size=round((SHARD + 0.1 * number) * 16_000))
        if number == 5:
            samples[7] = np.nan
        soundfile.write(folder / f"s{number % 4}" / f"{number}.wav", samples, 16_000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def model(tiny_model: AudioLM, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    bundle.save(tiny_model, folder, "# A card\n")
    return str(folder)


@pytest.fixture(scope="module")
def whole(source: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    networks = bundle.load(model)
    out = tmp_path_factory.mktemp("whole") / "store"
    return tokenize_corpus(networks.semantic, networks.codec, scan(source), out, shard_seconds=SHARD)


def same(one: TokenStore, other: TokenStore) -> bool:
    return list(one.entries) == list(other.entries) and all(
        torch.equal(one.read(number, stream), other.read(number, stream)) for number in range(len(one)) for stream in one.specs
    )


def processes_of(session: str) -> list[str]:
    """Command lines of the processes that belong to a Ray session: it stands there, or in the name of the log they write to."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if session in line or session in os.readlink(process / "fd" / "1"):
                found.append(line)
        except OSError:  # it has gone meanwhile, or is another user's
            continue
    return found


def wait_until_gone(session: str, seconds: float) -> list[str]:
    until = time.monotonic() + seconds
    while (left := processes_of(session)) and time.monotonic() < until:
        time.sleep(0.2)
    return left


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for Ray's processes in /proc")
def test_a_node_that_dies_changes_nothing(source: Path, model: str, whole: TokenStore, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "store"
    done = subprocess.run([sys.executable, __file__, model, str(source), str(out)], capture_output=True, text=True, timeout=300)
    if "timed out during startup" in done.stderr:
        pytest.skip("Ray gives itself 30 s to start, and this machine is too busy for that")
    assert done.returncode == 0, done.stderr[-3000:]
    session, killed = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert 3 <= killed["killed_at"] < RECORDINGS - 2  # in the middle
    store = TokenStore(out)
    assert same(store, whole)
    assert verify(out) == RECORDINGS - 1
    assert [each["name"] for each in json.loads((out / "skipped.json").read_text())] == ["s1/5.wav"]
    assert not wait_until_gone(Path(session["session"]).name, 60)


@pytest.mark.slow
def test_a_killed_job_goes_on_and_leaves_no_process(source: Path, model: str, whole: TokenStore, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "store"
    command = [sys.executable, "-m", "audiolm.cli", "tokenize", str(source), "-o", str(out), "--model", model]
    command += ["--engine", "ray", "--workers", "2", "--shard-seconds", str(SHARD)]
    sessions = set(Path("/tmp/ray").glob("session_*_*"))
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(shards(out)) < 3:
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    (session,) = set(Path("/tmp/ray").glob("session_*_*")) - sessions
    assert not wait_until_gone(session.name, 120)  # its agents look for the others once in a while
    before = {path: path.stat().st_mtime_ns for path in shards(out)}
    assert 3 <= len(before) < RECORDINGS - 1
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    assert same(TokenStore(out), whole)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_no_ray_is_one_line(source: Path, tiny_model: AudioLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=re.escape("pip install 'audiolm[ray]'")):
        tokenize_on_ray(tiny_model.semantic, tiny_model.codec, scan(source), tmp_path / "store")
