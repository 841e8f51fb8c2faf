"""A transform codec with networks around it: it starts from principal components of spectra, and training improves on that."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm.bodies.config import CodecConfig
from audiolm.bodies.layers import CausalBlock, State, silent


class SpectralBody(nn.Module):
    """Compressed MDCT -> causal ConvNeXt blocks -> latents -> causal blocks -> compressed MDCT.

    The MDCT (Princen, Bradley 1986) overlaps by half but has only as many coefficients as samples, so no bits are spent
    twice. Its windows of two hops are centred on each frame's hop: an encoder frame depends on, and a decoder frame affects,
    `margin` = hop / 2 samples (10 ms) past its own end, which is the look-ahead of the encoder and the delay of the decoder.
    The first and the last window have a steep edge at the sound's ends, so that F frames give back exactly F hops.

    The straight path (analysis, synthesis) is linear: the principal components of compressed MDCT spectra. The blocks,
    which start at zero, add what linear coding cannot represent; the encoder's also see the phase (MDST).
    """

    encoder_parts = ("analysis.", "encoder")

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.hop, self.power = config.hop, config.compression
        self.margin = self.lag = config.hop // 2
        time = torch.arange(2 * config.hop) + 0.5
        angles = math.pi / config.hop * (time[:, None] + config.hop / 2) * (torch.arange(config.hop) + 0.5)
        self.cosines = nn.Buffer(math.sqrt(2 / config.hop) * angles.cos(), persistent=False)  # MDCT, (2 hop, hop)
        self.sines = nn.Buffer(math.sqrt(2 / config.hop) * angles.sin(), persistent=False)  # MDST
        self.window = nn.Buffer((math.pi / (2 * config.hop) * time).sin(), persistent=False)
        # Half window at the sound's ends: 0 outside the sound, 1 inside.
        self.opening = nn.Buffer((time[: config.hop] > self.margin).float(), persistent=False)
        self.analysis = nn.Linear(config.hop, config.latent).requires_grad_(False)
        self.encoder = nn.ModuleList(CausalBlock(config.encoder_width) for _ in range(config.encoder_layers))
        if self.encoder:
            self.encoder_in = nn.Linear(2 * config.hop, config.encoder_width)
            self.encoder_out = silent(nn.Linear(config.encoder_width, config.latent))
        self.synthesis = nn.Linear(config.latent, config.hop).requires_grad_(False)
        self.decoder_in = nn.Linear(config.latent, config.decoder_width)
        blocks = [CausalBlock(config.decoder_width) for _ in range(config.decoder_layers)]
        self.decoder = nn.ModuleList(blocks)
        self.memory = sum(block.mix.history for block in blocks) + 4  # windows overlap by up to three hops
        self.decoder_norm = nn.LayerNorm(config.decoder_width)
        self.decoder_out = silent(nn.Linear(config.decoder_width, config.hop))

    def spectra(self, audio: Tensor, first: bool, last: bool) -> tuple[Tensor, Tensor]:
        """MDCT and MDST (B, F, hop) of audio (B, 1, F * hop + 2 * margin); first, last: whether it has the sound's ends."""
        frames = audio[:, 0].float().unfold(-1, 2 * self.hop, self.hop)
        left, right = frames[..., : self.hop] * self.window[: self.hop], frames[..., self.hop :] * self.window[self.hop :]
        if first:
            left = torch.cat([frames[:, :1, : self.hop] * self.opening, left[:, 1:]], 1)
        if last:
            right = torch.cat([right[:, :-1], frames[:, -1:, self.hop :] * self.opening.flip(0)], 1)
        frames = torch.cat([left, right], -1)
        with torch.autocast(audio.device.type, enabled=False):
            return frames @ self.cosines, frames @ self.sines

    def encode(self, audio: Tensor, state: State, last: bool) -> Tensor:
        """Latents (B, D, F) of audio (B, 1, F * hop + 2 * margin)."""
        mdct, mdst = self.spectra(audio, first=self not in state, last=last)
        state[self] = mdct.new_zeros(0)  # only a flag that the sound has begun
        straight = self.analysis(self._compress(mdct))
        if not self.encoder:
            return straight.transpose(1, 2)
        scale = (mdct.square() + mdst.square() + 1e-8) ** ((self.power - 1) / 2)
        x = self.encoder_in(torch.cat([mdct * scale, mdst * scale], -1))
        for block in self.encoder:
            x = block(x, state)
        return (straight + self.encoder_out(x)).transpose(1, 2)

    def decode(self, latents: Tensor, state: State) -> Tensor:
        """Audio of latents (B, D, F), delayed by `lag` samples: the first push returns that much less, `close` the rest."""
        latents = latents.transpose(1, 2)
        x = self.decoder_in(latents)
        for block in self.decoder:
            x = block(x, state)
        compressed = (self.synthesis(latents) + self.decoder_out(self.decoder_norm(x))).float()
        with torch.autocast(latents.device.type, enabled=False):
            frames = (compressed * (compressed.square() + 1e-12) ** ((1 / self.power - 1) / 2)) @ self.cosines.t()
        left, right = frames[..., : self.hop], frames[..., self.hop :]
        before, opening = state.get(self), self not in state
        state[self] = right[:, -1]
        ends = right[:, :-1] if before is None else torch.cat([before[:, None], right[:, :-1]], 1)
        joined = left[:, int(opening) :] * self.window[: self.hop] + ends * self.window[self.hop :]
        audio = joined.flatten(1)
        if opening:
            audio = torch.cat([(left[:, 0] * self.opening)[:, self.margin :], audio], 1)
        return audio[:, None]

    def close(self, state: State) -> Tensor:
        """The last `lag` samples (B, 1, lag)."""
        return (state[self] * self.opening.flip(0))[:, None, : self.margin]

    def _compress(self, mdct: Tensor) -> Tensor:
        return mdct * (mdct.square() + 1e-12) ** ((self.power - 1) / 2)

    @torch.no_grad()
    def start(self, audio: Tensor) -> None:
        """Set the straight path, for good, to the principal components of the compressed spectra of audio (B, 1, T).

        A single scale makes the latents' mean energy 1, so that distances between latents are proportional to those
        between spectra. The path is not trained further, which keeps the latents near the codebooks (if it is trained,
        their scale drifts away).
        """
        audio = audio[..., : audio.shape[-1] // self.hop * self.hop]
        padded = F.pad(audio, (self.margin, self.margin))
        spectra = self._compress(self.spectra(padded, first=True, last=True)[0]).flatten(0, 1)
        mean = spectra.mean(0)
        _, axes = torch.linalg.eigh((spectra - mean).T @ (spectra - mean))
        axes = axes.flip(1)[:, : self.analysis.out_features].T.contiguous()  # (latent, hop), strongest first
        scale = ((spectra - mean) @ axes.T).square().mean().sqrt().clamp_min(1e-8)
        self.analysis.weight.copy_(axes / scale)
        self.analysis.bias.copy_(-axes @ mean / scale)
        self.synthesis.weight.copy_(axes.T * scale)
        self.synthesis.bias.copy_(mean)
