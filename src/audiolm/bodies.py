"""The three bodies of the codec: between sound and the latents that its quantiser sees.

`WaveformBody` is the paper's: strided causal convolutions on samples. The other two have no layer at 16 kHz, so that they
train on a processor. `SpectralBody` starts as the principal components of spectra: with its networks still silent it is a
transform codec, and training improves on that. `VocoderBody` codes how loud each band is and leaves the phase to its
decoder, which invents it for speech and lets tones go on for music: at this few bits the best by far
(docs/training-log.md), and what its codes say changes slowly, which suits language models; but the sound is no longer the
recording's wave, only its like.

Streaming keeps state instead of padding: every causal layer takes the dictionary `state` and finds its own past in it
(none: silence). Offline is one push through the same code.
"""

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from audiolm.config import Config

State = dict[nn.Module, Tensor]


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


class CausalConv1d(nn.Module):
    """Convolution (B, C, F) that pads the past only; `kernel - stride` inputs of history."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.history = (kernel - 1) * dilation + 1 - stride
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, groups=groups)

    def forward(self, x: Tensor, state: State) -> Tensor:
        past = state.get(self)
        x = F.pad(x, (self.history, 0)) if past is None else torch.cat([past, x], -1)
        if self.history:
            state[self] = x[..., x.shape[-1] - self.history :]
        return self.conv(x)


class CausalUpsample1d(nn.Module):
    """Transposed convolution with kernel 2S and stride S; the half that reaches into the future waits in the state."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs, 1))

    def forward(self, x: Tensor, state: State) -> Tensor:
        y = self.conv(x)
        past = state.get(self)
        if past is not None:
            y = torch.cat([y[..., : self.stride] + past, y[..., self.stride :]], -1)
        state[self] = y[..., -self.stride :]
        return y[..., : -self.stride] + self.bias


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

    def close(self, state: State) -> Tensor:
        """Nothing is outstanding: audio (B, 1, 0)."""
        return state[self.last].new_zeros(len(state[self.last]), 1, 0)

    def start(self, audio: Tensor) -> None:
        """Nothing to prepare: convolutions start at random."""


def _silent(layer: nn.Linear) -> nn.Linear:
    """A layer that starts by saying nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class CausalBlock(nn.Module):
    """ConvNeXt block (B, F, D) at the frame rate: causal depthwise convolution, layer norm, inverted bottleneck.

    The closing layer starts at zero, so a new stack is the identity.
    """

    def __init__(self, width: int, kernel: int = 7) -> None:
        super().__init__()
        self.mix = CausalConv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = _silent(nn.Linear(4 * width, width))

    def forward(self, x: Tensor, state: State) -> Tensor:
        y = self.mix(x.transpose(1, 2), state).transpose(1, 2)
        return x + self.narrow(F.gelu(self.widen(self.norm(y))))


class SpectralBody(nn.Module):
    """Compressed MDCT -> causal ConvNeXt blocks -> latents -> causal blocks -> compressed MDCT.

    The MDCT (Princen, Bradley 1986) has as many coefficients as samples and overlaps by half, so no bits go into saying
    anything twice. Its windows of two hops are centred on each frame's hop: an encoder frame hears, and a decoder frame
    shapes, `margin` = hop / 2 samples (10 ms) past its own end; that is the look-ahead, once on either side. The first
    and the last window end steeply at the sound's ends, so that F frames give back F hops exactly.

    The straight path (analysis, synthesis) is linear: the principal components of compressed MDCT spectra. The blocks
    add what linear coding cannot know, from a start at zero; the encoder's also see the phase (MDST).
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
        # At the sound's ends: nothing beyond, all of it within.
        self.opening = nn.Buffer((time[: config.hop] > self.margin).float(), persistent=False)
        self.analysis = nn.Linear(config.hop, config.latent).requires_grad_(False)
        self.encoder = nn.ModuleList(CausalBlock(config.encoder_width) for _ in range(config.encoder_layers))
        if self.encoder:
            self.encoder_in = nn.Linear(2 * config.hop, config.encoder_width)
            self.encoder_out = _silent(nn.Linear(config.encoder_width, config.latent))
        self.synthesis = nn.Linear(config.latent, config.hop).requires_grad_(False)
        self.decoder_in = nn.Linear(config.latent, config.decoder_width)
        self.decoder = nn.ModuleList(CausalBlock(config.decoder_width) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.decoder_width)
        self.decoder_out = _silent(nn.Linear(config.decoder_width, config.hop))

    def spectra(self, audio: Tensor, first: bool, last: bool) -> tuple[Tensor, Tensor]:
        """MDCT and MDST (B, F, hop) of audio (B, 1, F * hop + 2 * margin), whose ends may be those of the sound."""
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
        state[self] = mdct.new_zeros(0)  # only tells that the sound has begun
        straight = self.analysis(self._compress(mdct))
        if not self.encoder:
            return straight.transpose(1, 2)
        scale = (mdct.square() + mdst.square() + 1e-8) ** ((self.power - 1) / 2)
        x = self.encoder_in(torch.cat([mdct * scale, mdst * scale], -1))
        for block in self.encoder:
            x = block(x, state)
        return (straight + self.encoder_out(x)).transpose(1, 2)

    def decode(self, latents: Tensor, state: State) -> Tensor:
        """Audio of latents (B, D, F), `lag` samples behind them: the first push gives that much less, `close` the rest."""
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
        """Principal components of the compressed spectra of audio (B, 1, T) become the straight path, for good.

        One scale makes the latents' mean energy 1, so that distances between latents stay those between spectra. The
        path is not trained further: it holds the latents where the codebooks are (left free, their scale runs away).
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


class VocoderBody(nn.Module):
    """Compressed mel magnitudes -> latents -> causal ConvNeXt blocks -> magnitudes of spectra, to which the decoder gives phases.

    Each band's magnitude is raised to `compression` (0.3 is near to how loudness grows, so the quantiser's error is spread as
    the ear would have it). The decoder's magnitudes start as the bands say; what the blocks add to them is learned. Its
    spectra overlap by three quarters, and their phases are

        invented     learned from loudness (the head of Vocos: Siuzdak 2023, 2306.00814). A window has two hops, a frame two
                     spectra. What stands still repeats with the frames, so a held tone is out of tune.
        continued    those of the spectrum before, each bin's turned on by the frequency of the nearest peak (a phase vocoder
                     with locked peaks: Laroche, Dolson 1999). A window has four hops, a frame one spectrum. Tones stay in tune.

    A window is centred on its frame's hop, so the encoder hears `margin` samples past a frame's end (half a hop, or one and
    a half), and the decoder is `lag` samples behind (three quarters of a hop, or one and a half).
    """

    encoder_parts = ("mean", "scale", "encoder")

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.hop, self.power, self.continued = config.hop, config.compression, config.phases == "continued"
        self.size = config.hop * (4 if self.continued else 2)  # of a window
        self.step = self.size // 4
        self.margin, self.lag = (self.size - self.hop) // 2, (self.size - self.step) // 2
        filters = narrow_mel_filters(config.sample_rate, self.size, config.latent)
        self.window = nn.Buffer(torch.hann_window(self.size), persistent=False)
        self.filters = nn.Buffer((filters / filters.sum(1, keepdim=True)).T, persistent=False)  # (bins, bands): means
        self.spread = nn.Buffer(filters / filters.sum(0).clamp_min(1e-8), persistent=False)  # (bands, bins), back again
        self.mean = nn.Buffer(torch.zeros(config.latent))
        self.scale = nn.Buffer(torch.ones(1))
        bins, spectra = self.size // 2 + 1, self.hop // self.step
        self.encoder = nn.ModuleList(CausalBlock(config.encoder_width) for _ in range(config.encoder_layers))
        if self.encoder:
            self.encoder_in = nn.Linear(bins + config.latent, config.encoder_width)
            self.encoder_out = _silent(nn.Linear(config.encoder_width, config.latent))
        self.decoder_in = nn.Linear(config.latent, config.decoder_width)
        self.decoder = nn.ModuleList(CausalBlock(config.decoder_width) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.decoder_width)
        self.decoder_magnitudes = _silent(nn.Linear(config.decoder_width, spectra * bins))
        if not self.continued:
            self.decoder_phases = nn.Linear(config.decoder_width, 2 * spectra * bins)

    def loudness(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Compressed magnitudes of all bins (B, F, bins) and of the bands (B, F, D), of audio (B, 1, F * hop + 2 * margin)."""
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
        """Audio of latents (B, D, F), `lag` samples behind them: the first pushes give that much less, `close` the rest."""
        latents = latents.transpose(1, 2)
        x = self.decoder_in(latents)
        for block in self.decoder:
            x = block(x, state)
        x = self.decoder_norm(x)
        batch, frames = len(latents), latents.shape[1] * self.hop // self.step
        more = self.decoder_magnitudes(x).float()
        with torch.autocast(latents.device.type, enabled=False):
            bands = (latents.float() * self.scale + self.mean).clamp_min(1e-3) ** (2 / self.power)
            # Which bin is a peak must not depend on how the frames came, and float32 products do in their last digit.
            precise = torch.float64 if self.continued and latents.device.type != "mps" else torch.float32
            known = (bands.to(precise) @ self.spread.to(precise) + 1e-10).log() / 2
            loud = (known.float().repeat(1, 1, self.hop // self.step) + more).clamp(max=7).view(batch, frames, -1)
            phases = self.continue_phases(known, state) if self.continued else self.invent_phases(x, loud.shape)
            spectra = torch.view_as_complex(loud.exp()[..., None] * phases) * math.sqrt(self.size)
            pieces = torch.fft.irfft(spectra, n=self.size) * self.window
        # The windows' squares are summed as one more sound: at the ends, where windows are missing, they add up to less.
        pieces = torch.cat([pieces, self.window.square().expand(1, frames, -1)])
        size = (1, (frames + 3) * self.step)
        sound = F.fold(pieces.transpose(1, 2), size, (1, self.size), stride=(1, self.step)).flatten(1)
        if self in state:
            sound[:, : 3 * self.step] += state[self]
        state[self] = sound[:, -3 * self.step :]
        done = self._level(sound[:, : -3 * self.step])
        # The first window begins before the sound does.
        early = min(self._early(state), done.shape[-1])
        state[self.decoder_in] = done.new_empty(self._early(state) - early)
        return done[:, :, early:]

    def invent_phases(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Cosines and sines (B, spectra, bins, 2) that the last layer chooses."""
        phases = self.decoder_phases(x).float().view(*shape, 2)
        return phases * (phases.square().sum(-1, keepdim=True) + 1e-6).rsqrt()

    @torch.no_grad()
    def continue_phases(self, loud: Tensor, state: State) -> Tensor:
        """Cosines and sines (B, spectra, bins, 2) of log magnitudes (B, spectra, bins): all start at 0, then go on.

        A peak's frequency is the top of the parabola through it and its neighbours; around it, a tone has one phase about the
        window's middle. The bands know frequencies better than the trained magnitudes do, which no loss holds to a fraction
        of a bin.
        """
        bins = torch.arange(loud.shape[-1], device=loud.device)
        below, above = F.pad(loud, (1, 0), value=-50.0)[..., :-1], F.pad(loud, (0, 1), value=-50.0)[..., 1:]
        peak = (loud >= below) & (loud > above)
        left = torch.where(peak, bins, -len(bins)).cummax(-1).values
        right = torch.where(peak, bins, 2 * len(bins)).flip(-1).cummin(-1).values.flip(-1)
        nearest = torch.where(bins - left <= right - bins, left, right)
        top = ((below - above) / 2 / (below - 2 * loud + above).clamp_max(-1e-6)).clamp(-0.5, 0.5)
        turns = (bins % 4 + top) / 4  # of bin k in a hop, which is a quarter of its window: k / 4, of which wholes do not matter
        phase = state.get(self.decoder_norm, torch.zeros_like(loud[:, 0]))
        phases = []
        for now, peaks in zip(turns.unbind(1), nearest.unbind(1), strict=True):
            phase = (phase + now).gather(-1, peaks) % 1  # lest they grow
            phases.append(phase)
        state[self.decoder_norm] = phase
        angles = torch.stack(phases, 1) * (2 * math.pi) + math.pi * (bins % 2)  # about the window's beginning, as irfft has it
        return torch.stack([angles.cos(), angles.sin()], -1).float()

    def close(self, state: State) -> Tensor:
        """The last `lag` samples (B, 1, lag)."""
        return self._level(state[self])[:, :, self._early(state) : self.lag]

    def _early(self, state: State) -> int:
        """How many of the next samples are from before the sound."""
        return len(state[self.decoder_in]) if self.decoder_in in state else self.lag

    @staticmethod
    def _level(sound: Tensor) -> Tensor:
        return (sound[:-1] / sound[-1:].clamp_min(1e-3))[:, None]

    @torch.no_grad()
    def start(self, audio: Tensor) -> None:
        """The mean of the bands over audio (B, 1, T), and one scale that makes the latents' mean energy 1."""
        audio = audio[..., : audio.shape[-1] // self.hop * self.hop]
        bands = self.loudness(F.pad(audio, (self.margin, self.margin)))[1].flatten(0, 1)
        self.mean.copy_(bands.mean(0))
        self.scale.copy_((bands - self.mean).square().mean().sqrt().clamp_min(1e-8))


BODIES: dict[str, type[SpectralBody] | type[VocoderBody] | type[WaveformBody]] = {
    "spectral": SpectralBody,
    "vocoder": VocoderBody,
    "waveform": WaveformBody,
}


def narrow_mel_filters(sample_rate: int, window: int, bands: int) -> Tensor:
    """Triangles (bands, window // 2 + 1) on the HTK mel scale, each at least one bin wide to either side.

    So many bands that low ones are narrower than a bin only interpolate there, and no band is empty.
    """
    top = 2595 * math.log10(1 + sample_rate / 1400)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1) * window / sample_rate  # in bins
    middle, bins = edges[1:-1, None], torch.arange(window // 2 + 1)
    rising = (bins - middle) / (middle - edges[:-2, None]).clamp_min(1) + 1
    falling = (middle - bins) / (edges[2:, None] - middle).clamp_min(1) + 1
    return torch.minimum(rising, falling).clamp_min(0)
