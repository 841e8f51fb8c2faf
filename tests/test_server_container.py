"""No container engine is needed to know that the Dockerfile's commands work: they are run in order in a fresh folder."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parents[1]


def instructions() -> Iterator[tuple[str, str]]:
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


def test_the_dockerfile_does_what_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = [rest for name, rest in instructions() if name == "RUN" and "useradd" not in rest]
    assert commands[0] == "python3 -m venv .venv"
    assert commands[0] in readme
    assert "'.[serve]'" in commands[1]
    assert "'.[serve]'" in readme
    assert "audiolm serve" in readme
    assert [rest for name, rest in instructions() if name == "USER"] == ["audiolm"]  # nothing runs as root
    # Neither WORKDIR nor COPY would give the folder to the user.
    folder = next(rest for name, rest in instructions() if name == "WORKDIR")
    assert next(rest for name, rest in instructions() if name == "RUN").endswith(f"install -d -o audiolm -g audiolm {folder}")


@pytest.mark.slow
def test_its_commands_run_in_order_in_a_fresh_folder(tmp_path: Path) -> None:
    """COPY takes what git knows; RUN and CMD are run as they stand, on another port and at home."""
    known = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    environment = {**os.environ, "AUDIOLM_API_KEY": "secret"}
    for name, rest in instructions():
        if name == "COPY":
            for path in filter(None, known):
                if (ROOT / path).is_file():
                    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / path, tmp_path / path)
        elif name == "RUN" and "useradd" not in rest:
            subprocess.run(["sh", "-c", rest], cwd=tmp_path, check=True)
        elif name == "CMD":
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            words = [word.strip(",") for word in shlex.split(rest.strip("[]").replace(",", " "))]
            words[words.index("0.0.0.0")] = "127.0.0.1"
            with subprocess.Popen([*words, "--port", str(port)], cwd=tmp_path, env=environment) as process:
                try:
                    deadline = time.monotonic() + 120
                    while not answers(port) and time.monotonic() < deadline:
                        time.sleep(0.5)
                    key = {"Authorization": "Bearer secret"}
                    address = f"http://127.0.0.1:{port}"
                    made = httpx2.post(f"{address}/v1/generate?seconds=0.3", headers=key, timeout=120)
                    assert (made.status_code, made.content[:4]) == (200, b"RIFF")
                    examples = httpx2.get(f"{address}/v1/examples", headers=key).json()
                    assert len(examples) == 3  # they come with the package
                    assert httpx2.get(address + examples[0]["url"]).content[:4] == b"fLaC"
                    assert httpx2.get(f"{address}/").status_code == 200
                finally:
                    process.terminate()
    assert re.search(r"^HEALTHCHECK", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def answers(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx2.HTTPError:
        return False
