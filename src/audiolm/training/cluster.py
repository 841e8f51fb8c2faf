"""A corpus tokenised by many processes on many machines: Ray Data maps `corpus.tokenize_shard` over the shards of the plan.

Each shard is written by whoever made it, to a folder that all machines see or to an object store, and nothing else is kept
anywhere. So a machine may die (its shards are made again elsewhere), and so may the job (the same command goes on).
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

LOCAL_MEMORY = 256 << 20  # bytes of Ray's object store on one machine: it carries plans and weights, no sound


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
    """As `tokenize_corpus`, by the machines of a Ray cluster; `show(done)` is called after each shard.

    address: "local" starts Ray on this machine and stops it at the end; "auto" or HOST:PORT is a cluster that runs.
    workers: at most so many shards at once; all processors otherwise. device: "cuda" gives each worker a GPU of its own.
    Recordings and store must be where every machine finds them under the same name. A worker has one thread. InputError as
    `tokenize_corpus`, and where there is no such cluster.
    """
    store = TokenStore.create(folder, tokenizer_key(semantic, codec))
    plan, left_out = plan_shards(store, recordings, shard_seconds), list(skipped or [])
    done = len(recordings) - sum(map(len, plan.values()))
    with cluster(address, workers) as ray:
        networks = ray.put((semantic.cpu(), codec.cpu()))
        there = [replace(each, path=each.path.absolute()) for each in recordings]  # workers stand in folders of their own
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
    # One that had written its shard and died before it could say so is asked again.
    if not (folder / f"{row['shard']:05d}.parquet").is_file():
        try:
            skipped = tokenize_shard(semantic, codec, recordings, range(len(recordings)), folder, row["shard"])
        except InputError as error:  # the store cannot be written: the caller's mistake, not this machine's
            wrong = str(error)
    return {"shard": row["shard"], "skipped": pickle.dumps(skipped), "error": wrong}


@contextmanager
def cluster(address: str, workers: int | None = None) -> Iterator[Any]:
    """Ray, connected; a local one listens on this machine alone and ends with the block. No usage statistics are sent."""
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
        raise InputError(f"--address {address}: no Ray cluster there ({reason}); start one with: ray start --head") from error
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
    finally:
        ray.shutdown()
