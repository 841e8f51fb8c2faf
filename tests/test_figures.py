"""The tables' parts: each on a tiny bundle or a case whose answer is known."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from audiolm import stages
from audiolm.audio import Waveform
from audiolm.bundle import language_model
from audiolm.errors import InputError
from audiolm.measuring.continuations import continuation_figures, continuations
from audiolm.measuring.evaluation import PARTS, evaluate
from audiolm.measuring.figures import bench, units, voices, words
from audiolm.measuring.figures import stages as oracle
from audiolm.measuring.figures.bench import Bench, Clip, Missing, tokenized
from audiolm.measuring.figures.stages import oracle_figures, pair_figures, stage_figures
from audiolm.measuring.figures.units import abx_figures, layer_figures, unit_figures
from audiolm.measuring.figures.words import word_figures
from audiolm.measuring.metrics import Measure
from audiolm.measuring.report import markdown
from audiolm.measuring.scoring import crop_nats, masked_nats
from audiolm.model import AudioLM, AudioTokens
from audiolm.parallel import mask
from audiolm.route import decoders
from audiolm.tokens import Tokens, TokenSpec
from audiolm.training.data import Recording, in_turn
from audiolm.transformer import TransformerConfig

SAID = {
    "female": "so i shall not tell you the rest until next saturday you see",
    "male": "and there was a fumbling at the handle",
}


@pytest.fixture(scope="module")
def clips(tiny_model: AudioLM, female_path: Path, male_path: Path) -> list[Clip]:
    paths = {"female": female_path, "male": male_path}
    recordings = [Recording(path, path.name, who, "test", 4.4, {"transcript": SAID[who]}) for who, path in paths.items()]
    return tokenized(tiny_model, recordings, lambda *_: None)[0]


@pytest.fixture(scope="module")
def parallel_model(tiny_model: AudioLM) -> AudioLM:
    """With a parallel stage beside the paper's."""
    torch.manual_seed(1)
    stage = replace(stages.parallel(tiny_model.semantic.spec, tiny_model.codec.spec), crop=4.0, overlap=1.0)
    network = language_model(stage, TransformerConfig(layers=1, heads=2, width=32, ffn=32, dropout=0))
    return replace(tiny_model, stages={**tiny_model.stages, "parallel": (stage, network)}, sampling={})


def value(figure: Any) -> float:
    assert isinstance(figure, Measure)
    return figure.value


# What a parallel stage foretells


def test_a_parallel_stage_that_knows_nothing_needs_all_bits(parallel_model: AudioLM, clips: list[Clip]) -> None:
    bench = Bench(parallel_model, clips)
    stage, network = parallel_model.stages["parallel"]
    heads = network.heads.detach().clone()
    try:
        network.heads.data.zero_()
        figures = stage_figures(bench)
    finally:
        network.heads.data.copy_(heads)
    assert [value(figures[f"stage.parallel.{level}.bits"]) for level in range(1, 7)] == pytest.approx([5.0] * 6)
    assert stage.predict.levels == 6


def test_a_level_is_foretold_from_those_below_it_alone(parallel_model: AudioLM, clips: list[Clip]) -> None:
    """Other codes above a level change nothing; one code below it does."""
    stage, network = parallel_model.stages["parallel"]
    given, codes = [clips[0].tokens.semantic.codes[:, :20]], clips[0].tokens.acoustic.codes[:, :40]
    whole = masked_nats(network, stage, [(given, codes)]).nats
    above, below = codes.clone(), codes.clone()
    above[3:] = (above[3:] + 1) % 32
    below[0] = (below[0] + 1) % 32
    assert masked_nats(network, stage, [(given, above)]).nats[:3].tolist() == pytest.approx(whole[:3].tolist(), abs=1e-4)
    assert abs(float(masked_nats(network, stage, [(given, below)]).nats[1] - whole[1])) > 1e-3
    apart = masked_nats(network, stage, [(given, codes), ([given[0][:, :5]], codes[:, :10])])
    alone = masked_nats(network, stage, [([given[0][:, :5]], codes[:, :10])])
    assert apart.nats.tolist() == pytest.approx((whole + alone.nats).tolist(), abs=1e-3)
    assert apart.counts.tolist() == [50] * 6


# Does it listen?


def listening(steps: int) -> tuple[AudioLM, list[Clip]]:
    """A stage whose codes are the semantic ones, and a network trained on that for so many steps."""
    semantic, acoustic = TokenSpec("semantic", 8, 1, 25.0), TokenSpec("acoustic", 8, 1, 25.0)
    stage = stages.parallel(semantic, acoustic)
    torch.manual_seed(0)
    network = language_model(stage, TransformerConfig(layers=1, heads=2, width=32, ffn=32, dropout=0))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for step in range(steps):
        codes = torch.randint(8, (16, 1, 30))
        nats, counts = network(*mask(stage, [{"given": [each], "predicted": each} for each in codes], step))
        optimizer.zero_grad()
        (nats.sum() / counts.sum()).backward()
        optimizer.step()
    made = []
    for number in range(6):
        codes = torch.randint(8, (1, 60), generator=torch.Generator().manual_seed(number))
        tokens = AudioTokens(Tokens(codes, semantic), Tokens(codes, acoustic))
        made.append(Clip(Recording(Path(), str(number), "me", "test", 2.4), 16_000, tokens))
    model: Any = SimpleNamespace(stages={"parallel": (stage, network.eval())})
    return model, made


def test_the_oracle_tells_a_stage_that_listens_from_one_that_does_not() -> None:
    figures = oracle_figures(Bench(*listening(80)))
    assert value(figures["oracle.parallel.true"]) < 0.5
    for way in ("shuffled", "other"):
        gain = figures[f"oracle.parallel.{way}_gain"]
        assert isinstance(gain, Measure)
        assert gain.low > 1
        assert gain.value == pytest.approx(value(figures[f"oracle.parallel.{way}"]) - value(figures["oracle.parallel.true"]))
    model, clips = listening(0)
    figures = oracle_figures(Bench(model, clips))
    assert abs(value(figures["oracle.parallel.shuffled_gain"])) < 0.3
    model.stages = {}
    with pytest.raises(Missing, match="no stage"):
        oracle_figures(Bench(model, clips))


def test_without_repeats_shuffled_units_are_no_more_tokens_than_the_true_ones(
    tiny_model: AudioLM, clips: list[Clip], female: Waveform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames apart would break the runs, and a stage that ignores its tokens would seem to listen by their number alone."""
    stage, network = tiny_model.stages["coarse"]
    model = replace(tiny_model, stages={"coarse": (replace(stage, dedup=True), network)}, sampling={})
    given: list[torch.Tensor] = []
    monkeypatch.setattr(oracle, "crop_nats", lambda *args: (given.append(args[2]["semantic"]), crop_nats(*args))[1])
    oracle_figures(Bench(model, clips[:1]))
    asked = continuations(model, [("f", female)], seconds=1.0, seed=7, ways=())[0].asked
    for true, other in (given, (asked["resaid"], asked["shuffled"])):
        assert not other.equal(true)
        assert other.sort().values.equal(true.sort().values)
        assert len(other[0].unique_consecutive()) <= len(true[0].unique_consecutive())


def test_the_oracle_asks_every_stage_that_is_given_semantic_tokens(parallel_model: AudioLM, clips: list[Clip]) -> None:
    figures = oracle_figures(Bench(parallel_model, clips))
    assert {name.split(".")[1] for name in figures} == {"coarse", "parallel"}


# Continuations by other stages


def test_models_with_a_parallel_stage_are_continued(parallel_model: AudioLM, female: Waveform) -> None:
    both = continuations(parallel_model, [("f", female)], 1.0, seed=0, ways=("full", "parallel", "revoiced"))[0]
    assert set(both.sounds) == {"real", "codec", "full", "parallel", "revoiced"}
    assert both.asked["parallel"].equal(both.asked["full"])
    assert not torch.allclose(both.sounds["parallel"].samples, both.sounds["full"].samples)
    assert value(continuation_figures(parallel_model, [both])["continuation.parallel.unit_errors"]) > 0
    alone = replace(parallel_model, stages={name: parallel_model.stages[name] for name in ("semantic", "parallel")})
    assert decoders(alone.stages) == ["parallel"]
    only = continuations(alone, [("f", female)], 1.0, seed=0)[0]
    assert set(only.sounds) == {"real", "codec", "resaid", "full", "shuffled"}
    assert torch.allclose(only.sounds["full"].samples, both.sounds["parallel"].samples, atol=1e-5)


def test_the_codec_beside_them_has_as_many_levels(tiny_model: AudioLM, female: Waveform) -> None:
    few = replace(tiny_model, about=tiny_model.about | {"codebooks": 2})
    rows = [continuations(model, [("f", female)], 1.0, seed=0, ways=())[0].sounds["codec"] for model in (few, tiny_model)]
    whole = female.resample(tiny_model.sample_rate).trim(4.0)
    for row, levels in zip(rows, (2, None), strict=True):
        torch.testing.assert_close(row.samples, tiny_model.reconstruct(whole, levels, watermark=False).trim(start=3.0).samples)
    assert not torch.allclose(rows[0].samples, rows[1].samples)


def test_the_semantic_stage_is_packed_like_the_others(tiny_model: AudioLM, female: Waveform) -> None:
    model = replace(tiny_model, stages=copy.deepcopy(tiny_model.stages), precision="int8")
    continuations(model, [("f", female)], 1.0, seed=0, ways=("full",))
    assert all(network.packed is not None for name, (_, network) in model.stages.items() if name in ("semantic", "coarse"))


# Phones


def test_abx_and_layers_by_an_item_file(tiny_model: AudioLM, clips: list[Clip], tmp_path: Path) -> None:
    items = tmp_path / "few.item"
    rows = ["#file onset offset #phone prev-phone next-phone speaker"]
    for file in ("prompt-female", "prompt-male"):
        rows += [f"{file} {0.5 + n / 2} {0.8 + n / 2} {'AE' if n % 2 else 'IH'} B T {file}" for n in range(6)]
    items.write_text("\n".join(rows))
    bench = Bench(tiny_model, clips, items=items, levels=(2, 6))
    figures = abx_figures(bench)
    for kind in ("units", "features", "mfcc", "codec2", "codec6"):
        assert all(0 <= value(figures[f"abx.{kind}.{mode}"]) <= 1 for mode in ("within", "across"))
    # Three of each phone, of which two are A and X and each other phone's is B; across, X is one of the other speaker's three.
    assert figures["abx.within_triplets"] == 2 * 2 * 3 * 2 * 3
    assert figures["abx.across_triplets"] == 2 * 2 * 3 * 3 * 3
    found = layer_figures(bench)
    assert {f"layer.{n}.pnmi" for n in (1, 2)} | {"layer.2.across", "size.8.pnmi", "size.32.pnmi_corrected"} <= set(found)
    assert value(found["size.4.pnmi"]) < value(found["size.32.pnmi"])


def test_what_two_tables_show_is_worked_out_once(
    tiny_model: AudioLM, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, done = tmp_path / "few.item", list[str]()
    rows = ["#file onset offset #phone prev-phone next-phone speaker"]
    for number, (file, phone) in enumerate((who, phone) for who in ("female", "male") for phone in ("IH", "AE", "IH", "AE")):
        rows.append(f"prompt-{file} {0.5 + number % 4 / 2} {0.8 + number % 4 / 2} {phone} B T {file}")
    items.write_text("\n".join(rows))
    for place, name in ((bench, "read_clip"), (units.KMeans, "fit"), (units, "confusions"), (units, "_layers")):
        count(monkeypatch, place, name, done)
    both = Bench(tiny_model, clips, items=items, levels=(2,))
    found = layer_figures(both)
    own, size = int(value_of(found["layers.own"])), tiny_model.semantic.spec.codebook_size
    assert found[f"size.{size}.pnmi"] == found[f"layer.{own}.pnmi"]
    assert done.count("fit") == 2 + 3  # of each layer, and of a quarter, half and twice as many units
    assert found[f"layer.{own}.within"] == abx_figures(both)["abx.features.within"]
    assert done.count("confusions") == 2 * (2 + 3)  # of both layers, of units, MFCC and the codec; within and across
    assert done.count("read_clip") == done.count("_layers") == len(clips)


def count(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, done: list[str]) -> None:
    made = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *given, **named: (done.append(name), made(*given, **named))[1])


def value_of(figure: Any) -> float:
    assert isinstance(figure, float)
    return figure


def test_a_damaged_training_recording_costs_no_part(tiny_model: AudioLM, clips: list[Clip], tmp_path: Path) -> None:
    whole = clips[0].recording.path.read_bytes()
    damaged = tmp_path / "damaged.flac"
    damaged.write_bytes(whole[: len(whole) // 2])
    train = [replace(clip.recording, split="train") for clip in clips]
    others = [replace(train[0], path=damaged), *train]
    with pytest.raises(InputError):
        bench.read_clip(others[0], 16_000)
    assert len(bench.readable(others, 16_000)) == 2
    figures = unit_figures(Bench(tiny_model, clips, others))
    assert (figures["mfcc.fitted_on"], figures["mfcc.fitted_elsewhere"]) == (2, 1)
    figures = layer_figures(Bench(tiny_model, clips, others[:1]))
    assert (figures["layers.fitted_on"], figures["layers.elsewhere"]) == (2, 0)


# Words


def test_every_way_of_saying_the_words_is_heard(
    parallel_model: AudioLM, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    class Deaf:
        def __call__(self, audio: torch.Tensor) -> str:
            heard.append(round(audio.shape[-1] / 16_000, 1))
            return "you see"

    monkeypatch.setattr(words, "Recogniser", Deaf)
    figures = word_figures(Bench(parallel_model, clips[:1]))
    ways = {("whole", way) for way in ("real", "codec", "revoiced", "revoiced_parallel")}
    ways |= {("after", way) for way in ("real", "codec", "resaid", "resaid_parallel")}
    assert {tuple(name.split(".")[1:3]) for name in figures if name.endswith(".wer")} == ways
    assert all(value(figures[f"words.{part}.{way}.wer"]) == (11 / 13 if part == "whole" else 0) for part, way in ways)
    said_again = [figures[f"words.after.{way}.pesq"] for way in ("codec", "resaid", "resaid_parallel")]
    assert all(1 < value(each) < 4.65 for each in said_again)
    assert "words.after.real.pesq" not in figures  # of nothing with itself
    assert sorted(heard) == [1.4] * 4 + [4.4] * 4
    silent = [replace(clip, recording=replace(clip.recording, columns={})) for clip in clips]
    with pytest.raises(Missing, match="transcript"):
        word_figures(Bench(parallel_model, silent))


# Speakers


def test_the_classifier_learns_two_voices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hiss and a hum, other stretches of which it then tells apart; the same seed gives the same network."""
    monkeypatch.setattr(voices, "STEPS", 80)
    monkeypatch.setattr(voices, "SMALL", (8, 16))
    hiss = torch.randn(48_000, generator=torch.Generator().manual_seed(0))
    hum = hiss.cumsum(0) / 100
    network, again = (voices.train_speakers([[hiss[:32_000]], [hum[:32_000]]], seed=0) for _ in range(2))
    for number, sound in enumerate((hiss, hum)):
        guesses = voices.crop_logits(network, Waveform(sound[None, 32_000:], 16_000)).log_softmax(1).mean(0)
        assert int(guesses.argmax()) == number
    assert torch.equal(network.head.weight, again.head.weight)


def test_table_iii(tiny_model: AudioLM, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "STEPS", 2)
    monkeypatch.setattr(voices, "BATCH", 4)
    few = Bench(tiny_model, clips, limit=2, seconds=1.0)
    with pytest.raises(Missing, match="6 recordings each"):
        voices.speaker_figures(few)
    # The woman is measured, and so unheard; the man is of the training's voices.
    others = [replace(clips[0].recording, name=f"f{n}") for n in range(6)]
    others += [replace(clips[1].recording, name=f"m{n}", split="train") for n in range(7)]
    figures = voices.speaker_figures(Bench(tiny_model, clips[:1], others, limit=2, seconds=1.0))
    assert (figures["speakers.speakers"], figures["speakers.unheard_speakers"], figures["speakers.clips"]) == (2, 1, 2)
    for way in ("real", "codec", "revoiced", "full", "acoustic"):
        assert value(figures[f"speakers.{way}.unheard_accuracy"]) in (0, 1)


def test_a_speaker_of_whom_nothing_can_be_read_is_named(tiny_model: AudioLM, clips: list[Clip], tmp_path: Path) -> None:
    whole = clips[1].recording.path.read_bytes()
    damaged = tmp_path / "damaged.flac"
    damaged.write_bytes(whole[: len(whole) // 2])
    others = [replace(clips[0].recording, name=f"f{n}") for n in range(6)]
    others += [replace(clips[1].recording, name=f"m{n}", path=damaged, split="train") for n in range(7)]
    with pytest.raises(Missing, match=f"none of the recordings of speaker {clips[1].recording.speaker}"):
        voices.speaker_figures(Bench(tiny_model, clips[:1], others, limit=2, seconds=1.0))


def test_a_speaker_of_whom_one_recording_was_trained_on_is_not_unheard(
    tiny_model: AudioLM, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Splits may be of recordings, with speakers in several; and those of valid are as unheard as those of test."""
    monkeypatch.setattr(voices, "STEPS", 2)
    monkeypatch.setattr(voices, "BATCH", 4)
    others = [replace(clips[0].recording, name=f"f{n}", split="train" if n == 0 else "test") for n in range(6)]
    others += [replace(clips[1].recording, name=f"m{n}", split="valid") for n in range(7)]
    assert voices.not_trained_on([clips[0].recording, *others]) == {"male"}
    figures = voices.speaker_figures(Bench(tiny_model, clips[:1], others, limit=2, seconds=1.0))
    assert (figures["speakers.speakers"], figures["speakers.unheard_speakers"]) == (2, 1)


def test_held_out_recordings_are_not_learnt_from() -> None:
    recordings = [
        Recording(Path(), f"{who}{n}", who, "test", 1.0 if n < 5 else 9.0)
        for who, count in (("a", 25), ("b", 3))
        for n in range(count)
    ]
    learnt, held = voices.held_out(recordings, seed=0)
    assert set(learnt) == {"a"}
    assert len(held) == 2
    assert all(each.seconds == 9.0 for each in held)  # what could not be continued is not held out
    assert not {each.name for each in held} & {each.name for each in learnt["a"]}


def test_in_turn() -> None:
    speakers = ["a", "a", "a", "b", "c", "c"]
    order = in_turn(speakers, 3)
    assert sorted(order) == list(range(6))
    assert {speakers[number] for number in order[:3]} == {"a", "b", "c"}
    assert {speakers[number] for number in order[3:5]} == {"a", "c"}


# Pairs


def test_the_likelier_of_two_is_found(tiny_model: AudioLM, female: Waveform, male: Waveform, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="sLM21-dataset"):
        pair_figures(Bench(tiny_model, []))
    with pytest.raises(Missing, match=r"neither lexical/dev/gold\.csv"):
        pair_figures(Bench(tiny_model, [], pairs=tmp_path))
    place = tmp_path / "syntactic" / "dev"
    place.mkdir(parents=True)
    for name, sound in (("a", female), ("b", male)):
        sound.trim(1.0).write(place / f"{name}.wav")
    header = "id,filename,voice,type,subtype,transcription,correct\n"
    found = []
    for right, wrong in ("ab", "ba", "aa"):
        (place / "gold.csv").write_text(f"{header}1,{right},v,t,s,x,1\n1,{wrong},v,t,s,y,0\n")
        found.append(value(pair_figures(Bench(tiny_model, [], pairs=tmp_path))["pairs.syntactic.score"]))
    assert sorted(found[:2]) == [0, 1]
    assert found[2] == 0.5


# The whole


def test_what_is_missing_is_told(tiny_model: AudioLM, clips: list[Clip]) -> None:
    recordings = [replace(clip.recording, columns={}) for clip in clips]
    report = evaluate(tiny_model, recordings, parts=("abx", "words", "speakers", "pairs"), seconds=1.0)
    card = markdown(report)
    for part, wanted in (
        ("abx", "more recordings"),
        ("words", "transcript"),
        ("speakers", "6 recordings"),
        ("pairs", "zrc datasets"),
    ):
        assert wanted in report[f"missing.{part}"]
        assert f"- {part}: " in card.split("### Not measured")[1]


def test_each_part_and_its_cost_stand_in_the_help() -> None:
    from audiolm.commands.measuring import evaluate as verb

    assert verb.__doc__
    assert all(f"{part} (" in verb.__doc__ for part in PARTS)


def test_what_could_not_be_measured_is_a_dash_and_what_was_not_heard_is_not_spoken_of() -> None:
    one = {"recordings.clips": 3, "recordings.speakers": 2, "recordings.seconds": 9.0, "recordings.left_out": [], "seed": 0}
    made = {"stage.fine.bits": None, "stage.fine.unigram": 3.0, "codec.4.bitrate": 2000.0, "codec.4.pesq": None}
    made |= {f"codebook.1.{kind}": None for kind in ("bitrate", "entropy_bitrate", "used", "perplexity", "residual_energy")}
    card = markdown({**one, **made})
    for row in ("| **fine** | - | 3.000 | - |", "| energy left, % | - |", "| codes used, % | - |"):
        assert row in card
    assert "ViSQOL" not in card
    assert "ViSQOL: of 3 recordings" in markdown({**one, **made, "visqol.real.fit": 4.9, "visqol.real.fit.clips": 3})


def test_all_tables_are_written() -> None:
    """Every figure that a part makes has its row: a made-up report of all of them."""
    one = {"recordings.clips": 3, "recordings.speakers": 2, "recordings.seconds": 9.0, "recordings.left_out": [], "seed": 0}
    made = {
        **{f"abx.{kind}.{mode}": 0.1 for kind in ("units", "codec4") for mode in ("within", "across")},
        **{"abx.from_items": 0.0, "abx.within_triplets": 8.0, "abx.across_triplets": 9.0},
        **{"layer.1.pnmi": 0.3, "layer.1.within": 0.2, "layers.own": 1.0, "layers.fitted_on": 4.0, "layers.elsewhere": 1.0},
        **{"size.16.pnmi": 0.25, "size.16.pnmi_corrected": 0.2},
        **{"oracle.coarse.true": 7.0, "oracle.coarse.shuffled": 7.0, "oracle.coarse.shuffled_gain": 0.001},
        **{"oracle.coarse.shuffled_gain.low": -0.01, "oracle.coarse.shuffled_gain.high": 0.01},
        **{"words.whole.clips": 3.0, "words.after.clips": 2.0, "words.whole.real.wer": 0.28, "words.after.resaid.cer": 0.9},
        **{"words.after.resaid.wer": 0.95, "words.after.resaid.pesq": 1.2},
        **{"speakers.speakers": 9.0, "speakers.unheard_speakers": 3.0, "speakers.clips": 4.0, "speakers.chance": 1 / 9},
        **{"speakers.full.accuracy": 0.5, "speakers.full.unheard_accuracy": math.nan},
        **{"pairs.lexical.score": 0.55, "pairs.lexical.pairs": 40.0, "distance.real": 0.1, "distance.full": 0.4},
        **{"distance.parts": 30.0, "distance.reference_parts": 300.0, "missing.visqol": "an example"},
    }
    card = markdown({**one, **{name: None if figure != figure else figure for name, figure in made.items()}})
    for row in (
        "| semantic tokens | 0.100 | 0.100 |",
        "| acoustic tokens, 4 levels |",
        "| **1** | 0.200 | - | 0.300 | - |",
        "| 16 | 0.250 | 0.200 |",
        "| coarse | its own, shuffled | 7.000 | 0.001 (-0.010 to 0.010) |",
        "- The coarse stage shows no significant use of its semantic tokens",
        "| whole clips | the recording | 0.280 | - | - |",
        "| after a prompt of 3 s | continuation: its units, in the prompt's voice | 0.950 | 0.900 | 1.200 |",
        "| **continuation** | 50.0 | - | 92.6 |",
        "| sWUGGY | 40 | 55.0 | - | - | 71.5 (83.7 of known words) |",
        "| **continuation** | 0.4000 |",
        "- visqol: an example",
    ):
        assert row in card, row
