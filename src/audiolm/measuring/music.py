"""Pure measures of music: which tones sound, in which key, how clearly and how often struck.

S: the semitones of a piano, A0 to C8. Sounds are (T) at 16 kHz.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm.training.adversarial import stft

RATE = 16_000
LOWEST, SEMITONES = 21, 88  # MIDI number of A0, and how many
WINDOW = 8192  # half a second: 2 Hz a bin, which tells semitones apart from A2 on
STRIKE = 1024  # window and, a quarter of it, hop of onsets
SILENCE = 1e-6  # of a window's energy against the loudest one's


def semitones(sound: Tensor, hop: int = WINDOW // 4) -> Tensor:
    """Energy of each semitone (S, frames), half a second every eighth of one; of bins within half a semitone of it."""
    power = stft(_long_enough(sound)[None, None], WINDOW, hop).abs().square()[0]
    hertz = torch.arange(len(power)) * RATE / WINDOW
    number = (12 * torch.log2(hertz.clamp_min(1) / 440) + 69).round().long() - LOWEST
    kept = (number >= 0) & (number < SEMITONES)
    return power.new_zeros(SEMITONES, power.shape[1]).index_add_(0, number[kept], power[kept])


def tone_likeness(reference: Tensor, sound: Tensor) -> float:
    """Mean cosine between the energies of the semitones of two sounds, window by window where the first is not silent."""
    ours, theirs = semitones(sound), semitones(reference)
    return float(F.cosine_similarity(ours, theirs, 0)[_heard(theirs)].mean())


def key(sound: Tensor) -> Tensor:
    """Shares of the twelve tones (12), each window weighing the same; NaN of silence."""
    energies = semitones(sound)
    energies = energies[:, _heard(energies)]
    tones = energies.new_zeros(12, energies.shape[1]).index_add_(0, torch.arange(SEMITONES) % 12, energies)
    return (tones / tones.sum(0)).mean(1)


def chroma(sound: Tensor, frames: int, rate: float) -> Tensor:
    """Roots of the shares of the twelve tones (frames, 12), so many times a second; what is silent has none."""
    energies = semitones(F.pad(sound, (0, WINDOW)), round(RATE / rate))[:, :frames]
    tones = energies.new_zeros(12, energies.shape[1]).index_add_(0, torch.arange(SEMITONES) % 12, energies)
    return (tones / tones.sum(0).clamp_min(1e-12)).sqrt().T


def told(units: Sequence[Tensor], chromas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """How much of the chroma (F, 12) of each recording its units (F) tell, and how much there is to tell: (R), (R).

    A unit's chroma is the mean of its frames in the other recordings, so that units which only know a recording tell nothing;
    below 0 they mislead. What there is to tell is the variance about the mean of the others.
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
    """Cosine of the keys of two sounds: 1 of the same, near 0.5 of unrelated music, 0 of silence; NaN if the first is silent."""
    return float(F.cosine_similarity(key(reference), key(sound).nan_to_num(0), 0))


def tone_entropy(sound: Tensor) -> float:
    """Over how many semitones a window's energy is spread, in nats: 0 of one tone, log S = 4.5 of all alike.

    NaN of silence, which is neither a tone nor a wash, so that no number would be its worst: likeness and level tell of it.
    """
    energies = semitones(sound)
    shares = energies[:, _heard(energies)]
    shares = shares / shares.sum(0)
    return float(-torch.special.xlogy(shares, shares).sum(0).mean())


def onsets(sound: Tensor) -> float:
    """Onsets a second: peaks of the growth of compressed magnitudes that stand a deviation above its mean."""
    loud = stft(_long_enough(sound)[None, None], STRIKE, STRIKE // 4).abs()[0] ** 0.3
    growth = loud.diff(dim=1).clamp_min(0).sum(0)
    middle = growth[1:-1]
    struck = (middle > growth[:-2]) & (middle > growth[2:]) & (middle > growth.mean() + growth.std())
    return float(struck.sum()) * RATE / len(sound)


def _heard(energies: Tensor) -> Tensor:
    """Windows (frames) in which something sounds; all where nothing does."""
    total = energies.sum(0)
    return total >= SILENCE * total.max()


def _long_enough(sound: Tensor) -> Tensor:
    return F.pad(sound, (0, max(0, WINDOW - len(sound))))
