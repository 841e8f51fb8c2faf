"""Verbs that make tokens and models."""

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
    workers: int | None = None,
    device: str = "cpu",
    shard_seconds: float = 3600.0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """A folder of recordings (or one with a manifest.csv) -> a token store. What is in the store already stays.

    Killed at any moment, the same command goes on. Both places may be in an object store (s3://bucket/folder).

    Parameters
    ----------
    source
        A folder with any tree of audio in it, a manifest.csv with a column path (and speaker, split, ...), or one sound file.
    output
        The store's folder.
    model
        Whose tokenizers: a packaged model, a bundle's folder, or a hub id.
    engine
        process: this one. ray: many, on this machine or on a cluster.
    address
        Of the Ray cluster: auto, or HOST:PORT. local starts one on this machine alone, for this command.
    workers
        How many shards Ray makes at once; default: as many as there are processors.
    device
        cpu, cuda, cuda:1, mps; with Ray, cuda gives each worker a GPU.
    shard_seconds
        Sound in a shard: what one worker does at a time, and what is lost where one is killed.
    """
    from audiolm.training.cluster import tokenize_on_ray
    from audiolm.training.corpus import tokenize_corpus
    from audiolm.training.data import Skipped, scan
    from audiolm.training.run import progress
    from audiolm.training.storage import place
    from audiolm.training.token_store import TokenStore

    if not shard_seconds > 0 or (workers is not None and workers < 1):
        raise InputError(f"--shard-seconds {shard_seconds} --workers {workers}: give numbers above 0")
    if engine == "process" and (address != "local" or workers is not None):
        raise InputError("--address and --workers are Ray's; add --engine ray")
    skipped: Skipped = []
    there = place(output)
    settled = TokenStore(there).speakers() if (there / "header.json").is_file() else {}
    recordings = scan(source, skipped=skipped, settled=settled)
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
    """Run a recipe: from a folder of audio to a model of your own. Killed at any moment, the same command goes on.

    `audiolm plan` with the same words tells beforehand what it takes.

    Parameters
    ----------
    recipe
        A .toml file; see recipes/.
    settings
        key=value, as data=FOLDER out=FOLDER coarse.steps=2000; they override the recipe.
    only
        Run this one step, whose predecessors must be done.
    force
        Delete and do again a step that was made with other settings (with --only: that step in any case).
    ignore_gates
        Go on where a step's result is below its threshold in the recipe's [gates]; the model's card will say so.
    """
    from audiolm.config import load_config
    from audiolm.training.recipe import RecipeConfig
    from audiolm.training.steps import run_recipe

    run_recipe(load_config(RecipeConfig, recipe, settings), only, force, ignore_gates)


def plan(recipe: Path, /, *settings: str, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """What a recipe takes on this machine, before it runs: tokens, parameters, memory, disk and time of each step.

    A few real steps of each training are timed. Exit code 2 where a step cannot fit; the last line names it and the cure.

    Parameters
    ----------
    recipe
        A .toml file; see recipes/.
    settings
        key=value, as for `audiolm train`; without out= nothing is done yet, and the disk is this folder's.
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
