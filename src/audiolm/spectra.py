"""Spectra and mel filters, for losses, measures and the classifiers."""

from functools import lru_cache

import torch
from torch import Tensor

CPU = torch.device("cpu")


@lru_cache(maxsize=32)
def mel_filters(sample_rate: int, window: int, bands: int, device: torch.device = CPU) -> Tensor:
    """Triangular mel filters (bands, window // 2 + 1) with unit peak, HTK scale, from 0 Hz to half the sample rate."""
    edges = 700 * (10 ** (torch.linspace(0, 2595 * torch.log10(torch.tensor(1 + sample_rate / 1400)), bands + 2) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, window // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0).to(device)  # kept there: a GPU would wait for a copy in every loss


def stft(audio: Tensor, window: int, hop: int) -> Tensor:
    """Complex spectra (B, bins, frames) of audio (B, 1, T), Hann window, unit-energy scaling."""
    hann = torch.hann_window(window, device=audio.device)
    return torch.stft(audio[:, 0].float(), window, hop, window=hann, return_complex=True, normalized=True, pad_mode="constant")
