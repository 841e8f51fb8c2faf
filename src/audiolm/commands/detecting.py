"""Verbs about provenance: a detector of a model's own voice, and what listeners said."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from audiolm.commands import making


def train_detector(
    model: str = "speech",
    /,
    *,
    data: Path,
    out: Path,
    clips: int = 96,
    seconds: float = 4.0,
    steps: int = 500,
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
        Training clips; a third as many for calibration and two thirds for the test come on top.
    seconds
        Length of each, at most.
    steps
        Updates of the network, each by 32 crops of one second.
    workers
        Processes that generate.
    pack
        Put the detector into the model's folder, and its figures into the card there.
    """
    from audiolm import bundle
    from audiolm import train_detector as training
    from audiolm.config import parse_config

    settings = {"clips": clips, "seconds": seconds, "steps": steps, "seed": seed}
    config = parse_config(training.DetectorTrainConfig, settings, "train-detector")
    figures = training.train_detector(model, data, out, config, workers)
    if pack:
        training.pack(out, bundle.folder_of(model))
    if json:
        making.show(figures, True)
    else:
        print((out / "detector.md").read_text(encoding="utf-8"))
