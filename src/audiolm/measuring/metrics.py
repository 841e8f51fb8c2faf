"""Measures of pairs of sounds, of codes and of unit sequences, and the bootstrap for their confidence intervals.

R is a number of recordings. Nothing here depends on a model or a file.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiolm.errors import InputError
from audiolm.spectra import mel_filters, stft

MEL = {32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320}  # window in samples: bands (DAC's seven scales)


class Measure(NamedTuple):
    """A figure, its 95 % confidence interval, and the number of recordings behind it."""

    value: float
    low: float
    high: float
    clips: int


def needed(package: str) -> Any:
    """Import a module of the `eval` extra. InputError if it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(f"evaluation needs the package {package}; install it with pip install 'audiolm[eval]'") from error


def bootstrap(statistic: Callable[[Tensor], Tensor], clips: int, draws: int = 1000) -> list[Measure]:
    """M measures by bootstrap. statistic: indices of recordings, drawn with replacement, (draws, R) -> figures (draws, M).

    The interval is the middle 95 % of the draws, shifted so that their mean lies on the figure itself: entropies estimated from
    few frames are too low, and those of a draw, which has fewer distinct frames, lower still. NaN for a single recording.
    """
    value = statistic(torch.arange(clips)[None])[0].double()
    if clips < 2:
        return [Measure(figure, math.nan, math.nan, clips) for figure in value.tolist()]
    found = statistic(torch.randint(clips, (draws, clips), generator=torch.Generator().manual_seed(0))).double()
    low, high = found.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 0) + value - found.nanmean(0)
    return [Measure(*figures, clips) for figures in zip(value.tolist(), low.tolist(), high.tolist(), strict=True)]


def mean(values: Sequence[float] | Tensor) -> Measure:
    """The mean over recordings (R), ignoring NaN (not measurable)."""
    each = torch.as_tensor(values, dtype=torch.float64)
    each = each[~each.isnan()]
    if not len(each):
        return Measure(math.nan, math.nan, math.nan, 0)
    return bootstrap(lambda index: each[index].mean(1, keepdim=True), len(each))[0]


def ratio(totals: Tensor, counts: Tensor) -> Measure:
    """Sum of totals (R) divided by the sum of counts (R), so that long recordings weigh more."""
    totals, counts = totals.double(), counts.double()
    return bootstrap(lambda index: (totals[index].sum(1) / counts[index].sum(1))[:, None], len(totals))[0]


# Of two sounds: a reference and a degraded version of it, both (T) at `rate` Hz. Silence instead of sound gets the worst score;
# only an unsuitable reference gives NaN.


def si_sdr(reference: Tensor, sound: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), from -100 (silence) to 100. NaN if the reference
    is silent.
    """
    reference, sound = (x.double() - x.double().mean() for x in (reference, sound))
    if not bool(reference.any()):
        return math.nan
    if not bool(sound.any()):
        return -100.0
    target = reference * (sound @ reference) / (reference @ reference)
    kept, lost, floor = target @ target, (sound - target).square().sum(), 1e-10 * (sound @ sound)
    return float(10 * ((kept + floor) / (lost + floor)).log10())


def mel_distance(reference: Tensor, sound: Tensor, rate: int) -> float:
    """Mean absolute difference of log10 mel magnitudes, averaged over DAC's seven windows, 32 samples (5 bands) to 2048 (320).

    The hop is a quarter window. Magnitudes, of order 1 for a full-scale sine, are floored at 1e-5. A distance of 0.1 is 2 dB.
    """
    total = 0.0
    for window, bands in MEL.items():
        filters = mel_filters(rate, window, bands)
        scale = 2 / math.sqrt(window)  # `stft` divides by sqrt(window); a full-scale sine has window / 4 in its bin
        ours, theirs = (
            (filters @ stft(x[None, None], window, window // 4).abs() * scale).clamp_min(1e-5).log10() for x in (sound, reference)
        )
        total += float((ours - theirs).abs().mean())
    return total / len(MEL)


def pesq_wb(reference: Tensor, sound: Tensor) -> float:
    """Wide-band PESQ (ITU-T P.862.2) at 16 kHz, from 1 (silence) to 4.64. NaN if the reference has no speech."""
    pesq = needed("pesq")
    if not bool(reference.any()):
        return math.nan
    if not bool(sound.any()):
        return math.nan if math.isnan(pesq_wb(reference, reference)) else 1.0
    try:
        return float(pesq.pesq(16_000, reference.numpy(), sound.numpy(), "wb"))
    except (pesq.PesqError, ValueError):  # no utterance found, or less than a quarter of a second
        return math.nan


def stoi(reference: Tensor, sound: Tensor, rate: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), 0 to 1. NaN if less than 0.4 s of the reference is speech."""
    pystoi = needed("pystoi")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # pystoi only warns of too little speech, and returns 1e-5
        try:
            return float(pystoi.stoi(reference.numpy(), sound.numpy(), rate))
        except RuntimeWarning:
            return math.nan


class Visqol(NamedTuple):
    """ViSQOL's similarity of two spectrograms (1: identical) and its two mappings to opinion scores from 1 to 5."""

    similarity: float  # mean NSIM over patches of the gammatone spectrograms
    fit: float  # exponential fit: ViSQOL up to 3.2, so most likely the paper's; 5 for identical sounds
    lattice: float  # lattice network of later versions; below 5 even for identical sounds (3.9 and 4.6 for those in examples/)


def visqol(reference: Tensor, sound: Tensor) -> Visqol:
    """ViSQOL in speech mode at 16 kHz (Chinen et al. 2020), by visqol-python. Silence gets 0, 1 and 1. NaN if the reference has
    no speech to compare.
    """
    api, fit = _visqol()
    if not bool(reference.any()):
        return Visqol(math.nan, math.nan, math.nan)
    if not bool(sound.any()):
        same = visqol(reference, reference)
        return same if math.isnan(same.similarity) else Visqol(0.0, 1.0, 1.0)
    try:
        found = api.measure_from_arrays(reference.double().numpy(), sound.double().numpy(), 16_000)
    except (ValueError, IndexError, RuntimeError):  # shorter than one spectrogram patch
        return Visqol(math.nan, math.nan, math.nan)
    return Visqol(found.vnsim, fit.predict_quality(found.fvnsim, found.fvnsim10, found.fstdnsim, found.fvdegenergy), found.moslqo)


@lru_cache(maxsize=1)
def _visqol() -> tuple[Any, Any]:
    api = needed("visqol").VisqolApi()
    needed("ai_edge_litert")  # without it visqol would silently use another mapping
    api.create(mode="speech", use_lattice_model=True)
    return api, needed("visqol.quality_mapper").SpeechSimilarityToQualityMapper()


# Of two sets of sounds


def frechet(ours: Tensor, theirs: Tensor) -> float:
    """Fréchet distance between the normal distributions fitted to embeddings (N, D) and (M, D): 0 if they are equal.

    The squared distance of the means plus the trace of C1 + C2 - 2 (C1 C2)^(1/2) (Dowson and Landau 1982; Kilgour et al. 2019
    for audio). Sets not much larger than D are far apart by their size alone: compare with real sounds in a set of equal size.
    """
    ours, theirs = ours.double(), theirs.double()
    if min(len(ours), len(theirs)) < 2:
        return math.nan
    one, two = (x.T.cov(correction=1).view(x.shape[1], -1) for x in (ours, theirs))
    # The trace of the root is the nuclear norm of the product of both roots: exact for singular covariances, which are common.
    cross = torch.linalg.svdvals(_root(one) @ _root(two)).sum()
    return float(((ours.mean(0) - theirs.mean(0)).square().sum() + one.trace() + two.trace() - 2 * cross).clamp_min(0))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


# Of codes and units


def entropy(counts: Tensor) -> Tensor:
    """Entropy in bits of the distributions given by counts (..., N): (...)."""
    share = counts.double() / counts.sum(-1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(-1) / math.log(2)


def histogram(codes: Tensor, size: int) -> Tensor:
    """Count how often each of `size` codes occurs in each level of codes (Q, F): (Q, size)."""
    return torch.stack([level.bincount(minlength=size) for level in codes])


def shuffled(units: Tensor, random: torch.Generator, runs: bool = False) -> Tensor:
    """Units (Q, F) in random order. runs: keep runs of equal units whole, so that a stage with dedup gets no more tokens."""
    if not runs:
        return units[:, torch.randperm(units.shape[1], generator=random)]
    kinds, lengths = units.unique_consecutive(return_counts=True, dim=1)
    order = torch.randperm(len(lengths), generator=random)
    return kinds[:, order].repeat_interleave(lengths[order], 1)


def unit_errors(asked: Tensor, said: Tensor) -> tuple[int, int]:
    """Edit distance between the units asked for (F) and those said (F), without repeats, and the number of units asked for."""
    theirs, ours = (" ".join(map(str, units.unique_consecutive().tolist())) for units in (asked, said))
    found = needed("jiwer").process_words(theirs, ours)
    return found.substitutions + found.deletions + found.insertions, len(theirs.split())
