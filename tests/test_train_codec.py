"""The codec's losses and its training loop, on a real voice and tiny networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

from audiolm.audio import Waveform, read
from audiolm.bodies import BODIES
from audiolm.codec import Codec, CodecConfig
from audiolm.files import load_tensors, save_tensors
from audiolm.spectra import mel_filters
from audiolm.training.adversarial import (
    Discriminators,
    discriminator_loss,
    generator_losses,
    mel_loss,
    spectral_losses,
)
from audiolm.training.engine import engine
from audiolm.training.run import Run, Stopped
from audiolm.training.train_codec import CodecTrainConfig, prepare, train_codec

NETWORK = CodecConfig(
    num_codebooks=4, codebook_size=32, latent=32, encoder_width=32, decoder_width=32, encoder_layers=1, decoder_layers=1
)
CONFIG = CodecTrainConfig(
    network=NETWORK, seconds=0.5, batch_size=4, steps=12, start_batches=8, warmup=2, log_every=1, valid_every=6, valid_batches=1,
    save_every=4, adversarial_from=0.5, discriminator_channels=4, discriminator_batch=2,
)  # fmt: skip


class Crops:
    """Half seconds of one recording; a pure function of the step."""

    def __init__(self, sound: Waveform) -> None:
        self.samples = sound.samples[0]

    def batch(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        starts = torch.randint(len(self.samples) - 8000, (4,), generator=generator).tolist()
        return torch.stack([self.samples[start : start + 8000] for start in starts])[:, None]


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def phases(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return spectral_losses(ours, theirs, (320, 640, 1280))[0]


def magnitudes(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return spectral_losses(ours, theirs, (320, 640, 1280))[1]


def test_losses_are_zero_for_the_same_sound_and_grow_with_the_difference(female: Waveform) -> None:
    sound = female.samples[None, :, :16_000]
    noise = torch.randn_like(sound) * 0.02
    for loss in (lambda a, b: mel_loss(a, b, 16_000), phases, magnitudes):
        assert float(loss(sound, sound)) == 0
        assert 0 < float(loss(sound + 0.1 * noise, sound)) < float(loss(sound + noise, sound)) < float(loss(noise, sound))
    # The phase counts for one and not for the others.
    assert float(mel_loss(-sound, sound, 16_000)) < 1e-5 < 0.01 < float(phases(-sound, sound))
    assert float(magnitudes(-sound, sound)) < 1e-5


def test_mel_filters_are_triangles_that_cover_the_band() -> None:
    filters = mel_filters(16_000, 512, 32)
    assert filters.shape == (32, 257)
    assert float(filters.max()) <= 1
    assert bool((filters.argmax(1).diff() > 0).all())


def test_discriminators_learn_to_tell_a_voice_from_noise(female: Waveform) -> None:
    torch.manual_seed(0)
    critics = Discriminators(windows=(256,), channels=4)
    optimizer = torch.optim.Adam(critics.parameters(), 1e-2)
    real, fake = female.samples[None, :, 16_000:24_000], torch.randn(1, 1, 8000) * 0.1
    first, loss = None, torch.tensor(0.0)
    for _ in range(30):
        loss = discriminator_loss(critics(real), critics(fake))
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first is not None
    assert loss.item() < 0.5 * first
    adversarial, matching = generator_losses(critics(real), critics(fake))
    same = generator_losses(critics(real), critics(real))
    assert same[0].item() < adversarial.item()
    assert same[1].item() == 0 < matching.item()


def test_prepare_never_clips_and_drops_levels_of_half_the_batch() -> None:
    audio = torch.randn(200, 1, 100).clamp(-3, 3) / 4
    louder, keep = prepare(audio, CONFIG, torch.Generator().manual_seed(0))
    assert float(louder.abs().max()) <= max(1.0, float(audio.abs().max()))
    assert set(keep.tolist()) == {1, 2, 3, 4}
    assert 90 < int((keep == 4).sum()) < 160
    assert not torch.equal(louder, audio)


@pytest.mark.parametrize("network", [*({"body": body} for body in BODIES), {"body": "vocoder", "phases": "continued"}])
def test_each_body_trains_in_bfloat16(female: Waveform, tmp_path: Path, network: dict[str, str]) -> None:
    config = CONFIG.model_copy(
        update={"network": NETWORK.model_copy(update=network | {"channels": 4}), "steps": 2, "save_every": 2}
    )
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    with Run(tmp_path, config, tracker="none") as run:
        codec = train_codec(config, Crops(female), run, fabric)
    assert codec.decode(codec.encode(female.samples[None, :, :16_000])).isfinite().all()


def test_training_improves_a_started_codec(female: Waveform, tmp_path: Path, fabric: Fabric, capsys) -> None:
    crops = Crops(female)
    config = CONFIG.model_copy(update={"steps": 60, "adversarial_from": 1.0, "save_every": 100, "lr": 3e-3})
    started = Codec(NETWORK)
    started.start(torch.cat([crops.batch(index) for index in range(config.start_batches)]), config.seed)
    with Run(tmp_path / "run", config, tracker="none") as run:
        codec = train_codec(config, crops, run, fabric, crops)
    assert "codec's start 4/4" in capsys.readouterr().err  # its codebooks, which take minutes where they are large
    audio = torch.cat([crops.batch(index) for index in range(1000, 1004)])
    with torch.no_grad():
        before, after = (mel_loss(each.decode(each.encode(audio)), audio, 16_000) for each in (started.eval(), codec))
    assert float(after) < 0.8 * float(before)
    assert {"valid_mel_4", "energy_4", "usage_1"} <= run.metrics()[-1].keys() | run.metrics()[-2].keys()


@pytest.mark.parametrize("body", list(BODIES))
def test_a_frozen_encoder_keeps_its_codes(female: Waveform, tmp_path: Path, fabric: Fabric, body: str) -> None:
    crops = Crops(female)
    network = NETWORK.model_copy(update={"body": body, "channels": 4, "encoder_layers": 0})
    config = CONFIG.model_copy(update={"network": network, "train_encoder": False, "seed": 1})
    torch.manual_seed(config.seed)
    started = Codec(network)
    started.start(torch.cat([crops.batch(index) for index in range(config.start_batches)]), config.seed)
    with Run(tmp_path / "run", config, tracker="none") as run:
        codec = train_codec(config, crops, run, fabric)
    sound = female.samples[None]
    assert torch.equal(codec.encode(sound), started.eval().encode(sound))
    assert not torch.allclose(codec.decode(codec.encode(sound)), started.decode(started.encode(sound)))


def test_stopped_and_resumed_equals_uninterrupted(female: Waveform, tmp_path: Path, fabric: Fabric) -> None:
    """Contract 4 for the loop with two optimisers, stopped in the adversarial part."""
    crops = Crops(female)
    with Run(tmp_path / "whole", CONFIG, tracker="none") as run:
        whole = train_codec(CONFIG, crops, run, fabric, crops)

    class Stopping(Crops):
        def batch(self, step: int) -> torch.Tensor:
            if step == 9:
                run._signal = 15
            return super().batch(step)

    with Run(tmp_path / "parts", CONFIG, tracker="none") as run, pytest.raises(Stopped):
        train_codec(CONFIG, Stopping(female), run, fabric, crops)
    assert run.steps()[-1] == 9
    with Run(tmp_path / "parts", CONFIG, tracker="none") as run:
        parts = train_codec(CONFIG, crops, run, fabric, crops)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_evaluation_changes_nothing(female: Waveform, tmp_path: Path, fabric: Fabric) -> None:
    """Contract 6: with and without evaluation in the middle, the same weights."""
    crops = Crops(female)
    found = []
    for every in (2, 1000):
        config = CONFIG.model_copy(update={"valid_every": every})
        with Run(tmp_path / str(every), config, tracker="none") as run:
            found.append(train_codec(config, crops, run, fabric, crops).state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_samples_are_reconstructions_of_the_same_crops(female: Waveform, tmp_path: Path, fabric: Fabric) -> None:
    crops = Crops(female)
    found = []
    for every in (4, 0):
        config = CONFIG.model_copy(update={"accumulate": 2, "steps": 8})
        with Run(tmp_path / str(every), config, tracker="none", listen_every=every) as run:
            found.append(train_codec(config, crops, run, fabric).state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    folders = sorted((tmp_path / "4" / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step-00000004", "step-00000008"]
    original = read(folders[-1] / "original-2.flac")
    assert torch.allclose(original.samples[0], crops.batch(0)[1, 0], atol=1e-4)
    assert read(folders[-1] / "reconstruction-2.flac").samples.shape == original.samples.shape
    assert (folders[0] / "reconstruction-2.flac").read_bytes() != (folders[-1] / "reconstruction-2.flac").read_bytes()


def test_two_processes_end_equal_and_resumed_is_uninterrupted(
    female: Waveform, tmp_path: Path, two_processes: Callable[[Callable[[int], None]], None]
) -> None:
    """Two optimisers in data parallel: critics that join, accumulation, validation, a stop that one process was asked for."""
    config = CONFIG.model_copy(update={"steps": 6, "valid_every": 3, "accumulate": 2, "adversarial_from": 0.4})
    crops = Crops(female)

    class Asked(Crops):
        def batch(self, step: int) -> torch.Tensor:
            if step == 21:  # a batch of rank 1's in its fifth step, the critics' third
                run._signal = 15
            return super().batch(step)

    def work(rank: int) -> None:
        nonlocal run
        fabric = engine("cpu")
        results = {}
        for name, source in (("whole", crops), ("parts", Asked(female)), ("parts", crops)):
            with Run(tmp_path / name, config, tracker="none", listen_every=0) as run:
                try:
                    results[name] = train_codec(config, source, run, fabric, crops)
                except Stopped:
                    assert run.steps()[-1] == 5
        for name, codec in results.items():
            save_tensors(tmp_path / f"{name}-{rank}.safetensors", codec.state_dict())

    run: Run
    two_processes(work)
    first, *others = (load_tensors(path)[0] for path in sorted(tmp_path.glob("*-[01].safetensors")))
    assert len(others) == 3
    for each in others:
        assert all(torch.equal(tensor, each[name]) for name, tensor in first.items())
