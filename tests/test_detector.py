"""The classifier and the detector: what they hear and what they do not, calibration, and a training that resumes."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audiolm import bundle, detector, stages
from audiolm.asking import AcousticDecoder, Request
from audiolm.attacks import ATTACKS, random_attack
from audiolm.audio import Waveform, concatenate, read
from audiolm.classifier import CHANNELS, CropClassifier, crop_logits, crops_of
from audiolm.cli import run
from audiolm.detector import Detector, calibrated, equal_error_rate, file_score
from audiolm.errors import InputError
from audiolm.files import one_at_a_time
from audiolm.model import AudioLM
from audiolm.training.data import scan
from audiolm.training.detector_sounds import PROMPT, levels_of, load_clips, make_sounds, plan, plan_others
from audiolm.training.run import Stopped
from audiolm.training.train_detector import CropBatches, DetectorTrainConfig, card, pack, settle, train_detector
from audiolm.transformer import TransformerConfig


@pytest.fixture
def network() -> CropClassifier:
    torch.manual_seed(0)
    return CropClassifier(1, (4, 8, 8)).eval()


def test_the_paper_network() -> None:
    network = CropClassifier(291, CHANNELS).eval()
    assert network(torch.randn(2, 16_000)).shape == (2, 291)
    kernels = [layer.kernel_size for layer in network.blocks if isinstance(layer, torch.nn.Conv2d)]
    assert kernels == [(3, 1), (1, 3)] * 6
    assert network.log_mel(torch.randn(1, 16_000)).shape == (1, 101, 64)


def test_gain_and_polarity_do_not_matter(network: CropClassifier, female: Waveform) -> None:
    crops = crops_of(female)
    heard = network.log_mel(crops)
    torch.testing.assert_close(network.log_mel(0.01 * crops), heard, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(network.log_mel(-crops), heard)
    assert (network.log_mel(crops.flip(1)) - heard).abs().mean() > 0.3
    assert network(torch.zeros(1, 16_000)).isfinite().all()


def test_crops_of_a_sound(female: Waveform) -> None:
    sound = female.trim(2.0)
    assert crops_of(sound).shape == (5, 16_000)
    torch.testing.assert_close(crops_of(sound)[4], sound.samples[0, 16_000:])
    assert crops_of(sound.trim(0.3)).shape == (1, 16_000)
    assert crops_of(sound.resample(44_100)).shape == (5, 16_000)


def test_a_file_is_as_suspicious_as_its_worst_two_seconds(network: CropClassifier, female: Waveform) -> None:
    logits = torch.tensor([-5.0] * 20 + [3.0] * 5 + [-5.0] * 20)
    assert file_score(logits) == pytest.approx(3.0)
    assert file_score(torch.tensor([1.0, 2.0])) == pytest.approx(1.5)
    made = Detector(network)
    verdict, short = made(female), made(female.trim(0.9))
    assert short is None
    assert verdict is not None
    assert verdict.probability == pytest.approx(torch.sigmoid(torch.tensor(file_score(crop_logits(network, female)[:, 0]))))


def test_nothing_to_hear_is_not_judged(network: CropClassifier, female: Waveform) -> None:
    """Digital silence, a constant, and channels that cancel out: to the network they would all be one arbitrary sound."""
    opposite = torch.cat([female.samples, -female.samples])
    for samples in (torch.zeros(1, 32_000), torch.full((1, 32_000), 0.5), opposite):
        told = detector.examine(Waveform(samples, 16_000), Detector(network), "tiny")
        assert told["synthetic_probability"] is None
        assert told["note"].startswith("digital silence")


def test_progress_comes_to_the_last_crop(network: CropClassifier, female: Waveform) -> None:
    long, told = Waveform(female.samples.repeat(1, 3), 16_000), []
    crop_logits(network, long, lambda *numbers: told.append(numbers))
    assert [done for done, _ in told] == [16, 32, 48, 49]
    assert {total for _, total in told} == {len(crops_of(long))} == {49}


def test_calibration_tells_the_truth() -> None:
    torch.manual_seed(0)
    real, generated = torch.randn(4000) * 2 - 3, torch.randn(4000) * 2 + 1  # the true log odds: score + 1
    slope, offset = calibrated(real.tolist(), generated.tolist())
    assert slope == pytest.approx(1.0, abs=0.1)
    assert offset == pytest.approx(1.0, abs=0.15)
    few = calibrated(real[:400].tolist(), generated.tolist())  # priors are even whatever the counts
    assert few == pytest.approx((slope, offset), abs=0.3)


def test_calibration_is_never_certain() -> None:
    slope, offset = calibrated([-9.0, -8.0, -10.0], [7.0, 8.0, 9.0])
    assert 0.5 < torch.sigmoid(torch.tensor(8 * slope + offset)) < 0.95


@pytest.mark.parametrize(
    ("real", "generated", "rate"),
    [
        ([0, 1, 2], [3, 4, 5], 0.0),
        ([3, 4, 5], [0, 1, 2], 1.0),
        ([0, 1, 2, 3], [0, 1, 2, 3], 0.5),
        ([0, 0, 0, 9], [5, 5, 5, -1], 0.25),
    ],
)
def test_equal_error_rate(real: list[float], generated: list[float], rate: float) -> None:
    assert equal_error_rate(real, generated) == pytest.approx(rate)


def test_kept_and_read_again(network: CropClassifier, female: Waveform, tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    Detector(network, 0.7, -0.1, {"model": "x"}).save(path)
    again = detector.load(path)
    assert (again.slope, again.offset, again.about) == (0.7, -0.1, {"model": "x"})
    torch.testing.assert_close(crop_logits(again.network, female), crop_logits(network, female), atol=0.05, rtol=0.05)
    again.save(tmp_path / "twice.safetensors")  # nothing more is lost
    assert (tmp_path / "twice.safetensors").read_bytes() == path.read_bytes()
    assert bundle.detector_of(tmp_path / "nothing") is None
    (tmp_path / "wrong.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"wrong\.safetensors"):
        detector.load(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_attacks_change_what_they_say_and_nothing_else(female: Waveform, attack: str) -> None:
    sound = female.trim(1.0)
    attacked = ATTACKS[attack](sound)
    assert torch.equal(ATTACKS[attack](sound).samples, attacked.samples)
    assert attacked.seconds == pytest.approx(1.0, abs=0.07)  # Opus and MP3 add some
    if attack not in ("none", "16-bit PCM"):  # the clip has 16 bits
        assert attacked.sample_rate != sound.sample_rate or not torch.equal(attacked.samples, sound.samples)


def test_drawn_attacks_keep_rate_and_length(female: Waveform) -> None:
    drawn = [random_attack(female.trim(1.0), torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert {(each.sample_rate, each.samples.shape) for each in drawn} == {(16_000, (1, 16_000))}
    assert len({each.samples.double().abs().sum().item() for each in drawn}) > 6


@pytest.fixture(scope="module")
def corpus(female: Waveform, male: Waveform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = ["path,speaker,split"]
    for number, (split, sound) in enumerate([("train", female), ("train", male), ("valid", female), ("test", male)]):
        sound.write(folder / f"{number}.flac")
        rows.append(f"{number}.flac,{number},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def model(tiny_model: AudioLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    bundle.save(tiny_model, folder, "# A card\n\n## After\n\nmore\n")
    return folder


TINY = DetectorTrainConfig(clips=2, seconds=1.2, channels=(4, 8, 16), batch_size=8, steps=40, lr=0.01, warmup=0, save_every=20)


def test_training(corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random weights is easily known; resumed equals uninterrupted; a bundle takes the result in."""
    figures = train_detector(model, corpus, tmp_path / "one", TINY)
    assert figures["attacks"]["none"]["balanced_accuracy"] > 0.9
    assert figures["clips"] == {"train": 2, "valid": 1, "test": 1}
    assert figures["unseen_speakers"] == 1
    assert "crops of unseen speakers |" in card(figures)
    assert "generated clips of 1 speakers, all unseen (" in card(figures)
    assert set(figures["attacks"]) == set(ATTACKS)
    share = figures["kinds"]["continued"]
    assert 2 * figures["attacks"]["none"]["balanced_accuracy"] - 1 <= share <= 1
    assert f"without attack: continuation {100 * share:.1f} %." in card(figures)
    assert json.loads((tmp_path / "one" / "detector.json").read_text()) == figures
    first = (tmp_path / "one" / "detector.safetensors").read_bytes()
    sounds = sorted(path.name for path in (tmp_path / "one" / "sounds").iterdir())
    assert sounds[:3] == ["test-0000.codec.flac", "test-0000.continued.flac", "test-0000.real.flac"]
    real, made = (read(tmp_path / "one" / "sounds" / name) for name in (sounds[2], sounds[1]))
    assert real.samples.shape == made.samples.shape
    (tmp_path / "one" / "sounds" / sounds[1]).unlink()
    (tmp_path / "one" / "run" / "step-00000040" / "files.json").unlink()  # as if killed in its last step
    with one_at_a_time(tmp_path / "one"), pytest.raises(InputError, match="another process is training there"):
        train_detector(model, corpus, tmp_path / "one", TINY)
    with monkeypatch.context() as patched:
        patched.setattr("audiolm.training.train_detector.fit", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):  # before it is measured
            train_detector(model, corpus, tmp_path / "one", TINY)
    train_detector(model, corpus, tmp_path / "one", TINY)
    assert (tmp_path / "one" / "detector.safetensors").read_bytes() == first
    with pytest.raises(InputError, match="another configuration"):
        train_detector(model, corpus, tmp_path / "one", TINY.model_copy(update={"steps": 41}))

    for _ in range(2):
        pack(tmp_path / "one", model)
    readme = (model / "README.md").read_text()
    assert readme.count("## Detector") == 1
    assert readme.startswith("# A card\n\n## After\n\nmore\n\n## Detector\n")
    made = bundle.detector_of(model)
    assert made is not None
    assert made.about["model"] is None
    assert made.about["weights"] == detector.identity(bundle.read_config(model))
    both = made(concatenate([real, real])), made(read(tmp_path / "one" / "sounds" / sounds[1]))
    assert None not in both

    still = TINY.model_copy(update={"further": True, "channels": detector.SMALL, "steps": 1, "lr": 1e-9})
    shutil.copytree(tmp_path / "one" / "sounds", tmp_path / "on" / "sounds")
    train_detector(model, corpus, tmp_path / "on", still)
    on = detector.load(tmp_path / "on" / detector.FILE).network
    assert all(torch.equal(a, b) for a, b in zip(on.blocks.parameters(), made.network.blocks.parameters(), strict=True))
    (model / detector.FILE).unlink()
    with pytest.raises(InputError, match="has no detector to train further; leave --further out"):
        train_detector(model, corpus, tmp_path / "none", still)
    assert not (tmp_path / "none").exists()


def test_other_sounds_are_negatives_too(corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the negatives are of other kinds; none of these is generated from, or counts among the model's own kind."""
    noise, splits = torch.Generator().manual_seed(0), ("train", "train", "valid", "test", "test")
    for number in range(5):
        (tmp_path / "noise").mkdir(exist_ok=True)
        Waveform(0.1 * torch.randn(1, 80_000, generator=noise), 16_000).write(tmp_path / "noise" / f"{number}.wav")
    rows = [f"{number}.wav,{split}" for number, split in enumerate(splits)]
    (tmp_path / "noise" / "manifest.csv").write_text("\n".join(["path,split", *rows]))
    figures = train_detector(model, corpus, tmp_path / "out", TINY, others=tmp_path / "noise")
    assert figures["clips"] == {"train": 2, "valid": 1, "test": 1}
    assert figures["unseen_speakers"] == 1
    assert figures["others"] == {"clips": 2, "real": 0, "codec": figures["others"]["codec"]}
    assert "Of 2 held-out recordings of other kinds than the model's" in card(figures)
    sounds = {path.name for path in (tmp_path / "out" / "sounds").glob("other-*")}
    assert sounds == {f"other-{number:04d}.{kind}.flac" for number in range(5) for kind in ("real", "codec")}
    plans = plan(scan(corpus), TINY, ("semantic",)) + plan_others(scan(tmp_path / "noise"), TINY)
    batches = CropBatches(load_clips(plans, "train", tmp_path / "out" / "sounds"), TINY.model_copy(update={"batch_size": 12}))
    drawn: list[tuple[bool, str]] = []
    taken = batches.attacked
    monkeypatch.setattr(
        batches,
        "attacked",
        lambda clip, kind, variant: drawn.append((clip in batches.others, kind)) or taken(clip, kind, variant),
    )
    labels = torch.cat([batches.batch(step)[1] for step in range(20)]).tolist()
    assert sum(other for other, _ in drawn) == 20 * 2
    assert {label for label, (other, _) in zip(labels, drawn, strict=True) if other} == {0.0}
    assert {kind for other, kind in drawn if other} == {"real", "codec"}


def test_levels_give_nothing_away(corpus: Path, model: Path, tmp_path: Path) -> None:
    """What is generated without the fine stage stands against real speech at as many levels of the codec."""
    parts = bundle.read_config(model)["stages"]
    coarse = parts["coarse"]["stage"]["predict"]["last"]
    assert levels_of(parts) == [coarse, None]
    assert levels_of({name: parts[name] for name in ("semantic", "coarse")}) == [None]
    made = plan(scan(corpus) * 4, TINY.model_copy(update={"clips": 8, "measured": 4}), ("semantic",), levels_of(parts))
    assert [each.split for each in made] == ["train"] * 8 + ["valid"] * 2 + ["test"] * 4
    assert [each.codebooks for each in made if each.split == "train"].count(None) == 2  # a quarter of those learned from
    assert [each.codebooks for each in made if each.split == "test"] == [coarse, None, coarse, None]
    loaded = bundle.load(model)
    loaded.about["codebooks"] = coarse
    bundle.save(loaded, tmp_path / "few", "")
    for each in (made[0], next(each for each in made if each.codebooks is None and each.kind == "revoiced")):
        make_sounds(tmp_path / "few", [each], tmp_path, 1.0)
        sound = read(each.recording.path).mono().trim(PROMPT + 1.0)
        codec = loaded.reconstruct(sound, each.codebooks, watermark=False).trim(start=PROMPT)
        torch.testing.assert_close(read(each.path(tmp_path, "codec")).samples, codec.samples.clamp(-1, 1), atol=1e-4, rtol=0)
        request = Request(sound.trim(PROMPT), sound.seconds - PROMPT, seed=each.seed)
        if each.kind == "revoiced":
            request = Request(semantic=loaded.tokenize(sound.trim(start=PROMPT)).semantic, seed=each.seed)
        levels = each.codebooks or loaded.codec.spec.num_codebooks
        generated = loaded.generate_batch([request], only_new=True, codebooks=levels, watermark=False)[0]
        torch.testing.assert_close(
            read(each.path(tmp_path, each.kind)).samples, generated.samples.clamp(-1, 1), atol=1e-4, rtol=0
        )


def test_recordings_go_on_where_more_clips_are_asked_for(
    corpus: Path, model: Path, female: Waveform, male: Waveform, tmp_path: Path
) -> None:
    """All recordings' first pieces, then their next ones, as long as a second is left after the prompt."""
    long = concatenate([female, male, female]).trim(5.5)
    long.write(tmp_path / "long.flac")
    others = scan(corpus)
    recording = replace(others[0], name="long", path=tmp_path / "long.flac", seconds=long.seconds, speaker="another")
    made = plan([*others, recording], TINY.model_copy(update={"clips": 99, "seconds": 1.0}), ("semantic",))
    starts = {name: [each.start for each in made if each.recording.name == name] for name in ("long", others[0].name)}
    assert starts == {"long": [0, 1], others[0].name: [0]}
    assert [each.start for each in made if each.split == "train"] == [0, 0, 0, 1]
    for each in made:
        if each.recording is recording:
            make_sounds(model, [each], tmp_path, 1.0)
            real = long.mono().resample(16_000).trim(start=PROMPT + each.start).trim(1.0)
            torch.testing.assert_close(read(each.path(tmp_path, "real")).samples, real.samples, atol=1e-4, rtol=0)


def test_both_decoders_are_heard(corpus: Path, tiny_model: AudioLM, tmp_path: Path) -> None:
    recordings, config = scan(corpus) * 3, TINY.model_copy(update={"clips": 6})
    stage = stages.parallel(tiny_model.semantic.spec, tiny_model.codec.spec)
    network = bundle.language_model(stage, TransformerConfig(layers=1, heads=1, width=16, ffn=16))
    model = AudioLM(tiny_model.semantic, tiny_model.codec, {**tiny_model.stages, "parallel": (stage, network)})
    bundle.save(model, tmp_path / "model", "")
    assert "parallel" not in {each.kind for each in plan(recordings, config, tuple(tiny_model.stages))}
    each = next(each for each in plan(recordings, config, tuple(model.stages)) if each.kind == "parallel")
    make_sounds(tmp_path / "model", [each], tmp_path, 1.0)
    sound, heard = read(each.recording.path).mono().trim(PROMPT + 1.0), read(each.path(tmp_path, "parallel"))
    request = Request(sound.trim(PROMPT), sound.seconds - PROMPT, seed=each.seed)
    decoders: dict[AcousticDecoder, bool] = {"parallel": True, "autoregressive": False}
    for decoder, same in decoders.items():
        said = bundle.load(tmp_path / "model").generate_batch([request], only_new=True, decoder=decoder, watermark=False)[0]
        assert torch.allclose(heard.samples, said.samples.clamp(-1, 1), atol=1e-4) is same


def test_normalisation_is_settled_by_the_final_weights(network: CropClassifier) -> None:
    class Batches:
        def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.randn(8, 16_000, generator=torch.Generator().manual_seed(step)), torch.zeros(8)

    settle(network, Batches(), 3)  # pyright: ignore[reportArgumentType]
    first = next(layer for layer in network.blocks if isinstance(layer, torch.nn.BatchNorm2d))
    heard = []
    hook = first.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].mean((0, 2, 3))))
    with torch.no_grad():
        for step in (1, 2, 3):
            network(Batches().batch(step)[0])
    hook.remove()
    torch.testing.assert_close(first.running_mean, torch.stack(heard).mean(0))


def test_further_negatives_are_real_speech_alone(corpus: Path, model: Path, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"clips": 1, "negatives": 1, "steps": 2, "save_every": 2})
    assert train_detector(model, corpus, tmp_path, config)["clips"] == {"train": 2, "valid": 1, "test": 1}
    kinds = {path.name.split(".")[1] for path in (tmp_path / "sounds").glob("train-0001.*")}
    assert kinds == {"real", "codec"}
    assert (tmp_path / "sounds" / "train-0000.continued.flac").is_file()


def test_a_speaker_who_is_in_two_splits_is_not_unseen(corpus: Path, model: Path, tmp_path: Path) -> None:
    rows = (corpus / "manifest.csv").read_text().splitlines()[1:]
    lines = [f"{corpus}/{name},me,{split}" for name, _, split in (row.split(",") for row in rows)]
    (tmp_path / "one.csv").write_text("\n".join(["path,speaker,split", *lines]))
    config = TINY.model_copy(update={"steps": 2, "save_every": 2})
    figures = train_detector(model, tmp_path / "one.csv", tmp_path / "out", config)
    assert figures["unseen_speakers"] == 0
    assert "crops of unseen speakers" not in card(figures)
    assert "generated clips of 1 speakers, 0 of them unseen (" in card(figures)


def test_detect_says_what_it_hears(
    corpus: Path, model: Path, tmp_path: Path, network: CropClassifier, female_path: Path, capsys
) -> None:
    arguments = ["detect", str(female_path), "-m", str(model), "--json"]
    Detector(network, 2.0, 1.0, {"weights": detector.identity(bundle.read_config(model))}).save(model / detector.FILE)
    told, verdict = _told(capsys, arguments), detector.load(model / detector.FILE)(read(female_path))
    assert verdict is not None
    assert told["synthetic_probability"] == pytest.approx(verdict.probability, abs=1e-4)
    assert told["synthetic_share"] == pytest.approx(verdict.share, abs=1e-3)
    assert "note" not in told
    assert run(arguments[:-1]) == 0
    assert f"{100 * told['synthetic_probability']:.1f} %" in capsys.readouterr().out
    read(female_path).trim(0.5).write(tmp_path / "short.wav")
    assert "too short" in _told(capsys, ["detect", str(tmp_path / "short.wav"), "-m", str(model), "--json"])["note"]
    Waveform(torch.zeros(1, 32_000), 16_000).write(tmp_path / "silent.wav")
    silent = _told(capsys, ["detect", str(tmp_path / "silent.wav"), "-m", str(model), "--json"])
    assert silent["note"].startswith("digital silence")
    assert silent["synthetic_probability"] is None
    Detector(network, about={"weights": "others"}).save(model / detector.FILE)
    assert "trained further" in _told(capsys, arguments)["note"]
    assert run(arguments[:-1]) == 0
    assert "% likely generated by" in (line := capsys.readouterr().out)
    assert "trained further" in line  # people are told that the figure is doubtful, too
    (model / detector.FILE).unlink()
    assert _told(capsys, arguments)["synthetic_probability"] is None


def test_a_file_that_cannot_be_read_leaves_the_others_their_verdicts(female_path: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    assert run(["detect", str(tmp_path / "text.wav"), str(female_path), "--json"]) == 2
    said = capsys.readouterr()
    assert [each["file"] for each in json.loads(said.out)] == [str(female_path)]
    assert "text.wav" in said.err
    assert len(said.err.splitlines()) == 1


def _told(capsys, arguments: list[str]) -> dict:
    assert run(arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_sounds_of_another_model_or_corpus_are_not_taken(corpus: Path, model: Path, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"clips": 1, "steps": 2, "save_every": 2})
    train_detector(model, corpus, tmp_path, config)
    shutil.rmtree(tmp_path / "run")  # as if killed while it generated
    for changed, what in (({"seconds": 1.1}, "seconds"), ({"seed": 5}, "plans")):
        with pytest.raises(InputError, match=rf"made from other inputs or settings \({what}\)"):
            train_detector(model, corpus, tmp_path, config.model_copy(update=changed))
    train_detector(model, corpus, tmp_path, config.model_copy(update={"lr": 0.02}))  # which no sound depends on


def test_without_a_fine_stage_the_codec_has_no_more_levels_either(corpus: Path, model: Path, tmp_path: Path) -> None:
    loaded = bundle.load(model)
    del loaded.stages["fine"]
    coarse = loaded.stages["coarse"][0].predict.last
    bundle.save(loaded, tmp_path / "coarse", "")
    each = plan(scan(corpus), TINY, ("semantic", "coarse"))[0]
    make_sounds(tmp_path / "coarse", [each], tmp_path, 1.0)
    sound = read(each.recording.path).mono().trim(PROMPT + 1.0)
    few, all_levels = (loaded.reconstruct(sound, n, watermark=False).trim(start=PROMPT).samples for n in (coarse, None))
    kept = read(each.path(tmp_path, "codec")).samples
    torch.testing.assert_close(kept, few.clamp(-1, 1), atol=1e-4, rtol=0)
    assert (all_levels.clamp(-1, 1) - kept).abs().max() > 0.01


def test_mistakes(corpus: Path, model: Path, tmp_path: Path, female: Waveform) -> None:
    female.write(tmp_path / "one.flac")
    with pytest.raises(InputError, match="no valid recording"):
        train_detector(model, tmp_path, tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()
