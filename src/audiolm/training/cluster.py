"""Tokenise a corpus with many processes on many machines: Ray Data maps `corpus.tokenize_shard` over the planned shards.

Each worker writes its own shards, to a folder that all machines see or to an object store, and no other state is kept.
So a machine may die (its shards are redone elsewhere), and so may the job (the same command resumes it).
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from audiolm.codec import Codec
from audiolm.errors import InputError
from audiolm.tokenizers import SemanticTokenizer
from audiolm.training.corpus import SHARD_SECONDS, finish, plan_shards, tokenize_shard, tokenizer_key
from audiolm.training.data import Recording, Skipped
from audiolm.training.token_store import TokenStore

LOCAL_MEMORY = 256 << 20  # bytes of Ray's object store on one machine: it carries plans and weights, no audio


def tokenize_on_ray(
    semantic: SemanticTokenizer,
    codec: Codec,
    recordings: Sequence[Recording],
    folder: str | os.PathLike[str],
    show: Callable[[int], None] | None = None,
    *,
    address: str = "local",
    workers: int | None = None,
    device: str = "cpu",
    shard_seconds: float = SHARD_SECONDS,
    skipped: Skipped | None = None,
) -> TokenStore:
    """Like `tokenize_corpus`, on a Ray cluster; `show(done)` is called after each shard.

    address: "local" starts Ray on this machine and stops it at the end; "auto" or HOST:PORT is a running cluster.
    workers: the most shards processed at once; by default one per processor. device: "cuda" gives each worker a GPU of its
    own. Every machine must find the recordings and the store under the same paths. A worker uses one thread. Raises
    InputError as `tokenize_corpus` does, and if the cluster cannot be reached.
    """
    store = TokenStore.create(folder, tokenizer_key(semantic, codec))
    plan, left_out = plan_shards(store, recordings, shard_seconds), list(skipped or [])
    done = len(recordings) - sum(map(len, plan.values()))
    with cluster(address, workers) as ray:
        networks = ray.put((semantic.cpu(), codec.cpu()))
        there = [replace(each, path=each.path.absolute()) for each in recordings]  # workers run in other working directories
        rows = [{"shard": shard, "recordings": pickle.dumps([there[n] for n in plan[shard]])} for shard in plan]
        if rows:
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _work,
                fn_kwargs={"networks": networks, "folder": store.folder.absolute(), "device": device},
                num_cpus=1,
                num_gpus=0 if device == "cpu" else 1,
                concurrency=workers,
            )
            for row in dataset.iter_rows():
                if row["error"]:
                    raise InputError(row["error"])
                left_out += pickle.loads(row["skipped"])
                done += len(plan[row["shard"]])
                if show:
                    show(done)
    return finish(store.folder, left_out)


def _work(row: dict[str, Any], networks: Any, folder: Path, device: str) -> dict[str, Any]:
    import ray

    torch.set_num_threads(1)
    semantic, codec = (each.to(device) for each in ray.get(networks))
    recordings: list[Recording] = pickle.loads(row["recordings"])
    skipped, wrong = Skipped(), ""
    # Ray runs the task again if a worker wrote its shard but died before returning.
    if not (folder / f"{row['shard']:05d}.parquet").is_file():
        try:
            skipped = tokenize_shard(semantic, codec, recordings, range(len(recordings)), folder, row["shard"])
        except InputError as error:  # the store cannot be written: for the caller to solve, a retry would not help
            wrong = str(error)
    return {"shard": row["shard"], "skipped": pickle.dumps(skipped), "error": wrong}


@contextmanager
def cluster(address: str, workers: int | None = None) -> Iterator[Any]:
    """A connected Ray; a local one listens on this machine only and stops with the block. No usage statistics are sent."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("--engine ray needs Ray; run: pip install 'audiolm[ray]'") from error
    local: dict[str, Any] = {"num_cpus": workers, "object_store_memory": LOCAL_MEMORY, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(local if address == "local" else {}),
        )
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--address {address}: no Ray cluster found ({reason}); start one with: ray start --head") from error
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
    finally:
        ray.shutdown()
