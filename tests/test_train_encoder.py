"""Pretraining: it learns, resumes bit for bit, evaluates without a trace, and a second pass builds on the first."""

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from audiolm.audio import Waveform
from audiolm.config import parse_config
from audiolm.conformer import Conformer, ConformerConfig, SpectrumShape
from audiolm.errors import InputError
from audiolm.files import load_tensors, save_tensors
from audiolm.training.engine import engine
from audiolm.training.run import Run, Stopped
from audiolm.training.train_encoder import (
    AugmentConfig,
    EncoderConfig,
    UnitsConfig,
    augment,
    choose_layer,
    fit_units,
    train_encoder,
    unit_function,
    warp,
)

NETWORK = {"bins": 16, "width": 16, "layers": 2, "heads": 2, "feed_forward": 32, "kernel": 5, "channels": 4}
QUICK = {"seconds": 0.5, "batch_size": 3, "warmup": 2, "fit_batches": 4, "log_every": 1, "valid_every": 3, "valid_batches": 2}


def config(steps: int = 6, kind: str = "best_rq", objective: dict[str, Any] | None = None, **more: Any) -> EncoderConfig:
    chosen: dict[str, Any] = {
        "best_rq": {"kind": "best_rq", "codes": 16, "codebooks": 2},
        "w2v_bert": {"kind": "w2v_bert", "contrastive_layers": 1, "codes": 8, "dimension": 8, "negatives": 8},
        "clusters": {"kind": "clusters", "units": 8},
    }[kind]
    chosen |= objective or {}
    return parse_config(EncoderConfig, {"network": NETWORK, "objective": chosen, "steps": steps, **QUICK, **more}, "test")


class VoiceCrops:
    """Crops of two real voices, a function of (seed, step)."""

    def __init__(self, voices: list[Waveform], seed: int = 0) -> None:
        self.sound = torch.cat([voice.samples[0] for voice in voices])
        self.seed = seed

    def batch(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1000 + step)
        starts = torch.randint(len(self.sound) - 8000, (3,), generator=generator)
        return torch.stack([self.sound[start : start + 8000] for start in starts.tolist()])[:, None]


@pytest.fixture
def crops(female: Waveform, male: Waveform) -> VoiceCrops:
    return VoiceCrops([female, male])


def train(folder, config, crops, valid=None, previous=None) -> Conformer:
    with Run(folder, config, tracker="none") as run:
        return train_encoder(config, crops, run, Fabric(accelerator="cpu", devices=1), valid, previous)


def same(one: Conformer, two: Conformer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", ["best_rq", "w2v_bert", "clusters"])
def test_resumed_equals_uninterrupted_and_evaluation_leaves_no_trace(tmp_path, crops, kind):
    whole = train(tmp_path / "whole", config(6, kind, save_every=4), crops)
    torch.rand(7)  # whatever else was drawn in between
    folder = tmp_path / "parts"

    class Killed(Exception):
        pass

    class Mortal(VoiceCrops):
        def batch(self, step: int) -> torch.Tensor:
            if step == 6 and self.deaths == 0:
                self.deaths = 1
                raise Killed
            return super().batch(step)

    mortal = Mortal.__new__(Mortal)
    mortal.__dict__ |= crops.__dict__ | {"deaths": 0}
    with pytest.raises(Killed):
        train(folder, config(6, kind, save_every=4), mortal, crops)
    resumed = train(folder, config(6, kind, save_every=4), mortal, crops)
    assert same(whole, resumed)


@pytest.mark.parametrize(
    ("kind", "shard"),
    [
        ("clusters", True),
        pytest.param("best_rq", False, marks=pytest.mark.slow),
        pytest.param("w2v_bert", False, marks=pytest.mark.slow),
        pytest.param("w2v_bert", True, marks=pytest.mark.slow),
    ],
)
def test_two_processes_end_equal_and_resumed_is_uninterrupted(tmp_path, crops, two_processes, kind, shard):
    wanted = config(4, kind, accumulate=2, valid_every=2)

    class Asked(VoiceCrops):
        def batch(self, step: int) -> torch.Tensor:
            if step == 13:  # a batch of rank 1's in its third step
                run._signal = 15
            return super().batch(step)

    asked = Asked.__new__(Asked)
    asked.__dict__ |= crops.__dict__

    def work(rank: int) -> None:
        nonlocal run
        fabric = engine("cpu", shard=shard)
        results = {}
        for name, source in (("whole", crops), ("parts", asked), ("parts", crops)):
            with Run(tmp_path / name, wanted, tracker="none") as run:
                try:
                    results[name] = train_encoder(wanted, source, run, fabric, crops)
                except Stopped:
                    assert run.steps()[-1] == 3
        for name, conformer in results.items():
            save_tensors(tmp_path / f"{name}-{rank}.safetensors", conformer.state_dict())

    run: Run
    two_processes(work)
    first, *others = (load_tensors(path)[0] for path in sorted(tmp_path.glob("*-[01].safetensors")))
    assert len(others) == 3
    for each in others:
        assert all(torch.equal(tensor, each[name]) for name, tensor in first.items())


def test_the_shape_of_a_spectrum_does_not_know_its_level():
    mel = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    shape = SpectrumShape()(mel)
    assert shape.shape == (2, 2, 16)
    torch.testing.assert_close(SpectrumShape()(mel + 3), shape)
    assert (SpectrumShape()(mel.flip(-1)) - shape).abs().max() > 0.5


def test_without_layers_units_are_of_the_mel_and_teach_the_next_pass(tmp_path, crops):
    none = config(1, network=NETWORK | {"layers": 0, "kernel": 3, "window": 1600})
    first = train(tmp_path / "1", none, crops)
    assert not list(first.parameters())
    audio = crops.batch(0)
    units = fit_units(first, UnitsConfig(layer=0, units=8, batches=2, epochs=1), crops)
    assert units.centroids.shape == (8, 16)
    encode = unit_function(first, units, 0)
    assert len(encode(audio[:1])) == 13
    wanted = config(3, "clusters", objective={"layer": 0}, network=NETWORK | {"window": 1600})
    second = train(tmp_path / "2", wanted, crops, previous=first)
    assert second.config.layers == 2
    with pytest.raises(InputError, match="the same network.bins and .window"):
        train(tmp_path / "3", config(3, "clusters", objective={"layer": 0}), crops, previous=first)


def test_it_learns(tmp_path, crops):
    quick = config(60, "clusters", objective={"mask": {"visible": 1.0}}, lr=5e-3, valid_every=60)
    train(tmp_path, quick, crops, crops)
    lines = Run(tmp_path, quick).metrics()
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-10:]) < 0.92 * sum(losses[:10])
    assert lines[-1]["valid_loss"] < losses[0]


@pytest.mark.slow
def test_compiled_learns_as_eager_does(tmp_path, crops):
    losses = []
    for compiled in (False, True):
        wanted = config(4, compile=compiled)
        train(tmp_path / str(compiled), wanted, crops)
        losses.append([line["loss"] for line in Run(tmp_path / str(compiled), wanted).metrics()])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.2)  # compiled dropout draws its own numbers
    assert len(losses[1]) == 4


def test_a_second_pass_predicts_the_units_of_the_first_and_keeps_its_statistics(tmp_path, crops):
    first = train(tmp_path / "1", config(3), crops)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    second = train(tmp_path / "2", config(3, "clusters", objective={"layer": 1}, warm_start=True), crops, previous=first)
    assert torch.equal(second.mel_mean, first.mel_mean)
    assert not same(first, second)
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())  # the teacher is not trained
    assert not second.training


def test_a_pass_that_needs_an_earlier_one_says_so(tmp_path, crops):
    with pytest.raises(InputError, match="earlier pass"):
        train(tmp_path / "1", config(3, warm_start=True), crops)
    with pytest.raises(InputError, match="earlier pass"):
        train(tmp_path / "2", config(3, "clusters", objective={"layer": 1}), crops)
    other = Conformer(ConformerConfig(**(NETWORK | {"width": 32})))
    with pytest.raises(InputError, match="network"):
        train(tmp_path / "3", config(3, warm_start=True), crops, previous=other)
    with pytest.raises(InputError, match=r"objective\.layer=9"):
        train(
            tmp_path / "4", config(3, "clusters", objective={"layer": 9}), crops, previous=train(tmp_path / "5", config(1), crops)
        )


def test_augmentation_changes_the_sound_and_only_as_it_says():
    generator, audio = torch.Generator().manual_seed(0), 0.1 * torch.randn(64, 1, 800)
    assert torch.equal(augment(audio, AugmentConfig(gain=0, mix=0), generator), audio)
    louder = (augment(audio, AugmentConfig(gain=6, mix=0), generator) / audio).mean(-1).log10().mul(20)
    assert -6 <= louder.min() < -3
    assert 3 < louder.max() <= 6
    noise = augment(audio, AugmentConfig(gain=0, mix=1, snr=(10, 10)), generator) - audio
    snr = 10 * (audio.square().mean(-1) / noise.square().mean(-1)).log10()
    torch.testing.assert_close(snr, torch.full((64, 1), 10.0), atol=0.1, rtol=0)
    mixed = (augment(audio, AugmentConfig(gain=0, mix=0.3), generator) != audio).any(-1).float().mean()
    assert 0.1 < mixed < 0.5


def test_warping_moves_a_peak_along_the_frequency_axis_and_zero_warping_nothing():
    mel = torch.zeros(32, 4, 80)
    mel[..., 40] = 1
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(warp(mel, 0.0, generator), mel, atol=1e-4, rtol=0)
    peaks = warp(mel, 0.2, generator)[:, 0].argmax(-1)
    assert peaks.min() < 38
    assert peaks.max() > 42


def test_units_of_the_measured_best_layer(tmp_path, crops, female: Waveform):
    conformer = train(tmp_path, config(2), crops)
    wanted = UnitsConfig(units=8, batches=6, epochs=2)
    asked = []

    def measure(encode) -> float:
        units = encode(female.samples[None])
        asked.append(units)
        return {1: 0.3, 2: 0.2}[len(asked)]

    table, best = choose_layer(conformer, wanted, crops, measure)
    assert (table, best) == ({1: 0.3, 2: 0.2}, 1)
    units = fit_units(conformer, wanted.model_copy(update={"layer": best}), crops)
    assert torch.equal(unit_function(conformer, units, best)(female.samples[None]), asked[0])
    assert len(asked[0]) == -(-female.samples.shape[-1] // 640)
    with pytest.raises(InputError, match="is not in 0 to 2"):
        fit_units(conformer, wanted, crops)
