"""A codec body that codes how loud each band is and leaves the phase to its decoder."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm.bodies.config import CodecConfig
from audiolm.bodies.layers import CausalBlock, State, silent


class VocoderBody(nn.Module):
    """Compressed mel magnitudes -> latents -> causal ConvNeXt blocks -> magnitudes of spectra, to which the decoder adds phases.

    Each band's magnitude is raised to the power `compression` (0.3 is close to how perceived loudness grows, so quantisation
    error is distributed perceptually). The decoder's magnitudes start as those of the bands; the blocks learn a correction. Its
    spectra overlap by three quarters, and their phases are

        invented     predicted by the network (as in Vocos: Siuzdak 2023, 2306.00814). A window has two hops, a frame two
                     spectra. Stationary sound repeats with the frames, so a held tone is out of tune.
        continued    those of the previous spectrum, each bin's advanced by the frequency of the nearest peak (a phase vocoder
                     with phase locking: Laroche, Dolson 1999). A window has four hops, a frame one spectrum. Tones stay in tune.

    A window is centred on its frame's hop, so the encoder looks `margin` samples past a frame's end (half a hop, or one and a
    half), and the decoder lags by `lag` samples (three quarters of a hop, or one and a half).
    """

    encoder_parts = ("mean", "scale", "encoder")

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.hop, self.power, self.continued = config.hop, config.compression, config.phases == "continued"
        self.size = config.hop * (4 if self.continued else 2)  # window length
        self.step = self.size // 4
        self.margin, self.lag = (self.size - self.hop) // 2, (self.size - self.step) // 2
        filters = narrow_mel_filters(config.sample_rate, self.size, config.latent)
        self.window = nn.Buffer(torch.hann_window(self.size), persistent=False)
        self.filters = nn.Buffer((filters / filters.sum(1, keepdim=True)).T, persistent=False)  # (bins, bands): averages
        self.spread = nn.Buffer(filters / filters.sum(0).clamp_min(1e-8), persistent=False)  # (bands, bins): back to bins
        self.mean = nn.Buffer(torch.zeros(config.latent))
        self.scale = nn.Buffer(torch.ones(1))
        bins, spectra = self.size // 2 + 1, self.hop // self.step
        self.encoder = nn.ModuleList(CausalBlock(config.encoder_width) for _ in range(config.encoder_layers))
        if self.encoder:
            self.encoder_in = nn.Linear(bins + config.latent, config.encoder_width)
            self.encoder_out = silent(nn.Linear(config.encoder_width, config.latent))
        self.decoder_in = nn.Linear(config.latent, config.decoder_width)
        blocks = [CausalBlock(config.decoder_width) for _ in range(config.decoder_layers)]
        self.decoder = nn.ModuleList(blocks)
        self.memory = sum(block.mix.history for block in blocks) + 4  # windows overlap by up to three hops
        self.decoder_norm = nn.LayerNorm(config.decoder_width)
        self.decoder_magnitudes = silent(nn.Linear(config.decoder_width, spectra * bins))
        if not self.continued:
            self.decoder_phases = nn.Linear(config.decoder_width, 2 * spectra * bins)

    def loudness(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Compressed magnitudes of all bins (B, F, bins) and of all bands (B, F, D), for audio (B, 1, F * hop + 2 * margin)."""
        with torch.autocast(audio.device.type, enabled=False):
            frames = audio[:, 0].float().unfold(-1, self.size, self.hop) * self.window
            energy = torch.view_as_real(torch.fft.rfft(frames)).square().sum(-1) / self.size
            return (energy + 1e-10) ** (self.power / 2), (energy @ self.filters + 1e-10) ** (self.power / 2)

    def encode(self, audio: Tensor, state: State, last: bool) -> Tensor:
        """Latents (B, D, F) of audio (B, 1, F * hop + 2 * margin)."""
        bins, bands = self.loudness(audio)
        latents = (bands - self.mean) / self.scale
        if self.encoder:
            x = self.encoder_in(torch.cat([bins, latents], -1))
            for block in self.encoder:
                x = block(x, state)
            latents = latents + self.encoder_out(x)
        return latents.transpose(1, 2)

    def decode(self, latents: Tensor, state: State) -> Tensor:
        """Audio of latents (B, D, F), delayed by `lag` samples: the first pushes return that much less, `close` the rest."""
        latents = latents.transpose(1, 2)
        x = self.decoder_in(latents)
        for block in self.decoder:
            x = block(x, state)
        x = self.decoder_norm(x)
        batch, frames = len(latents), latents.shape[1] * self.hop // self.step
        more = self.decoder_magnitudes(x).float()
        chosen = None if self.continued else self.decoder_phases(x).float()
        with torch.autocast(latents.device.type, enabled=False):
            bands = (latents.float() * self.scale + self.mean).clamp_min(1e-3) ** (2 / self.power)
            # Which bin is a peak must not depend on how frames are grouped into pushes; float32 products do in their last digit.
            precise = torch.float64 if self.continued and latents.device.type != "mps" else torch.float32
            known = (bands.to(precise) @ self.spread.to(precise) + 1e-10).log() / 2
            loud = (known.float().repeat(1, 1, self.hop // self.step) + more).clamp(max=7).view(batch, frames, -1)
            phases = self.continue_phases(known, state) if chosen is None else self.invent_phases(chosen, loud.shape)
            spectra = torch.view_as_complex(loud.exp()[..., None] * phases) * math.sqrt(self.size)
            pieces = torch.fft.irfft(spectra, n=self.size) * self.window
        # The sum of squared windows is computed as one more row of the batch: at the ends, where windows are missing, it is less.
        pieces = torch.cat([pieces, self.window.square().expand(1, frames, -1)])
        size = (1, (frames + 3) * self.step)
        sound = F.fold(pieces.transpose(1, 2), size, (1, self.size), stride=(1, self.step)).flatten(1)
        if self in state:
            sound[:, : 3 * self.step] += state[self]
        state[self] = sound[:, -3 * self.step :]
        done = self._level(sound[:, : -3 * self.step])
        # The first window starts before the sound does.
        early = min(self._early(state), done.shape[-1])
        state[self.decoder_in] = done.new_empty(self._early(state) - early)
        return done[:, :, early:]

    @staticmethod
    def invent_phases(chosen: Tensor, shape: torch.Size) -> Tensor:
        """Cosines and sines (B, spectra, bins, 2) from the last layer's output, normalised."""
        phases = chosen.view(*shape, 2)
        return phases * (phases.square().sum(-1, keepdim=True) + 1e-6).rsqrt()

    @torch.no_grad()
    def continue_phases(self, loud: Tensor, state: State) -> Tensor:
        """Cosines and sines (B, spectra, bins, 2) for log magnitudes (B, spectra, bins): phases start at 0 and are continued.

        A peak's frequency is the maximum of the parabola through it and its neighbours; the bins around a tone's peak share one
        phase relative to the window's centre. `loud` comes from the bands and not from the trained magnitudes, whose peaks no
        loss keeps accurate to a fraction of a bin.
        """
        bins = torch.arange(loud.shape[-1], device=loud.device)
        below, above = F.pad(loud, (1, 0), value=-50.0)[..., :-1], F.pad(loud, (0, 1), value=-50.0)[..., 1:]
        peak = (loud >= below) & (loud > above)
        left = torch.where(peak, bins, -len(bins)).cummax(-1).values
        right = torch.where(peak, bins, 2 * len(bins)).flip(-1).cummin(-1).values.flip(-1)
        nearest = torch.where(bins - left <= right - bins, left, right)
        top = ((below - above) / 2 / (below - 2 * loud + above).clamp_max(-1e-6)).clamp(-0.5, 0.5)
        turns = (bins % 4 + top) / 4  # bin k turns k / 4 times per hop, a quarter of the window; whole turns do not matter
        phase = state.get(self.decoder_norm, torch.zeros_like(loud[:, 0]))
        phases = []
        for now, peaks in zip(turns.unbind(1), nearest.unbind(1), strict=True):
            phase = (phase + now).gather(-1, peaks) % 1  # so that they do not grow
            phases.append(phase)
        state[self.decoder_norm] = phase
        angles = torch.stack(phases, 1) * (2 * math.pi) + math.pi * (bins % 2)  # relative to the window's start, for irfft
        return torch.stack([angles.cos(), angles.sin()], -1).float()

    def close(self, state: State) -> Tensor:
        """The last `lag` samples (B, 1, lag)."""
        return self._level(state[self])[:, :, self._early(state) : self.lag]

    def _early(self, state: State) -> int:
        """How many of the next samples precede the sound."""
        return len(state[self.decoder_in]) if self.decoder_in in state else self.lag

    @staticmethod
    def _level(sound: Tensor) -> Tensor:
        return (sound[:-1] / sound[-1:].clamp_min(1e-3))[:, None]

    @torch.no_grad()
    def start(self, audio: Tensor) -> None:
        """Set the bands' means over audio (B, 1, T), and a single scale that makes the latents' mean energy 1."""
        audio = audio[..., : audio.shape[-1] // self.hop * self.hop]
        bands = self.loudness(F.pad(audio, (self.margin, self.margin)))[1].flatten(0, 1)
        self.mean.copy_(bands.mean(0))
        self.scale.copy_((bands - self.mean).square().mean().sqrt().clamp_min(1e-8))


def narrow_mel_filters(sample_rate: int, window: int, bands: int) -> Tensor:
    """Triangular filters (bands, window // 2 + 1) on the HTK mel scale, each at least one bin wide on either side.

    If there are so many bands that low ones are narrower than a bin, these interpolate between bins, and no band is empty.
    """
    top = 2595 * math.log10(1 + sample_rate / 1400)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1) * window / sample_rate  # in bins
    middle, bins = edges[1:-1, None], torch.arange(window // 2 + 1)
    rising = (bins - middle) / (middle - edges[:-2, None]).clamp_min(1) + 1
    falling = (middle - bins) / (edges[2:, None] - middle).clamp_min(1) + 1
    return torch.minimum(rising, falling).clamp_min(0)
