"""Measures of music: on tones whose key, onsets and entropy are known, and as a table of a model with a piano stage."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audiolm import stages
from audiolm.bundle import language_model
from audiolm.measuring.evaluation import evaluate
from audiolm.measuring.music import LOWEST, RATE, chroma, key, key_likeness, onsets, semitones, told, tone_entropy, tone_likeness
from audiolm.measuring.report import markdown
from audiolm.model import AudioLM
from audiolm.training.data import Recording
from audiolm.transformer import TransformerConfig

TIME = torch.arange(4 * RATE) / RATE


def tones(*numbers: int) -> torch.Tensor:
    """Sines of MIDI numbers, as loud as each other."""
    return sum((torch.sin(2 * math.pi * 440 * 2 ** ((number - 69) / 12) * TIME) for number in numbers), torch.zeros(()))


def test_a_tone_is_its_semitone_and_a_chord_its_tones() -> None:
    energies = semitones(tones(69))
    assert energies[:, 4:-4].argmax(0).unique().tolist() == [69 - LOWEST]
    assert tone_entropy(tones(69)[RATE:]) < 0.2
    assert tone_entropy(tones(60, 64, 67)[RATE:]) == pytest.approx(math.log(3), abs=0.2)
    assert tone_entropy(torch.randn(4 * RATE, generator=torch.Generator().manual_seed(0))) > 2.5
    shares = key(tones(60, 64, 67))
    assert sorted(shares.topk(3).indices.tolist()) == sorted((number - LOWEST) % 12 for number in (60, 64, 67))


def test_likeness_is_one_of_the_same_and_low_of_another_key() -> None:
    major, octave_up, other = tones(60, 64, 67), tones(72, 76, 79), tones(61, 66, 70)
    assert tone_likeness(major, major) == pytest.approx(1)
    assert tone_likeness(major, 0.1 * major) == pytest.approx(1, abs=1e-4)  # loudness does not count
    assert tone_likeness(major, octave_up) < 0.1
    assert key_likeness(major, octave_up) > 0.95
    assert key_likeness(major, other) < 0.2


@pytest.mark.parametrize("each_second", [1, 2, 4])
def test_onsets_are_counted(each_second: int) -> None:
    decay = torch.exp(-6 * (TIME * each_second % 1) / each_second)
    assert onsets((tones(57, 64) * decay)[RATE // 10 :]) == pytest.approx(each_second, abs=0.5)


@pytest.mark.parametrize("sound", [torch.zeros(100), torch.zeros(RATE), 1e-3 * torch.ones(RATE)])
def test_silence_and_crumbs_do_no_harm(sound: torch.Tensor) -> None:
    assert onsets(sound) == 0 or sound.any()
    assert tone_entropy(sound) >= 0 or math.isnan(tone_entropy(sound))
    semitones(sound)


def test_silence_is_in_no_key() -> None:
    """It counts as unlike, where NaN would leave it out of the mean; it has no tones, clear or not."""
    chord, silence = tones(60, 64, 67), torch.zeros(4 * RATE)
    assert key_likeness(chord, silence) == tone_likeness(chord, silence) == 0
    assert math.isnan(key_likeness(silence, chord))
    assert math.isnan(tone_entropy(silence))


def test_units_tell_what_other_recordings_say_of_them() -> None:
    draw = torch.Generator().manual_seed(0)
    meaning = chroma(torch.cat([tones(60 + n)[:RATE] for n in range(8)]), 200, 25).view(8, 25, 12)[:, 12]
    units = [torch.randint(8, (100,), generator=draw) for _ in range(4)]
    right, there = told(units, [meaning[each] for each in units])
    assert float(right.sum() / there.sum()) == pytest.approx(1)
    own = [torch.full((100,), number) for number in range(4)]  # units that know the recording and nothing else
    assert float(told(own, [meaning[each] for each in units])[0].sum()) == pytest.approx(0, abs=1e-3)
    shuffled = [each[torch.randperm(100, generator=draw)] for each in units]
    wrong, there = told(shuffled, [meaning[each] for each in units])
    assert abs(float(wrong.sum() / there.sum())) < 0.15
    sound = chroma(torch.cat([torch.zeros(RATE), tones(69)]), 125, 25)
    assert sound.shape == (125, 12)
    assert (sound[:10] == 0).all()
    assert sound[60:100].argmax(1).unique().tolist() == [(69 - LOWEST) % 12]


def test_the_table_is_of_models_with_a_piano_stage(tiny_model: AudioLM, female_path: Path, male_path: Path) -> None:
    recordings = [Recording(path, path.name, path.stem, "test", 4.4, {}) for path in (female_path, male_path)]
    assert not [name for name in evaluate(tiny_model, recordings, parts=("music",)) if name.startswith("music.")]
    stage = replace(stages.piano(tiny_model.semantic.spec, tiny_model.codec.spec, 2), crop=4.0, overlap=1.0)
    torch.manual_seed(1)
    network = language_model(stage, TransformerConfig(layers=1, heads=2, width=32, ffn=32, dropout=0))
    semantic = {"semantic": tiny_model.stages["semantic"]}
    model = replace(tiny_model, stages={**semantic, "piano": (stage, network)}, sampling={})
    report = evaluate(model, recordings, parts=("music",), levels=(1, 2), seconds=1.0)
    assert 0 < report["music.codec.2.tones"] <= 1
    assert 0 < report["music.real.other_key"] < 1
    assert report["music.units.chroma"] < 1
    assert {"music.full.entropy", "music.resaid.onsets", "music.full.level"} <= set(report)
    assert isinstance(report["music.full.level"], float)
    text = markdown(report)
    assert "### Music" in text
    assert "| **continuation, the whole chain** |" in text
