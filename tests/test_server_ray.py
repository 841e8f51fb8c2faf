"""examples/ray_serve.py: two copies behind one address; one is killed under load, and only what it was making is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from audiolm import bundle
from audiolm.model import AudioLM

pytest.importorskip("ray.serve", reason="needs ray[serve]")
SCRIPT = Path(__file__).parents[1] / "examples" / "ray_serve.py"
CLIENTS = 6


def descendants(pid: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            yield int(path.parent.name)
            yield from descendants(int(path.parent.name))


def copies(pid: int) -> list[int]:
    """Process ids of the copies that a script runs."""
    found = []
    for each in descendants(pid):
        try:
            if Path(f"/proc/{each}/cmdline").read_bytes().startswith(b"ray::ServeReplica"):
                found.append(each)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_one_of_two_copies_is_killed(tiny_model: AudioLM, tmp_path: Path) -> None:
    bundle.save(tiny_model, tmp_path, "# A card\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [sys.executable, str(SCRIPT), "--model", str(tmp_path), "--port", str(port), "--cpus", "0.5"]
    log = (tmp_path / "log").open("w")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ}) as script:
        try:
            assert script.stdout is not None
            assert any("copies" in line for line in script.stdout), (tmp_path / "log").read_text()
            address = f"http://127.0.0.1:{port}"
            alone = {seed: ask(address, seed)[1] for seed in range(3)}
            both = copies(script.pid)
            assert len(both) == 2
            sent: list[tuple[float, int, bytes, int]] = []  # when, its status, its sound, its seed
            stop = threading.Event()

            def client(number: int) -> None:
                while not stop.is_set():
                    began = time.monotonic()
                    sent.append((began, *ask(address, number % 3), number % 3))

            clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
            for each in clients:
                each.start()
            time.sleep(5)
            killed = time.monotonic()
            os.kill(both[0], signal.SIGKILL)
            deadline = killed + 120
            while len(set(copies(script.pid)) - {both[0]}) < 2 and time.monotonic() < deadline:
                time.sleep(1)
            time.sleep(5)
            stop.set()
            for each in clients:
                each.join()
            assert len(set(copies(script.pid)) - {both[0]}) == 2  # another one has taken its place
            lost = [began for began, status, _, _ in sent if status != 200]
            assert len(lost) <= CLIENTS
            assert all(began < killed for began in lost), [round(began - killed, 3) for began in lost]
            assert all(sound == alone[seed] for _, status, sound, seed in sent if status == 200)
            assert sum(began > killed for began, *_ in sent) > CLIENTS
        finally:
            script.send_signal(signal.SIGTERM)
            try:
                script.wait(60)
            except subprocess.TimeoutExpired:
                script.kill()


def ask(address: str, seed: int) -> tuple[int, bytes]:
    try:
        answer = httpx2.post(f"{address}/v1/generate?seconds=0.4&seed={seed}", timeout=120)
    except httpx2.HTTPError:
        return 0, b""
    return answer.status_code, answer.content
