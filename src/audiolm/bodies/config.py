"""The architecture of a codec."""

import math
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from audiolm.config import Config
from audiolm.tokens import TokenSpec


class CodecConfig(Config):
    """Architecture of a codec; everything a saved bundle needs to build it again."""

    body: Literal["spectral", "vocoder", "waveform"] = "spectral"
    sample_rate: PositiveInt = 16_000
    strides: tuple[PositiveInt, ...] = Field(default=(2, 4, 5, 8), min_length=1)  # their product is the hop: 320 samples, 50 Hz
    num_codebooks: PositiveInt = 12
    codebook_size: int = Field(default=1024, ge=1, le=1 << 16)  # token stores keep 16 bits of a code
    groups: PositiveInt = 1
    latent: PositiveInt = 96  # vocoder body: mel bands
    phases: Literal["invented", "continued"] = "invented"  # vocoder body: "continued" for tonal sound such as music
    decay: float = Field(default=0.98, ge=0, lt=1)
    revive_below: float = Field(default=0.05, ge=0)
    channels: PositiveInt = 32  # waveform body: C of the paper
    encoder_width: PositiveInt = 256  # spectral and vocoder bodies
    encoder_layers: NonNegativeInt = 4  # 0: no encoder network, only the body's fixed transform
    decoder_width: PositiveInt = 384
    decoder_layers: NonNegativeInt = 8
    compression: float = Field(default=0.7, gt=0)  # spectral and vocoder bodies: exponent of the magnitudes

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def spec(self) -> TokenSpec:
        """What the codec's tokens are."""
        return TokenSpec("acoustic", self.codebook_size, self.num_codebooks, self.sample_rate / self.hop)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, size in (("latent", self.latent), ("num_codebooks", self.num_codebooks)):
            if size % self.groups:
                raise ValueError(f"groups={self.groups} must divide {name}={size}")
        parts = {"vocoder": 4, "spectral": 2}.get(self.body, 1)  # its windows start and end at this fraction of a hop
        if self.hop % parts:
            raise ValueError(f"strides {self.strides}: the {self.body} body needs a hop divisible by {parts}; change the strides")
        if self.body == "spectral" and self.latent > self.hop:
            raise ValueError(f"latent={self.latent}: a spectrum has hop={self.hop} numbers; give latent={self.hop} or less")
        return self
