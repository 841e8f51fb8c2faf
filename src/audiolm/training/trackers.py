"""Experiment trackers: TensorBoard, or Weights & Biases. Both only repeat what is in the run folder."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from audiolm.audio import Waveform
from audiolm.errors import InputError

TrackerName = Literal["tensorboard", "wandb", "none"]


class Tracker(Protocol):
    """Receives a run's metrics, sounds and plots. `picture` is a PNG."""

    def figures(self, step: int, values: Mapping[str, float]) -> None: ...
    def sound(self, step: int, name: str, sound: Waveform) -> None: ...
    def picture(self, step: int, name: str, picture: bytes) -> None: ...
    def close(self) -> None: ...


def open_tracker(name: TrackerName, folder: Path, config: Mapping[str, Any], step: int) -> Tracker | None:
    """The tracker of a run that resumes at `step`. None without TensorBoard installed: its files are only a convenience."""
    if name == "wandb":
        return WeightsAndBiases(folder, config)
    try:
        return TensorBoard(folder, step) if name == "tensorboard" else None
    except ImportError:
        return None


class TensorBoard:
    """Event files in the run folder. `tensorboard --logdir RUNS` shows them."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def sound(self, step: int, name: str, sound: Waveform) -> None:
        self.writer.add_audio(name, sound.mono().samples.clamp(-1, 1), step, sound.sample_rate)

    def picture(self, step: int, name: str, picture: bytes) -> None:
        from PIL import Image  # installed with matplotlib, which drew the picture

        pixels = np.array(Image.open(io.BytesIO(picture)).convert("RGB"))
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One Weights & Biases run per run folder; a resumed run continues the same curves. WANDB_MODE=offline keeps it local."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError("tracker=wandb needs wandb; run: pip install 'audiolm[wandb]'") from error
        self.wandb = wandb
        known = folder / "wandb.id"
        if not known.is_file():
            known.write_text(os.urandom(4).hex(), encoding="utf-8")  # not Python's random, whose state belongs to the training
        names = {
            "name": folder.name,
            "id": known.read_text(encoding="utf-8"),
            "project": os.environ.get("WANDB_PROJECT", "audiolm"),
        }
        self.run: Any = wandb.init(dir=str(folder), config=dict(config), resume="allow", **names)
        # W&B's own step may not go back; ours does when a killed run resumes from its checkpoint.
        self.run.define_metric("*", step_metric="step")

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def sound(self, step: int, name: str, sound: Waveform) -> None:
        audio = self.wandb.Audio(sound.mono().samples[0].clamp(-1, 1).numpy(), sample_rate=sound.sample_rate)
        self.run.log({"step": step, name: audio})

    def picture(self, step: int, name: str, picture: bytes) -> None:
        from PIL import Image

        self.run.log({"step": step, name: self.wandb.Image(Image.open(io.BytesIO(picture)))})

    def close(self) -> None:
        self.run.finish()
