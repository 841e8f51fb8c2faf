"""Verbs that tokenize and train."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from audiolm.commands import making
from audiolm.errors import InputError


def tokenize(
    source: str,
    /,
    output: Annotated[str, Parameter(name=["--output", "-o"])] = "tokens",
    *,
    model: str = "speech",
    engine: Literal["process", "ray"] = "process",
    address: str = "local",
    workers: making.Whole | None = None,
    device: str = "cpu",
    shard_seconds: float = 3600.0,
    json: making.Json = False,
) -> None:
    """Tokenize a folder of recordings (or a manifest.csv) into a token store, keeping what the store already holds.

    Speakers are split as the model's recipe split them, so that those it has not heard stay held out.
    If interrupted, rerun the same command to resume. Source and output may be in an object store (s3://bucket/folder).

    Parameters
    ----------
    source
        A folder of audio files, at any depth; a manifest.csv with a path column (and speaker, split, ...); or one sound file.
    output
        The store's folder.
    model
        Whose tokenizers to use: a packaged model, a bundle's folder, or a hub id.
    engine
        process: this process. ray: many processes, on this machine or on a cluster.
    address
        Ray cluster: auto, or HOST:PORT. local starts one on this machine, for this command only.
    workers
        Number of shards that Ray makes at once; default: one per CPU.
    device
        cpu, cuda, cuda:1, mps; with Ray, cuda gives each worker a GPU.
    shard_seconds
        Seconds of sound per shard: the unit of work, and the most that is lost when a worker is killed.
    """
    from audiolm.bundle import folder_of, read_config
    from audiolm.training.cluster import tokenize_on_ray
    from audiolm.training.corpus import tokenize_corpus
    from audiolm.training.data import Skipped, held_out, scan
    from audiolm.training.run import progress
    from audiolm.training.storage import place
    from audiolm.training.token_store import TokenStore

    if not shard_seconds > 0 or (workers is not None and workers < 1):
        raise InputError(f"--shard-seconds {shard_seconds} --workers {workers}: give numbers above 0")
    if engine == "process" and (address != "local" or workers is not None):
        raise InputError("--address and --workers are for Ray; add --engine ray")
    skipped: Skipped = []
    there = place(output)
    settled = TokenStore(there).speakers() if (there / "header.json").is_file() else {}
    recordings = scan(source, **held_out(read_config(folder_of(model))["about"]), skipped=skipped, settled=settled)
    tokenizers = making.load(making.Common(model=model, device="cpu" if engine == "ray" else device))
    with progress(len(recordings), label="tokenize") as show:
        common = {"shard_seconds": shard_seconds, "skipped": skipped, "show": show}
        networks = tokenizers.semantic, tokenizers.codec
        if engine == "ray":
            there = {"address": address, "workers": workers, "device": device}
            store = tokenize_on_ray(*networks, recordings, output, **common, **there)
        else:
            store = tokenize_corpus(*networks, recordings, output, **common)
    making.show(store.summary(), json)


def train(
    recipe: Path,
    /,
    *settings: str,
    only: str | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    ignore_gates: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Run a recipe: from a folder of audio to your own model. If interrupted, rerun the same command to resume.

    `audiolm plan` with the same arguments estimates beforehand what it takes.

    Parameters
    ----------
    recipe
        A .toml file; see recipes/.
    settings
        key=value overrides of the recipe, such as data=FOLDER out=FOLDER coarse.steps=2000.
    only
        Run this one step; the steps before it must be done.
    force
        Delete and redo steps that were made with other settings (with --only: redo that step in any case).
    ignore_gates
        Continue even if a step's result is below its threshold in the recipe's [gates]; the model card will say so.
    """
    from audiolm.config import load_config
    from audiolm.training.recipe import RecipeConfig
    from audiolm.training.steps import run_recipe

    run_recipe(load_config(RecipeConfig, recipe, settings), only, force, ignore_gates)


def plan(recipe: Path, /, *settings: str, json: making.Json = False) -> None:
    """Estimate what a recipe takes on this machine before running it: tokens, parameters, memory, disk and time per step.

    Times a few real training steps. Exits with code 2 if a step cannot fit; the last line names it and the remedy.

    Parameters
    ----------
    recipe
        A .toml file; see recipes/.
    settings
        key=value, as for `audiolm train`. Without out=, every step counts as still to do, and disk space is that of this folder.
    """
    from audiolm.config import load_config
    from audiolm.training.plan import make_plan
    from audiolm.training.recipe import RecipeConfig

    nowhere = "out=runs/not-begun"
    made = make_plan(load_config(RecipeConfig, recipe, (nowhere, *settings)))
    if json:
        making.show(made.plain(), True)
    else:
        print(made.table())
    made.check()
