"""Tokenizers of others: exact as streams, to the sample, alone as in batches; a recipe takes them, a bundle holds them.

All networks here are tiny ones of transformers' own classes with random weights, saved and read as real ones are.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from audiolm import bundle
from audiolm.adapters import dac, hubert
from audiolm.audio import Waveform
from audiolm.codec import Codec
from audiolm.config import load_config
from audiolm.errors import InputError
from audiolm.measuring.evaluation import evaluate
from audiolm.quantizer import residual_energy
from audiolm.training.corpus import tokenizer_key
from audiolm.training.data import scan
from audiolm.training.gates import GATES
from audiolm.training.plan import make_plan
from audiolm.training.recipe import RecipeConfig
from audiolm.training.steps import run_recipe
from audiolm.training.token_store import TokenStore

ROOT = Path(__file__).parents[1]
ENCODERS = ["hubert", "hubert-large", "wavlm", "wavlm-large", "wav2vec2", "wav2vec2-large"]  # others of `others`


@pytest.fixture(scope="module")
def codec(others: Path) -> Codec:
    return dac.load(dac.read(others / "dac", "dac")).eval()


# DAC


@torch.no_grad()
def test_dac_is_transformers_dac(others: Path, codec: Codec, female: Waveform) -> None:
    """The same codes and the same sound; only at the very end transformers lacks samples that it would need."""
    from transformers import AutoModel

    sound = female.samples[None, :, : 2 * 16_000]
    theirs: Any = AutoModel.from_pretrained(others / "dac").eval()
    codes = codec.encode(sound)
    assert torch.equal(codes, theirs.encode(sound).audio_codes)
    assert len(codes.unique()) > 4
    made, known = codec.decode(codes), theirs.decode(audio_codes=codes).audio_values[:, None]
    assert made.shape == sound.shape
    assert known.shape[-1] == sound.shape[-1] - 8
    upto = sound.shape[-1] - codec.body.lag
    torch.testing.assert_close(made[..., :upto], known[..., :upto], atol=1e-6, rtol=1e-5)
    assert float(made[..., -8:].abs().max()) > 0


@torch.no_grad()
def test_dac_streams_exactly(codec: Codec, female: Waveform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract 2, whatever the blocks and the windows: in pieces as in one."""
    sound = female.samples[None, :, :20_321]
    codes, whole = codec.encode(sound), codec.decode(codec.encode(sound))
    monkeypatch.setattr(dac, "WINDOW", 23)
    assert torch.equal(codec.encode(sound), codes)
    torch.testing.assert_close(codec.decode(codes), whole, atol=1e-6, rtol=1e-5)
    for size in (777, 9_000):
        encoder = codec.encoder_stream()
        parts = [encoder.push(block) for block in sound.split(size, -1)]
        assert torch.equal(torch.cat([*parts, encoder.flush()], -1), codes)
    for size in (1, 7, 60):
        decoder = codec.decoder_stream()
        made = [decoder.push(block) for block in codes.split(size, -1)]
        done = sum(each.shape[-1] for each in made)
        assert done == max(0, codes.shape[-1] * codec.hop - codec.body.lag)
        torch.testing.assert_close(torch.cat([*made, decoder.flush()], -1), whole, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("strides", [[2, 4, 5, 8], [2, 4, 8, 8], [3, 5]])
def test_how_far_dac_sees_is_computed(strides: list[int]) -> None:
    """What lies beyond changes nothing, and what lies just within does: by gradients of a frame in the middle."""
    from transformers import AutoConfig, AutoModel

    hop = int(torch.tensor(strides).prod())
    torch.manual_seed(0)
    sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 1, "codebook_size": 4}
    network = AutoModel.from_config(AutoConfig.for_model("dac", **sizes, downsampling_ratios=strides)).double()
    body = dac.DacBody(network, strides)
    frames, middle = 2 * (body.memory + body.ahead + body.context) + 1, body.memory + body.ahead + body.context
    with torch.enable_grad():
        latents = torch.randn(1, network.config.hidden_size, frames, dtype=torch.float64, requires_grad=True)
        body.decoder(latents)[..., middle * hop : (middle + 1) * hop].abs().sum().backward()
        audio = torch.randn(1, 1, frames * hop, dtype=torch.float64, requires_grad=True)
        body.encoder(audio)[..., middle].abs().sum().backward()
    assert latents.grad is not None
    assert audio.grad is not None
    seen = latents.grad.abs().sum((0, 1)).nonzero()[:, 0]
    assert (int(seen[0]), int(seen[-1])) == (middle - body.memory, middle + body.ahead)
    heard = audio.grad[0, 0].nonzero()[:, 0]
    before, after = dac.encoder_reach(strides)
    assert (int(heard[0]), int(heard[-1])) == (middle * hop - before, (middle + 1) * hop - 1 + after)


@torch.no_grad()
def test_dacs_vectors_are_what_its_codes_add(codec: Codec, female: Waveform) -> None:
    codes = codec.encode(female.samples[None])
    latents = sum(F.embedding(codes[:, level], vectors) for level, vectors in enumerate(codec.quantizer.vectors()))
    assert isinstance(latents, torch.Tensor)
    torch.testing.assert_close(codec.quantizer.decode(codes), latents.transpose(1, 2), atol=1e-5, rtol=1e-4)
    energy = residual_energy(codec.quantizer, codec.latents(female.samples[None]))
    assert len(energy) == 6
    assert {name.partition(".")[0] for name in codec.coder()} == {"body", "quantizer"}
    assert not any("decoder" in name for name in codec.coder())


# HuBERT and its kin


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoders_features_are_those_of_transformers(others: Path, female: Waveform, male: Waveform, name: str) -> None:
    """Layer by layer, of the sound as transformers' own extractor normalises it, with silence at both ends."""
    from transformers import AutoModel, Wav2Vec2FeatureExtractor

    one = hubert.Hubert.load(hubert.read(others / name, name))
    pair = torch.stack([sound.samples[:, : 2 * 16_000] for sound in (female, male)])
    made = one.extract(pair)
    assert [each.shape for each in made] == [(2, 100, 24)] * 4
    normal = Wav2Vec2FeatureExtractor()([each[0].numpy() for each in pair], sampling_rate=16_000, return_tensors="pt")
    theirs = AutoModel.from_pretrained(others / name).eval()
    known = theirs(F.pad(normal.input_values, (40, 40)), output_hidden_states=True).hidden_states
    for layer, (each, expected) in enumerate(zip(made, known, strict=True)):
        torch.testing.assert_close(each, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.extract(pair, layer)[-1], each)
    alone = torch.cat([one.extract(each[None])[2] for each in pair])
    torch.testing.assert_close(made[2], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_frames_may_be_averaged_in_twos(others: Path, female: Waveform) -> None:
    whole, half = (hubert.Hubert.load(hubert.read(others / "hubert", "hubert", rate)) for rate in (50, 25))
    sound = female.samples[None, :, :32_001]
    assert (whole.config.hop, half.config.hop) == (320, 640)
    assert (whole.extract(sound)[2].shape[1], half.extract(sound)[2].shape[1]) == (101, 51)
    fine = whole.extract(sound[..., :32_000])[2]
    torch.testing.assert_close(half.extract(sound[..., :32_000])[2], (fine[:, ::2] + fine[:, 1::2]) / 2)
    for rate in (30, 12.5, 100):
        with pytest.raises(InputError, match=rf"frame_rate={rate:g}: .* makes 50 frames per second; give 50 or 25"):
            hubert.read(others / "hubert", "hubert", rate)


def test_whether_an_input_is_normalised_is_its_authors_word(others: Path, tmp_path: Path) -> None:
    shutil.copytree(others / "wavlm", tmp_path / "wavlm")
    (tmp_path / "wavlm" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert hubert.read(others / "wavlm", "wavlm").normalize
    config = hubert.read(tmp_path / "wavlm", "wavlm")
    assert not config.normalize


# What is refused


def test_wrong_folders_are_one_line(others: Path, tmp_path: Path) -> None:
    def refused(read: Callable[..., object], match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            read(tmp_path / "x", "owner/x")
        assert "\n" not in str(caught.value)
        shutil.rmtree(tmp_path / "x")

    (tmp_path / "x").mkdir()
    refused(dac.read, "owner/x: no model of transformers")
    shutil.copytree(others / "hubert", tmp_path / "x")
    refused(dac.read, "owner/x: its model_type is hubert; this takes dac")
    shutil.copytree(others / "dac", tmp_path / "x")
    refused(hubert.read, "owner/x: its model_type is dac; this takes hubert, wav2vec2, wavlm")
    shutil.copytree(others / "hubert", tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").rename(tmp_path / "x" / "pytorch_model.bin")
    refused(hubert.read, "owner/x: has no model.safetensors, and pickled weights are never read; save it anew by")
    shutil.copytree(others / "hubert", tmp_path / "x")
    values = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**values, "num_hidden_layers": "many"}))
    refused(hubert.read, "transformers cannot read this configuration")
    for change, match in (({"num_hidden_layers": 4}, "not among its weights"), ({"hidden_size": 48}, "weights cannot be read")):
        shutil.copytree(others / "hubert", tmp_path / "x")
        (tmp_path / "x" / "config.json").write_text(json.dumps({**values, **change}))
        refused(lambda folder, name: hubert.Hubert.load(hubert.read(folder, name)), f"owner/x: .*{match}")
    shutil.copytree(others / "dac", tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").write_bytes(b"cut off")
    refused(lambda folder, name: dac.load(dac.read(folder, name)), "owner/x: its weights cannot be read")


def test_without_the_extra_a_line_names_it(others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, encoder = dac.read(others / "dac", "dac").plain(), hubert.read(others / "hubert", "hubert").plain()
    parts = {"about": {}, "stages": {}, "weights": {}, "codec": codec, "semantic": {"encoder": encoder, "layer": 1, "units": 4}}
    (tmp_path / "config.json").write_text(json.dumps({"format": bundle.FORMAT, **parts}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    for read in (lambda: dac.read(others / "dac", "dac"), lambda: bundle.load(tmp_path)):
        with pytest.raises(InputError, match=r"^tokenizers of others need transformers; run: pip install 'audiolm\[hf\]'$"):
            read()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["codec.steps=3"], "codec: take.codec stands in its place"),
        (["encoder=[{}]"], "encoder: take.encoder stands in its place"),
        (["take.encoder=nowhere"], "nowhere: no such folder; give one in the form of transformers, or a hub id"),
        (["take.frame_rate=20"], "take: frame_rate=20"),
        (["units.layer=4"], "units.layer=4: the encoder has 3 layers"),
        (["codebooks=7"], "codebooks=7: the codec has 6"),
        (
            ['stages=["semantic", "coarse", "fine", "text"]', "take.frame_rate=50"],
            "text: needs as many units a second as letters, 25",
        ),
        (["base=speech"], "take: base=speech provides it"),
        (["take.encoders=x"], "unknown key 'take.encoders'; did you mean 'take.encoder'"),
    ],
)
def test_recipes_that_contradict_what_they_take(others: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        recipe(others, "x", "y", *overrides)
    assert "\n" not in str(caught.value)


def test_another_rate_is_refused(others: Path, tmp_path: Path) -> None:
    shutil.copytree(others / "dac", tmp_path / "dac")
    values = json.loads((tmp_path / "dac" / "config.json").read_text())
    (tmp_path / "dac" / "config.json").write_text(json.dumps({**values, "sampling_rate": 24_000}))
    with pytest.raises(
        InputError, match=r"take\.codec: 24000 Hz, hop 320; use 16000 Hz and a hop that divides the encoder's 640"
    ):
        recipe(others, "x", "y", f"take.codec={tmp_path / 'dac'}")


# By recipe, to a bundle


def recipe(others: Path, data: object, out: object, *overrides: str) -> RecipeConfig:
    few = {"steps": 4, "save_every": 2, "valid_every": 2, "valid_batches": 1, "batch_size": 2, "crop": 1.0, "dedup": "false"}
    few |= {"network.layers": 1, "network.heads": 2, "network.width": 32, "network.ffn": 32}
    given = [f"data={data}", f"out={out}", f"take.encoder={others / 'hubert'}", f"take.codec={others / 'dac'}", "threads=1"]
    given += ["units.layer=2", "units.units=16", "units.batches=2", "coarse.levels=2", "precision=32-true"]
    given += [f"{stage}.{key}={value}" for stage in ("semantic", "coarse", "fine") for key, value in few.items()]
    given += [f"gates.{gate.name}=off" for gate in GATES if gate.name not in ("reconstructs", "beats_mfcc")]
    given += ["gates.reconstructs=-9", "gates.beats_mfcc=-9"]  # measured, whatever random networks reach
    return load_config(RecipeConfig, ROOT / "recipes" / "hubert-dac.toml", [*given, *overrides])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for clip in ("prompt-female", "prompt-male"):
        (folder / clip).mkdir()
        shutil.copy(ROOT / "examples" / f"{clip}.flac", folder / clip / "1.flac")
    return folder


@pytest.fixture(scope="module", params=[25, 50])
def made(others: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    config = recipe(others, corpus, out, f"take.frame_rate={request.param}")
    planned = {row.step: row.note for row in make_plan(config).rows}
    assert (planned["codec"], planned["encoder"], planned["units"]) == ("from dac", "from hubert", "")
    run_recipe(config)
    return out


def test_a_recipe_trains_stages_on_them(made: Path, female: Waveform, others: Path, corpus: Path, tmp_path: Path) -> None:
    model = bundle.load(made / "bundle")
    prompt, rate = female.trim(1.2345), model.semantic.spec.frame_rate
    sound = model.generate(prompt, seconds=0.7, seed=1)
    assert torch.equal(sound.samples[:, : prompt.samples.shape[1]], prompt.samples)
    assert sound.samples.shape[1] == prompt.samples.shape[1] + 11_200
    assert sound.samples.isfinite().all()
    blocks = [block.samples for block in model.stream(prompt, seconds=0.7, seed=1)]
    torch.testing.assert_close(torch.cat(blocks, 1), sound.samples, atol=1e-5, rtol=1e-4)
    again = model.reconstruct(prompt, 2)
    assert again.samples.shape == prompt.samples.shape
    tokens = model.tokenize(prompt)
    assert tokens.acoustic.codes.shape[1] == round(50 / rate) * tokens.semantic.codes.shape[1]
    assert model.revoice(prompt).samples.shape[1] == tokens.semantic.codes.shape[1] * model.semantic.hop
    # The stages were trained on the bundle's own tokens, and what was taken has not been changed.
    TokenStore(made / "tokens", expect=tokenizer_key(model.semantic, model.codec))
    theirs = hubert.Hubert.load(hubert.read(others / "hubert", "hubert")).state_dict()
    for name, weights in model.semantic.encoder.state_dict().items():
        torch.testing.assert_close(weights, theirs[name].bfloat16().float(), rtol=0, atol=0)
    bundle.save(model, tmp_path / "again", "", torch.float32)
    same = bundle.load(tmp_path / "again").generate(prompt, seconds=0.7, seed=1)
    assert torch.equal(same.samples, sound.samples)


def test_a_bundle_says_what_it_took(made: Path, others: Path) -> None:
    card, config = (made / "bundle" / "README.md").read_text(), json.loads((made / "bundle" / "config.json").read_text())
    assert "Its codec was taken as it was: dac (licence: mit)." in card
    assert "Its encoder was taken as it was: hubert (licence: not stated)." in card
    assert config["codec"]["adapter"] == "dac"
    assert config["semantic"]["encoder"]["adapter"] == "hubert"
    assert str(others) not in json.dumps(config) + card
    assert {gate for step in config["about"]["gates"].values() for gate in step} == {"reconstructs", "beats_mfcc"}
    run_recipe(recipe_of(made, others))  # all is done already


def test_the_bundle_is_a_base_for_more(made: Path, others: Path, corpus: Path, tmp_path: Path) -> None:
    few = ["semantic.steps=2", "semantic.batch_size=2", "threads=1", 'stages=["semantic"]', f"base={made / 'bundle'}"]
    few += [f"gates.{gate.name}=off" for gate in GATES]
    run_recipe(load_config(RecipeConfig, None, [f"data={corpus}", f"out={tmp_path / 'more'}", *few]))
    base, more = bundle.load(made / "bundle"), bundle.load(tmp_path / "more" / "bundle")
    assert more.codec.config == base.codec.config
    assert "Its codec was taken as it was: dac (licence: mit)" in (tmp_path / "more" / "bundle" / "README.md").read_text()
    for name, weights in base.codec.state_dict().items():
        assert torch.equal(more.codec.state_dict()[name], weights)


def test_other_weights_are_another_result(made: Path, others: Path, tmp_path: Path) -> None:
    shutil.copytree(others, tmp_path / "others")
    torch.manual_seed(1)
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.from_pretrained(others / "hubert")).save_pretrained(tmp_path / "others" / "hubert")
    with pytest.raises(InputError, match=r"encoder.weights was .*redo the step: --only encoder --force"):
        run_recipe(recipe_of(made, tmp_path / "others"))


def recipe_of(made: Path, others: Path) -> RecipeConfig:
    """The recipe that made a folder."""
    rate = 16_000 / bundle.load(made / "bundle").semantic.hop
    data = json.loads((made / "prepare" / "done.json").read_text())["config"]["data"]
    return recipe(others, data, made, f"take.frame_rate={rate:g}")


def test_evaluate_measures_such_a_bundle(made: Path, corpus: Path) -> None:
    model = bundle.load(made / "bundle")
    report = evaluate(model, scan(corpus), parts=["codec", "units", "layers", "abx"])
    assert {"codebook.6.residual_energy", "units.pnmi", "layer.3.pnmi"} <= set(report)
