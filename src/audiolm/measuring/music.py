"""Measures of music: tones, key, entropy over semitones, and onsets.

S: the 88 semitones of a piano, A0 to C8. Sounds are (T) at 16 kHz.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm.spectra import stft

RATE = 16_000
LOWEST, SEMITONES = 21, 88  # MIDI number of A0, and how many
WINDOW = 8192  # half a second: bins of 2 Hz, which separate semitones from A2 upwards
STRIKE = 1024  # window for onsets; the hop is a quarter of it
SILENCE = 1e-6  # windows with less than this share of the loudest window's energy are silent


def semitones(sound: Tensor, hop: int = WINDOW // 4) -> Tensor:
    """Energy of each semitone (S, frames) in windows of half a second, by default every eighth of a second.

    Each bin counts for the nearest semitone.
    """
    power = stft(_long_enough(sound)[None, None], WINDOW, hop).abs().square()[0]
    hertz = torch.arange(len(power)) * RATE / WINDOW
    number = (12 * torch.log2(hertz.clamp_min(1) / 440) + 69).round().long() - LOWEST
    kept = (number >= 0) & (number < SEMITONES)
    return power.new_zeros(SEMITONES, power.shape[1]).index_add_(0, number[kept], power[kept])


def tone_likeness(reference: Tensor, sound: Tensor) -> float:
    """Mean cosine between the semitone energies of two sounds, over the windows in which the reference is not silent."""
    ours, theirs = semitones(sound), semitones(reference)
    return float(F.cosine_similarity(ours, theirs, 0)[_heard(theirs)].mean())


def key(sound: Tensor) -> Tensor:
    """Energy shares of the twelve pitch classes (12), averaged over windows with equal weight. NaN for silence."""
    energies = semitones(sound)
    energies = energies[:, _heard(energies)]
    tones = energies.new_zeros(12, energies.shape[1]).index_add_(0, torch.arange(SEMITONES) % 12, energies)
    return (tones / tones.sum(0)).mean(1)


def chroma(sound: Tensor, frames: int, rate: float) -> Tensor:
    """Square roots of the energy shares of the twelve pitch classes (frames, 12), `rate` frames per second; 0 in silence."""
    energies = semitones(F.pad(sound, (0, WINDOW)), round(RATE / rate))[:, :frames]
    tones = energies.new_zeros(12, energies.shape[1]).index_add_(0, torch.arange(SEMITONES) % 12, energies)
    return (tones / tones.sum(0).clamp_min(1e-12)).sqrt().T


def told(units: Sequence[Tensor], chromas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The variance of each recording's chroma (F, 12) that its units (F) explain, and all of it, as sums: (R), (R).

    A unit predicts the mean chroma of its frames in the other recordings, so units that merely identify a recording explain
    nothing, and misleading ones explain less than 0. The variance is about the mean of the other recordings.
    """
    size = 1 + max(int(each.max()) for each in units)
    both = list(zip(units, chromas, strict=True))
    tables = torch.stack([c.new_zeros(size, 13).index_add_(0, u, F.pad(c, (0, 1), value=1)) for u, c in both])
    explained, total = [], []
    for number, (unit, tones) in enumerate(both):
        others = tables.sum(0) - tables[number]
        mean = others[:, :12].sum(0) / others[:, 12].sum().clamp_min(1)
        known = torch.where(others[:, 12:] > 0.5, others[:, :12] / others[:, 12:].clamp_min(1), mean)
        total.append((tones - mean).square().sum())
        explained.append(total[-1] - (tones - known[unit]).square().sum())
    return torch.stack(explained), torch.stack(total)


def key_likeness(reference: Tensor, sound: Tensor) -> float:
    """Cosine between the keys of two sounds: 1 if equal, about 0.5 for unrelated music, 0 if only `sound` is silent.

    NaN if the reference is silent.
    """
    return float(F.cosine_similarity(key(reference), key(sound).nan_to_num(0), 0))


def tone_entropy(sound: Tensor) -> float:
    """Entropy of a window's energy over the semitones, in nats: 0 for a single tone, log S = 4.5 for equal energy in all.

    NaN for silence, for which neither extreme would be the worst score; key likeness and level show it.
    """
    energies = semitones(sound)
    shares = energies[:, _heard(energies)]
    shares = shares / shares.sum(0)
    return float(-torch.special.xlogy(shares, shares).sum(0).mean())


def onsets(sound: Tensor) -> float:
    """Onsets per second: peaks of the growth of compressed magnitudes, one standard deviation above its mean or higher."""
    loud = stft(_long_enough(sound)[None, None], STRIKE, STRIKE // 4).abs()[0] ** 0.3
    growth = loud.diff(dim=1).clamp_min(0).sum(0)
    middle = growth[1:-1]
    struck = (middle > growth[:-2]) & (middle > growth[2:]) & (middle > growth.mean() + growth.std())
    return float(struck.sum()) * RATE / len(sound)


def _heard(energies: Tensor) -> Tensor:
    """Which windows (frames) are not silent; all of them if the whole sound is silent."""
    total = energies.sum(0)
    return total >= SILENCE * total.max()


def _long_enough(sound: Tensor) -> Tensor:
    return F.pad(sound, (0, max(0, WINDOW - len(sound))))
