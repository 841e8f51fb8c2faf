"""Provenance verbs: training a detector for a model's voice, and scoring a listening test."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from audiolm.commands import making
from audiolm.errors import InputError


def train_detector(
    model: str = "speech",
    /,
    *,
    data: Path,
    others: Path | None = None,
    out: Path,
    clips: making.Whole = 72,
    negatives: making.Whole = 0,
    measured: making.Whole | None = None,
    seconds: float = 4.0,
    steps: making.Whole = 400,
    further: Annotated[bool, Parameter(negative="")] = False,
    seed: making.Seed = 0,
    workers: making.Whole = 2,
    pack: Annotated[bool, Parameter(negative="")] = False,
    json: making.Json = False,
) -> None:
    """Teach `audiolm detect` a model's voice: generate sounds, train on them, measure. Rerun the same command to resume.

    Parameters
    ----------
    model
        A packaged model, a bundle's folder, or a hub id.
    data
        A folder or manifest.csv of real recordings from at least three speakers.
    others
        Recordings of other kinds than the model's (music, noise), as further negatives: what a detector never heard, it may
        take for generated.
    out
        Folder for the sounds, the training run and detector.safetensors.
    clips
        Training clips; one sound is generated from each.
    negatives
        Additional training clips that only go through the codec (cheap: nothing is generated from them).
    measured
        Number of test clips; half as many are used for calibration. Default: two thirds and one third of --clips.
    seconds
        Maximum length of each clip.
    steps
        Training steps, each on a batch of 32 one-second crops.
    further
        Start from the model's existing detector, for example after training the model further or to add clips.
    workers
        Number of processes that generate.
    pack
        Copy the detector into the model's folder and add its figures to the model card.
    """
    from audiolm import bundle
    from audiolm.config import parse_config
    from audiolm.training import train_detector as training

    settings = {"clips": clips, "negatives": negatives, "measured": measured, "seconds": seconds, "steps": steps, "seed": seed}
    settings["further"] = further
    config = parse_config(training.DetectorTrainConfig, settings, "train-detector")
    figures = training.train_detector(model, data, out, config, workers, others)
    if pack:
        training.pack(out, bundle.folder_of(model))
    if json:
        making.show(figures, True)
    else:
        print((out / "detector.md").read_text(encoding="utf-8"))


def ratings(
    *files: Path,
    key: Path,
    json: making.Json = False,
) -> None:
    """Score a listening test: how well listeners tell real from generated, compared with chance.

    Create the test (listening.html) with `audiolm evaluate MODEL --data FOLDER --report DIR --listening-test 20`.

    Parameters
    ----------
    files
        The answer files saved by the test page, one per rater.
    key
        The test's listening-key.json.
    """
    from audiolm.measuring.blindtest import count_ratings

    if not files:
        raise InputError("ratings: give one or more answer files saved by the listening test")
    found = count_ratings(files, key)
    if json:
        plain = {name: {"ratings": each.ratings, "right": each.right, "p": each.p} for name, each in found.items()}
        making.show(plain, True)
        return
    for name, each in found.items():
        share = f"{100 * each.accuracy:.1f} % right ({each.right} of {each.ratings})"
        print(f"{name}: {share}; p = {each.p:.3g} against guessing")
    print("AudioLM paper's listeners: 51.2 % right of 1000, p = 0.23")
