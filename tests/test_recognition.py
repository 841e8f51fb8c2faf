"""Words heard: normalised texts, errors counted by hand, and two real voices."""

import torch

from audiolm.audio import Waveform
from audiolm.measuring.phonetics import PhoneAligner
from audiolm.measuring.recognition import Recogniser, character_errors, normalised, rates, word_errors

SAID = "SO I SHALL NOT TELL YOU THE REST UNTIL NEXT SATURDAY. YOU SEE,"


def test_texts_are_made_alike() -> None:
    assert normalised("  It's  \u201cThe END\u201d,\nisn\u2019t it? ") == "it's the end isn't it"
    assert normalised("'tis") == "tis"
    assert normalised("...") == ""


def test_errors_by_hand() -> None:
    assert word_errors("the cat sat", "the cat sat") == (0, 3)
    assert word_errors("the cat sat", "a cat sat down") == (2, 3)  # one replaced, one put in
    assert word_errors("the cat sat", "") == (3, 3)
    assert character_errors("abcd", "abd") == (1, 4)
    assert word_errors("", "oh well") == (2, 0)
    errors, words, wrong, characters = rates([("the cat", "the bat"), ("sat", "sat")])
    assert (errors.tolist(), words.tolist()) == ([1, 0], [2, 1])
    assert (wrong.tolist(), characters.tolist()) == ([1, 0], [7, 3])


def test_real_words_are_heard_and_noise_is_not(female: Waveform) -> None:
    recogniser = Recogniser()
    said = normalised(SAID)
    first = recogniser(female.samples)
    assert word_errors(said, first)[0] <= 2  # of 13
    noise = 0.1 * torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0))
    assert word_errors(said, recogniser(noise))[0] >= 12
    assert recogniser(female.samples) == first  # what came between has left no trace


def test_a_part_of_a_recording_is_heard_the_same_again(female: Waveform) -> None:
    """The mean of the features is not all that pocketsphinx remembers: set back alone, it hears "sad" here, and then "stand"."""
    recogniser, part = Recogniser(), female.samples[:, 16_000:48_000]
    assert recogniser(part) == recogniser(part)


def test_words_have_their_times(female: Waveform) -> None:
    found = PhoneAligner().words(female.samples, normalised(SAID))
    assert [word.name for word in found] == normalised(SAID).split()
    assert [word.name for word in found if word.start > 3.0] == ["you", "see"]
    assert PhoneAligner().words(female.samples, "xyzzyq " * 60) == []
