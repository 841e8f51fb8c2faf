"""How phonetic are the units? Phone labels of recordings, and what units tell about them (AudioLM §III-B, Fig. 3; HuBERT §IV).

Phones are found by pocketsphinx, whose acoustic model and dictionary come in its wheel (the `eval` extra): a transcript is
aligned to the sound, word by word and then phone by phone, a word outside the dictionary (a name) spelled letter by letter;
where there is no transcript, or it does not fit the sound, a free phone decoding stands in. Labels are of the 39 phones of the
CMU dictionary and silence, one per 25 Hz frame, that of the frame's middle. They are the recogniser's opinion: errors of some
ten milliseconds and some wrong phones, the same for every kind of unit that is compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audiolm.conformer import FRAME, SAMPLE_RATE, frame_count, log_mel, mel_filters, mfcc
from audiolm.errors import InputError
from audiolm.kmeans import KMeans
from audiolm.measuring.recognition import normalised

_NAMES = "SIL AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
PHONES = tuple(_NAMES.split())
# A rough pronunciation for the names that no dictionary has: what each letter mostly stands for in English.
_SOUNDS = "AE B K D EH F G HH IH JH K L M N AA P K R S T AH V W S Y Z"
LETTERS = dict(zip("abcdefghijklmnopqrstuvwxyz", _SOUNDS.split(), strict=True))

SHUFFLES = 3  # whose mean says what units tell by chance; of 9,500 frames each is within .002 of any other


@dataclass(frozen=True)
class Phone:
    """A phone and where it stands, in seconds."""

    name: str
    start: float
    end: float


class PhoneAligner:
    """Holds the recogniser's models, which take a second to load. `aligned` and `decoded` count which way labels were found."""

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder, get_model_path
        except ImportError as error:
            raise InputError("phone labels need pocketsphinx; install it by pip install 'audiolm[eval]'") from error
        # The best path through the lattice has words too short for their phones, on which the second pass fails.
        self._align: Any = Decoder(lm=None, bestpath=False, loglevel="FATAL")
        phones = get_model_path("en-us/en-us-phone.lm.bin")
        self._decode: Any = Decoder(lm=None, allphone=phones, lw=2.0, beam=1e-20, pbeam=1e-20, loglevel="FATAL")
        self.aligned = self.decoded = 0

    def __call__(self, audio: Tensor, transcript: str | None = None) -> list[Phone]:
        """Phones of mono audio (..., T) at 16 kHz, silence included, one after the other."""
        sound = (audio.flatten().clamp(-1, 1) * 32767).to(torch.int16).numpy().tobytes()
        words = normalised(transcript or "").split()
        for decoder in (self._align, self._decode):
            decoder.reinit_feat()  # each recording is heard as if it were the first
        if words:
            self._learn(words)
            try:
                self._align.set_align_text(" ".join(words))
                _run(self._align, sound)
                self._align.set_alignment()  # the second pass, within the words that the first one found
                _run(self._align, sound)
                found = [Phone(p.name, p.start / 100, (p.start + p.duration) / 100) for p in self._align.get_alignment().phones()]
                self.aligned += 1
                return found
            except RuntimeError:  # the text does not fit the sound
                pass
        _run(self._decode, sound)
        self.decoded += 1
        return [Phone(s.word, s.start_frame / 100, (s.end_frame + 1) / 100) for s in self._decode.seg() or ()]

    def words(self, audio: Tensor, transcript: str) -> list[Phone]:
        """The words of a transcript (in `name`) and where they stand; none where it does not fit the sound."""
        before = self.aligned
        self(audio, transcript)
        if self.aligned == before:
            return []
        found = self._align.get_alignment().words()
        # A second pronunciation is called "the(2)"; silence and noises are <sil> and the like.
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


def frame_phones(phones: Sequence[Phone], samples: int) -> Tensor:
    """Index into PHONES of each 25 Hz frame's middle: (F) int64. Noises, and time that no phone claims, are silence."""
    labels = torch.zeros(frame_count(samples), dtype=torch.int64)
    middles = (torch.arange(len(labels)) + 0.5) * (FRAME / SAMPLE_RATE)
    for phone in phones:
        if phone.name in PHONES:
            labels[(middles >= phone.start) & (middles < phone.end)] = PHONES.index(phone.name)
    return labels


def unit_phone_measures(units: Tensor, phones: Tensor) -> dict[str, float]:
    """What units (N) tell about phones (N), frame by frame.

    pnmi            I(units; phones) / H(phones), as HuBERT reports it: the share of the phones' uncertainty that goes
    pnmi_corrected  the same adjusted for chance, (pnmi - e) / (1 - e), where e is what the same units tell in any other order:
                    0 where they know nothing, however many they are, 1 where they know all; units between, split at
                    random, still move a little, either way (by -.015 where 256 become 512, of 9,500 frames of speech)
    phone_purity    how often the most frequent phone of a unit is right
    unit_purity     how often the most frequent unit of a phone is right; falls as units get more
    units_used      units that occur
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
    """How often each unit stands beside each phone: (units, phones)."""
    width = len(PHONES)
    return (units * width + phones).bincount(minlength=(int(units.max()) + 1) * width).view(-1, width).double()


def _told(joint: Tensor) -> float:
    """The share of the phones' entropy that the units tell."""
    of_phones = _entropy(joint.sum(0))
    return (_entropy(joint.sum(1)) + of_phones - _entropy(joint)) / max(of_phones, 1e-12)


def _entropy(counts: Tensor) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log()).sum())


def measure_units(
    encode: Callable[[Tensor], Tensor], recordings: Sequence[tuple[Tensor, str | None]], phones: Sequence[Tensor] | None = None
) -> dict[str, float]:
    """Measures of `encode`, audio (1, 1, T) -> units (F), over (audio (1, 1, T) at 16 kHz, transcript) pairs.

    phones: the labels, where `label_recordings` has made them already (a measure of many layers needs them once).
    """
    labels = label_recordings(recordings) if phones is None else phones
    return unit_phone_measures(torch.cat([encode(audio) for audio, _ in recordings]), torch.cat(list(labels)))


def label_recordings(recordings: Sequence[tuple[Tensor, str | None]], aligner: PhoneAligner | None = None) -> list[Tensor]:
    """Phone labels (F) of each (audio (1, 1, T) at 16 kHz, transcript)."""
    aligner = aligner or PhoneAligner()
    return [frame_phones(aligner(audio, transcript), audio.shape[-1]) for audio, transcript in recordings]


def mfcc_units(batches: Sequence[Tensor], units: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """The baseline: k-means of MFCC with slopes (39 per frame, 25 Hz), fitted on audio batches (B, 1, T); audio -> units (F)."""
    filters = mel_filters(80)
    frames = torch.cat([mfcc(log_mel(audio, filters)).flatten(0, 1) for audio in batches])
    kmeans = KMeans.fit(frames, units, seed=seed)
    return lambda audio: kmeans.assign(mfcc(log_mel(audio, filters)))[0]
