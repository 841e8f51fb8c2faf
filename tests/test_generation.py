"""Contract 2 for generation: what is streamed is what comes out at once, for every stage and both decoders; memory is flat."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audiolm import bundle, stages
from audiolm.asking import Request, Sampling
from audiolm.audio import Waveform, concatenate
from audiolm.bundle import language_model
from audiolm.errors import InputError
from audiolm.generation import Tape, of_length, spread
from audiolm.model import AudioLM
from audiolm.transformer import TransformerConfig

WAYS = [
    {"decoder": "autoregressive"},
    {"decoder": "parallel"},
    {"chain": "acoustic"},
    {"codebooks": 2},
    {"decoder": "parallel", "codebooks": 2},
]


@pytest.fixture(scope="module")
def model(tiny_model: AudioLM) -> AudioLM:
    """The tiny model, which can decode in parallel too; windows of 2.6 s, so that a short sound needs several."""
    torch.manual_seed(1)
    stage = stages.parallel(tiny_model.semantic.spec, tiny_model.codec.spec)
    network = language_model(stage, TransformerConfig(layers=2, heads=2, width=32, ffn=32, dropout=0))
    chosen = {**tiny_model.stages, "parallel": (stage, network)}
    short = {
        name: (replace(stage, crop=min(stage.crop, 2.6), overlap=min(stage.overlap, 0.6)), network)
        for name, (stage, network) in chosen.items()
    }
    return AudioLM(tiny_model.semantic, tiny_model.codec, short)


@pytest.fixture(scope="module")
def mixed(model: AudioLM) -> AudioLM:
    """The same model with levels 3 and 4 left to a parallel stage, between coarse and fine."""
    torch.manual_seed(2)
    network = TransformerConfig(layers=2, heads=2, width=32, ffn=32, dropout=0)
    between = replace(stages.parallel(model.semantic.spec, model.codec.spec, 4), crop=2.6, overlap=0.6)
    fine = stages.fine(model.codec.spec, 4)
    own = {"parallel": (between, language_model(between, network)), "fine": (fine, language_model(fine, network))}
    return AudioLM(model.semantic, model.codec, {**model.stages, **own})


def same(blocks: list[Waveform], whole: Waveform) -> None:
    joined = concatenate(blocks)
    assert joined.samples.shape == whole.samples.shape
    torch.testing.assert_close(joined.samples, whole.samples, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS, ids=["autoregressive", "parallel", "acoustic", "few levels", "parallel, few levels"])
@pytest.mark.parametrize(("prompt", "seconds"), [(1.2345, 2.5), (3.1, 1.0), (None, 2.3)])
def test_streamed_is_generated(model: AudioLM, female: Waveform, way: dict, prompt: float | None, seconds: float) -> None:
    sound = None if prompt is None else female.trim(prompt)
    whole = model.generate(sound, seconds, seed=3, **way)
    blocks = list(model.stream(sound, seconds, seed=3, block=0.2, **way))
    same(blocks, whole)
    if sound is not None:
        assert torch.equal(blocks[0].samples, sound.samples)
        same(list(model.stream(sound, seconds, seed=3, only_new=True, block=0.9, **way)), whole.trim(start=sound.seconds))
    new = blocks[sound is not None :]
    assert max(block.seconds for block in new) < 0.25
    assert len(new) >= seconds / 0.25


@pytest.mark.parametrize("codebooks", [3, 4, 6])
def test_streamed_is_generated_by_three_kinds_of_stages(mixed: AudioLM, female: Waveform, male: Waveform, codebooks: int) -> None:
    whole = mixed.generate(female.trim(1.1), 6.0, seed=3, codebooks=codebooks)
    same(list(mixed.stream(female.trim(1.1), 6.0, seed=3, codebooks=codebooks)), whole)
    requests = [Request(female.trim(1.1), 6.0, seed=3), Request(male.trim(2), 1.0, seed=4)]
    batch = mixed.generate_batch(requests, codebooks=codebooks)
    torch.testing.assert_close(batch[0].samples, whole.samples, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("decoder", ["autoregressive", "parallel"])
def test_given_words_are_streamed(model: AudioLM, female: Waveform, male: Waveform, decoder) -> None:
    words = model.tokenize(male.trim(1.3)).semantic
    for voice in (None, female.trim(1.01)):
        same(list(model.stream(voice, semantic=words, decoder=decoder)), model.generate(voice, semantic=words, decoder=decoder))


def test_deduplicated_words_are_streamed(model: AudioLM, female: Waveform) -> None:
    chosen = {
        name: (replace(stage, dedup=name in ("semantic", "coarse")), network) for name, (stage, network) in model.stages.items()
    }
    deduped = AudioLM(model.semantic, model.codec, chosen, about={"mean_run": 2.3})
    same(list(deduped.stream(female.trim(1), 2.0, seed=1)), deduped.generate(female.trim(1), 2.0, seed=1))


def ends_as_alone_and_streamed(model: AudioLM, prompt: Waveform, **way) -> None:
    """Contracts 2 and 3 for sounds that end by themselves: early, in a later window, or not before the time is over."""
    requests = [Request(sound, 2.0, seed=seed) for seed in range(4) for sound in (prompt, None)]
    together, missing = model.generate_batch(requests, until_end=True, **way), set()
    for request, sound in zip(requests, together, strict=True):
        same(list(model.stream(request.prompt, 2.0, seed=request.seed, block=0.2, until_end=True, **way)), sound)
        missing.add(request.length(model.sample_rate) - sound.samples.shape[1])
    assert min(missing) >= 0
    assert len(missing) > 2  # they end, and not together


@pytest.mark.parametrize("way", WAYS, ids=["autoregressive", "parallel", "acoustic", "few levels", "parallel, few levels"])
@pytest.mark.parametrize("prompt", [1.2345, 3.1])
def test_a_sound_ends_where_it_ends_alone_and_streamed(model: AudioLM, female: Waveform, way: dict, prompt: float) -> None:
    ends_as_alone_and_streamed(model, female.trim(prompt), **way)


@pytest.mark.parametrize(("dedup", "overlap"), [(True, 0.6), (True, 0.0), (False, 0.0)])
def test_whatever_the_stage_that_ends_it(mixed: AudioLM, female: Waveform, dedup: bool, overlap: float) -> None:
    stage, network = mixed.stages["semantic"]
    own = {"semantic": (replace(stage, dedup=dedup, overlap=overlap), network)}
    model = AudioLM(mixed.semantic, mixed.codec, {**mixed.stages, **own}, about={"mean_run": 1.3})
    ends_as_alone_and_streamed(model, female.trim(1.1))


def test_a_sound_ends_a_second_after_the_prompt_at_the_earliest(model: AudioLM, female: Waveform, monkeypatch) -> None:
    """Because a prompt's last units tell where its file ends. The first stage decides, and no other."""
    monkeypatch.setattr(
        model.stages["semantic"][1], "logits", lambda hidden, level, end: torch.eye(17)[[16] * len(hidden), : 16 + end] * 100
    )
    prompt = female.trim(1.24)  # whole semantic frames
    for decoder in ("autoregressive", "parallel"):
        assert model.generate(prompt, 2.0, decoder=decoder, until_end=True).seconds == pytest.approx(2.24)
        assert model.generate(None, 0.5, decoder=decoder, until_end=True).seconds == 0.5
    assert model.generate(prompt, 2.0, chain="acoustic", until_end=True).seconds != pytest.approx(2.24)


def test_words_end_where_they_end(model: AudioLM, male: Waveform) -> None:
    with pytest.raises(InputError, match="until_end: the words of semantic or text already say where the sound ends; omit it"):
        model.generate(semantic=model.tokenize(male.trim(1)).semantic, until_end=True)


def test_the_first_sound_waits_for_a_second_of_tokens(model: AudioLM, female: Waveform) -> None:
    steps: list[str] = []
    hooks = [
        network.transformer.register_forward_hook(lambda *_, name=name: steps.append(name))
        for name, (_, network) in model.stages.items()
    ]
    try:
        for decoder in ("autoregressive", "parallel"):
            steps.clear()
            blocks = model.stream(female.trim(1), 3600.0, decoder=decoder, block=0.1)
            assert next(blocks).seconds == pytest.approx(1)
            assert not steps  # the prompt is heard at once
            next(blocks)
            assert steps.count("semantic") <= 25
            assert steps.count("coarse") <= 2 * 50
            assert steps.count("fine") <= 4 * 6
            assert steps.count("parallel") <= 16 + 5
            del blocks
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("decoder", ["autoregressive", "parallel", "mixed"])
def test_memory_does_not_grow(model: AudioLM, mixed: AudioLM, female: Waveform, decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    read = Tape.read

    def watched(self: Tape, first: int, last: int) -> Tensor:
        codes = read(self, first, last)
        assert self.codes is not None
        held.append(self.codes.shape[1])
        return codes

    monkeypatch.setattr(Tape, "read", watched)
    model, decoder = (mixed, None) if decoder == "mixed" else (model, decoder)
    for _ in model.stream(female.trim(1), 9.0, decoder=decoder):
        pass
    assert max(held) <= 2 * 2.6 * 50  # two windows of 2.6 s at most, though 10 s were made


def test_batched_is_single_for_the_parallel_decoder(model: AudioLM, female: Waveform, male: Waveform) -> None:
    requests = [Request(female.trim(1), 1.1, seed=5), Request(None, 3.0, seed=6), Request(male.trim(2.5), 2.0, seed=7)]
    for request, sound in zip(requests, model.generate_batch(requests, decoder="parallel"), strict=True):
        alone = model.generate(request.prompt, request.seconds, seed=request.seed, decoder="parallel")
        torch.testing.assert_close(alone.samples, sound.samples, atol=1e-5, rtol=1e-4)
    sequential, parallel = (model.generate(male.trim(1), 0.5, decoder=name).samples for name in ("autoregressive", "parallel"))
    assert not torch.equal(sequential, parallel)


def test_decoders_are_chosen_and_what_is_missing_is_named(model: AudioLM, female: Waveform, tmp_path) -> None:
    prompt = female.trim(1)
    bare = AudioLM(model.semantic, model.codec, {name: model.stages[name] for name in ("semantic", "parallel")})
    assert torch.equal(bare.generate(prompt, 0.5).samples, model.generate(prompt, 0.5, decoder="parallel").samples)
    with pytest.raises(InputError, match="no coarse or piano stage; its stages: semantic, parallel"):
        bare.generate(prompt, 0.5, decoder="autoregressive")
    paper = AudioLM(model.semantic, model.codec, {name: model.stages[name] for name in ("semantic", "coarse", "fine")})
    for call in (paper.generate, paper.stream):  # at once, and not with the first block
        with pytest.raises(InputError, match="no parallel stage"):
            call(prompt, 0.5, decoder="parallel")
        with pytest.raises(InputError, match="omit decoder"):
            call(prompt, 0.5, chain="acoustic", decoder="parallel")
    with pytest.raises(InputError, match="give the length"):
        model.stream(prompt)
    with pytest.raises(InputError, match="block=0"):
        model.stream(prompt, 1.0, block=0)
    greedy = {"parallel": Sampling(temperature=0), "semantic": Sampling(temperature=0)}
    first, second = (bare.generate(prompt, 0.5, seed=seed, sampling=greedy).samples for seed in (1, 2))
    assert torch.equal(first, second)
    bundle.save(bare, tmp_path / "bare", "", torch.float32)
    assert torch.equal(bundle.load(tmp_path / "bare").generate(prompt, 0.5).samples, bare.generate(prompt, 0.5).samples)


def test_a_stream_that_is_left_leaves_nothing_behind(model: AudioLM, female: Waveform) -> None:
    before = model.generate(female.trim(1), 1.0).samples
    blocks = model.stream(female.trim(1), 5.0)
    next(blocks)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert torch.equal(model.generate(female.trim(1), 1.0).samples, before)
    assert not torch.is_inference_mode_enabled()


# The parts


def pieces(sizes: list[int]) -> Iterator[Tensor]:
    first = 0
    for size in sizes:
        yield torch.arange(first, first + size)[None]
        first += size


SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=9)


@given(SIZES, st.integers(1, 9))
def test_parts_of_a_length(sizes: list[int], length: int) -> None:
    parts = list(of_length(pieces(sizes), length))
    assert torch.equal(torch.cat(parts or [torch.zeros(1, 0)], 1)[0].long(), torch.arange(sum(sizes)))
    assert all(part.shape[1] == length for part in parts[:-1])
    assert all(0 < part.shape[1] <= length for part in parts)


@given(SIZES.filter(any), st.integers(0, 60))
def test_spread_gives_each_code_its_time_at_once(sizes: list[int], frames: int) -> None:
    count = sum(sizes)
    codes = torch.cat(list(spread(pieces(sizes), count, frames)), 1)[0]
    assert torch.equal(codes, torch.arange(frames) * count // frames if frames else codes)
    lengths = codes.bincount(minlength=count)
    assert int(lengths.max() - lengths.min()) <= 1


def test_a_tape_is_read_forwards() -> None:
    tape = Tape(pieces([2, 3, 0, 4]))
    assert tape.read(0, 1).tolist() == [[0]]
    assert tape.read(1, 4).tolist() == [[1, 2, 3]]
    tape.forget(3)
    assert tape.read(3, 6).tolist() == [[3, 4, 5]]
    assert tape.read(8, 20).tolist() == [[8]]
