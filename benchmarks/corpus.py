"""Memory use of tokenising and training on a corpus of many hours: python benchmarks/corpus.py --hours 30

Forty clips of 2 to 40 s, cut from examples/ (or from --clips FOLDER), are linked under many names (which takes no disk space)
until they add up to that many hours. They are tokenised by the packaged model as in `audiolm tokenize`, and a small coarse
stage is trained on the tokens. Each part is a process of its own that records its memory while it works. Prints Markdown tables.

If stopped, the same command resumes: finished shards, checkpoints and notes stay in --work.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from audiolm import bundle
from audiolm.audio import READABLE, Waveform, concatenate, read

CLIPS, SHORTEST, LONGEST, RATE = 40, 2.0, 40.0, 16_000
EVERY = 2.0  # seconds between memory readings


def memory() -> dict[str, float]:
    """MiB of this process: resident, private (the rest is mapped files, which processes share), and peak resident."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {name: int(fields[key].split()[0]) / 1024 for name, key in (("rss", "VmRSS"), ("own", "RssAnon"), ("peak", "VmHWM"))}


@contextmanager
def noted(path: Path, done: Callable[[], float]) -> Iterator[None]:
    """Append a line with `done()` and the memory to `path` every few seconds while the block runs."""
    stop, began = threading.Event(), time.monotonic()
    with path.open("a") as file:

        def note() -> None:
            file.write(json.dumps({"pid": os.getpid(), "seconds": time.monotonic() - began, "done": done(), **memory()}) + "\n")
            file.flush()

        def watch() -> None:
            while not stop.wait(EVERY):
                note()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            note()


def make(work: Path, clips: Path, hours: float) -> Path:
    """Make the corpus: WORK/clips, and as many links to them as needed, in a folder for each of fifty speakers."""
    corpus, source, draw = work / f"corpus-{hours:g}h", work / "clips", np.random.default_rng(0)
    if (corpus / "manifest.csv").is_file():
        return corpus
    sounds = [read(path).mono().resample(RATE) for path in sorted(clips.rglob("*")) if path.suffix.lower() in READABLE]
    seconds = SHORTEST * (LONGEST / SHORTEST) ** np.linspace(0, 1, CLIPS)
    source.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate(seconds):
        parts: list[Waveform] = []
        while sum(part.seconds for part in parts) < length:
            parts.append(sounds[draw.integers(len(sounds))])
        concatenate(parts).trim(float(length)).write(source / f"{number}.flac")
    rows, total = ["path,speaker,seconds"], 0.0
    while total < 3600 * hours:
        number, speaker = int(draw.integers(CLIPS)), f"s{len(rows) % 50:02d}"
        link = corpus / speaker / f"{len(rows):06d}.flac"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(source / f"{number}.flac", link.parent))
        rows.append(f"{speaker}/{link.name},{speaker},{seconds[number]:.4f}")
        total += float(seconds[number])
    (corpus / "manifest.csv").write_text("\n".join(rows) + "\n")
    return corpus


def tokenize(work: Path, corpus: Path, notes: Path) -> None:
    """What `audiolm tokenize CORPUS` does."""
    from audiolm.training.corpus import tokenize_corpus
    from audiolm.training.data import scan

    model, recordings = bundle.load("speech"), scan(corpus)
    hours = np.cumsum([0.0, *(recording.seconds / 3600 for recording in recordings)])
    done = 0

    def show(count: int) -> None:
        nonlocal done
        done = count

    with noted(notes, lambda: float(hours[done])):
        shard = min(3600.0, 360 * float(hours[-1]))  # at least ten shards
        out = work / "tokens" / corpus.name
        store = tokenize_corpus(model.semantic, model.codec, recordings, out, show, shard_seconds=shard)
    print(f"{len(store)} recordings, {len(store.indexes())} shards", file=sys.stderr)


def train(work: Path, corpus: Path, notes: Path, steps: int) -> None:
    """Train a small coarse stage on the tokens with the loop of `audiolm train`."""
    from lightning.fabric import Fabric

    from audiolm.stages import coarse
    from audiolm.training.run import Run
    from audiolm.training.token_store import TokenCrops, TokenStore
    from audiolm.training.train_lm import LMTrainConfig, train_lm
    from audiolm.transformer import TransformerConfig

    store = TokenStore(work / "tokens" / corpus.name)
    stage = coarse(store.specs["semantic"], store.specs["acoustic"], 2)
    network = TransformerConfig(layers=2, heads=2, width=64, ffn=128)
    config = LMTrainConfig(steps=steps, batch_size=2, network=network, valid_every=100, save_every=100, log_every=10)
    crops, valid = (TokenCrops(store, stage, split, config.batch_size, seed) for seed, split in enumerate(("train", "valid")))
    crop_hours = config.batch_size * stage.crop / 3600
    with Run(work / f"train-{corpus.name}-{steps}", config) as run, noted(notes, lambda: _steps(run) * crop_hours):
        train_lm(stage, config, crops, run, Fabric(accelerator="cpu"), valid)


def _steps(run: object) -> int:
    lines = run.metrics()  # pyright: ignore[reportAttributeAccessIssue]
    return int(lines[-1]["step"]) if lines else 0


def table(title: str, notes: Path) -> str:
    """Eleven rows from a part's notes, and how much its private memory grew from the second tenth to the last."""
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    sessions: dict[int, list[dict[str, float]]] = {}
    for line in lines:
        sessions.setdefault(int(line["pid"]), []).append(line)
    last = max(sessions.values(), key=lambda session: session[-1]["done"] - session[0]["done"])
    rows = [
        f"\n{title}: the longest of {len(sessions)} sessions\n",
        "| seconds | hours of audio | hours per hour | resident MiB | private MiB |",
    ]
    rows.append("|---|---|---|---|---|")
    for place in np.unique(np.linspace(0, len(last) - 1, 11).astype(int)):
        at = last[place]
        speed = (at["done"] - last[0]["done"]) / max(at["seconds"] - last[0]["seconds"], 1e-9) * 3600
        rows.append(f"| {at['seconds']:.0f} | {at['done']:.2f} | {speed:.1f} | {at['rss']:.0f} | {at['own']:.0f} |")
    early, late = last[len(last) // 10 : len(last) // 5 + 1], last[-max(1, len(last) // 10) :]
    grown = np.mean([each["own"] for each in late]) - np.mean([each["own"] for each in early])
    peak = max(line["peak"] for line in lines)
    return "\n".join([*rows, "", f"peak {peak:.0f} MiB; private memory {grown:+.0f} MiB from the second tenth to the last"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--work", type=Path, default=Path("runs/corpus"), help="folder for all results; delete it to start over")
    parser.add_argument("--clips", type=Path, default=Path(__file__).parents[1] / "examples")
    parser.add_argument("--part", choices=("tokenize", "train"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    corpus = make(args.work, args.clips, args.hours)
    notes = {part: args.work / f"{corpus.name}-{part}.jsonl" for part in ("tokenize", "train")}
    if args.part == "tokenize":
        tokenize(args.work, corpus, notes["tokenize"])
    elif args.part == "train":
        train(args.work, corpus, notes["train"], args.steps)
    else:
        for part in notes:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part], check=True)
            print(table(f"{part} ({args.hours:g} h, {torch.get_num_threads()} threads)", notes[part]), flush=True)


if __name__ == "__main__":
    main()
