"""The watermark: an inaudible mark in generated sound that says it is generated, and by which model.

Time and frequency are divided into tiles: slots of 16 ms, 32 bands from 141 to 6,141 Hz. Each tile is made louder or softer by
`STRENGTH` dB according to a keyed pattern that repeats every 64 slots. Half of the tiles are the pilot, always the same; the
other half is one of 65,536 codewords, the payload. The detector takes the tiles' log energies, subtracts what their neighbours
predict, weights them by how far they are above the noise, and correlates the rest with the pattern at every offset. The pattern
consists of fair coin flips independent of the sound, so Hoeffding's inequality bounds how often any unmarked sound correlates
by chance: the threshold is that bound, divided among all hypotheses tried.

The mark shows origin to honest users; it is no proof against an adversary. Another neural codec removes it, and the default key
is public. Figures: docs/provenance.md.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audiolm.audio import Waveform, resampled_length
from audiolm.errors import InputError

KEY = b"audiolm"  # public, so that anyone can check; use a key of your own for private marks
STRENGTH = 1.75  # dB up or down
SLOT = 0.016  # seconds
SLOTS, BANDS = 64, 32
EDGES = np.cumsum([4.5 * 31.25, *[125.0] * 16, *[250.0] * 16])  # Hz; narrower below 2.1 kHz, where speech stands above noise
CHIPS = SLOTS * BANDS // 2  # tiles of the payload, and of the pilot
PAYLOADS = 1 << 16
FALSE_ALARM = 1e-5  # bound on the probability that an unmarked file is called marked, over random keys
FORMAT = 1  # of the mark: the payload's upper 4 bits

_RATE, _WINDOW, _PHASES = 16_000, 512, 4  # the detector's: slots of 256 samples, searched for every 64
_HOP = _WINDOW // 2 // _PHASES
_SPANS = (2.0, 8.0)  # seconds over which repetitions are added up, overlapping by half: for crops, and for long weak marks
_SPEEDS = (1.0, 0.99, 1.01, 0.98, 1.02)  # for sound played at a wrong rate; marks between two of these are still found
_CHUNK = 64.0  # seconds analysed at a time, so that memory stays constant
_FLOOR_TO_NOISE = 12.0  # dB from the lowest tenth of a band's log energies to where a tile is half noise
_CLIP = 4.0  # dB: where soft clipping sets in, as larger deviations are speech, not mark
# A row of the inverse covariance of speech's tiles (5 slots x 5 bands): a tile minus what its neighbours predict.
_WHITEN = (
    (0.02, 0.02, -0.07, 0.02, 0.02),
    (0.06, 0.03, -0.27, 0.03, 0.06),
    (-0.13, -0.29, 1.0, -0.29, -0.13),
    (0.06, 0.03, -0.27, 0.03, 0.06),
    (0.02, 0.02, -0.07, 0.02, 0.02),
)


@dataclass(frozen=True)
class Mark:
    """The result of `detect`. `payload` (0 to 65535) is None if no mark was found, or one too weak to be read.

    `confidence` is one minus a bound on the probability that a sound without a mark scores as high as this one.
    """

    found: bool
    payload: int | None
    confidence: float
    score: float  # normalised correlation: about 0 to 5 without a mark; 7.7 or more (for 2 s) meets `FALSE_ALARM`

    def plain(self) -> dict[str, Any]:
        """For JSON output; the payload in hexadecimal."""
        payload = None if self.payload is None else f"{self.payload:04x}"
        return {"found": self.found, "payload": payload, "confidence": self.confidence}


def payload_of(about: Mapping[str, Any]) -> int:
    """The payload of a model: the mark's format (4 bits), then 12 bits of a hash of the model's name and version."""
    name = f"{about.get('name', '')} {about.get('version', '')}".strip()
    return FORMAT << 12 | int.from_bytes(hashlib.sha256(name.encode()).digest()[:2]) >> 4


def tags(details: Mapping[str, Any]) -> dict[str, str]:
    """Tags for `Waveform.write` that declare a sound generated; `details` (model, seed, prompt_seconds, ...) as JSON."""
    return {"software": program(), "comment": json.dumps({"generated": True, "by": program(), **details})}


def program() -> str:
    """Name and version of this program."""
    try:
        return f"audiolm {version('audiolm')}"
    except PackageNotFoundError:  # run from source, not installed
        return "audiolm"


def embed(sound: Waveform, payload: int, key: bytes = KEY) -> Waveform:
    """The sound with a mark; same length, rate and channels. Raises InputError if the payload is not in 0 to 65535."""
    marker = Marker(payload, sound.sample_rate, key)
    samples = sound.samples.detach().cpu()
    return Waveform(torch.cat([marker.push(samples), marker.flush()], 1), sound.sample_rate)


class Marker:
    """Embeds the mark block by block: the results of all `push` calls and a final `flush`, joined, equal `embed` of the whole.

    The output lags the input by at most `delay` samples: 32 ms.
    """

    def __init__(self, payload: int, sample_rate: int, key: bytes = KEY) -> None:
        if not 0 <= payload < PAYLOADS:
            raise InputError(f"payload {payload}: give a number from 0 to {PAYLOADS - 1}")
        self.sample_rate = sample_rate
        self.hop = round(SLOT * sample_rate)
        self.delay = 2 * self.hop
        self._window = torch.hann_window(2 * self.hop).sqrt()
        tiles = _pattern(key).tiles(payload) @ _bands(sample_rate, 2 * self.hop)
        self._gains = 10 ** (STRENGTH / 20 * tiles)  # (slots, bins)
        self._frame = self._taken = self._given = 0
        self._held: Tensor | None = None  # (C, < 2 hops), the end of the input
        self._tail: Tensor | None = None  # (C, hop), the second half of the last frame

    def push(self, block: Tensor) -> Tensor:
        """Take (C, T) samples and return those that are ready."""
        self._taken += block.shape[1]
        return self._advance(block)

    def flush(self) -> Tensor:
        """The remaining samples, so that as many come out as went in."""
        if self._held is None:
            return torch.zeros(1, 0)
        missing = self._taken - self._given
        return self._advance(self._held.new_zeros(len(self._held), 2 * self.hop))[:, :missing]

    def _advance(self, block: Tensor) -> Tensor:
        hop, channels = self.hop, len(block)
        if self._held is None or self._tail is None:
            self._held, self._tail = block.new_zeros(channels, hop), block.new_zeros(channels, hop)
        held = torch.cat([self._held, block], 1)
        count = held.shape[1] // hop - 1
        if count < 1:
            self._held = held
            return block.new_zeros(channels, 0)
        frames = held[:, : (count + 1) * hop].unfold(1, 2 * hop, hop) * self._window  # (C, n, window)
        # If a slot is not a whole number of samples, the slot is chosen by time, not by counting frames.
        starts = torch.arange(self._frame, self._frame + count) * (hop / self.sample_rate / SLOT)
        gains = self._gains[starts.round().long() % SLOTS]
        if self._frame == 0:
            gains[0] = 1.0  # fade in: no step after whatever precedes the first sample
        spectra = torch.fft.rfft(frames) * gains
        frames = torch.fft.irfft(spectra, n=2 * hop) * self._window
        whole = frames[..., :hop] + torch.cat([self._tail[:, None], frames[:, :-1, hop:]], 1)
        self._held, self._tail = held[:, count * hop :], frames[:, -1, hop:]
        ready = whole.flatten(1)[:, hop * (self._frame == 0) :]  # the first hop precedes the sound
        self._frame += count
        self._given += ready.shape[1]
        return ready


def detect(sound: Waveform, key: bytes = KEY) -> Mark:
    """Look for a mark anywhere in a sound, at any sample rate and up to 2 % off speed; about 1.5 s of marked speech suffice."""
    pattern, rates = _pattern(key), [round(_RATE * speed) for speed in _SPEEDS]
    score, payload = 0.0, None
    # Hypotheses of all speeds count from the start, tried or not; at some speeds the sound is long enough for one more span.
    folds = sum(_count(resampled_length(sound.samples.shape[1], sound.sample_rate, rate)) for rate in rates)
    hypotheses = folds * SLOTS * PAYLOADS
    for rate in rates:
        at_speed = sound.mono().resample(rate).samples[0].detach().cpu()
        for first, last in _chunks(len(at_speed)):
            best = pattern.best(_folds(_surprises(at_speed[first:last])))
            if best[0] > score:
                score, payload = best
        if _chance(score, hypotheses) <= FALSE_ALARM:
            return Mark(True, payload, 1 - _chance(score, hypotheses), score)
    return Mark(False, None, 1 - _chance(score, hypotheses), score)


def _chance(score: float, hypotheses: int) -> float:
    """Bound on the probability that any of `hypotheses` signed sums of an unmarked sound scores that high (Hoeffding)."""
    return min(1.0, hypotheses * math.exp(-(score**2) / 2))


def _chunks(samples: int) -> Iterator[tuple[int, int]]:
    """Start and end of each chunk of a sound of `samples`; chunks overlap by the longest span."""
    length, overlap = int(_CHUNK * _RATE), int(_SPANS[-1] * _RATE)
    for first in range(0, max(1, samples - overlap), length - overlap):
        yield first, min(first + length, samples)


def _surprises(samples: Tensor) -> Tensor:
    """(T) at 16 kHz -> (frames of 4 ms, bands): how much louder each tile is than its neighbours predict, weighted."""
    padded = nn.functional.pad(samples, (_WINDOW // 2, _WINDOW // 2))
    spectrum = torch.stft(padded, _WINDOW, _HOP, window=torch.hann_window(_WINDOW), center=False, return_complex=True)
    bands = _bands(_RATE, _WINDOW)
    energy = bands @ (spectrum.real.square() + spectrum.imag.square() + 1e-10) / bands.sum(1, keepdim=True)
    level = 10 * energy.log10().T
    floor = level.kthvalue(max(1, len(level) // 10), 0).values
    weight = torch.sigmoid((level - floor - _FLOOR_TO_NOISE) * (math.log(10) / 10))
    context = nn.functional.pad(level[None, None], (2, 2, 2 * _PHASES, 2 * _PHASES), mode="replicate")
    surprise = nn.functional.conv2d(context, torch.tensor(_WHITEN)[None, None], dilation=(_PHASES, 1))[0, 0]
    return weight * surprise / (surprise.abs() + _CLIP)


def _folds(surprises: Tensor) -> Tensor:
    """(frames, bands) -> (spans x phases, slots, bands): repetitions added up over each span, for each phase."""
    period = SLOTS * _PHASES
    folds = []
    for first, last in _spans(len(surprises)):
        piece = surprises[first:last]
        piece = nn.functional.pad(piece, (0, 0, 0, -len(piece) % period))
        folds.append(piece.view(-1, SLOTS, _PHASES, BANDS).sum(0).transpose(0, 1))
    return torch.cat(folds)


def _spans(frames: int) -> Iterator[tuple[int, int]]:
    """First and last frame (exclusive) of each span over which repetitions are added up."""
    for seconds in _SPANS:
        span = round(seconds / SLOT) * _PHASES
        if seconds > _SPANS[0] and frames <= span // 2:
            continue  # the shorter spans cover it
        for first in range(0, max(1, frames - span // 2), span // 2):
            yield first, first + span


def _count(samples: int) -> int:
    """Number of folds of `samples` at 16 kHz."""
    return sum(_PHASES for first, last in _chunks(samples) for _ in _spans((last - first) // _HOP + 1))


class _Pattern:
    """The pattern of a key: which tiles are the pilot's and which the payload's, and the signs of both."""

    def __init__(self, key: bytes) -> None:
        # SHAKE is fixed by a standard; no library promises that its random numbers stay the same.
        stream = hashlib.shake_256(key).digest(8 * CHIPS + CHIPS // 8 + PAYLOADS // 8)
        order = np.argsort(np.frombuffer(stream, ">u4", 2 * CHIPS), kind="stable")
        bits = np.unpackbits(np.frombuffer(stream, np.uint8, offset=8 * CHIPS))
        signs = torch.from_numpy(1 - 2.0 * bits).float()
        self.where_pilot, self.where_payload = torch.from_numpy(order.copy()).view(2, CHIPS)
        self.pilot, self.masks = signs[:CHIPS], signs[CHIPS:].view(-1, CHIPS)  # (chips), (64, chips)
        shifted = self._grid(self.pilot, self.where_pilot)
        self.pilots = torch.stack([shifted.roll(shift, 0) for shift in range(SLOTS)]).flatten(1)  # (shifts, tiles)

    def tiles(self, payload: int) -> Tensor:
        """(slots, bands) of +1 and -1. Codeword: a row of the Hadamard matrix (10 bits) under one of 64 masks (6 bits)."""
        mask, row = divmod(payload, CHIPS)
        codeword = self.masks[mask] * _hadamard(torch.eye(CHIPS)[row])
        return self._grid(self.pilot, self.where_pilot) + self._grid(codeword, self.where_payload)

    def best(self, folds: Tensor) -> tuple[float, int | None]:
        """The highest normalised correlation of any offset and payload, and the payload if it stands out from the others."""
        flat = folds.flatten(1)
        norm = flat.norm(dim=1, keepdim=True).clamp(min=1e-9)
        pilot = flat @ self.pilots.T / norm  # (folds, shifts)
        likely = pilot.flatten().topk(min(16, pilot.numel()))
        fold, shift = likely.indices // SLOTS, likely.indices % SLOTS
        turned = torch.stack([folds[f].roll(-s, 0).flatten() for f, s in zip(fold.tolist(), shift.tolist(), strict=True)])
        chips = turned[:, self.where_payload]
        scores = likely.values[:, None] + _hadamard(self.masks * chips[:, None]).flatten(1) / norm[fold]
        place, payload = divmod(int(scores.argmax()), PAYLOADS)
        top = float(scores[place, payload])
        # Likelihood ratios of the payloads, for a mark of the strength that this one appears to have.
        clear = float((top * (scores[place] - top)).exp().sum()) < 1.01
        return top, payload if clear else None

    def _grid(self, chips: Tensor, where: Tensor) -> Tensor:
        return torch.zeros(SLOTS * BANDS).index_put((where,), chips).view(SLOTS, BANDS)


_pattern = lru_cache(maxsize=4)(_Pattern)


@lru_cache(maxsize=8)
def _bands(sample_rate: int, window: int) -> Tensor:
    """(bands, bins): which bins of a spectrum belong to which band."""
    hertz = np.arange(window // 2 + 1) * sample_rate / window
    return torch.from_numpy((hertz >= EDGES[:-1, None]) & (hertz < EDGES[1:, None])).float()


@lru_cache(maxsize=1)
def _signs() -> Tensor:
    """The 32 x 32 Hadamard matrix: signs by the parity of row & column."""
    parity = [[(row & column).bit_count() % 2 for column in range(32)] for row in range(32)]
    return 1 - 2 * torch.tensor(parity).float()


def _hadamard(x: Tensor) -> Tensor:
    """Walsh-Hadamard transform of the last axis (1024), over the upper and the lower 5 bits of its index."""
    return (_signs() @ x.unflatten(-1, (32, 32)) @ _signs()).flatten(-2)
