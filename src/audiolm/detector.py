"""Detect one model's own output from the sound alone, watermarked or not (AudioLM section IV-H).

The classifier is trained on generated sound against real sound, most of which went through the same codec, so that it learns
how the model generates and not the codec's artefacts. A file's score is the highest mean logit over any two seconds, since a
continuation begins with a real prompt; a slope and an offset turn it into a probability (Platt 1999), assuming as many
generated files as real ones. Training and figures: audiolm.training.train_detector, docs/provenance.md.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiolm import provenance
from audiolm.audio import Waveform
from audiolm.classifier import CHANNELS, CropClassifier, crop_logits
from audiolm.config import digest
from audiolm.errors import InputError
from audiolm.files import load_tensors, save_tensors

FILE = "detector.safetensors"  # in a bundle's folder
SPAN = 5  # crops, 250 ms apart: two seconds
SHORTEST = 1.0  # seconds
SMALL = tuple(channels // 2 for channels in CHANNELS)  # half the paper's width: 1.8 MB in bfloat16


class Verdict(NamedTuple):
    """For one sound: the probability that any of it is generated, and the share of its one-second crops classified as such."""

    probability: float
    share: float


@dataclass
class Detector:
    """The network with its calibration. `about`: the model it belongs to, and its figures."""

    network: CropClassifier
    slope: float = 1.0
    offset: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    stale: bool = False  # whether the model's weights have changed since

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    def __call__(self, sound: Waveform, progress: Callable[[int, int], None] | None = None) -> Verdict | None:
        """The verdict; None for a sound shorter than a second, or silent. progress: as for `crop_logits`."""
        if sound.seconds < SHORTEST or silent(sound):
            return None
        logits = crop_logits(self.network, sound, progress)[:, 0]
        probability = torch.sigmoid(torch.tensor(self.slope * file_score(logits) + self.offset))
        return Verdict(float(probability), float((logits > 0).float().mean()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: weights in bfloat16, everything else in its metadata."""
        channels = [layer.out_channels for layer in self.network.blocks if isinstance(layer, torch.nn.Conv2d)][::2]
        metadata = {"channels": channels, "slope": self.slope, "offset": self.offset, "about": self.about}
        save_tensors(path, packed(self.network), {"detector": json.dumps(metadata)})


def packed(network: CropClassifier) -> dict[str, Tensor]:
    """The weights as they are saved, in bfloat16."""
    state = network.state_dict()
    return {name: each.to(torch.bfloat16) if each.is_floating_point() else each for name, each in state.items()}


def load(path: str | os.PathLike[str]) -> Detector:
    """Read what `Detector.save` wrote. Raises InputError if the file is something else."""
    tensors, metadata = load_tensors(path)
    try:
        about = json.loads(metadata["detector"])
        network = CropClassifier(1, tuple(about["channels"]))
        network.load_state_dict(tensors)
        return Detector(network, float(about["slope"]), float(about["offset"]), dict(about["about"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a detector ({reason}); train it again: audiolm train-detector") from error


def silent(sound: Waveform) -> bool:
    """Whether nothing can be heard: the mix of its channels, which is what is examined, never changes."""
    return not sound.mono().samples.diff().any()


def examine(
    sound: Waveform, detector: Detector | None, model: str, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """What detector and watermark say about a sound, ready for JSON; `note` explains a missing or doubtful verdict."""
    verdict = detector(sound, progress) if detector else None
    note = None
    if silent(sound):
        note = "digital silence: there is nothing to judge"
    elif detector is None:
        note = f"{model} has no detector (audiolm train-detector makes one)"
    elif verdict is None:
        note = f"too short for the detector, which needs at least {SHORTEST:g} s"
    elif detector.stale:
        note = f"{model} has been trained further since its detector was made; audiolm train-detector makes a new one"
    return {
        "synthetic_probability": None if verdict is None else round(verdict.probability, 4),
        "synthetic_share": None if verdict is None else round(verdict.share, 3),
        "watermark": provenance.detect(sound).plain(),
        **({"note": note} if note else {}),
    }


def identity(config: Mapping[str, Any]) -> str:
    """16 hex digits that change with the weights of a bundle, given its config.json."""
    return digest(config["weights"])


def file_score(logits: Tensor) -> float:
    """Crops' logits (crops,) -> the highest mean of `SPAN` consecutive ones, or the mean of all if there are fewer."""
    return float(logits.unfold(0, min(SPAN, len(logits)), 1).mean(1).max())


def calibrated(real: Sequence[float], generated: Sequence[float]) -> tuple[float, float]:
    """Slope and offset that turn scores into probabilities (Platt 1999), both classes having the same weight.

    Platt's targets stop short of 0 and 1, so that a few files, however well separated, never give certainty.
    """
    scores = torch.tensor([*real, *generated], dtype=torch.float64)
    counts = torch.tensor([len(real)] * len(real) + [len(generated)] * len(generated), dtype=torch.float64)
    is_generated = torch.arange(len(scores)) >= len(real)
    targets = torch.where(is_generated, (counts + 1) / (counts + 2), 1 / (counts + 2))
    centre, spread = scores.mean(), scores.std().clamp_min(1e-6)
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = weights[0] * (scores - centre) / spread + weights[1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, weight=1 / counts)
        value.backward()
        return value

    optimizer.step(loss)
    slope, middle = weights.tolist()
    return slope / float(spread), middle - slope * float(centre / spread)


def equal_error_rate(real: Sequence[float] | Tensor, generated: Sequence[float] | Tensor) -> float:
    """Equal error rate, where false alarms equal misses: 0 if the classes are separated, 0.5 by chance."""
    real, generated = torch.as_tensor(real).double(), torch.as_tensor(generated).double()
    thresholds = torch.cat([real, generated, torch.tensor([torch.inf])]).unique()
    alarms = 1 - torch.searchsorted(real.sort().values, thresholds) / len(real)
    misses = torch.searchsorted(generated.sort().values, thresholds) / len(generated)
    place = int((alarms - misses).abs().argmin())
    return float(alarms[place] + misses[place]) / 2
