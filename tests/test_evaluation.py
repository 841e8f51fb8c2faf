"""Evaluation: every measure at its extremes or against a case worked out by hand, and one run over a tiny bundle."""

import copy
import json
import math
import shlex
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from audiolm import bundle
from audiolm.audio import Waveform, read
from audiolm.errors import InputError
from audiolm.measuring import evaluation
from audiolm.measuring.continuations import PROMPT, Continuation, continuation_figures, continuations
from audiolm.measuring.figures.bench import by_speaker, tokenized
from audiolm.measuring.metrics import (
    bootstrap,
    entropy,
    frechet,
    histogram,
    mean,
    mel_distance,
    pesq_wb,
    ratio,
    si_sdr,
    stoi,
    unit_errors,
    visqol,
)
from audiolm.measuring.page import page
from audiolm.measuring.phonetics import unit_phone_measures
from audiolm.measuring.scoring import crop_nats, nats_of
from audiolm.measuring.speaker import VoiceEncoder, mel_filters, similarities, voice_encoder
from audiolm.model import AudioLM
from audiolm.stages import semantic
from audiolm.tokens import TokenSpec
from audiolm.training.data import Recording, scan
from audiolm.transformer import LanguageModel, TransformerConfig

WITH_VOICES = pytest.mark.skipif(find_spec("resemblyzer") is None, reason="needs weights: pip install --no-deps resemblyzer")


def noise(like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


# Two sounds


def test_a_sound_is_itself(female: Waveform) -> None:
    sound = female.samples[0]
    assert pesq_wb(sound, sound) == pytest.approx(4.644, abs=1e-3)
    assert stoi(sound, sound, 16_000) == pytest.approx(1, abs=1e-6)
    assert mel_distance(sound, sound, 16_000) == 0
    assert si_sdr(sound, sound) == pytest.approx(100, abs=0.01)


def test_noise_is_at_the_bottom(female: Waveform) -> None:
    sound = female.samples[0]
    assert pesq_wb(sound, noise(sound)) < 1.1
    assert stoi(sound, noise(sound), 16_000) < 0.45  # its envelopes agree a little with any
    assert mel_distance(sound, noise(sound), 16_000) > 0.5
    assert si_sdr(sound, noise(sound)) < -30


def test_more_noise_is_worse(female: Waveform) -> None:
    sound = female.samples[0]
    little, much = (sound + level * noise(sound) for level in (0.02, 0.5))
    assert pesq_wb(sound, little) > pesq_wb(sound, much)
    assert stoi(sound, little, 16_000) > stoi(sound, much, 16_000)
    assert mel_distance(sound, little, 16_000) < mel_distance(sound, much, 16_000)


def test_visqol_of_a_sound_itself_and_of_noise(female: Waveform) -> None:
    sound = female.samples[0]
    same, little, much = (visqol(sound, sound + level * noise(sound)) for level in (0.0, 0.02, 0.5))
    assert (same.similarity, same.fit) == pytest.approx((1, 5))
    assert same.fit > little.fit > much.fit
    assert same.lattice > little.lattice > much.lattice > 1 - 1e-6
    assert visqol(sound, noise(sound)).fit == 1
    assert math.isnan(visqol(torch.zeros_like(sound), sound).fit)
    assert math.isnan(visqol(sound[:3000], sound[:3000]).fit)


def test_frechet_distance_by_hand() -> None:
    sample = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet(sample, sample) == pytest.approx(0, abs=1e-9)
    assert frechet(sample, sample + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25)
    # Of one dimension: the squared difference of the means and that of the deviations.
    one, two = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0], [11.0]])
    assert frechet(one, two) == pytest.approx((1 - 7) ** 2 + (2**0.5 - 12**0.5) ** 2)
    assert math.isnan(frechet(sample[:1], sample))


def test_frechet_distance_is_that_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(40, 5, generator=generator, dtype=torch.float64) @ torch.rand(5, 5).double() for _ in range(2))
    one, two = ours.T.cov().numpy(), theirs.T.cov().numpy()
    mean_gap = float((ours.mean(0) - theirs.mean(0)).square().sum())
    assert frechet(ours, theirs) == pytest.approx(mean_gap + (one + two - 2 * linalg.sqrtm(one @ two).real).trace())


def test_si_sdr_knows_the_noise_and_not_the_scale() -> None:
    """Noise at right angles with a hundredth of the energy: 20 dB, at any volume."""
    turns = torch.arange(16_000) / 16_000 * 2 * math.pi
    sound, other = (turns * 440).sin(), (turns * 500).sin()
    assert si_sdr(sound, 0.3 * (sound + 0.1 * other)) == pytest.approx(20, abs=0.01)
    assert si_sdr(sound, other) == pytest.approx(-100, abs=0.01)


def test_silence_is_the_worst_that_can_become_of_a_sound(female: Waveform) -> None:
    """It counts, where NaN would leave it out of the mean; what cannot be measured at all is NaN, silent or not."""
    sound = female.samples[0]
    silence = torch.zeros_like(sound)
    assert 1 <= pesq_wb(sound, silence) <= pesq_wb(sound, noise(sound))
    assert stoi(sound, silence, 16_000) == pytest.approx(0, abs=1e-6)
    assert si_sdr(sound, silence) == -100
    assert visqol(sound, silence) == (0, 1, 1)
    assert math.isnan(si_sdr(silence, silence))
    assert math.isnan(pesq_wb(sound[:3000], silence[:3000]))
    assert math.isnan(visqol(sound[:3000], silence[:3000]).fit)


def test_a_tenth_of_the_volume_is_one_decade_of_mel() -> None:
    sound = noise(torch.zeros(16_000)) * 5
    assert mel_distance(sound, sound / 10, 16_000) == pytest.approx(1, abs=0.01)


def test_what_cannot_be_measured_is_nan_and_does_not_count() -> None:
    silence = torch.zeros(16_000)
    assert math.isnan(pesq_wb(silence, silence))
    assert math.isnan(stoi(noise(silence[:3200]), noise(silence[:3200]), 16_000))
    assert mean([1.0, math.nan, 3.0])[::3] == (2.0, 2)
    assert mean([math.nan]).clips == 0


# How sure


def test_a_constant_is_certain() -> None:
    assert mean([0.25] * 10) == (0.25, 0.25, 0.25, 10)
    assert ratio(torch.full((5,), 3.0), torch.full((5,), 2)) == (1.5, 1.5, 1.5, 5)


def test_the_interval_is_that_of_theory() -> None:
    """Of the mean of 400 standard normal values: 1.96 / sqrt(400) on either side."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = mean(values)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert mean(values) == found  # the same draws every time


def test_the_interval_of_a_biased_measure_surrounds_it() -> None:
    """Draws of few recordings have lower entropies, all of them; the interval must not lie below the figure."""
    codes = torch.randint(64, (20, 40), generator=torch.Generator().manual_seed(0))
    found = bootstrap(lambda draws: torch.stack([entropy(histogram(codes[index].view(1, -1), 64)) for index in draws]), 20)[0]
    assert found.low < found.value < found.high


def test_one_recording_tells_nothing_about_others() -> None:
    assert math.isnan(mean([2.0]).low)


# Codes and units


def test_entropy_of_known_distributions() -> None:
    counts = torch.tensor([[1, 1, 1, 1], [4, 0, 0, 0], [2, 1, 1, 0]])
    assert entropy(counts).tolist() == [2.0, 0.0, 1.5]
    assert histogram(torch.tensor([[0, 2, 2], [1, 1, 1]]), 3).tolist() == [[1, 0, 2], [0, 3, 0]]


def test_units_and_phones_by_hand() -> None:
    """Two phones, one bit; unit 0 is always the first, unit 1 is either: I = 1 - 3/4 H(1/3) bits."""
    units, phones = torch.tensor([0, 1, 1, 1]), torch.tensor([3, 3, 5, 5])
    found = unit_phone_measures(units, phones)
    third = -(1 / 3 * math.log2(1 / 3) + 2 / 3 * math.log2(2 / 3))
    assert found["pnmi"] == pytest.approx(1 - 0.75 * third)
    assert found["phone_purity"] == pytest.approx(0.75)
    assert unit_phone_measures(phones, phones)["pnmi"] == pytest.approx(1)


def test_unit_errors_by_hand() -> None:
    asked = torch.tensor([5, 5, 1, 2, 2, 3])
    assert unit_errors(asked, torch.tensor([5, 1, 1, 2, 3, 3])) == (0, 4)  # repeats do not count
    assert unit_errors(asked, torch.tensor([5, 1, 3])) == (1, 4)
    assert unit_errors(asked, torch.tensor([9, 8, 7, 6])) == (4, 4)


# What a language model foretells


def test_a_model_that_knows_nothing_needs_all_bits(tiny_model: AudioLM, female: Waveform) -> None:
    """With its heads at zero a model deems all 33 outcomes (32 codes, the end) alike, in every crop."""
    tokens = tiny_model.tokenize(female)
    stage, network = tiny_model.stages["fine"]
    silent = LanguageModel(network.transformer.config, stage.vocabulary, 4, 32).eval()
    silent.heads.data.zero_()
    silent.end.data.zero_()
    score = crop_nats(silent, stage, {"acoustic": tokens.acoustic.codes})
    frames = tokens.acoustic.codes.shape[1]
    assert score.counts.tolist() == [frames] * 4
    assert (score.nats / score.counts).tolist() == pytest.approx([math.log(33), *[math.log(32)] * 3])
    assert score.frequencies.equal(histogram(tokens.acoustic.codes[2:], 32))


def test_each_code_is_foretold_by_what_comes_before_it(tiny_model: AudioLM, female: Waveform) -> None:
    """The score of a crop, code by code and without batches: the logits after each id, START the first of them."""
    stage, network = tiny_model.stages["coarse"]
    tokens = tiny_model.tokenize(female.trim(0.4))
    given, predicted = [tokens.semantic.codes], tokens.acoustic.codes[:2]
    line = stage.pack(given, predicted)
    nats = [0.0, 0.0]
    for place, code in enumerate(predicted.T.flatten().tolist()):
        before = line[: given[0].shape[1] + 1 + place]
        logits = network.logits(network.hidden(before[None])[0, -1], place % 2, end=True)
        nats[place % 2] -= float(logits.log_softmax(-1)[code])
    assert nats_of(network, stage, [(given, predicted)]).nats.tolist() == pytest.approx(nats, abs=1e-3)


def test_what_was_heard_is_not_scored() -> None:
    """The bits of a whole line are those of its beginning and those of the rest given the beginning."""
    stage = semantic(TokenSpec("semantic", 8, 1, 25.0))
    torch.manual_seed(0)
    network = LanguageModel(TransformerConfig(layers=1, heads=1, width=16, ffn=16), stage.vocabulary, 1, 8).eval()
    codes = torch.randint(8, (1, 12))
    whole, rest = (nats_of(network, stage, [((), codes)], heard) for heard in (0, 5))
    begun = nats_of(network, stage, [((), codes[:, :5])])
    assert rest.counts.tolist() == [7]
    assert float(whole.nats) == pytest.approx(float(begun.nats + rest.nats), abs=1e-4)
    side_by_side = nats_of(network, stage, [((), codes), ((), codes[:, :5])])
    assert float(side_by_side.nats) == pytest.approx(float(whole.nats + begun.nats), abs=1e-4)


def test_repeats_that_the_stage_removes_are_not_scored() -> None:
    stage = semantic(TokenSpec("semantic", 8, 1, 25.0), dedup=True)
    network = LanguageModel(TransformerConfig(layers=1, heads=1, width=16, ffn=16), stage.vocabulary, 1, 8).eval()
    score = nats_of(network, stage, [((), torch.tensor([[1, 1, 1, 4, 4, 1]]))])
    assert score.counts.tolist() == [3]
    assert score.frequencies.tolist() == [[0, 2, 0, 0, 1, 0, 0, 0]]


# Voices


@WITH_VOICES
def test_voices(female: Waveform, male: Waveform) -> None:
    encoder = voice_encoder()
    clips = [female.trim(2.2), female.trim(start=2.2), male.trim(2.2), male.trim(start=2.2)]
    voices = [encoder.embed(clip.samples) for clip in clips]
    cosines = similarities(voices, voices)
    assert cosines.diagonal().tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    same, other = cosines[[0, 2], [1, 3]].min(), cosines[:2, 2:].max()
    assert same > 0.75
    assert other < 0.6
    # Volume is no part of a voice below the level that all are raised to; a clip shorter than a part is one all the same.
    assert float(encoder.embed(female.samples * 0.01) @ encoder.embed(female.samples * 0.001)) == pytest.approx(1, abs=1e-4)
    assert encoder.embed(female.trim(0.5).samples).shape == (256,)
    # The largest of the 256 numbers that resemblyzer's own code makes of this sound.
    theirs = torch.tensor([0.22303, 0.19251, 0.19139, 0.18736, 0.18526])
    assert torch.allclose(encoder.embed(female.samples)[[243, 209, 148, 249, 12]], theirs, atol=2e-5)


def test_voice_network_has_the_shape_of_the_weights_and_slaney_s_filters() -> None:
    filters = mel_filters()
    assert filters.shape == (40, 201)
    assert (filters.sum(1) > 0).all()
    assert int(filters[0].argmax()) == 2  # the first peak, 79 Hz, in bins of 40 Hz
    assert VoiceEncoder().embed(torch.zeros(8000)).isfinite().all()


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    voice_encoder.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps resemblyzer"):
        voice_encoder()


# The runner


@pytest.fixture(scope="module")
def recordings(female_path: Path, male_path: Path) -> list[Recording]:
    return [Recording(path, path.name, path.stem, "test", 4.4) for path in (female_path, male_path)]


@pytest.fixture(scope="module")
def report(tiny_model: AudioLM, recordings: list[Recording]) -> dict:
    parts = ("codec", "units", "stages", "oracle", "continuation", "pairs")
    return evaluation.evaluate(tiny_model, recordings, levels=(3, 12), seconds=1.0, parts=parts)


def test_all_parts_are_there(tiny_model: AudioLM, recordings: list[Recording], report: dict) -> None:
    names = {name.split(".")[0] for name in report}
    assert names >= {"codec", "codebook", "units", "mfcc", "stage", "continuation", "claim"}
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["codec.6.bitrate"] == 50 * 6 * 5  # twelve levels were asked for, six are there
    assert report["codec.6.stoi"] > report["codec.3.stoi"]
    assert report["codec.6.stoi.low"] <= report["codec.6.stoi"] <= report["codec.6.stoi.high"]
    left = [report[f"codebook.{level}.residual_energy"] for level in range(1, 7)]
    assert left == sorted(left, reverse=True)
    assert 0 < report["units.pnmi"] < 1
    # Random networks know less than the frequencies do.
    assert all(
        report[f"stage.{name}.bits"] > report[f"stage.{name}.unigram"] for name in ("semantic", "coarse", "fine", "acoustic")
    )
    # The unigram's bits are the entropy of what it is measured on.
    codes = torch.cat([tiny_model.tokenize(read(each.path)).acoustic.codes for each in recordings], 1)
    bits = entropy(histogram(codes, 32)).tolist()
    assert [report[f"stage.fine.{level}.unigram"] for level in (3, 4, 5, 6)] == pytest.approx(bits[2:], abs=1e-5)
    assert report["stage.coarse.unigram"] == pytest.approx((bits[0] + bits[1]) / 2, abs=1e-5)
    assert report["continuation.mean_seconds"] == 1.0
    assert "continuation.acoustic.unit_errors" not in report  # it was asked nothing
    assert report["continuation.real.bits"] > 0


@WITH_VOICES
def test_voices_are_ordered(report: dict) -> None:
    assert report["continuation.real.similarity"] > report["continuation.full.similarity"]
    assert report["continuation.real.similarity"] > report["continuation.other_speakers.similarity"]
    assert report["continuation.same_speaker.similarity"] is None


def test_the_card(report: dict) -> None:
    card = evaluation.markdown(report)
    for title in ("Codec", "Codebooks", "Semantic units", "Bits per token", "Continuation"):
        assert f"### {title}" in card
    assert "2 recordings of 2 speakers" in card
    assert "2 recordings of 2 composers" in evaluation.markdown(report | {"recordings.by": "composers"})
    assert f"| {report['codec.6.pesq']:.2f} (" in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.count("|") >= 3 for line in tables)
    assert "nan" not in card.lower().replace("resonance", "")
    assert "None" not in card


@pytest.mark.parametrize("dedup", [False, True])
def test_the_full_chain_is_what_generate_makes(tiny_model: AudioLM, female: Waveform, dedup: bool) -> None:
    """It is made in two steps, so that the units are known; but for the seam's 5 ms it is the model's own continuation."""
    stage, network = tiny_model.stages["semantic"]
    stages = tiny_model.stages | {"semantic": (replace(stage, dedup=dedup), network)}
    model = replace(tiny_model, stages=stages, about={"mean_run": 1.5})
    made = continuations(model, [("f", female)], seconds=1.0, seed=7)[0]
    own = model.generate(female.trim(PROMPT), seconds=1.0, seed=7, only_new=True, watermark=False)
    assert torch.allclose(made.sounds["full"].samples[:, 80:], own.samples[:, 80:], atol=1e-5)
    assert {sound.samples.shape for sound in made.sounds.values()} == {(1, 16_000)}
    asked = made.asked
    assert not asked["shuffled"].equal(asked["resaid"])
    assert asked["shuffled"].sort().values.equal(asked["resaid"].sort().values)
    assert continuation_figures(model, [made])["continuation.full.bits"][0] > 0  # type: ignore[index]


def test_fewer_bits_than_the_original_are_no_better_than_more(tiny_model: AudioLM, female: Waveform) -> None:
    """Silence is easy to foretell and noise is not: both are as far from speech as their bits are from the original's."""
    real, other = female.trim(2.0, start=PROMPT), female.trim(2.0)
    figures = {}
    for name, sounds in {"few": (real, other), "many": (other, real)}.items():
        made = Continuation("f", female.trim(PROMPT), {"real": sounds[0], "full": sounds[0], "acoustic": sounds[1]})
        figures[name] = continuation_figures(tiny_model, [made])
    bits = [figures["few"][f"continuation.{way}.bits"][0] for way in ("real", "acoustic")]  # type: ignore[index]
    assert bits[0] != bits[1]
    for each in figures.values():
        assert each["claim.bits.acoustic"][0] == pytest.approx(abs(bits[0] - bits[1]))  # type: ignore[index]


def test_a_bundle_of_tokenizers_alone(tiny_model: AudioLM, female: Waveform) -> None:
    model = replace(tiny_model, stages={}, sampling={})
    made = continuations(model, [("f", female)], seconds=1.0, seed=0)
    assert set(made[0].sounds) == {"real", "codec"}
    figures = continuation_figures(model, made)
    assert "continuation.codec.unit_errors" in figures
    assert not [name for name in figures if name.startswith("claim") or name.endswith("bits")]


def test_a_claim_is_above_zero_where_the_whole_chain_is_better(tiny_model: AudioLM, female: Waveform, male: Waveform) -> None:
    """Fewer errors are better, and the table says so: a chain that says what it was asked, against one that says another's."""
    made = continuations(tiny_model, [("f", female), ("m", male)], 1.0, seed=0, ways=())
    for each, other in zip(made, made[::-1], strict=True):
        each.sounds.update(full=each.sounds["real"], shuffled=other.sounds["real"])
        each.asked["full"] = each.asked["shuffled"] = each.asked["resaid"]
    figures = evaluation._flat(continuation_figures(tiny_model, made))
    assert figures["continuation.full.unit_errors"] == 0 < figures["continuation.shuffled.unit_errors"]
    assert figures["claim.unit_errors.shuffled.low"] > 0
    one = {"recordings.clips": 2, "recordings.speakers": 2, "recordings.seconds": 8.0, "recordings.left_out": [], "seed": 0}
    card = evaluation.markdown({**one, **figures})
    (said,) = (line for line in card.splitlines() if line.startswith("- unit errors, whole chain against"))
    assert "better; paired difference" in said
    assert "above 0 where the whole chain is better" in card


def test_what_is_too_short_is_not_continued(tiny_model: AudioLM) -> None:
    card = evaluation.markdown(
        {"recordings.clips": 1, "recordings.speakers": 1, "recordings.seconds": 2.0, "recordings.left_out": [], "seed": 0}
        | continuation_figures(tiny_model, [])
    )
    assert "No recording has the 4 s" in card


def test_nothing_else_changes(tiny_model: AudioLM, recordings: list[Recording]) -> None:
    """Contract 6: torch's random numbers and the model's weights are as before; and the same call gives the same report."""
    state = torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in tiny_model.codec.state_dict().items()}
    first, again = (evaluation.evaluate(tiny_model, recordings, parts=("stages",)) for _ in range(2))
    assert first == again
    assert torch.get_rng_state().equal(state)
    assert all(tensor.equal(weights[name]) for name, tensor in tiny_model.codec.state_dict().items())


def test_each_speaker_comes_before_a_second_recording_of_one(tiny_model: AudioLM, recordings: list[Recording]) -> None:
    many = [replace(recordings[number // 4], name=str(number)) for number in range(8)]
    clips, _ = tokenized(tiny_model, many, lambda *_: None)
    ordered = by_speaker(clips, seed=1)
    assert len(ordered) == 8
    assert all(len({clip.recording.speaker for clip in ordered[first : first + 2]}) == 2 for first in range(0, 8, 2))
    assert [clip.recording.name for clip in ordered] != [clip.recording.name for clip in by_speaker(clips, seed=2)]


def test_a_folder(tiny_model: AudioLM, recordings: list[Recording], tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    data = tmp_path / "voices"
    data.mkdir()
    for recording in recordings:
        (data / recording.name).write_bytes(recording.path.read_bytes())
    (data / "noise.wav").write_text("no sound")
    bundle.save(tiny_model, tmp_path / "model", "")
    report = evaluation.evaluate_folder(
        tmp_path / "model", data, tmp_path / "out", split="all", seconds=1, parts=("stages",), listening_test=2
    )
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert (tmp_path / "out" / "report.md").read_text() == evaluation.markdown(report)
    assert (tmp_path / "out" / "report.html").read_text().count("<audio") > 10
    assert (tmp_path / "out" / "listening-key.json").is_file()
    assert report["recordings.clips"] == 2
    assert len(report["recordings.left_out"]) == 1
    assert "noise.wav" in report["recordings.left_out"][0]
    assert report["model"] == "model"
    assert report["command"].startswith("audiolm evaluate model --data voices --report out")
    assert capfd.readouterr() == ("", f"{data}: measures the split all: 2 recordings, 1 of train\n")


def test_a_report_has_the_models_name_and_a_command_for_a_shell(
    tiny_model: AudioLM, recordings: list[Recording], tmp_path: Path
) -> None:
    data = tmp_path / "two; voices"
    data.mkdir()
    shutil.copy(recordings[0].path, data)
    bundle.save(replace(tiny_model, about={"name": "our <voices>"}), tmp_path / "bundle", "")
    report = evaluation.evaluate_folder(tmp_path / "bundle", data, tmp_path / "out", split="all", seconds=1, parts=("stages",))
    assert report["model"] == "our <voices>"
    assert "<title>AudioLM our &lt;voices&gt;</title>" in (tmp_path / "out" / "report.html").read_text()
    assert shlex.split(report["command"])[:5] == ["audiolm", "evaluate", "bundle", "--data", "two; voices"]


def test_the_figures_are_safe_before_the_tables(
    tiny_model: AudioLM, recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage whose bits are no number has a dash; and if the tables fail, hours of measuring are not lost."""
    stage, network = tiny_model.stages["fine"]
    broken = copy.deepcopy(network)
    broken.heads.data.fill_(math.nan)
    bundle.save(replace(tiny_model, stages={"fine": (stage, broken)}, sampling={}), tmp_path / "model", "")
    data, out = tmp_path / "data.csv", tmp_path / "out"
    data.write_text("\n".join(["path,speaker", *(f"{each.path},{each.speaker}" for each in recordings)]))
    evaluation.evaluate_folder(tmp_path / "model", data, out, split="all", parts=("stages",), page=False)
    assert json.loads((out / "report.json").read_text())["stage.fine.bits"] is None
    assert "| **fine** | - |" in (out / "report.md").read_text()
    monkeypatch.setattr(evaluation, "markdown", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluation.evaluate_folder(tmp_path / "model", data, tmp_path / "again", split="all", parts=("stages",), page=False)
    assert (tmp_path / "again" / "report.json").is_file()


def test_other_settings_than_the_models(tiny_model: AudioLM, recordings: list[Recording], tmp_path: Path) -> None:
    rows = [f"{each.path},{each.speaker},test" for each in recordings]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,speaker,split", *rows]))
    bundle.save(tiny_model, tmp_path / "model", "")
    figures = {}
    for name, settings in {
        "own": {},
        "few": {"codebooks": 2},
        "cold": {"temperature": (0.0,)},
        "int8": {"precision": "int8"},
    }.items():
        figures[name] = evaluation.evaluate_folder(
            tmp_path / "model", tmp_path / "manifest.csv", tmp_path / name, seconds=1, parts=("continuation",), page=False,
            **settings,
        )  # fmt: skip
    heard = {name: report["continuation.full.bits"] for name, report in figures.items()}
    assert len({heard[name] for name in ("own", "few", "cold")}) == 3
    assert "--codebooks 2" in figures["few"]["command"]
    assert "--temperature 0" in figures["cold"]["command"]
    assert "--precision int8" in figures["int8"]["command"]
    assert figures["own"]["command"].count("--") == figures["few"]["command"].count("--") - 1
    with pytest.raises(InputError, match="--codebooks 7: this model's codec has 1 to 6"):
        evaluation.evaluate_folder(tmp_path / "model", tmp_path / "manifest.csv", tmp_path / "many", codebooks=7)


def test_what_is_held_out_is_measured_and_what_is_not_is_told(
    tiny_model: AudioLM, recordings: list[Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.save(tiny_model, tmp_path / "model", "")
    cases = {"train test": (1, "test", 0), "train valid": (1, "valid", 0), "train train": (2, "all", 2)}
    for splits, expected in cases.items():
        rows = [f"{each.path},{each.speaker},{split}" for each, split in zip(recordings, splits.split(), strict=True)]
        (tmp_path / "manifest.csv").write_text("\n".join(["path,speaker,split", *rows]))
        report = evaluation.evaluate_folder(tmp_path / "model", tmp_path / "manifest.csv", tmp_path / "out", parts=(), page=False)
        clips, split, trained = expected
        assert (report["recordings.clips"], report["split"], report["recordings.train"]) == expected
        why = "" if split == "test" else " (there is no test)"
        said = capsys.readouterr().err
        assert said.endswith(f"manifest.csv: measures the split {split}{why}: {clips} recordings, {trained} of train\n")
        told = f" {trained} of the recordings are of the split train" in (tmp_path / "out" / "report.md").read_text()
        assert told == bool(trained)
        assert ("that it was not trained on" in page([], report, "")) == (not trained)


def test_a_folder_is_split_as_the_models_recipe_did(
    tiny_model: AudioLM, recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for speaker in range(8):
        (tmp_path / "data" / f"s{speaker}").mkdir(parents=True)
        shutil.copy(recordings[0].path, tmp_path / "data" / f"s{speaker}" / f"a{recordings[0].path.suffix}")
    measured: list[set[str]] = []

    def evaluate(model: AudioLM, found: list[Recording], **_: Any) -> dict[str, Any]:
        measured.append({each.speaker for each in found})
        return {"recordings.left_out": []}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(evaluation, "markdown", lambda report: "")
    ways = [{}, {"split": {"valid": 0.2, "test": 0.3, "seed": 5}}, {"split": "foreign"}]
    for number, about in enumerate(ways):
        bundle.save(replace(tiny_model, about=about), tmp_path / f"{number}", "")
        evaluation.evaluate_folder(tmp_path / f"{number}", tmp_path / "data", tmp_path / "out", page=False)
    held = [scan(tmp_path / "data"), scan(tmp_path / "data", valid=0.2, test=0.3, seed=5)]
    expected = [{each.speaker for each in found if each.split == "test"} for found in held]
    assert measured == [*expected, expected[0]]
    assert expected[0] != expected[1]


def test_mistakes_are_named(tiny_model: AudioLM, recordings: list[Recording], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recordings"):
        evaluation.evaluate(tiny_model, [])
    with pytest.raises(InputError, match="^parts=sound: no such part; choose from codec, visqol, units"):
        evaluation.evaluate(tiny_model, recordings, parts=("codec", "sound"))
    with pytest.raises(InputError, match="^seed=-1: give 0 or more$"):
        evaluation.evaluate(tiny_model, recordings, seed=-1)
    data = recordings[0].path.parent
    bad: list[tuple[str, Any]] = [("listening_test", -3), ("listening_test", 1), ("parts", ("sound",)), ("seconds", math.nan)]
    for name, value in bad:
        with pytest.raises(InputError, match=f"^{name}="):
            evaluation.evaluate_folder("speech", data, tmp_path / "out", **{name: value})
    with pytest.raises(InputError, match="split 'dev'"):
        evaluation.evaluate_folder("speech", data, tmp_path / "out", split="dev")
    bundle.save(AudioLM(tiny_model.semantic, tiny_model.codec, {}), tmp_path / "bare", "")
    late: list[tuple[str, dict[str, Any], str]] = [
        ("nosuch", {}, "nosuch: no such model"),
        ("bare", {"codebooks": 7}, "--codebooks 7: this model's codec has 1 to 6"),
        ("bare", {"items": tmp_path / "few.item"}, r"--items .*few\.item: no such file"),
        ("bare", {"listening_test": 2}, "this model has no coarse or piano stage"),  # before hours of measuring
    ]
    for model, options, reason in late:
        with pytest.raises(InputError, match=reason):
            evaluation.evaluate_folder(tmp_path / model, data, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
