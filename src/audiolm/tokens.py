"""Tokens and their specification; the project's legend for tensor shapes.

    B batch    C channels    T samples    F frames    Q codebooks (levels)    L ids    D width

Codes are (B, Q, F) int64 inside networks and (Q, F) in `Tokens`; audio is (B, C, T) float32 in [-1, 1].
User-facing quantities are in seconds and Hz, never in samples.
"""

import base64
import html
from dataclasses import dataclass

from torch import Tensor

from audiolm import plots
from audiolm.errors import InputError


@dataclass(frozen=True)
class TokenSpec:
    """A tokenizer's output format: `num_codebooks` codes with `codebook_size` values each, `frame_rate` times per second."""

    name: str
    codebook_size: int
    num_codebooks: int
    frame_rate: float  # Hz

    @property
    def bitrate(self) -> float:
        """Bits per second with every codebook used."""
        return self.frame_rate * self.num_codebooks * (self.codebook_size - 1).bit_length()


@dataclass(frozen=True, eq=False)
class Tokens:
    """Codes of one recording with their specification. `codes` is (Q, F) int64; Q is at least 1 and at most all levels."""

    codes: Tensor
    spec: TokenSpec

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or not 1 <= self.codes.shape[0] <= self.spec.num_codebooks:
            raise InputError(
                f"{self.spec.name} codes must be (1 to {self.spec.num_codebooks} levels, frames), got {tuple(self.codes.shape)}"
            )
        if self.codes.numel() and not 0 <= int(self.codes.min()) <= int(self.codes.max()) < self.spec.codebook_size:
            raise InputError(
                f"{self.spec.name} codes must lie in [0, {self.spec.codebook_size}); were they made by another tokenizer?"
            )

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.codes.shape[-1] / self.spec.frame_rate

    def _repr_html_(self) -> str:
        """Notebook view: a summary and, if matplotlib is installed, a plot."""
        levels, frames = self.codes.shape
        name = html.escape(self.spec.name, quote=True)
        what = f"{name} tokens: {levels} x {frames} of {self.spec.codebook_size}, {self.seconds:.2f} s"
        text = f"<p>{what} at {self.spec.frame_rate:g} Hz</p>"
        if not self.codes.numel():
            return text
        try:
            picture = base64.b64encode(plots.codes_picture(self.codes.detach().cpu(), self.seconds)).decode()
        except ImportError:
            return text
        return f'{text}<img alt="{what}" src="data:image/png;base64,{picture}">'


@dataclass(frozen=True, eq=False)
class AudioTokens:
    """The semantic and acoustic tokens of one recording, aligned: a whole number of acoustic frames per semantic frame."""

    semantic: Tokens
    acoustic: Tokens

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.acoustic.seconds
