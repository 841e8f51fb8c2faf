"""The semantic encoder: frame counts, batched equals single, what each objective may see and must learn."""

import pytest
import torch
from torch import nn

from audiolm.config import parse_config
from audiolm.conformer import FRAME, Conformer, ConformerConfig, fft_size, frame_count, log_mel, mel_filters, mfcc
from audiolm.errors import InputError
from audiolm.training.pretraining import (
    BestRQ,
    BestRQConfig,
    Clusters,
    ClustersConfig,
    MaskConfig,
    WavToVecBert,
    WavToVecBertConfig,
    hide,
    span_mask,
)

TINY = ConformerConfig(bins=16, width=16, layers=2, heads=2, feed_forward=32, kernel=5, channels=4, dropout=0.0)


def tiny(seed: int = 0) -> Conformer:
    torch.manual_seed(seed)
    return Conformer(TINY).eval()


def sound(seconds: float, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 1, round(16000 * seconds), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [1, 639, 640, 641, 16000, 16001])
def test_frames_are_the_samples_over_640_rounded_up(samples):
    conformer = tiny()
    mel = conformer.log_mel(torch.zeros(2, 1, samples))
    outputs = conformer(mel)
    assert mel.shape == (2, 4 * -(-samples // 640), 16)
    assert [output.shape for output in outputs] == [(2, frame_count(samples), 16)] * 3


def test_a_sound_shows_in_the_frame_where_it_is():
    audio = torch.zeros(1, 1, 20 * FRAME)
    audio[..., 7 * FRAME : 8 * FRAME] = sound(0.04)[0, 0]
    energy = log_mel(audio, mel_filters(80)).exp().sum(-1).unflatten(1, (20, 4)).sum(-1)[0]
    assert energy.argmax() == 7
    assert energy[7] > 0.95 * energy.sum() - 20 * 80 * 4 * 1e-5


def test_a_tone_shows_in_the_filter_of_its_pitch():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)[None, None]
    peak = log_mel(tone, mel_filters(80))[0, 50].argmax()
    edges = torch.linspace(0, 1, 82) * (1127 * torch.log1p(torch.tensor(8000 / 700)) - 31.75) + 31.75
    assert abs(700 * torch.expm1(edges[peak + 1] / 1127) - 1000) < 40
    assert (mel_filters(80).sum(0) > 0).all()


def test_long_windows_tell_semitones_apart_where_short_ones_do_not():
    time = torch.arange(16000) / 16000
    low, high = (torch.sin(2 * torch.pi * hertz * time)[None, None] for hertz in (440.0, 466.16))
    shared = {}
    for window, bins in ((400, 80), (2560, 192)):
        config = TINY.model_copy(update={"window": window, "bins": bins})
        shares = [each / each.sum() for each in (Conformer(config).log_mel(tone)[0, 50].exp() for tone in (low, high))]
        shared[window] = float((shares[0] * shares[1]).sqrt().sum())
        assert Conformer(config).filters.shape == (fft_size(window) // 2 + 1, bins)
    assert shared[400] > 0.8
    assert shared[2560] < 0.4
    assert (fft_size(400), fft_size(512), fft_size(2560)) == (512, 512, 4096)


def test_mfcc_slopes_of_a_steady_sound_are_zero_and_of_a_rising_one_are_not():
    steady = torch.randn(1, 1, 16).expand(1, 40, 16)
    assert mfcc(steady).shape == (1, 10, 39)
    torch.testing.assert_close(mfcc(steady)[..., 13:], torch.zeros(1, 10, 26), atol=1e-5, rtol=0)
    rising = torch.arange(40.0)[None, :, None].expand(1, 40, 16)
    slope = mfcc(rising)[0, 5, 13]
    assert slope == pytest.approx(32**0.5, rel=1e-3)  # one per frame in each of 16 bins, times sqrt(2 / 16)


def test_batched_equals_single():
    conformer = tiny()
    first, second = sound(1.0, seed=1), sound(0.4, seed=2)
    batch = torch.cat((first, nn.functional.pad(second, (0, 9600))))
    lengths = torch.tensor([frame_count(16000), frame_count(6400)])
    together = conformer(conformer.log_mel(batch), lengths)
    for row, audio in enumerate((first, second)):
        for alone, shared in zip(conformer(conformer.log_mel(audio)), together, strict=True):
            torch.testing.assert_close(shared[row, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-4)


def test_without_lengths_padding_would_be_heard():
    conformer, audio = tiny(), sound(0.4)
    padded = conformer(conformer.log_mel(nn.functional.pad(audio, (0, 9600))))[-1]
    alone = conformer(conformer.log_mel(audio))[-1]
    assert (padded[:, : alone.shape[1]] - alone).abs().max() > 1e-3  # so that the test above can fail


def test_fewer_layers_are_the_same_layers():
    conformer = tiny()
    mel = conformer.log_mel(sound(0.5))
    for part, whole in zip(conformer(mel, layers=1), conformer(mel), strict=False):
        assert torch.equal(part, whole)


def test_normalisation_comes_from_data_and_travels_with_the_weights():
    conformer, audio = tiny(), sound(1.0, batch=3)
    conformer.fit_normalisation(log_mel(audio, conformer.filters))
    mel = conformer.log_mel(audio)
    torch.testing.assert_close(mel.mean((0, 1)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(mel.std((0, 1)), torch.ones(16), atol=1e-2, rtol=0)
    other = tiny(1)
    other.load_state_dict(conformer.state_dict())
    assert torch.equal(other.log_mel(audio), mel)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"width": 18}, "width=18 must be a multiple of 4"), ({"kernel": 4}, "kernel=4 must be odd")]
)
def test_a_wrong_shape_of_network_is_no_configuration(wrong, message):
    with pytest.raises(ValueError, match=message):
        ConformerConfig(**(TINY.plain() | wrong))
    with pytest.raises(InputError, match=message) as caught:
        parse_config(ConformerConfig, TINY.plain() | wrong, "test")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- the objectives


@pytest.mark.parametrize(("frames", "span", "fraction"), [(100, 6, 0.45), (50, 1, 0.2), (2, 6, 0.9), (200, 10, 0.6)])
def test_masks_hide_what_they_say_in_spans(frames, span, fraction):
    generator = torch.Generator().manual_seed(0)
    hidden = span_mask(400, frames, MaskConfig(span=span, fraction=fraction), generator)
    assert hidden.any(1).all()
    assert not hidden.all(1).any()
    if frames > 10:
        assert abs(hidden.float().mean() - fraction) < 0.07
        inner = hidden[:, span : -2 * span].float()
        starts = (hidden[:, 1:] & ~hidden[:, :-1])[:, : -2 * span]
        long_enough = hidden.unfold(1, span, 1).all(-1)[:, 1:][:, : starts.shape[1]]
        assert inner.any()
        assert (long_enough | ~starts).all()


def test_hidden_frames_cannot_be_seen():
    mel = torch.randn(2, 40, 16)
    hidden = torch.zeros(2, 10, dtype=torch.bool)
    hidden[:, 3:6] = True
    one = hide(mel, hidden, 0.1, torch.Generator().manual_seed(0))
    changed = mel.clone()
    changed[:, 12:24] += 5
    assert torch.equal(one, hide(changed, hidden, 0.1, torch.Generator().manual_seed(0)))
    assert torch.equal(one[:, :12], mel[:, :12])
    assert torch.equal(one[:, 24:], mel[:, 24:])


class FirstBin(nn.Module):
    """A teacher whose units say where the lowest bin is above its mean."""

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        lowest = mel[..., 0].unflatten(1, (-1, 4)).mean(-1)
        return (lowest > lowest.mean()).long()


MASK = MaskConfig(span=2, fraction=0.4)


def wav2vec() -> WavToVecBert:
    config = WavToVecBertConfig(contrastive_layers=1, codes=8, codebooks=2, dimension=8, negatives=10, mask=MASK)
    return WavToVecBert(config, TINY)


def objectives() -> list[nn.Module]:
    clusters = Clusters(ClustersConfig(units=2, mask=MASK), TINY, FirstBin())
    return [BestRQ(BestRQConfig(codes=8, codebooks=2, mask=MASK), TINY), wav2vec(), clusters]


@pytest.mark.parametrize("number", range(3))
def test_an_objective_trains_the_whole_network_and_repeats_itself(number):
    conformer, objective = tiny(), objectives()[number]
    mel = conformer.log_mel(sound(1.0, batch=4))
    objective.eval()
    draws = [objective(conformer, mel, mel, torch.Generator().manual_seed(seed))["loss"] for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    objective.train()(conformer, mel, mel, torch.Generator().manual_seed(0))["loss"].backward()
    trained = [*conformer.parameters(), *(each for each in objective.parameters() if each.requires_grad)]
    assert all(each.grad is not None and each.grad.isfinite().all() for each in trained)
    assert all(any(bool(each.grad.any()) for each in block.parameters() if each.grad is not None) for block in conformer.blocks)


@pytest.mark.parametrize("number", range(3))
def test_targets_come_from_the_clean_sound_and_the_input_from_the_other(number):
    conformer, objective = tiny(), objectives()[number].eval()
    clean, noisy = conformer.log_mel(sound(1.0, batch=4)), conformer.log_mel(sound(1.0, batch=4, seed=9))

    def loss(mel, targets):
        return float(objective(conformer, mel, targets, torch.Generator().manual_seed(0))["loss"].detach())

    assert len({loss(clean, clean), loss(noisy, clean), loss(clean, noisy)}) == 3


def test_clusters_are_learnt_from_what_surrounds_them():
    """Sounds that stay loud or soft for a clip: what is hidden follows from what is seen, and is soon found."""
    torch.manual_seed(0)
    conformer = Conformer(TINY)
    objective = Clusters(ClustersConfig(units=2, mask=MaskConfig(span=2, fraction=0.4)), TINY, FirstBin())
    optimizer = torch.optim.AdamW([*conformer.parameters(), *objective.head.parameters()], 3e-3)
    generator = torch.Generator().manual_seed(0)
    accuracy = 0.0
    for _ in range(60):
        level = torch.where(torch.rand(16, 1, 1, generator=generator) < 0.5, -1.0, 1.0)
        mel = level + 0.3 * torch.randn(16, 48, 16, generator=generator)
        result = objective(conformer, mel, mel, generator)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        accuracy = float(result["accuracy"])
    assert accuracy > 0.95


def test_random_targets_are_fixed_by_the_seed_and_use_many_codes():
    config = BestRQConfig(codes=64, codebooks=2)
    mel = torch.randn(8, 80, 16, generator=torch.Generator().manual_seed(0))
    one, two, other = (BestRQ(config, TINY, seed).targets(mel) for seed in (0, 0, 1))
    assert one.shape == (8, 20, 2)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one[..., 0].unique().numel() > 32
    assert not torch.equal(one[..., 0], one[..., 1])


def test_random_targets_do_not_hear_how_loud_a_clip_is():
    objective = BestRQ(BestRQConfig(codes=64), TINY)
    mel = torch.randn(2, 80, 16)
    assert (objective.targets(mel) == objective.targets(mel + 2.0)).float().mean() > 0.99


def test_contrast_is_won_by_the_right_vector():
    objective = wav2vec()
    hidden = torch.ones(2, 10, dtype=torch.bool)
    quantised = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    right = objective.contrast(quantised, quantised, hidden, generator)
    wrong = objective.contrast(quantised.roll(3, 0), quantised, hidden, generator)
    assert right < 0.1 < wrong
    alike = objective.contrast(quantised, quantised[:1].expand(20, 8), hidden, generator)
    assert alike == 0  # the same code is never its own negative


def test_a_gumbel_choice_cools_only_in_training():
    objective = wav2vec()
    frames = torch.randn(30, 16)
    objective.eval().quantise(frames, torch.Generator().manual_seed(0))
    assert int(objective.updates) == 0
    _, ids, evenness = objective.train().quantise(frames, torch.Generator().manual_seed(0))
    assert int(objective.updates) == 1
    assert ids.shape == (30, 2)
    assert 0 < float(evenness.detach()) <= 1
