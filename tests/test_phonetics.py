"""What units tell about phones, and where the phones are."""

import math
from itertools import pairwise

import pytest
import torch

from audiolm.audio import Waveform
from audiolm.measuring.phonetics import PHONES, Phone, PhoneAligner, frame_phones, measure_units, mfcc_units, unit_phone_measures

SAID = {
    "female": "SO I SHALL NOT TELL YOU THE REST UNTIL NEXT SATURDAY YOU SEE",
    "male": "AND THERE WAS A FUMBLING AT THE HANDLE BUT THE BOLT",
}


@pytest.fixture(scope="module")
def aligner() -> PhoneAligner:
    pytest.importorskip("pocketsphinx")
    return PhoneAligner()


def test_units_that_are_phones_tell_all_and_constant_units_nothing():
    phones = torch.arange(40).repeat(50)
    same = unit_phone_measures((phones * 7 + 3) % 40, phones)
    assert same["pnmi"] == same["pnmi_corrected"] == pytest.approx(1)
    assert same["phone_purity"] == same["unit_purity"] == 1
    nothing = unit_phone_measures(torch.zeros_like(phones), phones)
    assert nothing["pnmi"] == pytest.approx(0, abs=1e-9)
    assert nothing["pnmi_corrected"] == pytest.approx(0, abs=1e-9)
    assert nothing["phone_purity"] == pytest.approx(1 / 40)
    assert nothing["units_used"] == 1


def test_measures_of_a_table_worked_by_hand():
    # units 0 0 0 1 for phones 0 0 1 1: I = H(1/2, 1/2) - 3/4 H(1/3, 2/3)
    measures = unit_phone_measures(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    rest = 0.75 * -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert measures["pnmi"] == pytest.approx((math.log(2) - rest) / math.log(2))
    assert measures["phone_purity"] == pytest.approx(3 / 4)
    assert measures["unit_purity"] == pytest.approx(3 / 4)


def test_the_correction_takes_away_what_chance_gives():
    generator = torch.Generator().manual_seed(0)
    phones, units = (torch.randint(n, (20000,), generator=generator) for n in (40, 256))
    measures = unit_phone_measures(units, phones)
    assert measures["pnmi"] > 0.05  # independent, yet it looks like information
    assert abs(measures["pnmi_corrected"]) < 0.002
    few = unit_phone_measures(units[:3000], phones[:3000])
    assert few["pnmi"] > 0.3
    assert abs(few["pnmi_corrected"]) < 0.01


def test_units_that_are_split_at_random_hardly_tell_more():
    """Each of 64 units knows the phone two times out of three; broken into eight each, they know as much as before."""
    generator = torch.Generator().manual_seed(0)
    phones, noise = (torch.randint(n, (8000,), generator=generator) for n in (40, 64))
    units = torch.where(torch.rand(8000, generator=generator) < 2 / 3, phones, noise)
    split = units * 8 + torch.randint(8, (8000,), generator=generator)
    whole, broken = unit_phone_measures(units, phones), unit_phone_measures(split, phones)
    assert broken["pnmi"] > whole["pnmi"] + 0.13
    assert abs(broken["pnmi_corrected"] - whole["pnmi_corrected"]) < 0.06
    assert unit_phone_measures(split, phones) == broken  # the same every time


def test_a_frame_has_the_phone_of_its_middle():
    phones = [Phone("SIL", 0.0, 0.09), Phone("AA", 0.09, 0.15), Phone("+NSN+", 0.15, 0.21), Phone("K", 0.21, 0.40)]
    labels = frame_phones(phones, 640 * 10 - 100)
    assert [PHONES[label] for label in labels] == ["SIL", "SIL", "AA", "AA", "SIL", "K", "K", "K", "K", "K"]


def test_real_voices_are_aligned_to_their_words(aligner, female: Waveform, male: Waveform):
    for voice, text in ((female, SAID["female"]), (male, SAID["male"])):
        before = aligner.aligned
        phones = aligner(voice.samples, text)
        assert aligner.aligned == before + 1
        assert phones[0].start == 0
        assert abs(phones[-1].end - voice.seconds) < 0.1
        assert all(one.end == pytest.approx(two.start) for one, two in pairwise(phones))
    spoken = " ".join(phone.name for phone in phones if phone.name != "SIL")
    assert "F AH M B" in spoken  # fumbling


def test_punctuation_is_not_spelled_and_what_came_before_leaves_no_trace(aligner, female: Waveform, male: Waveform):
    alone, free = aligner(female.samples, SAID["female"]), aligner(female.samples)
    aligner(male.samples)
    aligner(male.samples, SAID["male"])
    assert aligner(female.samples, "So I shall not tell you the rest until next Saturday. You see,") == alone
    assert aligner(female.samples) == free


def test_without_a_fitting_transcript_phones_are_decoded_freely_and_mostly_agree(aligner, female: Waveform):
    samples = female.samples
    aligned = frame_phones(aligner(samples, SAID["female"]), samples.shape[-1])
    before = aligner.decoded
    free = frame_phones(aligner(samples), samples.shape[-1])
    foreign = aligner(samples, "XYZZYQ " * 60)
    assert aligner.decoded == before + 2
    assert foreign
    assert (aligned == free).float().mean() > 0.5


def test_a_name_outside_the_dictionary_is_spelled(aligner, female: Waveform):
    before = aligner.aligned
    aligner(female.samples, SAID["female"].replace("SATURDAY", "SATERDEY"))
    assert aligner.aligned == before + 1


def test_mfcc_units_know_more_about_phones_than_shuffled_ones(aligner, female: Waveform, male: Waveform):
    recordings = [(female.samples[None], SAID["female"]), (male.samples[None], SAID["male"])]
    encode = mfcc_units([audio for audio, _ in recordings], 16)
    labels = [frame_phones(aligner(audio, text), audio.shape[-1]) for audio, text in recordings]
    told = measure_units(encode, recordings, labels)
    order = torch.Generator().manual_seed(0)
    shuffled = measure_units(lambda audio: (u := encode(audio))[torch.randperm(len(u), generator=order)], recordings, labels)
    assert told["pnmi"] > 1.3 * shuffled["pnmi"]
    assert told["pnmi_corrected"] > shuffled["pnmi_corrected"] + 0.1


def test_an_empty_transcript_without_any_words_counts_as_none(aligner, female: Waveform):
    before = aligner.decoded
    assert aligner(female.samples, "  ")
    assert aligner.decoded == before + 1


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="3 units for 2 phones"):
        unit_phone_measures(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
