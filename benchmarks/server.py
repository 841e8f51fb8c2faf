"""The server under load: python benchmarks/server.py [--seconds 60] [--model speech]

A fresh server is started for each round: 1, 4, 16 and 64 clients, each sending the next request as soon as it is answered,
with batched generation; then 16 clients without batching; then a few that stream. Each answer of the first two kinds is
compared with what the library generates for the same request alone. Prints Markdown tables; takes six minutes by default.
"""

import argparse
import io
import itertools
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import soundfile
import torch

import audiolm

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMPTS = ("prompt-female.flac", "prompt-male.flac")
PROMPT_SECONDS = 3.0


@dataclass
class Round:
    """Results of one round of clients."""

    latencies: list[float] = field(default_factory=list)
    answers: dict[int, set[bytes]] = field(default_factory=dict)  # seed -> the samples of each distinct answer
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, seed: int, seconds: float, answer: httpx2.Response) -> None:
        with self.lock:
            if answer.status_code == 200 and answer.headers["x-audiolm-seed"] == str(seed):
                self.latencies.append(seconds)
                samples = soundfile.read(io.BytesIO(answer.content), dtype="int16")[0]
                self.answers.setdefault(seed, set()).add(samples.tobytes())
            else:
                self.failures.append(f"{answer.status_code} {answer.text[:100]}")


@contextmanager
def server(model: str, batch: int, threads: int | None) -> Iterator[tuple[str, int]]:
    """Address and process id of a server that generates at most `batch` requests together."""
    arguments = [
        sys.executable,
        "-m",
        "audiolm.cli",
        "serve",
        f"batch={batch}",
        "rate=0",
        "queue=1024",
        "timeout=600",
        "streams=64",
    ]
    arguments += ["--port", "0", "--model", model, *([] if threads is None else ["--threads", str(threads)])]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(filter(None, (re.search(r"http://\S+", line) for line in process.stderr)))
            yield address[0], process.pid
        finally:
            process.terminate()


def peak(pid: int) -> float:
    """Peak memory of a process, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1000 if found else float("nan")


def query(seed: int, sound: float) -> str:
    return f"/v1/continue?seconds={sound}&seed={seed}&prompt_seconds={PROMPT_SECONDS}"


def load(address: str, clients: int, seconds: float, sound: float, kinds: int) -> tuple[Round, float]:
    """The clients' results, and the time until the last one was answered."""
    files = [(EXAMPLES / name).read_bytes() for name in PROMPTS]
    seen, numbers = Round(), itertools.count()
    began = time.monotonic()

    def client() -> None:
        with httpx2.Client(base_url=address, timeout=600) as http:
            going = True
            while going:  # at least once
                seed = next(numbers) % kinds
                asked = time.monotonic()
                going = asked < began + seconds
                try:
                    answer = http.post(query(seed, sound), files={"audio": files[seed % len(files)]})
                except httpx2.HTTPError as error:
                    seen.failures.append(repr(error))
                    continue
                seen.note(seed, time.monotonic() - asked, answer)

    everybody = [threading.Thread(target=client) for _ in range(clients)]
    for each in everybody:
        each.start()
    for each in everybody:
        each.join()
    return seen, time.monotonic() - began


def listen(address: str, clients: int, seconds: float, sound: float) -> list[float]:
    """Seconds from each streaming request to its first new samples."""
    content, firsts, began = (EXAMPLES / PROMPTS[0]).read_bytes(), [], time.monotonic()

    def client(number: int) -> None:
        with httpx2.Client(base_url=address, timeout=600) as http:
            going = True
            while going:
                asked = time.monotonic()
                going = asked < began + seconds
                path = query(number, sound) + "&stream=true&only_new=true"
                with http.stream("POST", path, files={"audio": content}) as answer:
                    heard = 0
                    for part in answer.iter_raw():
                        if heard <= 44 < heard + len(part):  # the first samples after the WAV header
                            firsts.append(time.monotonic() - asked)
                        heard += len(part)

    everybody = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for each in everybody:
        each.start()
    for each in everybody:
        each.join()
    return firsts


def alone(model: str, seeds: set[int], sound: float, threads: int | None) -> dict[int, bytes]:
    """The samples of each request as the library generates them, one at a time."""
    if threads is not None:
        torch.set_num_threads(threads)
    made = audiolm.load(model)
    prompts = [audiolm.read(EXAMPLES / name).trim(PROMPT_SECONDS) for name in PROMPTS]
    sounds = {seed: made.generate(prompts[seed % len(prompts)], sound, seed=seed).to_bytes() for seed in sorted(seeds)}
    return {seed: soundfile.read(io.BytesIO(sound), dtype="int16")[0].tobytes() for seed, sound in sounds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each round")
    parser.add_argument("--clients", default="1,4,16,64", help="number of clients in each round")
    parser.add_argument("--sound", type=float, default=2.0, help="seconds of new sound per request")
    parser.add_argument("--kinds", type=int, default=16, help="number of different requests")
    parser.add_argument("--model", default="speech")
    parser.add_argument("--threads", type=int, help="CPU threads of the server (its default: see `audiolm serve --help`)")
    options = parser.parse_args()
    counts = [int(count) for count in options.clients.split(",")]
    rows, rounds, rates = [], [], {}
    for batch, each in ((16, counts), (1, [16] if 16 in counts else counts[-1:])):
        for clients in each:
            with server(options.model, batch, options.threads) as (address, pid):
                load(address, 1, 0.1, options.sound, 1)  # the first request warms it up
                seen, seconds = load(address, clients, options.seconds, options.sound, options.kinds)
                memory = peak(pid)
            rates[batch, clients] = rate = len(seen.latencies) / seconds
            p50, p95, p99 = np.percentile(seen.latencies or [np.nan], [50, 95, 99])
            way = "batched" if batch > 1 else "one at a time"
            rows.append(f"| {way} | {clients} | {len(seen.latencies)} | {rate:.2f} | {rate * options.sound:.2f} | {p50:.2f} | "
                        f"{p95:.2f} | {p99:.2f} | {memory:.0f} | {len(seen.failures)} |")  # fmt: skip
            rounds.append(seen)
            print(rows[-1], file=sys.stderr, flush=True)
    firsts = {}
    with server(options.model, 16, options.threads) as (address, _):
        load(address, 1, 0.1, options.sound, 1)
        for listeners in (1, 4):
            firsts[f"{listeners} streaming"] = listen(address, listeners, options.seconds / 6, options.sound)
        crowd = threading.Thread(target=load, args=(address, 16, options.seconds / 4, options.sound, options.kinds))
        crowd.start()
        time.sleep(1)
        firsts["1 streaming, 16 other clients"] = listen(address, 1, options.seconds / 6, options.sound)
        crowd.join()
    expected = alone(options.model, {seed for seen in rounds for seed in seen.answers}, options.sound, options.threads)
    given = [(seed, answer) for seen in rounds for seed, answers in seen.answers.items() for answer in answers]
    wrong = [seed for seed, answer in given if answer != expected[seed]]
    print(f"\n{PROMPT_SECONDS:g} s of prompt, {options.sound:g} s of new sound, {options.seconds:g} s per round\n")
    print("| generation | clients | answered | requests/s | s of sound/s | p50 (s) | p95 | p99 | peak memory (MB) | failed |")
    print("|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(rows))
    print("\n| time to first sound | median (s) | worst (s) |\n|---|---|---|")
    for name, times in firsts.items():
        print(f"| {name} | {np.median(times):.2f} | {max(times):.2f} |")
    if (1, 16) in rates and (16, 16) in rates:
        print(f"\nBatching at 16 clients: {rates[16, 16] / rates[1, 16]:.2f} times the requests/s of one at a time.")
    print(f"{len(wrong)} of {len(given)} distinct answers differ from those alone{': seeds ' + str(wrong) if wrong else '.'}")
    failures = [failure for seen in rounds for failure in seen.failures]
    sys.exit(f"failed: {failures[:3]}" if failures else 1 if wrong else 0)


if __name__ == "__main__":
    main()
