"""The paper's body: strided causal convolutions on samples."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from audiolm.bodies.config import CodecConfig
from audiolm.bodies.layers import CausalConv1d, CausalUpsample1d, State


class ResidualUnit(nn.Module):
    """SoundStream figure 3: x + conv1(conv7 with dilation), ELU before each."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilated = CausalConv1d(channels, channels, 7, dilation=dilation)
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, state: State) -> Tensor:
        return x + self.mix(F.elu(self.dilated(F.elu(x), state)))


class WaveformBody(nn.Module):
    """SoundStream section III-A, figure 3: strides 2-4-5-8, ELU, no normalisation, fully causal, no look-ahead."""

    margin = lag = 0
    encoder_parts = ("first.", "down.", "to_latent.")

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        c, strides = config.channels, config.strides
        widths = [c * 2**i for i in range(len(strides) + 1)]
        self.first = CausalConv1d(1, c, 7)
        self.down = nn.ModuleList(
            nn.ModuleList([*(ResidualUnit(n, d) for d in (1, 3, 9)), CausalConv1d(n, 2 * n, 2 * s, s)])
            for n, s in zip(widths, strides, strict=False)
        )
        self.to_latent = CausalConv1d(widths[-1], config.latent, 3)
        self.from_latent = CausalConv1d(config.latent, widths[-1], 7)
        self.up = nn.ModuleList(
            nn.ModuleList([CausalUpsample1d(2 * n, n, s), *(ResidualUnit(n, d) for d in (1, 3, 9))])
            for n, s in zip(widths[-2::-1], strides[::-1], strict=True)
        )
        self.last = CausalConv1d(c, 1, 7)
        rate, past = 1, float(self.from_latent.history)
        for stride in reversed(strides):
            past += 1 / rate + 6 * (1 + 3 + 9) / (rate * stride)
            rate *= stride
        self.memory = math.ceil(past + self.last.history / rate)

    def encode(self, audio: Tensor, state: State, last: bool) -> Tensor:
        """Latents (B, D, F) of audio (B, 1, F * hop)."""
        x = self.first(audio, state)
        for *units, down in self.down:  # pyright: ignore[reportGeneralTypeIssues]
            for unit in units:
                x = unit(x, state)
            x = down(F.elu(x), state)
        return self.to_latent(F.elu(x), state)

    def decode(self, latents: Tensor, state: State) -> Tensor:
        """Audio (B, 1, F * hop) of latents (B, D, F)."""
        x = self.from_latent(latents, state)
        for up, *units in self.up:  # pyright: ignore[reportGeneralTypeIssues]
            x = up(F.elu(x), state)
            for unit in units:
                x = unit(x, state)
        return self.last(F.elu(x), state)

    def start(self, audio: Tensor) -> None:
        """Nothing to do: convolutions are initialised at random."""
