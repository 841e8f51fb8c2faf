"""What makes a codec: everything a saved bundle needs to build it again."""

import math
from typing import Literal, Self

from pydantic import model_validator

from audiolm.config import Config


class CodecConfig(Config):
    """Architecture of a codec; everything a saved bundle needs to build it again."""

    body: Literal["spectral", "vocoder", "waveform"] = "spectral"
    sample_rate: int = 16_000
    strides: tuple[int, ...] = (2, 4, 5, 8)  # their product is the hop: 320 samples, 50 Hz
    num_codebooks: int = 12
    codebook_size: int = 1024
    groups: int = 1
    latent: int = 96  # vocoder body: mel bands
    phases: Literal["invented", "continued"] = "invented"  # vocoder body: continued for what has pitch above all, as music
    decay: float = 0.98
    revive_below: float = 0.05
    channels: int = 32  # waveform body: C of the paper
    encoder_width: int = 256  # spectral and vocoder bodies
    encoder_layers: int = 4  # 0: the straight path alone
    decoder_width: int = 384
    decoder_layers: int = 8
    compression: float = 0.7  # spectral and vocoder bodies: exponent of the magnitudes

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @model_validator(mode="after")
    def _quarters(self) -> Self:
        if self.body == "vocoder" and self.hop % 4:
            raise ValueError(f"strides {self.strides}: the vocoder body wants a hop that 4 divides; change the strides")
        return self
