"""Verbs that measure and look."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from audiolm.commands import making
from audiolm.errors import InputError


def evaluate(
    model: str = "speech",
    *,
    data: Path,
    report: Path,
    limit: int = 24,
    seconds: float = 7.0,
    seed: int = 0,
    split: Literal["train", "valid", "test", "all"] | None = None,
    parts: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """The paper's measures on recordings the model has not heard: report.md and report.json.

    Parameters
    ----------
    model
        A packaged model, a bundle's folder, or a hub id.
    data
        A folder or manifest.csv.
    report
        Folder for the report.
    limit
        How many clips are continued (the codec is measured on all).
    seconds
        How much each continuation adds, at most.
    split
        Which recordings; default: the test split where there is one.
    parts
        Some of codec,units,stages,continuation; default: all.
    """
    from audiolm.evaluation import PARTS, evaluate_folder

    chosen = tuple(PARTS) if parts is None else tuple(parts.split(","))
    with making.bars() as show:
        options = {"limit": limit, "seconds": seconds, "seed": seed, "split": split, "parts": chosen, "progress": show}
        figures = evaluate_folder(model, data, report, **options)
    if json:
        making.show(figures, True)
    else:
        print((report / "report.md").read_text(encoding="utf-8"))


def detect(*files: Path, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Was this made by audiolm? Looks for the watermark in recordings of any format; 1.5 s of marked speech are enough.

    Parameters
    ----------
    files
        Recordings.
    """
    from audiolm.audio import read
    from audiolm.provenance import detect as look

    if not files:
        raise InputError("detect: name one or more recordings")
    note = "no detector of unmarked synthetic speech is packaged yet; a mark that is absent proves nothing"
    found = [
        {"file": str(file), "synthetic_probability": None, "watermark": look(read(file)).plain(), "note": note} for file in files
    ]
    if json:
        making.show(found[0] if len(found) == 1 else found, True)
        return
    for each in found:
        mark = each["watermark"]
        said = f"watermark found, payload {mark['payload'] or 'not legible'}, confidence {mark['confidence']:.7f}"
        print(f"{each['file']}: {said if mark['found'] else 'no watermark (which proves nothing)'}")


def info(
    target: str = "speech",
    /,
    *,
    verify: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """What a model, a token store or a recording is.

    Parameters
    ----------
    target
        A packaged model, a bundle's folder, a token store's folder (or its URL), or a sound file.
    verify
        Read all of a token store and compare its checksums; a damaged shard is named.
    """
    from audiolm.audio import probe, tags
    from audiolm.storage import place

    path = place(target)
    if path.is_file():
        found = probe(path)
        about = {"file": target, "seconds": found.seconds, "sample_rate": found.sample_rate, "channels": found.channels}
        making.show({**about, "tags": tags(path)}, json)
    elif (path / "header.json").is_file():
        from audiolm import token_store

        verified = {"verified_shards": token_store.verify(path)} if verify else {}
        making.show({"token_store": target, **verified, **token_store.TokenStore(path).summary()}, json)
    else:
        from audiolm import bundle

        making.show({"model": target, **bundle.describe(bundle.load(target))}, json)


def doctor(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """What this machine can do, and what is missing."""
    from audiolm.doctor import examine

    making.show(examine(), json)
