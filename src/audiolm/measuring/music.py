"""Pure measures of music: which tones sound, in which key, how clearly and how often struck.

S: the semitones of a piano, A0 to C8. Sounds are (T) at 16 kHz.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm.training.adversarial import stft

RATE = 16_000
LOWEST, SEMITONES = 21, 88  # MIDI number of A0, and how many
WINDOW = 8192  # half a second: 2 Hz a bin, which tells semitones apart from A2 on
STRIKE = 1024  # window and, a quarter of it, hop of onsets
SILENCE = 1e-6  # of a window's energy against the loudest one's


def semitones(sound: Tensor) -> Tensor:
    """Energy of each semitone (S, frames), half a second every eighth of one; of bins within half a semitone of it."""
    power = stft(_long_enough(sound)[None, None], WINDOW, WINDOW // 4).abs().square()[0]
    hertz = torch.arange(len(power)) * RATE / WINDOW
    number = (12 * torch.log2(hertz.clamp_min(1) / 440) + 69).round().long() - LOWEST
    kept = (number >= 0) & (number < SEMITONES)
    return power.new_zeros(SEMITONES, power.shape[1]).index_add_(0, number[kept], power[kept])


def tone_likeness(reference: Tensor, sound: Tensor) -> float:
    """Mean cosine between the energies of the semitones of two sounds, window by window where the first is not silent."""
    ours, theirs = semitones(sound), semitones(reference)
    return float(F.cosine_similarity(ours, theirs, 0)[_heard(theirs)].mean())


def key(sound: Tensor) -> Tensor:
    """Shares of the twelve tones (12), each window weighing the same."""
    energies = semitones(sound)
    energies = energies[:, _heard(energies)]
    tones = energies.new_zeros(12, energies.shape[1]).index_add_(0, torch.arange(SEMITONES) % 12, energies)
    return (tones / tones.sum(0)).mean(1)


def key_likeness(one: Tensor, other: Tensor) -> float:
    """Cosine of the keys of two sounds: 1 of the same, near 0.5 of unrelated music."""
    return float(F.cosine_similarity(key(one), key(other), 0))


def tone_entropy(sound: Tensor) -> float:
    """Over how many semitones a window's energy is spread, in nats: 0 of one tone, log S = 4.5 of all alike."""
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
