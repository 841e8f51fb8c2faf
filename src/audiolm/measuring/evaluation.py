"""Runs the paper's evaluation on any bundle and any recordings.

metrics, abx, phonetics, recognition and others define the measures; figures applies them to a model, one file per subject.

    report = evaluate(model, recordings)          flat and JSON-ready: "codec.12.pesq": 1.9, "codec.12.pesq.low": 1.8, ...
    print(markdown(report))                       the tables of a model card
    evaluate_folder("speech", "recordings", "report")     both, as report.json and report.md, and a page to listen to

If the inputs of a part are missing, the report has missing.PART instead: what is needed and where to get it.
"""

import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from audiolm.asking import changed
from audiolm.bundle import folder_of, load, read_config
from audiolm.errors import InputError
from audiolm.files import make_folder, whole_file
from audiolm.kernels import Precision
from audiolm.measuring.blindtest import write_test
from audiolm.measuring.continuations import SHORTEST, continuation_figures
from audiolm.measuring.figures.bench import Bench, Figures, Missing, Progress, tokenized
from audiolm.measuring.figures.codec import codec_figures, visqol_figures
from audiolm.measuring.figures.music import music_figures
from audiolm.measuring.figures.stages import oracle_figures, pair_figures, stage_figures
from audiolm.measuring.figures.units import abx_figures, layer_figures, unit_figures
from audiolm.measuring.figures.voices import distance_figures, speaker_figures
from audiolm.measuring.figures.words import word_figures
from audiolm.measuring.metrics import Measure, needed
from audiolm.measuring.page import real_sounds, write_page
from audiolm.measuring.report import markdown
from audiolm.model import AudioLM
from audiolm.route import decoders
from audiolm.training.data import Recording, Skipped, held_out, in_turn, scan


class Part(NamedTuple):
    """The function that fills a table, and the packages of the `eval` extra that it needs, which are checked before the start."""

    figures: Callable[[Bench], Figures]
    packages: tuple[str, ...] = ()


PARTS = {
    "codec": Part(codec_figures, ("pesq", "pystoi")),
    "visqol": Part(visqol_figures, ("visqol", "ai_edge_litert")),
    "units": Part(unit_figures, ("pocketsphinx", "sklearn")),
    "layers": Part(layer_figures, ("pocketsphinx", "sklearn")),
    "abx": Part(abx_figures, ("pocketsphinx",)),
    "stages": Part(stage_figures),
    "oracle": Part(oracle_figures),
    "continuation": Part(lambda bench: continuation_figures(bench.model, bench.continued), ("jiwer",)),
    "distance": Part(distance_figures),
    "words": Part(word_figures, ("pocketsphinx", "jiwer", "pesq")),
    "speakers": Part(speaker_figures),
    "pairs": Part(pair_figures),
    "music": Part(music_figures),
}


def evaluate(
    model: AudioLM,
    recordings: Sequence[Recording],
    *,
    others: Sequence[Recording] = (),
    parts: Collection[str] = tuple(PARTS),
    levels: Sequence[int] = (3, 4, 12),
    most: int | None = 60,
    limit: int = 16,
    seconds: float = 7.0,
    seed: int = 0,
    items: Path | None = None,
    pairs: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All measures of a model on recordings it was not trained on, flat: NAME, NAME.low and NAME.high (95 %), NAME.clips.

    others: recordings of other splits. The MFCC baseline and the units of each layer are fitted on those of `train`, or on the
    measured recordings if there are none; the speaker classifier uses all of them.
    levels: codec levels to measure. most: how many recordings to measure, from as many speakers as possible (None: all).
    limit: for how many of them to run the costly parts, which generate at most `seconds` each, recognise words or run ViSQOL.
    items: a ZeroSpeech .item file to use instead of the recogniser's phones. pairs: a folder as described in `zerospeech`.
    The same seed gives the same report.
    """
    tell = progress or (lambda what, done, total: None)
    _check(parts, most, limit, seconds, seed)
    if not recordings:
        raise InputError("there are no recordings to measure; give one or more")
    for package in {package for part in parts for package in PARTS[part].packages}:
        needed(package)
    numbers = sorted(in_turn([each.speaker for each in recordings], seed)[:most])
    chosen = [recordings[number] for number in numbers]
    kept = set(numbers)
    rest = [recording for number, recording in enumerate(recordings) if number not in kept]
    clips, left_out = tokenized(model, chosen, tell)
    bench = Bench(model, clips, [*rest, *others], levels, limit, seconds, seed, items, pairs, tell)
    figures: Figures = {}
    for name, part in PARTS.items():
        if name in parts:
            try:
                figures |= part.figures(bench)
            except (Missing, InputError) as missing:  # one damaged recording must not stop the other parts, which take hours
                figures[f"missing.{name}"] = str(missing)
    return {
        "recordings.clips": len(clips),
        "recordings.of": len(recordings),
        "recordings.train": sum(clip.recording.split == "train" for clip in clips),
        "recordings.speakers": len({clip.recording.speaker for clip in clips}),
        "recordings.by": "composers or players" if "piano" in model.stages else "speakers",
        "recordings.seconds": round(sum(clip.tokens.seconds for clip in clips), 2),
        "recordings.left_out": [f"{name}: {reason}" for name, reason in left_out],
        "seed": seed,
        "limit": limit,
        "seconds": seconds,
    } | _flat(figures)


def _check(parts: Collection[str], most: int | None, limit: int, seconds: float, seed: int) -> None:
    """InputError if a part is unknown or a number is out of range."""
    for part in parts:
        if part not in PARTS:
            raise InputError(f"parts={part}: no such part; choose from {', '.join(PARTS)}")
    least = {"most": (most, 1), "limit": (limit, 1), "seconds": (seconds, SHORTEST), "seed": (seed, 0)}
    for name, (number, bound) in least.items():
        if number is not None and not bound <= number < math.inf:
            raise InputError(f"{name}={number:g}: give {bound:g} or more")


def evaluate_folder(
    model: str | Path,
    data: str | Path,
    report_dir: str | Path,
    limit: int = 16,
    seconds: float = 7.0,
    seed: int = 0,
    split: str | None = None,
    parts: Collection[str] = tuple(PARTS),
    progress: Progress | None = None,
    most: int | None = 60,
    items: Path | None = None,
    pairs: Path | None = None,
    page: bool = True,
    listening_test: int = 0,
    temperature: Sequence[float] = (),
    codebooks: int | None = None,
    precision: Precision | Literal["auto"] = "auto",
) -> dict[str, Any]:
    """Evaluate a model by name or folder on a folder or manifest; writes report.json, .md and .html into `report_dir`.

    page: False omits report.html, whose examples take time to generate. listening_test: number of clips for a blind listening
    test (audiolm.measuring.blindtest); 0: no test.

    split: train, valid, test or all; default: test, else valid, else all, whichever there is. A folder without a manifest is
    split as the model's recipe did, so that on its own training folder the model is measured on speakers that it has not heard.
    stderr and the report say which split was measured, and how many of its recordings are of the split train.

    temperature, codebooks: replace the model's own settings for generation; see audiolm.asking. precision: as in `load`.
    """
    _check(parts, most, limit, seconds, seed)
    if listening_test < 0 or listening_test == 1:
        raise InputError(f"listening_test={listening_test}: give 2 clips or more, or 0 for no test")
    if page:
        needed("markdown_it")
    for path, what in ((items, "items"), (pairs, "pairs")):
        if path is not None and not path.exists():
            raise InputError(f"--{what} {path}: no such file or folder; check the path")
    left_out: Skipped = []
    found = scan(data, **held_out(read_config(folder_of(model))["about"]), skipped=left_out)
    there = {recording.split for recording in found}
    measured = split or next((name for name in ("test", "valid") if name in there), "all")
    recordings = [recording for recording in found if measured in ("all", recording.split)]
    others = [recording for recording in found if measured not in ("all", recording.split)]
    if not recordings:
        raise InputError(f"{data}: no recording of the split {split!r}; give split='all', or a manifest with that split")
    bundle = _with_settings(load(model, precision=precision), temperature, codebooks)
    if decoders(bundle.stages) or listening_test:
        bundle.record()  # raises now, not after hours of measuring, if the model cannot generate with these settings
    folder = Path(report_dir)
    make_folder(folder)
    trained = sum(recording.split == "train" for recording in recordings)
    why = "" if split or measured == "test" else " (there is no test)"
    print(f"{data}: measures the split {measured}{why}: {len(recordings)} recordings, {trained} of train", file=sys.stderr)
    options: dict[str, Any] = {"most": most, "limit": limit, "seconds": seconds, "seed": seed, "items": items, "pairs": pairs}
    figures = evaluate(bundle, recordings, others=others, parts=parts, progress=progress, **options)
    figures["recordings.left_out"] += [f"{name}: {reason}" for name, reason in left_out]
    # Names, not paths: reports are shared, and paths mean nothing on another machine.
    names = [Path(each).resolve().name for each in (model, data, folder)]
    settings = {"temperature": temperature, "codebooks": codebooks, "precision": precision, "parts": parts}
    report = {
        "command": _command(names, options | settings | {"split": split}),
        "model": bundle.about.get("name", names[0]),
        "data": names[1],
        "split": measured,
        "versions": f"audiolm {version('audiolm')}, torch {torch.__version__}, Python {platform.python_version()}",
    } | figures
    with whole_file(folder / "report.json") as temporary:  # first, so that an error in the tables does not lose the figures
        temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    tables = markdown(report)
    with whole_file(folder / "report.md") as temporary:
        temporary.write_text(tables, encoding="utf-8")
    tell = progress or (lambda what, done, total: None)
    if page:
        write_page(folder / "report.html", bundle, recordings, report, tables, seconds, seed, tell)
    if listening_test:
        sounds = real_sounds(bundle, recordings, listening_test, seconds, seed)
        write_test(folder, bundle, [sound for _, sound in sounds], seconds, seed, tell)
    return report


def _with_settings(model: AudioLM, temperature: Sequence[float], codebooks: int | None) -> AudioLM:
    """The model, which from now on generates with these settings where they are given."""
    if temperature:
        model.sampling = changed(model.sampling, temperature)
    if codebooks is not None:
        if not 1 <= codebooks <= model.codec.spec.num_codebooks:
            raise InputError(f"--codebooks {codebooks}: this model's codec has 1 to {model.codec.spec.num_codebooks}")
        model.about["codebooks"] = codebooks
    return model


def _command(names: Sequence[str], options: Mapping[str, Any]) -> str:
    """The command that makes the figures again: names of the model, the data and the report, and `evaluate_folder`'s options."""
    given = {
        "data": names[1],
        "report": names[2],
        "recordings": options["most"] or 0,
        "limit": options["limit"],
        "seconds": f"{options['seconds']:g}",
        "seed": options["seed"],
        "split": options["split"],
        "items": options["items"] and options["items"].name,
        "pairs": options["pairs"] and options["pairs"].name,
        "temperature": ",".join(f"{each:g}" for each in options["temperature"]),
        "codebooks": options["codebooks"],
        "precision": None if options["precision"] == "auto" else options["precision"],
        "parts": None if set(options["parts"]) == set(PARTS) else ",".join(options["parts"]),
    }
    words = [word for name, value in given.items() if value not in (None, "") for word in (f"--{name}", str(value))]
    return shlex.join(["audiolm", "evaluate", names[0], *words])


def _flat(figures: Mapping[str, Measure | float | str]) -> dict[str, Any]:
    """NAME, NAME.low, NAME.high and NAME.clips. What could not be measured is None, since JSON has no NaN."""
    flat: dict[str, Any] = {}
    for name, figure in figures.items():
        if isinstance(figure, Measure):
            flat |= {name: figure.value, f"{name}.low": figure.low, f"{name}.high": figure.high, f"{name}.clips": figure.clips}
        else:
            flat[name] = figure
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in flat.items()}
