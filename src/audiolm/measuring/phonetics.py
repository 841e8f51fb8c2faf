"""Phone labels of recordings, and how much units tell about them (AudioLM §III-B, Fig. 3; HuBERT §IV).

Phones come from pocketsphinx, whose acoustic model and dictionary are in its wheel (the `eval` extra). A transcript is aligned
to the sound, word by word and then phone by phone; words that are not in the dictionary, such as names, are spelled letter by
letter. Without a transcript, or if it does not fit the sound, free phone decoding is used instead. There is one label per
frame of the units (25 Hz for ours), taken at its middle: one of the 39 phones of the CMU dictionary, or silence. Labels are the
recogniser's estimates, tens of milliseconds off and sometimes wrong, but they are the same for all kinds of units compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audiolm.conformer import FRAME, SAMPLE_RATE, STACK, log_mel, mel_filters, mfcc
from audiolm.errors import InputError
from audiolm.kmeans import KMeans
from audiolm.measuring.recognition import normalised

_NAMES = "SIL AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
PHONES = tuple(_NAMES.split())
# A rough pronunciation for words that are not in the dictionary: the usual sound of each letter in English.
_SOUNDS = "AE B K D EH F G HH IH JH K L M N AA P K R S T AH V W S Y Z"
LETTERS = dict(zip("abcdefghijklmnopqrstuvwxyz", _SOUNDS.split(), strict=True))

SHUFFLES = 3  # averaged to estimate the chance level; for 9,500 frames any two differ by less than .002


@dataclass(frozen=True)
class Phone:
    """A phone with its start and end in seconds."""

    name: str
    start: float
    end: float


class PhoneAligner:
    """Holds the recogniser's models, which take a second to load. `aligned`, `decoded`: recordings labelled each way."""

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder, get_model_path
        except ImportError as error:
            raise InputError("phone labels need pocketsphinx; install it with pip install 'audiolm[eval]'") from error
        # With bestpath, some words are too short for their phones, and the second pass fails.
        self._align: Any = Decoder(lm=None, bestpath=False, loglevel="FATAL")
        phones = get_model_path("en-us/en-us-phone.lm.bin")
        self._decode: Any = Decoder(lm=None, allphone=phones, lw=2.0, beam=1e-20, pbeam=1e-20, loglevel="FATAL")
        self.aligned = self.decoded = 0

    def __call__(self, audio: Tensor, transcript: str | None = None) -> list[Phone]:
        """The sequence of phones in mono audio (..., T) at 16 kHz, including silence."""
        sound = (audio.flatten().clamp(-1, 1) * 32767).to(torch.int16).numpy().tobytes()
        words = normalised(transcript or "").split()
        for decoder in (self._align, self._decode):
            decoder.reinit_feat()  # so that a result does not depend on earlier recordings
        if words:
            self._learn(words)
            try:
                self._align.set_align_text(" ".join(words))
                _run(self._align, sound)
                self._align.set_alignment()  # second pass: phones within the words found by the first
                _run(self._align, sound)
                found = [Phone(p.name, p.start / 100, (p.start + p.duration) / 100) for p in self._align.get_alignment().phones()]
                self.aligned += 1
                return found
            except RuntimeError:  # the transcript does not fit the sound
                pass
        _run(self._decode, sound)
        self.decoded += 1
        return [Phone(s.word, s.start_frame / 100, (s.end_frame + 1) / 100) for s in self._decode.seg() or ()]

    def words(self, audio: Tensor, transcript: str) -> list[Phone]:
        """The words of a transcript (as `name`) with their times; empty if it does not fit the sound."""
        before = self.aligned
        self(audio, transcript)
        if self.aligned == before:
            return []
        found = self._align.get_alignment().words()
        # Alternative pronunciations are named like "the(2)", silence and noise like <sil>.
        names = [(word.name.partition("(")[0], word) for word in found]
        return [
            Phone(name, word.start / 100, (word.start + word.duration) / 100)
            for name, word in names
            if name and name[0] not in "<["
        ]

    def _learn(self, words: Sequence[str]) -> None:
        for word in words:
            if self._align.lookup_word(word) is None:
                self._align.add_word(word, " ".join(LETTERS[letter] for letter in word if letter in LETTERS) or "SIL")


def _run(decoder: Any, sound: bytes) -> None:
    decoder.start_utt()
    try:
        decoder.process_raw(sound, full_utt=True)
    finally:
        decoder.end_utt()


def frame_phones(phones: Sequence[Phone], samples: int, hop: int = FRAME) -> Tensor:
    """Index into PHONES at the middle of each frame of `hop` samples: (F) int64. Noise, and time without a phone, is silence."""
    labels = torch.zeros(-(-samples // hop), dtype=torch.int64)
    middles = (torch.arange(len(labels)) + 0.5) * (hop / SAMPLE_RATE)
    for phone in phones:
        if phone.name in PHONES:
            labels[(middles >= phone.start) & (middles < phone.end)] = PHONES.index(phone.name)
    return labels


def unit_phone_measures(units: Tensor, phones: Tensor) -> dict[str, float]:
    """How much units (N) tell about phones (N), frame by frame.

    pnmi            I(units; phones) / H(phones), as in HuBERT: the share of the phones' entropy that the units explain
    pnmi_corrected  adjusted for chance, (pnmi - e) / (1 - e), where e is the PNMI of the same units in shuffled order: 0 for
                    units that tell nothing, whatever their number, 1 for units that tell everything. In between, splitting
                    units at random still shifts it a little, up or down (by -.015 from 256 to 512 on 9,500 frames of speech)
    phone_purity    how often a frame's phone is the most frequent one of its unit
    unit_purity     how often a frame's unit is the most frequent one of its phone; falls with the number of units
    units_used      number of different units that occur
    """
    if len(units) != len(phones) or not len(units):
        raise ValueError(f"{len(units)} units for {len(phones)} phones")
    joint = _joint(units, phones)
    told, random = _told(joint), torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(units), generator=random) for _ in range(SHUFFLES)]
    chance = sum(_told(_joint(units[order], phones)) for order in orders) / SHUFFLES
    return {
        "pnmi": told,
        "pnmi_corrected": (told - chance) / max(1 - chance, 1e-12),
        "phone_purity": float(joint.max(1).values.sum() / len(units)),
        "unit_purity": float(joint.max(0).values.sum() / len(units)),
        "units_used": float((joint.sum(1) > 0).sum()),
    }


def _joint(units: Tensor, phones: Tensor) -> Tensor:
    """Joint counts of units and phones: (units, phones)."""
    width = len(PHONES)
    return (units * width + phones).bincount(minlength=(int(units.max()) + 1) * width).view(-1, width).double()


def _told(joint: Tensor) -> float:
    """The share of the phones' entropy that the units explain."""
    of_phones = _entropy(joint.sum(0))
    return (_entropy(joint.sum(1)) + of_phones - _entropy(joint)) / max(of_phones, 1e-12)


def _entropy(counts: Tensor) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log()).sum())


def measure_units(
    encode: Callable[[Tensor], Tensor], recordings: Sequence[tuple[Tensor, str | None]], phones: Sequence[Tensor] | None = None
) -> dict[str, float]:
    """`unit_phone_measures` of `encode`, audio (1, 1, T) -> units (F), on (audio (1, 1, T) at 16 kHz, transcript) pairs.

    phones: labels already made by `label_recordings`, to reuse them over several calls.
    """
    labels = label_recordings(recordings) if phones is None else phones
    return unit_phone_measures(torch.cat([encode(audio) for audio, _ in recordings]), torch.cat(list(labels)))


def label_recordings(recordings: Sequence[tuple[Tensor, str | None]], hop: int = FRAME) -> list[Tensor]:
    """Phone labels (F) of each (audio (1, 1, T) at 16 kHz, transcript), for frames of `hop` samples."""
    aligner = PhoneAligner()
    return [frame_phones(aligner(audio, transcript), audio.shape[-1], hop) for audio, transcript in recordings]


def mfcc_units(batches: Sequence[Tensor], units: int, seed: int = 0, hop: int = FRAME) -> Callable[[Tensor], Tensor]:
    """The baseline, audio -> units (F): k-means of MFCC with deltas (39 per frame of `hop` samples), fitted on (B, 1, T) each."""
    filters = mel_filters(80)

    def features(audio: Tensor) -> Tensor:
        return mfcc(log_mel(audio, filters), stack=STACK * hop // FRAME)[:, : -(-audio.shape[-1] // hop)]

    kmeans = KMeans.fit(torch.cat([features(audio).flatten(0, 1) for audio in batches]), units, seed=seed)
    return lambda audio: kmeans.assign(features(audio))[0]
