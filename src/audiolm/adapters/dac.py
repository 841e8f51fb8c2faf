"""DAC, the Descript Audio Codec (Kumar et al. 2023), as a `Codec`: its encoder and decoder are the body, around its quantiser.

Both are plain convolutions that see a fixed number of samples or frames to either side. So streaming is exact, if what is
processed has that much context and only what later input cannot change is given out: the `margin` of the encoder, and the
`memory` and the lag of the decoder, all computed from the strides. Long sounds are processed in windows by the same code.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm.adapters import taken
from audiolm.bodies import State
from audiolm.codec import Codec
from audiolm.tokens import TokenSpec

WINDOW = 500  # frames processed at a time
UNITS = 3 * (1 + 3 + 9)  # samples that a block's three residual units see to either side: kernel 7, dilations 1, 3, 9


class DacConfig(taken.Taken):
    """A DAC of transformers."""

    adapter: Literal["dac"] = "dac"

    @property
    def sample_rate(self) -> int:
        return self.network["sampling_rate"]

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.network["downsampling_ratios"])

    @property
    def num_codebooks(self) -> int:
        return self.network["n_codebooks"]

    @property
    def codebook_size(self) -> int:
        return self.network["codebook_size"]

    @property
    def spec(self) -> TokenSpec:
        return TokenSpec("acoustic", self.codebook_size, self.num_codebooks, self.sample_rate / self.hop)


def read(folder: Path, source: str) -> DacConfig:
    """The codec in a folder. InputError if it is none."""
    return DacConfig(**taken.read(folder, source, ("dac",)))


def codec(config: DacConfig) -> Codec:
    """The codec without its weights."""
    return _codec(config, taken.built(config))


def load(config: DacConfig) -> Codec:
    """The codec with the weights of the folder it was read from."""
    return _codec(config, taken.loaded(config))


def _codec(config: DacConfig, network: Any) -> Codec:
    return Codec(config, DacBody(network, config.network["downsampling_ratios"]), cast(Any, DacQuantizer(network.quantizer)))


def encoder_reach(strides: Sequence[int]) -> tuple[int, int]:
    """How many samples before and after its own a frame's latent depends on."""
    first, last = -1, 1
    for stride in reversed(strides):
        padding = math.ceil(stride / 2)
        first, last = stride * first - padding - UNITS, stride * last - padding + 2 * stride - 1 + UNITS
    return 3 - first, 3 + last - (math.prod(strides) - 1)


def decoder_reach(strides: Sequence[int]) -> tuple[int, int]:
    """How many frames before and after its own a frame's sound depends on; strides are the encoder's."""
    first, last = -3, math.prod(strides) + 2
    for stride in strides:
        padding = math.ceil(stride / 2)
        first = math.ceil((first - UNITS + padding - 2 * stride + 1) / stride)
        last = (last + UNITS + padding) // stride
    return 3 - first, 3 + last


class DacBody(nn.Module):
    """See audiolm.bodies for the contract. Sound and latents begin and end as in transformers: with zeros in every layer."""

    encoder_parts = ("encoder.",)

    def __init__(self, network: Any, strides: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.decoder, self.hop = network.encoder, network.decoder, math.prod(strides)
        self.context = math.ceil(max(encoder_reach(strides)) / self.hop)  # frames
        self.margin = self.context * self.hop
        self.memory, self.ahead = decoder_reach(strides)
        self.lag = self.ahead * self.hop
        for block in self.decoder.block:  # without it, an odd stride loses a sample at the end: 8 of the sound at 16 kHz
            block.conv_t1.output_padding = (block.conv_t1.stride[0] % 2,)

    def encode(self, audio: Tensor, state: State, last: bool) -> Tensor:
        """Latents (B, D, F) of audio (B, 1, F * hop) with `margin` samples on both sides."""
        frames, hop = audio.shape[-1] // self.hop, self.hop
        # At either end of the sound the margin is not sound, and is left to the layers' own padding.
        done = int(state.get(self.encoder, 0))
        begin, end = max(0, self.context - done), frames - (self.context if last else 0)
        state[self.encoder] = torch.tensor(done + frames - 2 * self.context)
        found = []
        for start in range(self.context, frames - self.context, WINDOW):
            stop = min(start + WINDOW, frames - self.context)
            low, high = max(begin, start - self.context), min(end, stop + self.context)
            found.append(self.encoder(audio[..., low * hop : high * hop])[..., start - low : stop - low])
        return torch.cat(found, -1)

    def decode(self, latents: Tensor, state: State) -> Tensor:
        """Audio (B, 1, n * hop) of the frames whose sound no later latents (B, D, F) can change."""
        past, waiting = state.get(self, latents[..., :0]), torch.cat([state.get(self.decoder, latents[..., :0]), latents], -1)
        return self._sound(past, waiting, max(0, waiting.shape[-1] - self.ahead), state)

    def close(self, state: State) -> Tensor:
        """Audio of the frames that waited for later ones."""
        return self._sound(state[self], state[self.decoder], state[self.decoder].shape[-1], state)

    def start(self, audio: Tensor) -> None:
        """Nothing to do: it is trained."""

    def _sound(self, past: Tensor, waiting: Tensor, count: int, state: State) -> Tensor:
        """The sound of the first `count` frames that are waiting."""
        held, first, found = torch.cat([past, waiting], -1), past.shape[-1], [past.new_zeros(len(past), 1, 0)]
        for start in range(first, first + count, WINDOW):
            stop = min(start + WINDOW, first + count)
            low = max(0, start - self.memory)
            sound = self.decoder(held[..., low : stop + self.ahead])
            found.append(sound[..., (start - low) * self.hop : (stop - low) * self.hop])
        state[self] = held[..., max(0, first + count - self.memory) : first + count]
        state[self.decoder] = held[..., first + count :]
        return torch.cat(found, -1)


class DacQuantizer(nn.Module):
    """What a `Codec` calls of its `ResidualQuantizer`, by transformers' codebooks: low-dimensional, compared by their angle."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.quantizers = network.quantizers

    def encode(self, latents: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Codes (B, q, F) of latents (B, D, F), with the first `num_codebooks` levels (default: all)."""
        residual, codes = latents.float(), []
        for level in self._levels[:num_codebooks]:
            nearest, ids = level.decode_latents(level.in_proj(residual))
            residual = residual - level.out_proj(nearest)
            codes.append(ids)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents (B, D, F) of codes (B, q, F), which may be any prefix of the levels."""
        parts = [
            level.out_proj(level.codebook(ids).transpose(1, 2)) for level, ids in zip(self._levels, codes.unbind(1), strict=False)
        ]
        return torch.stack(parts).sum(0)

    def vectors(self) -> list[Tensor]:
        """For each level, the vectors (N, D) that its codes add to a latent."""
        return [F.linear(level.codebook.weight, level.out_proj.weight[..., 0], level.out_proj.bias) for level in self._levels]

    @property
    def _levels(self) -> list[Any]:
        return list(self.quantizers)
