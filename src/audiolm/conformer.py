"""The semantic encoder: log-mel -> 4x subsampling -> Conformer blocks at 25 Hz.

AudioLM (§III-B) takes its semantic tokens from a middle layer of w2v-BERT, a Conformer trained on audio alone; for the training
see training/pretraining.py. M is a number of mel frames (100 Hz), F of encoder frames (25 Hz): M = 4 F.
"""

import math
from typing import Self

import torch
import torch.nn.functional as nnf
from pydantic import Field, model_validator
from torch import Tensor, nn

from audiolm.config import Config

SAMPLE_RATE = 16000  # Hz
FRAME = 640  # samples in one 25 Hz frame
STACK = 4  # mel frames in one frame


class ConformerConfig(Config):
    """Shape of the network. Widths are in channels; `kernel` is in frames of 40 ms.

    With layers=0 there is no network: the features are the mel's spectral shape, one per bin, averaged over `kernel` frames,
    with the share `level` of its level kept (see `SpectrumShape`).
    """

    bins: int = Field(default=80, ge=8)
    window: int = Field(default=400, ge=160, le=16_000)  # samples: 25 ms for speech; tones need 160 ms, and more bins
    width: int = Field(default=256, ge=8)
    layers: int = Field(default=8, ge=0)
    heads: int = Field(default=4, ge=1)
    feed_forward: int = Field(default=1024, ge=8)
    kernel: int = Field(default=15, ge=1)
    level: float = Field(default=0.0, ge=0, le=1)
    channels: int = Field(default=64, ge=1)  # of the subsampling convolutions
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} must be a multiple of {2 * self.heads}, twice the heads")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd, so that a frame has as much past as future")
        return self

    @property
    def features(self) -> int:
        """D, the width of all features."""
        return self.width if self.layers else self.bins

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return SAMPLE_RATE

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return FRAME


def frame_count(samples: int) -> int:
    """Number of frames of a recording; a last, partly filled frame counts."""
    return -(-samples // FRAME)


def mel_filters(bins: int, fft: int = 512, low: float = 20.0, high: float = 8000.0) -> Tensor:
    """Triangular filters, equally spaced on the mel scale between `low` and `high` Hz: (fft // 2 + 1, bins)."""
    edges = torch.linspace(1127 * math.log1p(low / 700), 1127 * math.log1p(high / 700), bins + 2)
    mel = 1127 * torch.log1p(torch.linspace(0, SAMPLE_RATE / 2, fft // 2 + 1) / 700)[:, None]
    rise, fall = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp_min(0)


def fft_size(window: int) -> int:
    """The smallest power of two, at least 512, that holds a window of that many samples."""
    return max(512, 2 ** (window - 1).bit_length())


def log_mel(audio: Tensor, filters: Tensor, window: int = 400) -> Tensor:
    """Log-mel energies (B, M, bins) of audio (B, 1, T) at 16 kHz: `window` samples (25 ms) every 10 ms, M = 4 ceil(T / 640).

    Four mel frames span exactly one 640-sample frame; windows are centred on their 10 ms, with silence outside the recording.
    """
    fft = 2 * (filters.shape[0] - 1)
    tail = frame_count(audio.shape[-1]) * FRAME - audio.shape[-1]
    padded = nnf.pad(audio[:, 0].float(), ((fft - 160) // 2, (fft - 160) // 2 + tail))
    hann = torch.hann_window(window, device=audio.device)
    spectrum = torch.stft(padded, fft, 160, window, hann, center=False, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()  # `abs()` takes roots and costs four times the transform
    return (power.transpose(1, 2) @ filters + 1e-5).log()


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B, frames), True within each item's length."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def mfcc(mel: Tensor, cepstra: int = 13, stack: int = STACK) -> Tensor:
    """MFCC at 25 Hz: cepstra of log-mel (B, M, bins) with their first and second derivatives, (B, F, 3 cepstra).

    stack: how many mel frames are averaged into one.
    """
    bins = mel.shape[-1]
    place = (torch.arange(bins, device=mel.device) + 0.5) * math.pi / bins
    cosines = math.sqrt(2 / bins) * torch.cos(place[:, None] * torch.arange(cepstra, device=mel.device))
    parts = [mel.float() @ cosines]
    slope = torch.tensor([-2, -1, 0, 1, 2], device=mel.device) / 10  # of a line fitted to five frames
    for _ in range(2):
        parts.append(nnf.pad(parts[-1].transpose(1, 2), (2, 2), "replicate").unfold(-1, 5, 1).matmul(slope).transpose(1, 2))
    return torch.cat(parts, -1).unflatten(1, (-1, stack)).mean(2)


# ---------------------------------------------------------------------------------------------------------- the network


class Subsampling(nn.Module):
    """Two convolutions of stride (2, 2) over time and frequency, then a projection: (B, M, bins) -> (B, M / 4, D)."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.first = nn.Conv2d(1, config.channels, 3, 2, 1)
        self.second = nn.Conv2d(config.channels, config.channels, 3, 2, 1)
        self.out = nn.Linear(config.channels * (-(-config.bins // 4)), config.width)

    def forward(self, mel: Tensor, mask: Tensor | None) -> Tensor:
        x = mel[:, None]
        for convolution, repeats in ((self.first, 4), (self.second, 2)):
            if mask is not None:  # zero what is past an item's end, as if the item were padded alone
                x = x * mask.repeat_interleave(repeats, 1)[:, None, :, None]
            x = nnf.relu(convolution(x))
        return self.out(x.transpose(1, 2).flatten(2))


class SpectrumShape(nn.Module):
    """Spectral shape, with the level mostly removed: (B, M, bins) -> (B, M / 4, bins), a mean over `kernel` frames.

    With long windows it shows which tones sound, and k-means on it makes units of chords; a network trained for minutes makes
    worse ones. With none of the level the units carry no dynamics; with all of it they carry little else
    (docs/training-log.md).
    """

    def __init__(self, kernel: int = 1, level: float = 0.0):
        super().__init__()
        self.kernel, self.level = kernel, level

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        frames = mel.unflatten(1, (-1, STACK)).mean(2)
        frames = frames - (1 - self.level) * frames.mean(-1, keepdim=True)
        there = frames.new_ones(frames.shape[:2]) if mask is None else mask.to(frames)
        # Near either end, fewer frames are averaged.
        together = torch.cat((frames * there[..., None], there[..., None]), -1).transpose(1, 2)
        mean = nnf.avg_pool1d(together, self.kernel, 1, self.kernel // 2).transpose(1, 2)
        return mean[..., :-1] / mean[..., -1:].clamp_min(1e-6)


class FeedForward(nn.Sequential):
    """One of a block's two half-step feed-forward layers (macaron): norm, widen, SiLU, narrow."""

    def __init__(self, config: ConformerConfig):
        super().__init__(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.feed_forward),
            nn.SiLU(),
            nn.Linear(config.feed_forward, config.width),
            nn.Dropout(config.dropout),
        )


class Attention(nn.Module):
    """Bidirectional self-attention with rotary positions."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation).to(v.dtype), rotate(k, rotation).to(v.dtype)
        y = nnf.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        return self.dropout(self.out(y.transpose(1, 2).flatten(2)))


class Convolution(nn.Module):
    """GLU, depthwise convolution, LayerNorm (batch norm would make an item depend on the rest of its batch), SiLU."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.into = nn.Linear(config.width, 2 * config.width)
        self.depthwise = nn.Conv1d(config.width, config.width, config.kernel, padding="same", groups=config.width)
        self.norm_between = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = nnf.glu(self.into(self.norm(x)))
        if mask is not None:
            x = x * mask[..., None]
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.out(nnf.silu(self.norm_between(x))))


class Block(nn.Module):
    """One Conformer block (2005.08100): half feed-forward, attention, convolution, half feed-forward, norm."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.first, self.last = FeedForward(config), FeedForward(config)
        self.attention, self.convolution = Attention(config), Convolution(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        x = x + 0.5 * self.first(x)
        x = x + self.attention(x, rotation, mask)
        x = x + self.convolution(x, mask)
        return self.norm(x + 0.5 * self.last(x))


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: rotate the two halves of each head (..., F, width) by angles that depend on the position."""
    cosine, sine = rotation
    left, right = x.chunk(2, -1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), -1)


class Conformer(nn.Module):
    """Audio or mel -> features of every layer at 25 Hz. `mel_mean` and `mel_std` (bins) come from the training data."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.config = config
        self.filters = nn.Buffer(mel_filters(config.bins, fft_size(config.window)), persistent=False)
        self.mel_mean = nn.Buffer(torch.zeros(config.bins))
        self.mel_std = nn.Buffer(torch.ones(config.bins))
        self.subsampling = Subsampling(config) if config.layers else SpectrumShape(config.kernel, config.level)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    @torch.no_grad()
    def fit_normalisation(self, mel: Tensor) -> None:
        """Set the statistics of each bin from unnormalised log-mel frames (..., bins) of the training data."""
        frames = mel.reshape(-1, self.config.bins)
        self.mel_mean.copy_(frames.mean(0))
        self.mel_std.copy_(frames.std(0).clamp_min(1e-3))

    def log_mel(self, audio: Tensor) -> Tensor:
        """Normalised log-mel (B, M, bins) of audio (B, 1, T) at 16 kHz, in float32 whatever the autocast."""
        with torch.autocast(audio.device.type, enabled=False):
            return (log_mel(audio, self.filters, self.config.window) - self.mel_mean) / self.mel_std

    def features(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Subsampled mel (without layers, its spectral shape): (B, M, bins) -> (B, F, D). `lengths` (B): frames of each item."""
        return self.subsampling(mel, None if lengths is None else frame_mask(lengths, mel.shape[1] // STACK))

    def encode(self, features: Tensor, lengths: Tensor | None = None, layers: int | None = None) -> list[Tensor]:
        """Run the first `layers` blocks (default all): [features, after block 1, ..., after the last], each (B, F, D)."""
        frames, half = features.shape[1], self.config.width // self.config.heads // 2
        mask = None if lengths is None else frame_mask(lengths, frames)
        speeds = 10000 ** (-torch.arange(half, device=features.device) / half)
        angles = torch.arange(frames, device=features.device)[:, None] * speeds
        rotation = angles.cos(), angles.sin()
        outputs = [features]
        x = self.dropout(features)
        for block in self.blocks[:layers]:
            x = block(x, rotation, mask)
            outputs.append(x)
        return outputs

    def forward(self, mel: Tensor, lengths: Tensor | None = None, layers: int | None = None) -> list[Tensor]:
        """Normalised mel (B, M, bins) -> layers + 1 outputs (B, F, D): the subsampled input, then the output of each block."""
        return self.encode(self.features(mel, lengths), lengths, layers)

    def extract(self, audio: Tensor, layers: int | None = None) -> list[Tensor]:
        """The same of audio (B, 1, T) at 16 kHz, F = ceil(T / 640)."""
        return self(self.log_mel(audio), layers=layers)
