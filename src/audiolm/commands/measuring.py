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
    recordings: int = 60,
    limit: int = 16,
    seconds: float = 7.0,
    seed: int = 0,
    split: Literal["train", "valid", "test", "all"] | None = None,
    parts: str | None = None,
    items: Path | None = None,
    pairs: Path | None = None,
    page: bool = True,
    listening_test: int = 0,
    temperature: str | None = None,
    codebooks: int | None = None,
    precision: making.Precision = "auto",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """The paper's tables on recordings the model has not heard: report.md, report.json, and report.html to listen to.

    Parts, and about how many minutes of one processor core 60 recordings and a limit of 16 cost with the packaged model
    (--limit 8 --seconds 5 take a third of what is generated):

    codec (1) PESQ, STOI, SI-SDR, mel distance, codebooks; visqol (1); units (1) what the semantic tokens tell of phones;
    layers (3) the same and ABX of each layer and of more and fewer units, Fig. 3; abx (2) Table I; stages (2) bits a token;
    oracle (2) bits with true, shuffled and another recording's semantic tokens; continuation (8) likeness of the voice, unit
    errors; distance (1, after continuation) Fréchet distance; words (5) WER and CER, Table II; speakers (8) the classifier is
    trained, Table III; pairs (2, needs --pairs) sWUGGY and sBLIMP, Table IV; music (2, after continuation; of models with a piano
    stage) key, clarity, onsets.

    Parameters
    ----------
    model
        A packaged model, a bundle's folder, or a hub id.
    data
        A folder or manifest.csv; a column transcript gives better phones, and WER.
    report
        Folder for the report.
    recordings
        How many are measured at most, of as many speakers as can be; 0: all.
    limit
        How many are continued, said again or recognised, which is what costs.
    seconds
        How much each continuation adds, at most.
    split
        Which recordings; default: the test split where there is one.
    parts
        Some of them, with commas between; default: all.
    items
        A ZeroSpeech .item file for ABX, in place of phones found by pocketsphinx.
    pairs
        ZeroSpeech 2021's sLM21-dataset, or what scripts/spoken_pairs.py made.
    page
        Make report.html, whose examples take two minutes.
    temperature
        Of all that is generated, in place of the model's own: one number, or semantic,coarse,fine.
    codebooks
        Levels of all that is generated, in place of the model's own; 12 take the packaged model's fine stage in.
    precision
        Bits of the stages' weights while they generate (docs/performance.md).
    listening_test
        Also write listening.html, a blind test of so many clips (real or generated?), and its key; `audiolm ratings` counts.
    """
    from audiolm.measuring.evaluation import PARTS, evaluate_folder

    making.check_length(seconds, "--seconds")
    chosen = tuple(PARTS) if parts is None else tuple(parts.split(","))
    with making.bars() as show:
        options = {"limit": limit, "seconds": seconds, "seed": seed, "split": split, "parts": chosen, "progress": show}
        extra = {
            "items": items,
            "pairs": pairs,
            "page": page,
            "listening_test": listening_test,
            "codebooks": codebooks,
            "precision": precision,
        }
        extra["temperature"] = making.temperatures(temperature) if temperature else ()
        figures = evaluate_folder(model, data, report, **options, most=recordings or None, **extra)
    if json:
        making.show(figures, True)
    else:
        print((report / "report.md").read_text(encoding="utf-8"))


def detect(
    *files: Path,
    model: Annotated[str, Parameter(name=["--model", "-m"])] = "speech",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Was this made by audiolm? Looks for the watermark in recordings of any format, and listens for the model's own voice.

    1.5 s of marked speech are enough for the mark, 1 s for the voice. Its probability is for even odds before listening.

    Parameters
    ----------
    files
        Recordings.
    model
        Whose voice: a packaged model, a bundle's folder, or a hub id. The mark is found whichever model it was.
    """
    from audiolm import bundle
    from audiolm.detector import examine

    if not files:
        raise InputError("detect: name one or more recordings")
    detector = bundle.detector_of(bundle.folder_of(model))
    found, failed = [], []
    for file in files:
        try:
            sound = making.hear(file, 0.0)
        except InputError as error:  # the others are judged all the same
            failed.append(str(error))
            continue
        found.append({"file": str(file), **examine(sound, detector, model)})
    if json and found:
        making.show(found[0] if len(files) == 1 else found, True)
    for each in found if not json else ():
        mark, chance = each["watermark"], each["synthetic_probability"]
        said = f"watermark found, payload {mark['payload'] or 'not legible'}, confidence {mark['confidence']:.7f}"
        heard = f"by ear {100 * chance:.1f} % generated by {model}" if chance is not None else each["note"]
        print(f"{each['file']}: {said if mark['found'] else 'no watermark (which proves nothing)'}; {heard}")
    if failed:
        raise InputError("; ".join(failed))


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
    from audiolm.training.storage import place

    path = place(target)
    if path.is_file() or path.is_fifo() or target == making.STDIN:
        with making.recording(path) as there:
            found, said = probe(there), tags(there)
        about = {"file": target, "seconds": found.seconds, "sample_rate": found.sample_rate, "channels": found.channels}
        making.show({**about, "tags": said}, json)
    elif (path / "header.json").is_file():
        from audiolm.training import token_store

        verified = {"verified_shards": token_store.verify(path)} if verify else {}
        making.show({"token_store": target, **verified, **token_store.TokenStore(path).summary()}, json)
    else:
        from audiolm import bundle

        making.show({"model": target, **bundle.describe(bundle.load(target))}, json)


def doctor(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """What this machine can do, and what is missing."""
    from audiolm.doctor import examine

    making.show(examine(), json)
