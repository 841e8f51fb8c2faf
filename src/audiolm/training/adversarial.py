"""The codec's training losses: reconstruction losses, and discriminators with their adversarial losses.

The reconstruction losses are those that give most for little compute (SoundStream III-E, DAC, and a compressed complex
spectrum that teaches phase early). The discriminators work on complex spectra at several resolutions (EnCodec's MS-STFT,
SoundStream III-D), with hinge losses and feature matching. Real and imaginary parts are separate channels, which avoids
half-precision complex numbers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm.spectra import mel_filters, stft


def mel_loss(audio: Tensor, reference: Tensor, sample_rate: int, windows: tuple[int, ...] = (256, 512, 1024, 2048)) -> Tensor:
    """Multi-scale log-mel distance: mean absolute difference of log10 bands, averaged over the windows (DAC)."""
    total = audio.new_zeros(())
    for window in windows:
        filters = mel_filters(sample_rate, window, max(8, window // 16), audio.device)
        ours, theirs = (
            (filters @ stft(x, window, window // 4).abs().clamp_min(1e-7)).clamp_min(1e-4).log10() for x in (audio, reference)
        )
        total = total + F.l1_loss(ours, theirs)
    return total / len(windows)


def spectral_losses(audio: Tensor, reference: Tensor, windows: Sequence[int], power: float = 0.5) -> tuple[Tensor, Tensor]:
    """Mean absolute differences of compressed spectra: of the complex values (phase counts), and of the magnitudes alone."""
    whole = magnitudes = audio.new_zeros(())
    for window in windows:
        ours, theirs = (torch.view_as_real(stft(x, window, window // 2)) for x in (audio, reference))
        our_energy, their_energy = (x.square().sum(-1, keepdim=True) + 1e-8 for x in (ours, theirs))
        whole = whole + F.l1_loss(ours * our_energy ** ((power - 1) / 2), theirs * their_energy ** ((power - 1) / 2))
        magnitudes = magnitudes + F.l1_loss(our_energy ** (power / 2), their_energy ** (power / 2))
    return whole / len(windows), magnitudes / len(windows)


class SpectralDiscriminator(nn.Module):
    """One resolution of the MS-STFT discriminator (EnCodec section 3.4): 2-D convolutions over a complex spectrum.

    Returns logits (B, 1, frames, bins / 8) and the features of every layer, for feature matching.
    """

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.window = window
        conv = torch.nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(
            [conv(nn.Conv2d(2, channels, (3, 9), padding=(1, 4)))]
            + [conv(nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4))) for d in (1, 2, 4)]
            + [conv(nn.Conv2d(channels, channels, (3, 3), padding=(1, 1)))]
        )
        self.last = conv(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum = torch.view_as_real(stft(audio, self.window, self.window // 4))
        # Compress magnitudes; otherwise quiet sounds and high bands would hardly affect the logits.
        spectrum = spectrum * (spectrum.square().sum(-1, keepdim=True) + 1e-8) ** -0.35
        x = spectrum.permute(0, 3, 2, 1)  # (B, 2, frames, bins)
        features: list[Tensor] = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.last(x).float(), [each.float() for each in features]


class Discriminators(nn.Module):
    """One spectral discriminator per window length; the losses are averaged over them."""

    def __init__(self, windows: tuple[int, ...] = (1024, 512, 256), channels: int = 16) -> None:
        super().__init__()
        self.each = nn.ModuleList(SpectralDiscriminator(window, channels) for window in windows)

    def forward(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """Logits and features of audio (B, 1, T), one pair per window length."""
        return [discriminator(audio) for discriminator in self.each]


def discriminator_loss(real: list[tuple[Tensor, list[Tensor]]], fake: list[tuple[Tensor, list[Tensor]]]) -> Tensor:
    """Hinge loss of the discriminators (SoundStream eq. 1)."""
    losses = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for (r, _), (f, _) in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def generator_losses(real: list[tuple[Tensor, list[Tensor]]], fake: list[tuple[Tensor, list[Tensor]]]) -> tuple[Tensor, Tensor]:
    """Adversarial loss and relative feature matching of the codec (SoundStream eq. 2 and 3; relative as in EnCodec)."""
    adversarial = torch.stack([F.relu(1 - logits).mean() for logits, _ in fake]).mean()
    matching = [
        F.l1_loss(f, r.detach()) / r.detach().abs().mean().clamp_min(1e-3)
        for (_, theirs), (_, ours) in zip(real, fake, strict=True)
        for r, f in zip(theirs, ours, strict=True)
    ]
    return adversarial, torch.stack(matching).mean()
