"""A server that really listens: many clients at once, clients that leave or dawdle, and its end."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from audiolm import bundle
from audiolm.audio import Waveform
from audiolm.cli import run
from audiolm.model import AudioLM
from audiolm.serving import process
from audiolm.serving.limits import Limits
from audiolm.serving.server import create_app

LIMITS = Limits(seconds=600, rate=0, upload_seconds=1)


@contextmanager
def serving(model: AudioLM, limits: Limits = LIMITS) -> Iterator[tuple[str, process.uvicorn.Server]]:
    """The address of a server in a thread, and the server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = process.server(create_app(model, limits), limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            wait(lambda: server.started)
            yield address, server
        finally:
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def address(tiny_model: AudioLM) -> Iterator[str]:
    with serving(tiny_model) as (address, _):
        yield address


def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def figure(address: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx2.get(f"{address}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@contextmanager
def connection(address: str, head: str) -> Iterator[socket.socket]:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as client:
        client.sendall(head.replace("\n", "\r\n").encode())
        yield client


def hear(client: socket.socket, end: bytes) -> None:
    heard = b""
    while end not in heard:
        part = client.recv(1 << 16)
        assert part, f"closed after {heard!r}"
        heard += part


def everything(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def test_clients_who_come_together_share_batches_and_nothing_else(address: str, female: Waveform, male: Waveform) -> None:
    voices = [female.trim(1.0).to_bytes(), male.trim(1.3).to_bytes()]

    def ask(seed: int) -> bytes:
        form = {"audio": ("prompt.wav", voices[seed % 2])}
        answer = httpx2.post(f"{address}/v1/continue?seconds=0.{5 + seed % 3}&seed={seed}", files=form, timeout=60)
        assert answer.headers["x-audiolm-seed"] == str(seed)
        return answer.content

    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(ask, range(8)))
    assert len(set(together)) == 8
    batches = figure(address, "audiolm_batch_size_count")
    assert figure(address, "audiolm_batch_size_sum") == 8
    assert batches < 8
    assert [ask(seed) for seed in range(8)] == together


def test_sound_comes_while_it_is_made(address: str) -> None:
    began = time.monotonic()
    with httpx2.stream("POST", f"{address}/v1/generate?seconds=8&stream=true", timeout=60) as answer:
        parts = answer.iter_raw()
        heard = len(next(parts)) + len(next(parts))
        first = time.monotonic() - began
        heard += sum(map(len, parts))
    assert heard == 44 + 2 * 8 * 16_000
    assert first < (time.monotonic() - began) / 2


@pytest.mark.parametrize("options", ["", "&stream=true"])
def test_who_leaves_is_not_worked_for(address: str, options: str) -> None:
    with connection(address, f"POST /v1/generate?seconds=600{options} HTTP/1.1\nHost: x\nContent-Length: 0\n\n"):
        time.sleep(0.3)
    wait(lambda: figure(address, "audiolm_waiting") == 0)
    assert figure(address, "audiolm_sound_seconds_total") < 600  # what was not sent does not count
    began = time.monotonic()
    assert httpx2.post(f"{address}/v1/generate?seconds=0.1", timeout=30).status_code == 200
    assert time.monotonic() - began < 10  # 600 s of sound take longer than that


def test_slow_uploads_are_ended(address: str) -> None:
    head = "POST /v1/detect HTTP/1.1\nHost: x\nContent-Type: audio/wav\nContent-Length: 100000\n\n"
    with connection(address, head) as client:
        client.sendall(b"RIFF")
        assert b" 408 " in everything(client)


def test_slow_heads_are_ended(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "HEAD_SECONDS", 0.3)
    with connection(address, "POST /v1/detect HTTP/1.1\nHost:") as client:
        assert everything(client) == b""
    with connection(address, "GET /healthz HTTP/1.1\nHost: x\n\n") as client:
        hear(client, b'"ok"}')
        client.sendall(b"GET /healthz HT")
        assert everything(client) == b""


def test_the_rest_of_an_answered_request_is_not_waited_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "HEAD_SECONDS", 0.3)
    with connection(address, "POST /nothing HTTP/1.1\nHost: x\nContent-Length: 1000\n\n") as client:
        hear(client, b"}")
        client.sendall(b"x")
        assert everything(client) == b""


def test_who_does_not_read_his_answer_is_left(tiny_model: AudioLM, female: Waveform) -> None:
    body = Waveform(female.samples.repeat(1, 25), 16_000).to_bytes()  # more than the system keeps for those who dawdle
    head = f"POST /v1/reconstruct HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving(tiny_model, LIMITS.model_copy(update={"timeout": 8.0})) as (address, server), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        client.sendall(head.encode() + body)
        wait(lambda: server.server_state.total_requests == 1)
        wait(lambda: not server.server_state.connections, 30)


def test_as_many_requests_at_once_as_the_limit_says(tiny_model: AudioLM) -> None:
    limits = LIMITS.model_copy(update={"connections": 1})
    with serving(tiny_model, limits) as (address, _):
        with connection(address, "POST /v1/generate?seconds=600 HTTP/1.1\nHost: x\nContent-Length: 0\n\n"):
            time.sleep(0.3)
            refused = httpx2.get(f"{address}/v1/models")
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
            assert refused.headers["retry-after"] == "5"
            assert httpx2.get(f"{address}/healthz").status_code == 200
        wait(lambda: httpx2.get(f"{address}/v1/models").status_code == 200)


def test_stopping_finishes_what_runs(tiny_model: AudioLM) -> None:
    with serving(tiny_model) as (address, server), ThreadPoolExecutor(1) as client:
        answer = client.submit(httpx2.post, f"{address}/v1/generate?seconds=6", timeout=60)
        time.sleep(0.3)
        server.should_exit = True
        assert answer.result().status_code == 200
        wait(lambda: not _reachable(address))


def _reachable(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def program(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of `audiolm serve` of the model in a folder, and its process."""
    words = [sys.executable, "-m", "audiolm.cli", "serve", *arguments, "--model", str(folder), "--port", "0", "--threads", "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "AUDIOLM_API_KEY": "k"}) as child:
        try:
            assert child.stderr is not None
            yield child.stderr.readline().split()[1], child
            assert child.stderr.read() == ""
        finally:
            child.kill()


def test_the_program_serves_until_it_is_told_to_stop(tiny_model: AudioLM, tmp_path: Path) -> None:
    bundle.save(tiny_model, tmp_path, "")
    with program(tmp_path, "seconds=3") as (address, child):
        assert address.startswith("http://127.0.0.1:")
        headers = {"Authorization": "Bearer k"}
        assert httpx2.get(f"{address}/v1/models", headers=headers, timeout=30).json()["models"][0]["max_seconds"] == 3
        assert httpx2.get(f"{address}/v1/models").status_code == 401
        assert (head := httpx2.head(f"{address}/")).status_code == 200
        assert (head.headers["content-type"], head.content) == ("text/html; charset=utf-8", b"")
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(httpx2.post, f"{address}/v1/generate?seconds=3", headers=headers, timeout=60)
            time.sleep(0.5)
            child.send_signal(signal.SIGTERM)
            assert answer.result().status_code == 200
        child.wait(30)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_who_asks_twice_does_not_wait(tiny_model: AudioLM, tmp_path: Path, asked: signal.Signals) -> None:
    bundle.save(tiny_model, tmp_path, "")
    with program(tmp_path, "seconds=600") as (address, child):
        wait(lambda: _reachable(address))
        head = f"POST /v1/generate?seconds=600 HTTP/1.1\nHost: {address[7:]}\nAuthorization: Bearer k\nContent-Length: 0\n\n"
        with connection(address, head):
            time.sleep(0.5)
            child.send_signal(asked)
            time.sleep(0.5)
            assert child.poll() is None  # the request runs
            child.send_signal(asked)
            assert child.wait(5) == 128 + asked


def test_mistakes_of_who_starts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, words in {
            ("secnds=3",): "secnds=3: unknown key 'secnds'; did you mean 'seconds'?",
            ("queue=2",): "queue=2: too small for one request of samples=8; give at least as many",
            ("queue=0",): "queue=0: queue: input should be greater than or equal to 1",
            ("--api-key-file", str(tmp_path / "none")): "cannot be read; name a text file of keys",
            ("--port", "70000"): "--port 70000: give a number from 0 to 65535",
            ("--port", port): "cannot listen there (address already in use); choose another",
            ("--model", "nowhere"): "nowhere: no such model",
            ("--device", "cuda:99"): "--device cuda:99: not available on this machine",
            ("--threads", "0"): "--threads 0: give 1 to 1024",
        }.items():
            assert run(["serve", *arguments]) == 2
            said = capsys.readouterr().err
            assert words in said
            assert said.count("\n") == 1
