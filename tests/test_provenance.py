"""The watermark on real voices: unheard, found after what recordings go through, never where there is none."""

import pytest
import torch
from torch import Tensor

from audiolm import provenance
from audiolm.attacks import mp3, noisy, opus
from audiolm.audio import Waveform, concatenate
from audiolm.errors import InputError
from audiolm.provenance import Marker, detect, embed, payload_of

PAYLOAD = 0xBEEF


@pytest.fixture(scope="module", params=["female", "male"])
def voice(request: pytest.FixtureRequest) -> Waveform:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def marked(voice: Waveform) -> Waveform:
    return embed(voice, PAYLOAD)


ATTACKS = {
    "none": lambda sound: sound,
    "2 s": lambda sound: sound.trim(2.0, start=1.2345),
    "16 bits": lambda sound: Waveform((sound.samples * 32768).round() / 32768, sound.sample_rate),
    "gain": lambda sound: Waveform(sound.samples * 0.05, sound.sample_rate),
    "polarity": lambda sound: Waveform(-sound.samples, sound.sample_rate),
    "noise": lambda sound: noisy(sound, 20.0),
    "resampled": lambda sound: sound.resample(22_050).resample(16_000).resample(44_100),
    "8 kHz": lambda sound: sound.resample(8_000),
    "1 % faster": lambda sound: Waveform(sound.samples, 16_160),
    "mp3": mp3,
    "opus": opus,
}


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_found_after_an_attack(marked: Waveform, attack: str) -> None:
    mark = detect(ATTACKS[attack](marked))
    assert mark.found
    assert mark.payload == PAYLOAD
    assert mark.confidence > 1 - provenance.FALSE_ALARM


@pytest.mark.parametrize("attack", ["none", "2 s", "noise", "opus"])
def test_not_found_where_there_is_none(voice: Waveform, attack: str) -> None:
    mark = detect(ATTACKS[attack](voice))
    assert (mark.found, mark.payload) == (False, None)
    assert mark.confidence < 0.5


@pytest.mark.parametrize(
    "samples", [torch.zeros(1, 32_000), torch.zeros(1, 0), torch.ones(2, 7), torch.sin(torch.arange(64_000.0))[None]]
)
def test_odd_sounds_are_not_marked(samples: Tensor) -> None:
    assert not detect(Waveform(samples, 16_000)).found
    assert embed(Waveform(samples, 16_000), 1).samples.shape == samples.shape


def test_another_key_neither_sees_it_nor_is_seen(voice: Waveform) -> None:
    own = embed(voice, PAYLOAD, key=b"my own")
    assert not detect(own).found
    assert detect(own, key=b"my own").payload == PAYLOAD


def test_it_is_small_and_silence_stays_silent(voice: Waveform, marked: Waveform) -> None:
    difference = marked.samples - voice.samples
    assert float(difference.square().sum() / voice.samples.square().sum()) < 10**-1.5  # 15 dB below, shaped as the sound is
    assert not embed(Waveform(torch.zeros(1, 5000), 16_000), 3).samples.any()
    pesq = pytest.importorskip("pesq")
    assert pesq.pesq(16_000, voice.samples[0].numpy(), marked.samples[0].numpy(), "wb") > 4.3


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
def test_any_rate_and_channels(voice: Waveform, rate: int) -> None:
    sound = voice.resample(rate)
    stereo = Waveform(torch.cat([sound.samples, 0.5 * sound.samples]), rate)
    out = embed(stereo, 77)
    assert out.samples.shape == stereo.samples.shape
    torch.testing.assert_close(out.samples[1], 0.5 * out.samples[0])
    assert detect(out).payload == 77


@pytest.mark.parametrize("block", [1, 100, 256, 1000, 20_000])
def test_block_by_block_equals_the_whole(female: Waveform, block: int) -> None:
    sound = female.trim(0.2 if block == 1 else 2.0)
    marker, parts, given = Marker(5, 16_000), [], 0
    for taken, piece in enumerate(sound.samples.split(block, 1)):
        parts.append(marker.push(piece))
        given += parts[-1].shape[1]
        assert min(sound.samples.shape[1], (taken + 1) * block) - given <= marker.delay
    parts.append(marker.flush())
    torch.testing.assert_close(torch.cat(parts, 1), embed(sound, 5).samples, atol=1e-6, rtol=1e-5)


def test_what_stands_before_goes_on_without_a_step(female: Waveform) -> None:
    out = embed(female.trim(1.0, start=1.0), 5)
    torch.testing.assert_close(out.samples[:, :2], female.trim(1.0, start=1.0).samples[:, :2], atol=1e-4, rtol=0.05)


def test_a_short_mark_in_a_long_recording_is_found(female: Waveform, male: Waveform) -> None:
    long = concatenate([male] * 16 + [embed(female.trim(2.5), PAYLOAD)] + [male] * 2)  # across the border of two chunks
    assert detect(long).payload == PAYLOAD


@pytest.mark.parametrize("seconds", [2.99, 3.97, 80.0])
def test_all_that_is_tried_is_paid_for(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At some speeds a sound may have a span more; each of the five is paid for before the first is looked at."""
    tried, paid, folds_of = [], [], provenance._folds
    monkeypatch.setattr(provenance, "_folds", lambda surprises: (tried.append(folds_of(surprises)), tried[-1])[1])
    monkeypatch.setattr(provenance, "_chance", lambda score, hypotheses: paid.append(hypotheses) or 1.0)
    noise = torch.randn(1, round(seconds * 16_000), generator=torch.Generator().manual_seed(0))
    detect(Waveform(0.1 * noise, 16_000))
    assert set(paid) == {sum(map(len, tried)) * provenance.SLOTS * provenance.PAYLOADS}


def test_every_codeword_has_its_payload() -> None:
    pattern = provenance._pattern(provenance.KEY)
    payloads = [0, 1, 1023, 1024, 0xBEEF, 0xFFFF]
    tiles = torch.stack([pattern.tiles(payload).flatten() for payload in payloads])
    assert tiles.abs().eq(1).all()
    overlap = tiles @ tiles.T / tiles.shape[1] - torch.eye(len(payloads))
    assert float(overlap.max()) < 0.6  # the pilot is one half; between codewords there is little
    for payload in payloads:
        score, found = pattern.best(pattern.tiles(payload).roll(9, 0)[None])
        assert found == payload
        assert score == pytest.approx(2048**0.5)


def test_the_payload_names_the_model() -> None:
    one, other = payload_of({"name": "speech"}), payload_of({"name": "speech", "version": 2})
    assert one != other
    assert one >> 12 == other >> 12 == provenance.FORMAT
    with pytest.raises(InputError, match="65535"):
        Marker(65_536, 16_000)
