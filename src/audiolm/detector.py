"""Did the model say this? A detector of one model's own voice, by sound alone, marked or not (AudioLM section IV-H).

It was trained on what the model generates against real speech that went through the same codec, so that it hears how the
model speaks and not what the codec leaves behind. A file's score is the highest mean logit of any two seconds, since a
continuation begins with a real prompt; two numbers turn it into a probability (Platt 1999), for as many generated files as
real ones. How it is trained and what it reaches: audiolm.training.train_detector, docs/provenance.md.
"""

import json
import os
from collections.abc import Mapping, Sequence
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
    """Of one sound: probability that some of it is generated, and the share of its one-second crops that sound so."""

    probability: float
    share: float


@dataclass
class Detector:
    """The network with its calibration. `about` says of which model it is, and what it reached."""

    network: CropClassifier
    slope: float = 1.0
    offset: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    stale: bool = False  # that model has other weights now

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    def __call__(self, sound: Waveform) -> Verdict | None:
        """The verdict; None of a sound shorter than a second, and of digital silence."""
        if sound.seconds < SHORTEST or not sound.samples.any():
            return None
        logits = crop_logits(self.network, sound)[:, 0]
        probability = torch.sigmoid(torch.tensor(self.slope * file_score(logits) + self.offset))
        return Verdict(float(probability), float((logits > 0).float().mean()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, weights in bfloat16, everything else in its metadata."""
        channels = [layer.out_channels for layer in self.network.blocks if isinstance(layer, torch.nn.Conv2d)][::2]
        metadata = {"channels": channels, "slope": self.slope, "offset": self.offset, "about": self.about}
        save_tensors(path, packed(self.network), {"detector": json.dumps(metadata)})


def packed(network: CropClassifier) -> dict[str, Tensor]:
    """The weights as a file keeps them, in bfloat16."""
    state = network.state_dict()
    return {name: each.to(torch.bfloat16) if each.is_floating_point() else each for name, each in state.items()}


def load(path: str | os.PathLike[str]) -> Detector:
    """Read what `Detector.save` wrote. InputError where it is something else."""
    tensors, metadata = load_tensors(path)
    try:
        about = json.loads(metadata["detector"])
        network = CropClassifier(1, tuple(about["channels"]))
        network.load_state_dict(tensors)
        return Detector(network, float(about["slope"]), float(about["offset"]), dict(about["about"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a detector ({reason}); train it again: audiolm train-detector") from error


def examine(sound: Waveform, detector: Detector | None, model: str) -> dict[str, Any]:
    """What can be told of a sound, JSON-ready: its watermark, and by ear; `note` says what is to be known of that."""
    verdict = detector(sound) if detector else None
    note = None
    if not sound.samples.any():
        note = "digital silence: there is nothing to judge"
    elif detector is None:
        note = f"{model} has no detector of its voice (audiolm train-detector makes one)"
    elif verdict is None:
        note = f"too short to be judged by ear; at least {SHORTEST:g} s"
    elif detector.stale:
        note = f"{model} has been trained again since its detector was; audiolm train-detector makes a new one"
    return {
        "synthetic_probability": None if verdict is None else round(verdict.probability, 4),
        "synthetic_share": None if verdict is None else round(verdict.share, 3),
        "watermark": provenance.detect(sound).plain(),
        **({"note": note} if note else {}),
    }


def identity(config: Mapping[str, Any]) -> str:
    """Of a bundle's config.json: 16 hex digits that change with its weights."""
    return digest(config["weights"])


def file_score(logits: Tensor) -> float:
    """Crops' logits (crops,) -> the highest mean of `SPAN` neighbours, or of all where there are fewer."""
    return float(logits.unfold(0, min(SPAN, len(logits)), 1).mean(1).max())


def calibrated(real: Sequence[float], generated: Sequence[float]) -> tuple[float, float]:
    """Slope and offset that turn scores into probabilities (Platt 1999), either kind weighing the same.

    His targets stop short of 0 and 1, so that few files, however well told apart, never make certainty.
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
    """Where as many real sounds are taken for generated as generated ones for real: 0 apart, 0.5 by chance."""
    real, generated = torch.as_tensor(real).double(), torch.as_tensor(generated).double()
    thresholds = torch.cat([real, generated, torch.tensor([torch.inf])]).unique()
    alarms = 1 - torch.searchsorted(real.sort().values, thresholds) / len(real)
    misses = torch.searchsorted(generated.sort().values, thresholds) / len(generated)
    place = int((alarms - misses).abs().argmin())
    return float(alarms[place] + misses[place]) / 2
