"""Verbs that measure and inspect."""

from functools import partial
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
    recordings: making.Whole = 60,
    limit: making.Whole = 16,
    seconds: float = 7.0,
    seed: making.Seed = 0,
    split: Literal["train", "valid", "test", "all"] | None = None,
    parts: str | None = None,
    items: Path | None = None,
    pairs: Path | None = None,
    page: bool = True,
    listening_test: making.Whole = 0,
    temperature: str | None = None,
    codebooks: making.Whole | None = None,
    precision: making.Precision = "auto",
    json: making.Json = False,
) -> None:
    """Reproduce the paper's tables on unseen recordings: report.md, report.json, and report.html to listen to.

    The parts, each with its cost in minutes on one CPU core for 60 recordings and --limit 16 with the packaged model
    (--limit 8 --seconds 5 cuts the cost of generating to a third):

    codec (1) PESQ, STOI, SI-SDR, mel distance, codebook use; visqol (1); units (1) what the semantic tokens tell about phones;
    layers (3) the same and ABX for each layer and for more and fewer units, Fig. 3; abx (2) Table I; stages (2) bits per token;
    oracle (2) bits given true, shuffled or another's semantic tokens or text; continuation (8) speaker similarity, unit errors;
    distance (1, after continuation) Fréchet distance; words (5) WER and CER, Table II; speakers (8) trains the classifier,
    Table III; pairs (2, needs --pairs) sWUGGY and sBLIMP, Table IV; music (2, after continuation; only for models with a piano
    stage) key, entropy over semitones, onsets.

    Parameters
    ----------
    model
        A packaged model, a bundle's folder, or a hub id.
    data
        A folder or manifest.csv; a transcript column gives better phones, and WER.
    report
        Folder for the report.
    recordings
        Maximum number of recordings to measure, from as many speakers as possible; 0: all.
    limit
        How many recordings to continue, resynthesise or recognise (the expensive part).
    seconds
        Maximum length that each continuation adds.
    split
        Which recordings; default: the test split, or valid if there is no test, or all.
    parts
        Comma-separated parts to run; default: all.
    items
        A ZeroSpeech .item file for ABX, instead of phones found by pocketsphinx.
    pairs
        ZeroSpeech 2021's sLM21-dataset, or the output of scripts/spoken_pairs.py.
    page
        Write report.html; generating its examples takes two minutes.
    temperature
        For everything generated, instead of the model's own: one number, or semantic,coarse,fine.
    codebooks
        RVQ levels of everything generated, instead of the model's default; 12 includes the packaged model's fine stage.
    precision
        Precision of the stages' weights for generation (docs/performance.md).
    listening_test
        Also write listening.html, a blind test (real or generated?) of this many clips, and its key; score it with
        `audiolm ratings`.
    """
    from audiolm.measuring.evaluation import PARTS, evaluate_folder

    making.length(seconds)
    if recordings < 0:
        raise InputError(f"--recordings {recordings}: give 1 or more, or 0 for all")
    chosen = tuple(PARTS) if parts is None else tuple(part.strip() for part in parts.split(","))
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
    json: making.Json = False,
) -> None:
    """Was this made by audiolm? Look for the watermark in recordings of any format, and listen for a model's voice.

    The watermark needs 1.5 s of marked speech, the voice 1 s. The voice's probability assumes even prior odds.

    Parameters
    ----------
    files
        Recordings.
    model
        Whose voice to listen for: a packaged model, a bundle's folder, or a hub id. The watermark is found for any model.
    """
    from audiolm import bundle
    from audiolm.detector import examine

    if not files:
        raise InputError("detect: give one or more recordings")
    detector = bundle.detector_of(bundle.folder_of(model))
    found, failed = [], []
    with making.bars() as show:
        for number, file in enumerate(files, 1):
            try:
                sound = making.hear(file, 0.0)
            except InputError as error:  # the other files are still examined
                failed.append(str(error))
                continue
            found.append({"file": str(file), **examine(sound, detector, model, partial(show, f"file {number}"))})
    if json and found:
        making.show(found[0] if len(files) == 1 else found, True)
    for each in found if not json else ():
        mark, chance = each["watermark"], each["synthetic_probability"]
        said = f"watermark found, payload {mark['payload'] or 'unreadable'}, confidence {mark['confidence']:.7f}"
        heard = [] if chance is None else [f"voice: {100 * chance:.1f} % likely generated by {model}"]
        told = [said if mark["found"] else "no watermark (which proves nothing)", *heard]
        print(f"{each['file']}: {'; '.join([*told, each['note']] if 'note' in each else told)}")
    if failed:
        raise InputError("; ".join(failed))


def info(
    target: str = "speech",
    /,
    *,
    verify: Annotated[bool, Parameter(negative="")] = False,
    json: making.Json = False,
) -> None:
    """Describe a model, a token store or a recording.

    Parameters
    ----------
    target
        A packaged model, a bundle's folder, a token store's folder or URL, or a sound file.
    verify
        Read a whole token store and check its checksums; damaged shards are named.
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


def doctor(*, json: making.Json = False) -> None:
    """Report what this machine can do and what is missing."""
    from audiolm.doctor import examine

    making.show(examine(), json)
