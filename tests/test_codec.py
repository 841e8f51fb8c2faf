"""SoundStream: shapes, causality, prefixes, streaming equal to offline (contract 2), batch equal to single (contract 3)."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm import bodies
from audiolm.audio import Waveform
from audiolm.bodies import State
from audiolm.bodies.vocoder import VocoderBody, narrow_mel_filters
from audiolm.codec import Codec, CodecConfig
from audiolm.errors import InputError
from audiolm.quantizer import ResidualQuantizer, residual_energy
from audiolm.rendering import new_sound

TINY = {
    **{"channels": 4, "latent": 16, "codebook_size": 32, "num_codebooks": 6},
    **{"encoder_width": 24, "encoder_layers": 2, "decoder_width": 32, "decoder_layers": 2},
}


BODIES = {
    "spectral": {"body": "spectral"},
    "vocoder": {"body": "vocoder"},
    "continued phases": {"body": "vocoder", "phases": "continued", "compression": 0.3},
    "waveform": {"body": "waveform"},
}


def tiny(body: str, sound: torch.Tensor, groups: int = 1) -> Codec:
    """A small codec that is not silent: every layer has weights, and its codebooks come from real sound."""
    torch.manual_seed(0)
    codec = Codec(CodecConfig.model_validate(TINY | BODIES[body] | {"groups": groups}))
    for parameter in codec.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    codec.start(sound)
    return codec.eval().requires_grad_(False)


def test_every_body_is_here() -> None:
    assert {each["body"] for each in BODIES.values()} == set(bodies.BODIES)


@pytest.fixture(scope="module")
def sound(female: Waveform) -> torch.Tensor:
    """Three seconds of a real voice, (1, 1, T) at 16 kHz."""
    return female.samples[None, :, : 3 * 16_000]


@pytest.fixture(scope="module", params=list(BODIES))
def codec(request: pytest.FixtureRequest, sound: torch.Tensor) -> Codec:
    return tiny(request.param, sound)


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 16_000, 20_001])
def test_frames_and_lengths(codec: Codec, sound: torch.Tensor, samples: int) -> None:
    codes = codec.encode(sound[..., :samples])
    assert codes.shape == (1, 6, -(-samples // 320))
    assert codec.decode(codes).shape == (1, 1, codes.shape[-1] * 320)


@pytest.mark.parametrize("samples", [640, 12_000])
def test_training_gives_back_as_much_as_it_hears(codec: Codec, sound: torch.Tensor, samples: int) -> None:
    """Losses compare the two: crops need be no whole number of frames."""
    made, _ = codec(sound[..., :samples])
    assert made.shape == (1, 1, samples)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"groups": 5}, "groups=5 must divide latent=16"),
        ({"groups": 4}, "groups=4 must divide num_codebooks=6"),
        ({"groups": 0}, "groups"),
        ({"strides": ()}, "strides"),
        ({"strides": (4, 0)}, "strides"),
        ({"num_codebooks": 0}, "num_codebooks"),
        ({"strides": (3, 5, 7)}, r"strides \(3, 5, 7\): the spectral body needs a hop divisible by 2"),
        ({"strides": (2, 3), "body": "vocoder"}, "the vocoder body needs a hop divisible by 4"),
        ({"strides": (2, 5)}, "latent=16: a spectrum has hop=10 numbers"),
    ],
)
def test_what_cannot_be_built_is_no_configuration(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodecConfig.model_validate(TINY | wrong)
    Codec(CodecConfig.model_validate(TINY | {"strides": (3, 5, 7), "body": "waveform"}))  # which no window holds to a grid


def test_any_prefix_of_levels_decodes_and_more_are_closer(codec: Codec, sound: torch.Tensor) -> None:
    latents = codec.latents(sound)
    errors = []
    for levels in range(1, 7):
        codes = codec.encode(sound, levels)
        assert torch.equal(codes, codec.encode(sound)[:, :levels])
        assert codec.decode(codes).isfinite().all()
        errors.append(float((codec.quantizer.decode(codes) - latents).square().sum()))
    assert errors == sorted(errors, reverse=True)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_streamed_equals_offline(codec: Codec, sound: torch.Tensor, data: st.DataObject) -> None:
    sound = sound[..., : data.draw(st.integers(1, 9000))]
    codes = codec.encode(sound)
    stream, parts, rest = codec.encoder_stream(), [], sound
    while rest.shape[-1]:
        size = data.draw(st.integers(1, 2000))
        parts.append(stream.push(rest[..., :size]))
        rest = rest[..., size:]
    assert torch.equal(torch.cat([*parts, stream.flush()], -1), codes)

    offline = codec.decode(codes)
    player, blocks, left = codec.decoder_stream(), [], codes
    while left.shape[-1]:
        size = data.draw(st.integers(1, 9))
        blocks.append(player.push(left[..., :size]))
        # Nothing is held back beyond the stated look-ahead.
        done = codes.shape[-1] - left[..., size:].shape[-1]
        assert sum(block.shape[-1] for block in blocks) == max(0, done * 320 - codec.body.lag)
        left = left[..., size:]
    torch.testing.assert_close(torch.cat([*blocks, player.flush()], -1), offline, atol=1e-5, rtol=1e-4)


def test_a_prompt_longer_than_the_decoders_memory_is_decoded_from_there_on(
    codec: Codec, sound: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, old, seen, decode = codec.encode(sound), 100 * 320 + 7, [], codec.quantizer.decode

    def counted(codes: torch.Tensor) -> torch.Tensor:
        seen.append(codes.shape[-1])
        return decode(codes)

    with monkeypatch.context() as patch:
        patch.setattr(codec.quantizer, "decode", counted)
        new = torch.cat(list(new_sound(codec, codes[0].split(20, 1), 10_000, old)), 1)
    assert sum(seen) == 50 + codec.body.memory < 100
    whole = codec.decode(codes)[0, :, old : old + 10_000]
    if codec.config.phases == "continued":  # they begin anew: as loud, but not the same waveform
        assert float(new.square().mean()) == pytest.approx(float(whole.square().mean()), rel=0.2)
    else:
        torch.testing.assert_close(new, whole, atol=1e-5, rtol=1e-4)


def test_causal_within_the_stated_look_ahead(codec: Codec, sound: torch.Tensor) -> None:
    changed = sound.clone()
    changed[..., 16_000:] = 0.3
    assert codec.body.margin + codec.body.lag == round((codec.delay - 0.02) * 16_000)
    same = (16_000 - codec.body.margin) // 320  # frames that end, look-ahead included, before the change
    assert torch.equal(codec.encode(changed)[..., :same], codec.encode(sound)[..., :same])
    codes = codec.encode(sound)
    other = codes.clone()
    other[..., 50:] = 0
    heard = 50 * 320 - codec.body.lag
    torch.testing.assert_close(codec.decode(other)[..., :heard], codec.decode(codes)[..., :heard], atol=1e-5, rtol=1e-4)


def test_batched_equals_single(codec: Codec, sound: torch.Tensor) -> None:
    pair = torch.cat([sound[..., :16_000], sound[..., 20_000:36_000]])
    together = codec.encode(pair)
    assert torch.equal(together, torch.cat([codec.encode(pair[:1]), codec.encode(pair[1:])]))
    alone = torch.cat([codec.decode(together[:1]), codec.decode(together[1:])])
    torch.testing.assert_close(codec.decode(together), alone, atol=1e-5, rtol=1e-4)


def test_spectral_body_starts_as_a_transform_codec(sound: torch.Tensor) -> None:
    """Untrained but started, it already follows the wave: energy of the error well under that of the sound."""
    codec = Codec(CodecConfig(latent=320, num_codebooks=1, codebook_size=8, encoder_layers=1, decoder_layers=1)).eval()
    codec.start(sound)
    with torch.no_grad():
        rendered = codec._decode(codec.latents(sound))
    assert float((rendered - sound).square().sum() / sound.square().sum()) < 0.1


def test_vocoder_body_codes_loudness_alone(sound: torch.Tensor) -> None:
    """Its codes do not know the phase, and what it decodes is as loud in each band, whatever phases it invents."""
    codec = tiny("vocoder", sound)
    assert torch.equal(codec.encode(-sound), codec.encode(sound))
    body = VocoderBody(CodecConfig(body="vocoder", latent=40, compression=0.3, encoder_layers=0, decoder_layers=1))
    body.start(sound)
    latents = body.encode(F.pad(sound, (body.margin, body.margin)), {}, last=True)
    state: State = {}
    with torch.no_grad():
        rendered = torch.cat([body.decode(latents, state), body.close(state)], -1)
    before, after = (body.loudness(F.pad(each, (body.margin, body.margin)))[1].flatten(0, 1) for each in (sound, rendered))
    assert float((after.mean(0) / before.mean(0) - 1).abs().max()) < 0.3
    assert float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]) > 0.9


def test_continued_phases_keep_tones_in_tune() -> None:
    """Of a chord whose tones are no multiples of the frame rate, each tone comes back at its own frequency, untrained."""
    tones, time = (261.63, 329.63, 392.0, 1108.73), torch.arange(3 * 16_000) / 16_000
    sines = [torch.sin(2 * math.pi * hertz * time + place) for place, hertz in enumerate(tones)]
    chord = torch.stack(sines).sum(0)[None, None] * 0.2
    settings = {"body": "vocoder", "strides": (2, 4, 10, 8), "latent": 256, "compression": 0.3, "encoder_layers": 0}
    shares = {}
    for phases in ("continued", "invented"):
        torch.manual_seed(0)
        body = VocoderBody(CodecConfig.model_validate({**settings, "phases": phases, "decoder_layers": 1}))
        body.start(chord)
        state: State = {}
        with torch.no_grad():
            latents = body.encode(F.pad(chord, (body.margin, body.margin)), {}, last=True)
            rendered = torch.cat([body.decode(latents, state), body.close(state)], -1)[0, 0, 8000:40_000]
        power = torch.fft.rfft(rendered * torch.hann_window(32_000)).abs().square()  # half a hertz a bin
        near = sum(power[round(2 * hertz) - 6 : round(2 * hertz) + 7].sum() for hertz in tones)
        shares[phases] = float(near / power.sum())
    assert shares["continued"] > 0.8  # within 3 Hz of the tones
    assert shares["invented"] < 0.5


@pytest.mark.parametrize(("window", "bands"), [(640, 16), (640, 192), (512, 257)])
def test_mel_filters_leave_no_band_empty_and_no_bin_out(window: int, bands: int) -> None:
    filters = narrow_mel_filters(16_000, window, bands)
    assert filters.shape == (bands, window // 2 + 1)
    assert filters.min() >= 0
    assert filters.sum(1).min() > 0.5
    assert filters.sum(0)[1:-1].min() > 0


@pytest.mark.parametrize("groups", [1, 2])
def test_vectors_add_up_to_the_latents(sound: torch.Tensor, groups: int) -> None:
    quantizer = tiny("spectral", sound, groups).quantizer
    codes = torch.randint(32, (1, 6, 5), generator=torch.Generator().manual_seed(0))
    added = torch.stack([table[codes[0, level]] for level, table in enumerate(quantizer.vectors())]).sum(0)
    torch.testing.assert_close(added.T[None], quantizer.decode(codes))


def test_groups_split_the_width(sound: torch.Tensor) -> None:
    codec = tiny("spectral", sound, groups=2)
    codes = codec.encode(sound)
    first = codec.quantizer.decode(codes[:, :1])
    assert first[:, :8].any()
    assert not first[:, 8:].any()
    assert codec.quantizer.codebooks[0].codes.shape[1] == 8
    energy = residual_energy(codec.quantizer, codec.latents(sound))
    assert energy[-1] < energy[0] < 1


def test_dead_codes_are_revived_and_averages_follow() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 1, 16, decay=0.5, revive_below=0.2)
    with torch.no_grad():
        quantizer.codebooks[0].codes.fill_(100.0).add_(torch.arange(16)[:, None])  # all but one useless
    latents = torch.randn(4, 4, 100)
    quantizer.train()
    for _ in range(20):
        quantizer(latents)
    assert len(quantizer.eval().encode(latents).unique()) > 8
    assert residual_energy(quantizer, latents)[0] < 0.6


def test_dropout_keeps_only_the_levels_it_says() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 3, 8).eval()
    latents = torch.randn(2, 4, 50, requires_grad=True)
    quantizer.start(latents.detach())
    quantised, codes, commitment = quantizer(latents, torch.tensor([1, 3]), learn=False)
    torch.testing.assert_close(quantised[0], quantizer.decode(codes[:1, :1])[0])
    torch.testing.assert_close(quantised[1], quantizer.decode(codes[1:])[0])
    (quantised.sum() + commitment).backward()
    assert latents.grad is not None
    assert latents.grad.isfinite().all()


def test_wrong_codes_and_no_audio_are_refused(codec: Codec) -> None:
    with pytest.raises(InputError, match="empty"):
        codec.encode(torch.zeros(1, 1, 0))
    with pytest.raises(InputError, match="7 levels"):
        codec.decode(torch.zeros(1, 7, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="nothing to decode"):
        codec.decode(torch.zeros(1, 6, 0, dtype=torch.int64))
    with pytest.raises(InputError, match="nothing to decode"):
        codec.decoder_stream().flush()
