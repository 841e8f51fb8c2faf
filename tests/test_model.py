"""The bundle: the paper's modes on a tiny model, contracts 3 and 5, saving and loading."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audiolm import bundle, stages
from audiolm.adapters import dac, hubert
from audiolm.audio import Waveform, concatenate, read
from audiolm.bundle import language_model
from audiolm.errors import InputError
from audiolm.kmeans import KMeans
from audiolm.measuring.music import tone_likeness
from audiolm.model import AudioLM, Request, Sampling
from audiolm.provenance import detect, embed
from audiolm.tokenizers import Decoder, SemanticTokenizer, Tokenizer
from audiolm.tokens import Tokens
from audiolm.transformer import TransformerConfig

ROOT = Path(__file__).parents[1]


def test_continuation_keeps_the_prompt_to_the_sample(tiny_model: AudioLM, female: Waveform) -> None:
    prompt = female.trim(1.2345)  # not a whole number of frames
    out = tiny_model.generate(prompt, seconds=1.5, seed=3)
    count = prompt.samples.shape[1]
    assert torch.equal(out.samples[:, :count], prompt.samples)
    assert out.samples.shape[1] == count + 24_000
    new = tiny_model.generate(prompt, seconds=1.5, seed=3, only_new=True)
    assert torch.equal(new.samples, out.samples[:, count:])
    assert float(new.samples.square().mean()) > 0


def test_lengths_come_back_to_the_sample(tiny_model: AudioLM, female: Waveform) -> None:
    for samples in (1600, 1601, 6400, 12_345):
        sound = Waveform(female.samples[:, :samples], 16_000)
        assert tiny_model.reconstruct(sound).samples.shape == sound.samples.shape
        tokens = tiny_model.tokenize(sound)
        assert tokens.acoustic.codes.shape[1] == 2 * tokens.semantic.codes.shape[1] == 2 * -(-samples // 640)
        assert tiny_model.generate(sound, seconds=0.3).samples.shape[1] == samples + 4800
        assert tiny_model.revoice(sound).samples.shape[1] == tokens.semantic.codes.shape[1] * 640
    assert tiny_model.generate(seconds=0.1234).samples.shape[1] == round(0.1234 * 16_000)


def test_seeds_decide(tiny_model: AudioLM, female: Waveform) -> None:
    prompt = female.trim(1)
    first, again, other = (tiny_model.generate(prompt, seconds=1, seed=seed).samples for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batched_equals_single(tiny_model: AudioLM, female: Waveform, male: Waveform) -> None:
    """Contract 3: prompts, lengths and tasks of all kinds together give what each gives alone."""
    words = tiny_model.tokenize(male.trim(1.3)).semantic
    requests = [
        Request(female.trim(1), 1.1, seed=5),
        Request(None, 2.0, seed=6),
        Request(male.trim(3), 4.0, seed=7),  # past the stages' crops
        Request(female.trim(0.5), semantic=words, seed=8),
        Request(None, semantic=words, seed=9),
    ]
    together = tiny_model.generate_batch(requests)
    for request, sound in zip(requests, together, strict=True):
        alone = tiny_model.generate_batch([request])[0]
        torch.testing.assert_close(alone.samples, sound.samples, atol=1e-5, rtol=1e-4)


def test_acoustic_generation_says_the_given_words(tiny_model: AudioLM, female: Waveform, male: Waveform) -> None:
    words = tiny_model.tokenize(male.trim(1.3)).semantic
    job = tiny_model._jobs([Request(female.trim(1), semantic=words)])[0]
    tiny_model._sample_acoustic([job], tiny_model._route([job.request]), None)
    voice = tiny_model.tokenize(female.trim(1))
    assert torch.equal(job.semantic, torch.cat([voice.semantic.codes, words.codes], 1))
    assert torch.equal(job.acoustic[:, : voice.acoustic.codes.shape[1]], voice.acoustic.codes)
    assert job.acoustic.shape == (6, 2 * job.semantic.shape[1])


def test_acoustic_only_baseline_needs_no_semantic_stage(tiny_model: AudioLM, female: Waveform) -> None:
    bare = AudioLM(tiny_model.semantic, tiny_model.codec, {name: tiny_model.stages[name] for name in ("acoustic", "fine")})
    prompt = female.trim(1)
    sound = bare.generate(prompt, seconds=0.5, chain="acoustic")
    assert torch.equal(sound.samples, tiny_model.generate(prompt, seconds=0.5, chain="acoustic").samples)
    with pytest.raises(InputError, match="no semantic stage"):
        bare.generate(prompt, seconds=0.5)
    with pytest.raises(InputError, match="full chain"):
        bare.generate_batch([Request(semantic=tiny_model.tokenize(prompt).semantic)], chain="acoustic")


def test_the_piano_form_has_no_fine_stage(tiny_model: AudioLM, female: Waveform) -> None:
    """AudioLM section IV-I: one stage predicts all the levels of the codec."""
    stage = replace(stages.piano(tiny_model.semantic.spec, tiny_model.codec.spec, 6), crop=4.0, overlap=1.0)
    network = language_model(stage, TransformerConfig(layers=1, heads=1, width=16, ffn=16))
    piano = AudioLM(tiny_model.semantic, tiny_model.codec, {"semantic": tiny_model.stages["semantic"], "piano": (stage, network)})
    assert piano.generate(female.trim(1), seconds=1).seconds == pytest.approx(2)


def test_long_work_tells_how_far_it_is(tiny_model: AudioLM, female: Waveform, male: Waveform) -> None:
    """Blocks and windows change nothing but memory: a recording of 24 s is that of its codes and tokens at once."""
    long, told = concatenate([female, male] * 3).trim(24.37), list[tuple[str, int, int]]()
    made = tiny_model.reconstruct(long, 3, False, lambda *now: told.append(now))
    assert made.samples.shape == long.samples.shape
    with torch.inference_mode():
        whole = tiny_model.codec.decode(tiny_model.codec.encode(long.samples[None], 3))[0, :, : long.samples.shape[-1]]
    torch.testing.assert_close(made.samples, whole, atol=1e-5, rtol=1e-4)
    assert told == [("reconstruct", done, 389_920) for done in (160_000, 320_000, 389_920)]
    told.clear()
    tokens = tiny_model.semantic_tokens(long, lambda *now: told.append(now))
    assert torch.equal(tokens.codes, tiny_model.tokenize(long).semantic.codes)
    assert told == [("tokens", 500, 610), ("tokens", 610, 610)]


def test_few_levels_need_no_fine_stage(tiny_model: AudioLM, female: Waveform) -> None:
    """Levels are of the sound: those that a stage makes are the same however many of them are heard."""
    request, coarse = Request(female.trim(1), 1.0, seed=2), tiny_model.stages["coarse"][0].predict.levels
    told: list[str] = []
    few = tiny_model.generate_batch([request], lambda stage, *_: told.append(stage), codebooks=coarse)[0]
    assert set(told) == {"prompt", "semantic", "coarse", "sound"}
    job = tiny_model._jobs([request])[0]
    tiny_model._sample_semantic([job], tiny_model._route([request]), None)
    for codebooks in (coarse - 1, coarse, coarse + 1):
        route = tiny_model._route([request], codebooks=codebooks, watermark=True)
        own = copy.copy(job)
        tiny_model._sample_acoustic([own], route, None)
        whole = copy.copy(job)
        tiny_model._sample_acoustic([whole], tiny_model._route([request]), None)
        whole.acoustic = whole.acoustic[:codebooks]
        heard, expected = (sound.samples for sound in tiny_model._render([own, whole], route, None))
        assert torch.equal(heard, expected)
        assert (codebooks == coarse) == torch.equal(heard, few.samples)
    own, other = tiny_model.record(), tiny_model.record(chain="acoustic", codebooks=3)
    assert [own[name] for name in ("chain", "decoder", "codebooks")] == ["full", "autoregressive", 6]
    assert [other[name] for name in ("chain", "decoder", "codebooks")] == ["acoustic", "autoregressive", 3]
    for wrong in (0, 7):
        with pytest.raises(InputError, match=rf"codebooks={wrong}: give 1 to 6 for this model"):
            tiny_model.generate(female.trim(1), 1.0, codebooks=wrong)


def test_a_parallel_stage_of_few_levels_stands_in_for_the_coarse_one(tiny_model: AudioLM, female: Waveform) -> None:
    levels = tiny_model.stages["coarse"][0].predict.levels
    stage = stages.parallel(tiny_model.semantic.spec, tiny_model.codec.spec, levels)
    network = language_model(stage, TransformerConfig(layers=1, heads=1, width=16, ffn=16))
    model = AudioLM(tiny_model.semantic, tiny_model.codec, {**tiny_model.stages, "parallel": (stage, network)})
    told: set[str] = set()
    for codebooks, then in ((levels, set()), (None, {"fine"})):
        told.clear()
        request = Request(female.trim(1), 1.0)
        sound = model.generate_batch([request], lambda stage, *_: told.add(stage), decoder="parallel", codebooks=codebooks)[0]
        assert told == {"prompt", "semantic", "parallel", "sound", *then}
        parts = model.stream(female.trim(1), 1.0, decoder="parallel", codebooks=codebooks)
        torch.testing.assert_close(concatenate(list(parts)).samples, sound.samples, atol=1e-4, rtol=0)


def test_a_parallel_stage_makes_the_levels_between_coarse_and_fine(tiny_model: AudioLM, female: Waveform) -> None:
    """Where fine does not begin at coarse's end; where it does, the chain is the paper's, whatever parallel could add."""
    semantic, codec = tiny_model.semantic.spec, tiny_model.codec.spec
    made = {"parallel": stages.parallel(semantic, codec, 4), "fine": stages.fine(codec, 4)}
    networks = {
        name: (each, language_model(each, TransformerConfig(layers=1, heads=1, width=16, ffn=16))) for name, each in made.items()
    }
    model = AudioLM(tiny_model.semantic, tiny_model.codec, {**tiny_model.stages, **networks})
    without = AudioLM(tiny_model.semantic, tiny_model.codec, {k: each for k, each in model.stages.items() if k != "fine"})
    paper = AudioLM(tiny_model.semantic, tiny_model.codec, {**tiny_model.stages, "parallel": networks["parallel"]})
    request = Request(female.trim(1), 1.0, seed=1)
    for whole, codebooks, then in (
        (model, 2, []), (model, 3, ["parallel"]), (model, 4, ["parallel"]), (model, None, ["parallel", "fine"]),
        (without, None, ["parallel"]), (paper, 4, ["fine"]),
    ):  # fmt: skip
        route = whole._route([request], codebooks=codebooks)
        assert list(route.stages) == ["coarse", *then]
        assert route.decoder == "autoregressive"
        job = whole._jobs([request])[0]
        whole._sample_semantic([job], route, None)
        coarse = copy.copy(job)
        whole._sample_acoustic([coarse], whole._route([request], codebooks=2), None)
        whole._sample_acoustic([job], route, None)
        assert len(job.acoustic) >= route.codebooks
        assert torch.equal(job.acoustic[:2], coarse.acoustic)  # what coarse has made stays as it is
        assert torch.equal(job.acoustic[:, :50], whole._jobs([request])[0].acoustic[: len(job.acoustic)])  # as does the prompt
    with pytest.raises(InputError, match="codebooks=5: give 1 to 4"):
        without._route([request], codebooks=5)
    with pytest.raises(InputError, match="stage fine starts at level 5, not 3"):
        AudioLM(tiny_model.semantic, tiny_model.codec, {**tiny_model.stages, "fine": networks["fine"]})._route([request])


def test_deduplicated_stages_keep_the_time(tiny_model: AudioLM, female: Waveform) -> None:
    chosen = {
        name: (replace(stage, dedup=name in ("semantic", "coarse")), network)
        for name, (stage, network) in tiny_model.stages.items()
    }
    model = AudioLM(tiny_model.semantic, tiny_model.codec, chosen, about={"mean_run": 2.0})
    assert model.generate(female.trim(1), seconds=1.5, seed=1).seconds == pytest.approx(2.5)
    assert model._semantic()[0].crop == tiny_model.stages["semantic"][0].crop / 2  # as many tokens as in training


@pytest.mark.parametrize("codebooks", [1, 3, 6])
def test_reconstruction_at_any_bitrate(tiny_model: AudioLM, female: Waveform, codebooks: int) -> None:
    sound = tiny_model.reconstruct(female, codebooks, watermark=False)
    assert sound.samples.shape == female.samples.shape
    tokens = tiny_model.tokenize(female).acoustic
    decoded = tiny_model.decode(replace(tokens, codes=tokens.codes[:codebooks])).samples[:, : female.samples.shape[1]]
    torch.testing.assert_close(decoded[:, :-1000], sound.samples[:, :-1000], atol=1e-5, rtol=1e-4)


def test_any_rate_and_channels(tiny_model: AudioLM, female: Waveform) -> None:
    stereo = Waveform(female.trim(1).resample(44_100).samples.expand(2, -1).contiguous(), 44_100)
    out = tiny_model.generate(stereo, seconds=0.5)
    assert (out.sample_rate, len(out.samples)) == (16_000, 1)
    assert out.seconds == pytest.approx(1.5)


def test_all_that_is_new_is_marked_and_nothing_else(tiny_model: AudioLM, female: Waveform, male: Waveform) -> None:
    prompt = female.trim(1.5)
    plain, marked = (tiny_model.generate(prompt, 2.5, watermark=watermark) for watermark in (False, True))
    count = prompt.samples.shape[1]
    assert torch.equal(marked.samples[:, :count], prompt.samples)
    assert torch.equal(embed(plain.trim(start=1.5), tiny_model.payload).samples, marked.samples[:, count:])
    streamed = torch.cat([block.samples for block in tiny_model.stream(prompt, 2.5)], 1)
    torch.testing.assert_close(streamed, marked.samples, atol=1e-5, rtol=1e-4)
    for sound, expected in {plain: False, marked: True, tiny_model.reconstruct(male): True, prompt: False}.items():
        mark = detect(sound)
        assert (mark.found, mark.payload) == (expected, tiny_model.payload if expected else None)


def test_wrong_requests_are_one_clear_line(tiny_model: AudioLM, female: Waveform) -> None:
    for seconds in (0, -1.0, float("nan"), None, 1e9):
        with pytest.raises(InputError, match="give the length"):
            tiny_model.generate(female, seconds=seconds)
    with pytest.raises(InputError, match="1 ms long"):
        tiny_model.generate(female.trim(0.001), seconds=1)
    with pytest.raises(InputError, match="1 to 6"):
        tiny_model.reconstruct(female, 7)
    tokens = tiny_model.tokenize(female)
    with pytest.raises(InputError, match="this model's"):
        tiny_model.decode(tokens.semantic)
    with pytest.raises(InputError, match="this model needs"):
        tiny_model.generate(semantic=tokens.acoustic)
    with pytest.raises(InputError, match="nothing to decode"):
        tiny_model.decode(replace(tokens.acoustic, codes=tokens.acoustic.codes[:, :0]))
    with pytest.raises(InputError, match="nothing to say"):
        tiny_model.generate(semantic=replace(tokens.semantic, codes=tokens.semantic.codes[:, :0]))
    with pytest.raises(InputError, match=r"acoustic codes must be \(1 to 6 levels, frames\), got \(0, "):
        tiny_model.decode(replace(tokens.acoustic, codes=tokens.acoustic.codes[:0]))


def test_settings_reach_the_sampler(tiny_model: AudioLM, female: Waveform) -> None:
    greedy = {name: Sampling(temperature=0) for name in tiny_model.stages}
    first, second = (tiny_model.generate(female.trim(1), 1, seed=seed, sampling=greedy).samples for seed in (1, 2))
    assert torch.equal(first, second)
    assert tiny_model.sampling["semantic"].temperature == 0.6


def test_progress_is_told(tiny_model: AudioLM, female: Waveform) -> None:
    told: list[tuple[str, int, int]] = []
    tiny_model.generate(female.trim(1), seconds=1, progress=lambda *each: told.append(each))
    assert {name for name, _, _ in told} == {"prompt", "semantic", "coarse", "fine", "sound"}
    assert all(done <= total for _, done, total in told)
    assert {name for name, done, total in told if done == total} == {name for name, _, _ in told}


def test_a_prompt_that_requests_share_is_tokenized_once(
    tiny_model: AudioLM, female: Waveform, male: Waveform, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, heard = [female.trim(1), male.trim(1.01)], []
    requests = [Request(prompts[number % 2], 0.2, seed=number) for number in range(4)]
    alone = [tiny_model.generate(each.prompt, each.seconds, seed=each.seed) for each in requests]
    encode = tiny_model.codec.encode
    monkeypatch.setattr(tiny_model.codec, "encode", lambda audio: heard.append(audio) or encode(audio))
    told: list[tuple[int, int]] = []
    together = tiny_model.generate_batch(requests, lambda name, *count: told.append(count) if name == "prompt" else None)
    assert len(heard) == 2
    assert told == [(25, 50), (50, 50)]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.samples, other.samples)


def test_nothing_to_say_is_one_line(tiny_model: AudioLM, female: Waveform) -> None:
    nothing = Tokens(torch.zeros(1, 0, dtype=torch.int64), tiny_model.semantic.spec)
    for voice in (None, female.trim(1)):
        with pytest.raises(InputError, match="semantic tokens: there are none"):
            tiny_model.generate(voice, semantic=nothing)
        with pytest.raises(InputError, match="semantic tokens: there are none"):
            list(tiny_model.stream(voice, semantic=nothing))


# Contracts of every tokenizer

TOKENIZERS = {
    "soundstream": lambda model, others: model.codec,
    "units": lambda model, others: model.semantic,
    "dac": lambda model, others: dac.load(dac.read(others / "dac", "dac")),
    "hubert": lambda model, others: _units(hubert.read(others / "hubert", "hubert")),
    "wavlm at 25 Hz": lambda model, others: _units(hubert.read(others / "wavlm-large", "wavlm", 25)),
}


def _units(config: hubert.HubertConfig) -> SemanticTokenizer:
    units = KMeans(16, config.features)
    units.centroids.normal_(generator=torch.Generator().manual_seed(0))
    return SemanticTokenizer(hubert.Hubert.load(config), units, 2)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@torch.no_grad()
def test_tokenizers_keep_the_contract(tiny_model: AudioLM, others: Path, female: Waveform, male: Waveform, name: str) -> None:
    one = TOKENIZERS[name](tiny_model, others)
    assert isinstance(one, Tokenizer)
    pair = torch.stack([sound.samples[:, : 2 * 16_000] for sound in (female, male)])
    codes = one.encode(pair)
    assert codes.shape == (2, one.spec.num_codebooks, round(2 * one.spec.frame_rate))
    assert codes.dtype == torch.int64
    assert 0 <= int(codes.min()) <= int(codes.max()) < one.spec.codebook_size
    assert torch.equal(codes, one.encode(pair))
    assert torch.equal(codes, torch.cat([one.encode(pair[:1]), one.encode(pair[1:])]))
    if isinstance(one, Decoder):
        for levels in range(1, one.spec.num_codebooks + 1):
            assert one.decode(codes[:, :levels]).shape == pair.shape


def test_long_recordings_are_tokenized_in_windows(tiny_model: AudioLM, female: Waveform) -> None:
    long = concatenate([female] * 10)  # over 40 s: three windows
    codes = tiny_model.semantic.encode(long.samples[None])
    whole = tiny_model.semantic._encode(long.samples[None])
    assert codes.shape == whole.shape
    assert float((codes == whole).float().mean()) > 0.9  # all but what hears further than the context


# Bundles


@pytest.fixture
def saved(tiny_model: AudioLM, tmp_path: Path) -> Path:
    bundle.save(tiny_model, tmp_path / "model", "# A card\n", torch.float32)
    return tmp_path / "model"


def test_saved_and_loaded_is_the_same_model(tiny_model: AudioLM, saved: Path, female: Waveform) -> None:
    loaded = bundle.load(saved)
    prompt = female.trim(1)
    assert torch.equal(loaded.generate(prompt, seconds=1).samples, tiny_model.generate(prompt, seconds=1).samples)
    assert loaded.sampling == tiny_model.sampling
    assert {name: stage for name, (stage, _) in loaded.stages.items()} == {n: s for n, (s, _) in tiny_model.stages.items()}
    assert sorted(path.suffix for path in saved.iterdir()) == [".json", ".md"] + [".safetensors"] * 6
    assert not set(bundle.parts(loaded)) - {path.stem for path in saved.glob("*.safetensors")}


def test_half_precision_on_disk(tiny_model: AudioLM, tmp_path: Path, female: Waveform) -> None:
    bundle.save(tiny_model, tmp_path / "half", "")
    loaded = bundle.load(tmp_path / "half")
    assert next(loaded.codec.parameters()).dtype == torch.float32
    agree = loaded.tokenize(female).acoustic.codes[0] == tiny_model.tokenize(female).acoustic.codes[0]
    assert float(agree.float().mean()) > 0.9


def test_stages_in_eight_bits(tiny_model: AudioLM, tmp_path: Path, female: Waveform) -> None:
    bundle.save(tiny_model, tmp_path / "half", "")
    bundle.save(tiny_model, tmp_path / "eight", "", torch.int8)
    half, eight = bundle.load(tmp_path / "half"), bundle.load(tmp_path / "eight")
    tokens, same = half.tokenize(female), eight.tokenize(female)
    assert torch.equal(tokens.acoustic.codes, same.acoustic.codes)
    assert float((tokens.semantic.codes == same.semantic.codes).float().mean()) > 0.95
    # What is in 8 bits once is the same in 8 bits again: a recipe makes its tokens with the encoder that its bundle has.
    bundle.save(eight, tmp_path / "again", "", torch.int8)
    assert torch.equal(same.semantic.codes, bundle.load(tmp_path / "again").tokenize(female).semantic.codes)
    for key, tensor in bundle.load(tmp_path / "again").semantic.state_dict().items():
        torch.testing.assert_close(tensor, eight.semantic.state_dict()[key], rtol=1e-6, atol=0, msg=key)
    difference = half.decode(tokens.acoustic).samples - eight.decode(tokens.acoustic).samples
    assert 0 < float(difference.norm()) < 0.05 * float(half.decode(tokens.acoustic).samples.norm())
    for name, (_, network) in eight.stages.items():
        for key, tensor in tiny_model.stages[name][1].state_dict().items():
            rough = network.state_dict()[key]
            assert float((rough - tensor).norm()) < 0.01 * float(tensor.norm()), key
        sizes = [(tmp_path / kind / f"{name}.safetensors").stat().st_size for kind in ("half", "eight")]
        assert sizes[1] < 0.7 * sizes[0]
    assert eight.generate(female.trim(1), seconds=0.5).seconds == pytest.approx(1.5)


def test_damaged_and_foreign_bundles_are_refused(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            bundle.load(saved)
        assert "\n" not in str(caught.value)

    (saved / "config.json").write_text(json.dumps({**config, "format": bundle.FORMAT + 1}))
    refused("newer than this audiolm")
    (saved / "config.json").write_text("{")
    refused("not JSON")
    (saved / "config.json").write_text(json.dumps({**config, "codec": {"latnet": 3}}))
    refused("not a bundle's configuration .*did you mean 'latent'")
    for name in ("about", "codec", "semantic", "stages", "weights"):
        (saved / "config.json").write_text(json.dumps({**config, name: []}))
        refused(f"not a bundle's configuration .*'{name}'")
    for layer in (9, -1, "1", None):
        (saved / "config.json").write_text(json.dumps({**config, "semantic": {**config["semantic"], "layer": layer}}))
        refused(rf"config\.json: .*semantic\.layer {layer} is not in 0 to 2")
    shape = {**config["semantic"], "encoder": {**config["semantic"]["encoder"], "kernel": 4}}
    (saved / "config.json").write_text(json.dumps({**config, "semantic": shape}))
    refused("kernel=4 must be odd")
    (saved / "config.json").write_text(json.dumps({**config, "semantic": {**config["semantic"], "units": 17}}))
    refused("do not fit")
    (saved / "config.json").write_text(json.dumps(config))
    weights = (saved / "coarse.safetensors").read_bytes()
    (saved / "coarse.safetensors").write_bytes(weights[: len(weights) // 2])
    refused("coarse.safetensors: not a complete safetensors file")
    (saved / "coarse.safetensors").unlink()
    refused("coarse.safetensors: no such file")
    with pytest.raises(InputError, match="config.json is missing"):
        bundle.load(tmp_path)
    with pytest.raises(InputError, match="no such model"):
        bundle.load("nothing-of-this-name")


# What comes with the package


@pytest.mark.parametrize("name", bundle.packaged())
def test_packaged_models_go_on_from_the_examples(name: str) -> None:
    model = bundle.load(name)
    example = {"speech": "female"}.get(name, name)
    prompt = read(ROOT / "examples" / f"prompt-{example}.flac").trim(3)
    sound = model.generate(prompt, seconds=1, seed=0)
    assert sound.seconds == pytest.approx(4, abs=0.01)
    assert torch.equal(sound.samples[:, : prompt.samples.shape[1]], prompt.samples)
    assert 0.003 < float(sound.trim(1, start=3).samples.std()) < 0.5  # neither silent nor noise at full scale
    again = model.reconstruct(prompt, watermark=False)
    kept = tone_likeness(*(each.resample(16_000).samples[0] for each in (prompt, again)))
    assert kept > 0.8


def test_packaged_weights_are_small() -> None:
    sizes = [path.stat().st_size for path in bundle.PRETRAINED.rglob("*.safetensors")]
    assert len(sizes) >= 10
    assert sum(sizes) < 80e6
