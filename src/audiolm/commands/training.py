"""Verbs that make tokens and models."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from audiolm.commands import making
from audiolm.commands.making import Output


def tokenize(
    source: Path,
    /,
    output: Output = Path("tokens"),
    *,
    model: str = "speech",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """A folder of recordings (or one with a manifest.csv) -> a token store. What is in the store already stays.

    Parameters
    ----------
    source
        A folder with any tree of audio in it, or a manifest.csv with a column path (and speaker, split, ...).
    output
        The store's folder.
    model
        Whose tokenizers: a packaged model, a bundle's folder, or a hub id.
    """
    from audiolm import bundle
    from audiolm.corpus import tokenize_corpus
    from audiolm.data import scan
    from audiolm.run import progress

    tokenizers, recordings = bundle.load(model), scan(source)
    with progress(len(recordings), label="tokenize") as show:
        store = tokenize_corpus(tokenizers.semantic, tokenizers.codec, recordings, output, show)
    making.show(store.summary(), json)


def train(
    recipe: Path, /, *settings: str, only: str | None = None, force: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Run a recipe: from a folder of audio to a model of your own. Killed at any moment, the same command goes on.

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
    """
    from audiolm.config import load_config
    from audiolm.recipe import RecipeConfig, run_recipe

    run_recipe(load_config(RecipeConfig, recipe, settings), only, force)
