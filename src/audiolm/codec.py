"""SoundStream (Zeghidour et al. 2021; AudioLM section III-B): a causal neural codec, 16 kHz audio <-> 50 frames per second.

    audio (B, 1, T) -> body.encode -> latents (B, D, F) -> residual quantiser -> codes (B, Q, F)
    codes (B, q <= Q, F) -> latents -> body.decode -> audio (B, 1, F * hop)

The bodies are in audiolm.bodies, the quantiser in audiolm.quantizer. Streaming is exact: offline processing is a single
push through the same code, so streamed equals offline by construction.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm.bodies import BODIES, CodecConfig, State
from audiolm.errors import InputError
from audiolm.quantizer import ResidualQuantizer

__all__ = ["Codec", "CodecConfig", "DecoderStream", "EncoderStream"]


class Codec(nn.Module):
    """SoundStream: a body around a residual quantiser. See the module docstring for shapes.

    body, quantizer: those of a codec of others, whose `config` does not describe ours (audiolm.adapters).
    """

    def __init__(self, config: CodecConfig | Any, body: Any = None, quantizer: Any = None) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.hop, self.spec = config.sample_rate, config.hop, config.spec
        self.body = body or BODIES[config.body](config)
        self.frozen_encoder = False
        self.quantizer = quantizer or ResidualQuantizer(
            config.latent, config.num_codebooks, config.codebook_size, config.groups, config.decay, config.revive_below
        )

    @property
    def delay(self) -> float:
        """Streaming delay in seconds: one frame, plus the encoder's look-ahead, plus the decoder's lag."""
        return (self.hop + self.body.margin + self.body.lag) / self.sample_rate

    def latents(self, audio: Tensor) -> Tensor:
        """Unquantised latents (B, D, ceil(T / hop)) of audio (B, 1, T), padded with silence at the end to a whole frame."""
        right = -audio.shape[-1] % self.hop
        return self.body.encode(F.pad(audio, (self.body.margin, right + self.body.margin)), {}, last=True)

    def encode(self, audio: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Codes (B, Q, F), F = ceil(T / hop), of audio (B, 1, T); `num_codebooks` keeps only the first levels."""
        if audio.shape[-1] == 0:
            raise InputError("the audio is empty: nothing to encode")
        return self.quantizer.encode(self.latents(audio), num_codebooks)

    def decode(self, codes: Tensor) -> Tensor:
        """Audio (B, 1, F * hop) from codes (B, q, F) of the first q levels, 1 <= q <= Q."""
        if not 1 <= codes.shape[1] <= self.spec.num_codebooks:
            raise InputError(f"codes have {codes.shape[1]} levels; this codec takes 1 to {self.spec.num_codebooks}")
        if codes.shape[-1] == 0:
            raise InputError("no codes were given: nothing to decode")
        return self._decode(self.quantizer.decode(codes))

    def forward(self, audio: Tensor, keep: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Training pass on audio (B, 1, T): the reconstruction (same shape) and two losses on the latents.

        keep: see ResidualQuantizer.forward. commitment: distance to the codes. energy: squared deviation of the latents' mean
        energy from 1. Quantised latents have too little energy; unconstrained, the encoder compensates by growing its latents,
        and the codebooks follow.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_encoder):
            latents = self.latents(audio)
            quantised, _, commitment = self.quantizer(latents, keep, learn=self.training and not self.frozen_encoder)
        energy = (latents.float().square().mean() - 1).square()
        return self._decode(quantised)[..., : audio.shape[-1]], {"commitment": commitment, "energy": energy}

    def _decode(self, latents: Tensor) -> Tensor:
        state: State = {}
        sound = self.body.decode(latents, state)
        return torch.cat([sound, self.rest(sound, state)], -1)

    def rest(self, sound: Tensor, state: State) -> Tensor:
        """The samples (B, 1, lag) after the sound decoded so far (B, 1, T), which no code will follow."""
        return self.body.close(state) if self.body.lag else sound[..., :0]  # pyright: ignore[reportCallIssue]

    def coder(self) -> dict[str, Tensor]:
        """The weights that determine the codes: those of the encoder and the codebooks, not of the decoder."""
        encoder = tuple(f"body.{part}" for part in self.body.encoder_parts)
        return {
            name: tensor for name, tensor in self.state_dict(keep_vars=True).items() if name.startswith((*encoder, "quantizer."))
        }

    def freeze_encoder(self) -> None:
        """Freeze encoder and codebooks, so that further training changes only the decoder and not the codes."""
        self.frozen_encoder = True
        for tensor in self.coder().values():
            tensor.requires_grad_(False)

    @torch.no_grad()
    def start(self, audio: Tensor, seed: int = 0, show: Callable[[int], object] = lambda done: None) -> None:
        """Initialise an untrained codec from training audio (B, 1, T): first the body, then the codebooks by k-means.

        `show(done)` is called after each codebook.
        """
        self.body.start(audio)
        self.quantizer.start(self.latents(audio), torch.Generator().manual_seed(seed), show)

    def encoder_stream(self, num_codebooks: int | None = None) -> "EncoderStream":
        """A new streaming encoder; its codes equal `encode`'s, however the audio is split into blocks."""
        return EncoderStream(self, num_codebooks)

    def decoder_stream(self) -> "DecoderStream":
        """A new streaming decoder; its audio equals `decode`'s, however the codes are split into blocks."""
        return DecoderStream(self)


class EncoderStream:
    """Audio in blocks of any length -> codes, as soon as their frame is complete."""

    def __init__(self, codec: Codec, num_codebooks: int | None) -> None:
        self.codec, self.num_codebooks = codec, num_codebooks
        self.state: State = {}
        self.waiting: Tensor | None = None  # samples not yet encoded, preceded by the margin

    @torch.no_grad()
    def push(self, audio: Tensor) -> Tensor:
        """Audio (B, 1, T) -> codes (B, Q, F) of the frames it completes, F >= 0."""
        margin = self.codec.body.margin
        waiting = F.pad(audio, (margin, 0)) if self.waiting is None else torch.cat([self.waiting, audio], -1)
        # Require one sample more than a frame needs: only then is it certain not to be the last frame.
        return self._encode(waiting, max(0, (waiting.shape[-1] - 2 * margin - 1) // self.codec.hop), last=False)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """Codes of the remaining samples, padded with silence to a whole frame."""
        if self.waiting is None:
            raise InputError("the audio is empty: nothing to encode")
        hop, margin = self.codec.hop, self.codec.body.margin
        frames = -(-(self.waiting.shape[-1] - margin) // hop)
        padding = frames * hop + 2 * margin - self.waiting.shape[-1]
        return self._encode(F.pad(self.waiting, (0, padding)), frames, last=True)

    def _encode(self, waiting: Tensor, frames: int, last: bool) -> Tensor:
        hop, margin = self.codec.hop, self.codec.body.margin
        self.waiting = waiting[..., frames * hop :]
        if not frames:
            levels = self.num_codebooks or self.codec.spec.num_codebooks
            return torch.zeros(len(waiting), levels, 0, dtype=torch.int64, device=waiting.device)
        latents = self.codec.body.encode(waiting[..., : frames * hop + 2 * margin], self.state, last)
        return self.codec.quantizer.encode(latents, self.num_codebooks)


class DecoderStream:
    """Codes in blocks of any length -> audio, `lag` samples behind; `flush` returns the rest."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.state: State = {}
        self.sound: Tensor | None = None  # the last made

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """Codes (B, q, F) -> audio (B, 1, T) that no later code can change."""
        if codes.shape[-1] == 0:
            return torch.zeros(len(codes), 1, 0, device=codes.device)
        self.sound = sound = self.codec.body.decode(self.codec.quantizer.decode(codes), self.state)
        return sound

    @torch.no_grad()
    def flush(self) -> Tensor:
        """The rest of the audio (B, 1, T)."""
        if self.sound is None:
            raise InputError("no codes were given: nothing to decode")
        return self.codec.rest(self.sound, self.state)
