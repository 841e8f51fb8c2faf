"""Verbs about provenance: a detector of a model's own voice, and what listeners said."""

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
    out: Path,
    clips: int = 72,
    negatives: int = 0,
    measured: int | None = None,
    seconds: float = 4.0,
    steps: int = 400,
    further: Annotated[bool, Parameter(negative="")] = False,
    seed: int = 0,
    workers: int = 2,
    pack: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Teach `audiolm detect` a model's voice: generates sounds, trains on them, measures. Killed, the same command goes on.

    Parameters
    ----------
    model
        A packaged model, a bundle's folder, or a hub id.
    data
        A folder or manifest.csv of real recordings, of three speakers or more.
    out
        Folder for the sounds, the training and detector.safetensors.
    clips
        Training clips, of each of which something is generated.
    negatives
        Further training clips that only go through the codec: real speech costs little.
    measured
        Clips of the test, and half as many for the calibration; without it two thirds and a third of --clips.
    seconds
        Length of each, at most.
    steps
        Updates of the network, each by 32 crops of one second.
    further
        Begin with the detector that the model has, as after further training of the model, or for more clips.
    workers
        Processes that generate.
    pack
        Put the detector into the model's folder, and its figures into the card there.
    """
    from audiolm import bundle
    from audiolm.config import parse_config
    from audiolm.training import train_detector as training

    settings = {"clips": clips, "negatives": negatives, "measured": measured, "seconds": seconds, "steps": steps, "seed": seed}
    settings["further"] = further
    config = parse_config(training.DetectorTrainConfig, settings, "train-detector")
    figures = training.train_detector(model, data, out, config, workers)
    if pack:
        training.pack(out, bundle.folder_of(model))
    if json:
        making.show(figures, True)
    else:
        print((out / "detector.md").read_text(encoding="utf-8"))


def ratings(
    *files: Path,
    key: Path,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """How well listeners tell real from generated: what they answered in a listening test, against chance.

    The test itself: `audiolm evaluate MODEL --data FOLDER --report DIR --listening-test 20` writes listening.html.

    Parameters
    ----------
    files
        What the test's page saved, one file a rater.
    key
        listening-key.json of the same test.
    """
    from audiolm.measuring.blindtest import count_ratings

    if not files:
        raise InputError("ratings: name one or more files that the listening test saved")
    found = count_ratings(files, key)
    if json:
        plain = {name: {"ratings": each.ratings, "right": each.right, "p": each.p} for name, each in found.items()}
        making.show(plain, True)
        return
    for name, each in found.items():
        share = f"{100 * each.accuracy:.1f} % right ({each.right} of {each.ratings})"
        print(f"{name}: {share}; guessing is as good with probability {each.p:.3g}")
    print("AudioLM's listeners: 51.2 % of 1000, probability 0.23")
