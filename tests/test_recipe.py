"""The chain: a finished step is never done again, a changed one is refused by name, a killed one goes on to the same result."""

import json
import multiprocessing
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.fabric import Fabric

import audiolm.training.steps
from audiolm import bundle
from audiolm.audio import read
from audiolm.bundle import language_model
from audiolm.commands.training import tokenize
from audiolm.config import difference, load_config
from audiolm.errors import InputError
from audiolm.files import save_tensors, write_json
from audiolm.training.audio_store import AudioStore
from audiolm.training.chain import Chain, Step
from audiolm.training.corpus import tokenize_corpus
from audiolm.training.data import scan
from audiolm.training.gates import GATES
from audiolm.training.plan import make_plan
from audiolm.training.recipe import RecipeConfig, stage_config, stage_of
from audiolm.training.run import Stopped
from audiolm.training.steps import run_recipe, steps
from audiolm.training.token_store import TokenStore
from audiolm.training.train_encoder import UnitsConfig
from audiolm.training.train_lm import take_over
from audiolm.training.workshop import Workshop

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
FEW = {"steps": 6, "save_every": 2, "valid_every": 3, "batch_size": 2, "valid_batches": 1}
# Six steps teach nothing: tests/test_gates.py sees to the gates.
UNGATED = [f"gates.{gate.name}=off" for gate in GATES]
SEEDED = ("", "codec.", "encoder.0.", "units.", "semantic.", "piano.")
QUICK = ["units.batches=8", "codec.start_batches=8", "encoder.0.fit_batches=2", *UNGATED] + [
    f"{part}.{key}={value}" for part in ("codec", "encoder.0", "semantic", "coarse", "fine") for key, value in FEW.items()
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real clips, and a file that is none."""
    folder = tmp_path_factory.mktemp("corpus")
    for clip in sorted((ROOT / "examples").glob("*.flac")):
        sound = read(clip).mono().resample(16_000).samples[0].numpy()
        for part, samples in enumerate(np.array_split(sound, 2)):
            (folder / clip.stem).mkdir(exist_ok=True)
            soundfile.write(folder / clip.stem / f"{part}.wav", samples, 16_000)
    (folder / "broken.wav").write_text("no sound")
    return folder


def quick(corpus: Path, out: Path, *overrides: str) -> RecipeConfig:
    return load_config(
        RecipeConfig, ROOT / "recipes" / "tiny.toml", [f"data={corpus}", f"out={out}", "threads=1", *QUICK, *overrides]
    )


def results(out: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["result"] for path in out.glob("*/done.json")}


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run_recipe(quick(corpus, out))
    return out


def test_the_chain_makes_a_model_that_goes_on_from_a_voice(whole: Path, corpus: Path) -> None:
    model = bundle.load(whole / "bundle")
    prompt = read(next(corpus.glob("*/0.wav"))).trim(1.0)
    sound = model.generate(prompt, seconds=0.5, seed=0)
    assert sound.seconds == pytest.approx(1.5)
    assert sound.samples.isfinite().all()
    assert [entry["name"] for entry in json.loads((whole / "prepare" / "skipped.json").read_text())] == ["broken.wav"]
    assert "0.00 h" in (whole / "bundle" / "README.md").read_text()
    assert str(whole) not in (whole / "bundle" / "config.json").read_text() + (whole / "bundle" / "README.md").read_text()


def test_language_models_were_trained_on_the_bundles_own_tokens(whole: Path) -> None:
    """Weights are rounded in a bundle; tokens made by the unrounded codec would be another's."""
    from audiolm.training.corpus import tokenizer_key
    from audiolm.training.token_store import TokenStore

    model = bundle.load(whole / "bundle")
    TokenStore(whole / "tokens", expect=tokenizer_key(model.semantic, model.codec))


def test_a_stage_that_reads_aloud_is_added_to_a_model(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """It needs transcripts, learns how long each letter lasts, and begins with the base's semantic stage."""
    recordings = sorted(path.resolve() for path in corpus.glob("*/*.wav"))
    manifest = tmp_path / "manifest.csv"
    options = [f"base={whole / 'bundle'}", 'stages=["text"]', *(f"text.{key}={value}" for key, value in FEW.items()), *UNGATED]
    config = [f"data={manifest}", f"out={tmp_path / 'out'}", "threads=1", *options]
    manifest.write_text("path,speaker\n" + "".join(f"{path},{path.parent.name}\n" for path in recordings))
    with pytest.raises(InputError, match="no train recording has a transcript"):
        run_recipe(load_config(RecipeConfig, ROOT / "recipes" / "further.toml", config))
    lines = [f"{path},{path.parent.name},A few words are said\n" for path in recordings]
    manifest.write_text("path,speaker,transcript\n" + "".join(lines))
    run_recipe(load_config(RecipeConfig, ROOT / "recipes" / "further.toml", [*config, f"out={tmp_path / 'told'}"]))
    model = bundle.load(tmp_path / "told" / "bundle")
    assert {"semantic", "text"} <= set(model.stages)
    sizes = [network.transformer.config.model_dump(include={"layers", "width"}) for _, network in model.stages.values()]
    assert sizes[0] == sizes[-1]  # so that it can start from the semantic stage
    assert all(0 <= each < 1 for each in model.about["letter_seconds"].values())
    assert model.generate(text="A few words.", watermark=False).samples.isfinite().all()


def test_done_stays_done(whole: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for name in ("scan", "train_codec", "train_encoder", "fit_units", "tokenize_corpus", "train_lm"):
        monkeypatch.setattr(audiolm.training.steps, name, refuse)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock" and path.is_file()}
    run_recipe(quick(corpus, whole))
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock" and path.is_file()}
    run_recipe(quick(corpus, whole), only="fine")
    with pytest.raises(
        InputError, match=r"codec\.lr was 0\.001, is 0\.5\); undo the change, or redo the step: --only codec --force"
    ):
        run_recipe(quick(corpus, whole, "codec.lr=0.5"))
    with pytest.raises(InputError, match=r"encoder\.0\.steps was 6, is 7"):
        run_recipe(quick(corpus, whole, "encoder.0.steps=7"))
    run_recipe(quick(corpus, whole, "threads=2"))  # changes no result


def test_recordings_that_came_later_are_told_of(
    whole: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, out := tmp_path / "out", symlinks=True)
    run_recipe(quick(corpus, out))
    assert "are new" not in capsys.readouterr().err  # nor is the broken one, which was left out
    clips = sorted(corpus.glob("*/*.wav"))
    clips[0].rename(moved := clips[0].with_name("moved.wav"))
    shutil.copy(clips[1], another := clips[1].with_name("another.wav"))
    try:
        run_recipe(quick(corpus, out))
        said = capsys.readouterr().err
        assert f"{corpus}: 2 recordings added and 1 removed since it was prepared; to use the current ones: " in said
        assert results(out) == results(whole)
    finally:
        moved.rename(clips[0])
        another.unlink()
    (out / "prepare" / "00000.i16").unlink()  # of which nothing is due any more
    run_recipe(quick(corpus, out))
    with pytest.raises(InputError, match=r"prepare\.data was"):  # but not where another folder is named
        run_recipe(quick(tmp_path / "nothing", out))


def test_recordings_are_the_same_by_whatever_name(
    whole: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "prepare", (out := tmp_path / "out") / "prepare")
    shutil.copytree(corpus, here := tmp_path / "here")

    def again(data: str, out: Path = out) -> str:
        run_recipe(quick(Path(data), out).model_copy(update={"data": data}), only="prepare")
        return capsys.readouterr().err

    monkeypatch.chdir(corpus.parent)
    (tmp_path / "link").symlink_to(corpus)
    for data in (str(corpus), corpus.name, f"./{corpus.name}", f"../{corpus.parent.name}/{corpus.name}", str(tmp_path / "link")):
        assert again(data).endswith("prepare: already done\n")
    with pytest.raises(InputError, match=rf'prepare\.data was "{corpus.resolve()}", is "{here.resolve()}"'):
        again(str(here))  # the same names, but also where they were

    for name in ("begun.json", "done.json"):  # as older versions recorded it
        record = json.loads((out / "prepare" / name).read_text())
        record["config"]["data"] = corpus.name
        write_json(out / "prepare" / name, record)
    assert "taken for" not in again(str(corpus))
    monkeypatch.chdir(tmp_path)
    assert f"here: taken for {corpus.name}, which is gone; it has the same recordings\n" in again("here")
    shutil.copy(next(here.glob("*/0.wav")), here / "more.wav")
    assert "here: 1 recordings added and 0 removed" in again("here")
    next(here.glob("*/0.wav")).unlink()
    with pytest.raises(InputError, match=r"prepare\.data was"):
        again("here")


def test_options_that_are_newer_than_a_run_change_nothing(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """As a run of an older version has them on record: without the options that were still to come."""
    shutil.copytree(whole, out := tmp_path / "out", symlinks=True)
    newer = {
        "prepare": [("minimum",)],
        "codec": [("windows",), ("network", "phases")],
        "encoder": [("0", "warm_start"), ("0", "network", "level")],
        "fine": [("overlap",), ("dedup",)],
    }
    for step, places in newer.items():
        for path in (out / step / "done.json", out / step / "begun.json"):
            record = json.loads(path.read_text())
            for *place, key in places:
                table = record["config"]
                for each in place:
                    table = table[each]
                del table[key]
            if step != "prepare":
                record["config"]["precision"] = "32-true"  # which was on record then: it is the machine's affair now
            path.write_text(json.dumps(record))
    run_recipe(quick(corpus, out, "precision=auto"))
    assert results(out) == results(whole)
    with pytest.raises(InputError, match=r"codec\.windows was \[320, 640, 1280\], is \[64\]"):
        run_recipe(quick(corpus, out, "codec.windows=[64]"))


def test_a_parallel_decoder_is_one_more_stage(whole: Path, corpus: Path, tmp_path: Path) -> None:
    for name in ("prepare", "codec", "encoder", "units", "tokens", "semantic"):
        shutil.copytree(whole / name, tmp_path / "out" / name)
    network = [f"parallel.network.{key}={value}" for key, value in {"layers": 1, "heads": 2, "width": 32, "ffn": 32}.items()]
    few = [f"parallel.{key}={value}" for key, value in FEW.items()]
    config = quick(corpus, tmp_path / "out", 'stages=["semantic", "parallel"]', "parallel.crop=1.0", *network, *few)
    model = bundle.load(run_recipe(config))
    assert model.stages["parallel"][0].parallel
    assert model.generate(seconds=0.5).seconds == pytest.approx(0.5)
    with pytest.raises(InputError, match="dedup"):
        quick(corpus, tmp_path / "out", 'stages=["parallel"]', "parallel.dedup=true")


def test_further_from_a_model(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """The base's codec and units say the same tokens; a stage begins with its weights; others are carried over."""
    options = ["threads=1", f"data={corpus}", f"base={whole / 'bundle'}", 'stages=["semantic"]', "weights=float32", *UNGATED]
    few = [f"semantic.{key}={value}" for key, value in {**FEW, "lr": 1e-9, "steps": 2}.items()]

    def config(name: str, *more: str) -> RecipeConfig:
        return load_config(RecipeConfig, None, [*options, f"out={tmp_path / name}", *few, *more])

    base, model = bundle.load(whole / "bundle"), bundle.load(run_recipe(config("out")))
    sound = read(next(corpus.glob("*/0.wav"))).trim(1.0)
    ours, theirs = model.tokenize(sound), base.tokenize(sound)
    assert torch.equal(ours.semantic.codes, theirs.semantic.codes)
    assert torch.equal(ours.acoustic.codes, theirs.acoustic.codes)
    assert model.sampling == base.sampling
    assert list(model.stages) == ["semantic", "coarse", "fine"]
    for name, (stage, network) in model.stages.items():
        assert stage == base.stages[name][0]
        for weight, before in zip(network.parameters(), base.stages[name][1].parameters(), strict=True):
            torch.testing.assert_close(weight, before, rtol=0.01, atol=1e-5)  # a trained one passes through bfloat16
    assert "It continues from tiny (licence: not stated)" in (tmp_path / "out" / "bundle" / "README.md").read_text()

    moved = bundle.load(run_recipe(config("moved", "semantic.lr=0.1", "codebooks=2")))
    assert (moved.about["codebooks"], model.about.get("codebooks")) == (2, None)
    pairs = zip(moved.stages["semantic"][1].parameters(), base.stages["semantic"][1].parameters(), strict=True)
    assert max(float((one - other).abs().max()) for one, other in pairs) > 0.01

    shutil.copytree(whole / "bundle", tmp_path / "other")
    about = json.loads((tmp_path / "other" / "config.json").read_text())
    about["weights"]["codec"] = "0123456789abcdef"
    (tmp_path / "other" / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"codec\.base was .* is \"0123456789abcdef\""):
        run_recipe(config("out", f"base={tmp_path / 'other'}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base=nowhere", r"nowhere: no such model"),
        ("codec.steps=3", r"codec: base=speech provides it and it cannot be changed; leave codec out"),
        ("coarse.dedup=true", r"coarse\.dedup=True: the base has False, and its weights fit no other value"),
        ("semantic.network.width=64", r"semantic\.network\.width=64: the base has 256; only dropout may differ"),
        ("semantic=5", r"semantic=5: semantic: input should be a valid dictionary"),
        ("coarse.network=5", r"coarse\.network=5: coarse\.network: input should be a valid dictionary"),
    ],
)
def test_a_base_decides_what_its_weights_fit(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(RecipeConfig, ROOT / "recipes" / "further.toml", ["data=x", "out=y", override])
    config = load_config(RecipeConfig, ROOT / "recipes" / "further.toml", ["data=x", "out=y", "coarse.network.dropout=0.3"])
    assert (config.coarse.network.dropout, config.coarse.network.kv_heads, config.coarse.levels) == (0.3, 1, 2)
    assert (config.decoder, config.codebooks) == ("autoregressive", 4)  # the base's own choices


def test_a_coarse_stage_of_fewer_levels_knows_what_the_bases_knows() -> None:
    """Parallel makes the levels up to the fine stage's; where nothing does, the recipe is refused before anything is trained."""

    def shop(*options: str) -> Workshop:
        given = ["data=x", "out=y", "threads=1", *options]
        return Workshop(load_config(RecipeConfig, ROOT / "recipes" / "further.toml", given))

    few = shop("coarse.levels=1", 'stages=["coarse"]')
    stage, (theirs, kin) = stage_of(few.config, "coarse"), few.carried["coarse"]
    network = language_model(stage, stage_config(few.config, "coarse").network)
    take_over(network, stage, theirs, kin)
    units, codes = torch.randint(256, (1, 25)), torch.randint(1024, (theirs.predict.levels, 1))
    ids, whole = stage.pack([units], codes[:1]), theirs.pack([units], codes)
    with torch.inference_mode():
        assert torch.equal(network.embedding(ids), kin.embedding(whole)[: len(ids)])
        assert torch.equal(network.heads, kin.heads[:1])
    with pytest.raises(InputError, match="stage fine starts at level 5, not 6"):
        shop("coarse.levels=5", 'stages=["coarse"]')
    # Two levels are made, but the recipe has four as its bundle's default.
    with pytest.raises(InputError, match="codebooks=4: give 1 to 2 for this model"):
        Workshop(load_config(RecipeConfig, ROOT / "recipes" / "speech.toml", ["data=x", "out=y", 'stages=["semantic","coarse"]']))


def test_what_is_carried_over_from_a_base_is_recorded(whole: Path, tmp_path: Path) -> None:
    """With other weights in the base, neither the bundle nor a text stage, which starts from semantic's, is done already."""
    shutil.copytree(whole / "bundle", tmp_path / "base")
    options = [f"base={tmp_path / 'base'}", "data=x", "out=y", 'stages=["text"]']
    before = {step.name: step for step in steps(load_config(RecipeConfig, None, options))}
    about = json.loads((tmp_path / "base" / "config.json").read_text())
    about["weights"] |= {"semantic": "0123456789abcdef", "coarse": "0123456789abcdef"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(about))
    after = {step.name: step for step in steps(load_config(RecipeConfig, None, options))}
    assert {name for name in before if before[name].config != after[name].config} == {"text", "bundle"}
    for name in ("text", "bundle"):  # records of older versions name neither
        record = {key: each for key, each in after[name].config.items() if key not in ("base", "carried")}
        assert difference(after[name].completed(record), after[name].config) is None


def test_another_crop_has_its_own_overlap(whole: Path) -> None:
    options = [f"base={whole / 'bundle'}", "data=x", "out=y"]
    same, shorter = (load_config(RecipeConfig, None, [*options, *more]) for more in ([], ["coarse.crop=1"]))
    base = bundle.load(whole / "bundle").stages["coarse"][0]
    assert (stage_of(same, "coarse").crop, stage_of(same, "coarse").overlap) == (base.crop, base.overlap)
    assert stage_of(shorter, "coarse").overlap == pytest.approx(0.3)


def test_a_base_may_decode_in_parallel(whole: Path, tmp_path: Path) -> None:
    """What the base does by default is no mistake of a recipe that trains another stage."""
    shutil.copytree(whole / "bundle", tmp_path / "base")
    about = json.loads((tmp_path / "base" / "config.json").read_text())
    about["about"]["decoder"] = "parallel"
    (tmp_path / "base" / "config.json").write_text(json.dumps(about))
    options = [f"base={tmp_path / 'base'}", "data=x", "out=y", 'stages=["semantic"]']
    assert load_config(RecipeConfig, None, options).decoder == "parallel"


def test_stages_are_trained_on_a_token_store(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """What `audiolm tokenize` made, on one machine or many, with a base's tokenizers, needs no recordings any more."""
    model = bundle.load(whole / "bundle")
    skipped: list[tuple[str, str]] = []
    tokenize_corpus(model.semantic, model.codec, scan(corpus, 0.2, 0.2, skipped=skipped), tmp_path / "tokens", shard_seconds=5)
    few = [f"semantic.{key}={value}" for key, value in FEW.items()]
    options = [f"data={tmp_path / 'tokens'}", f"base={whole / 'bundle'}", 'stages=["semantic"]', "threads=1", *few]

    def config(*more: str) -> RecipeConfig:
        return load_config(RecipeConfig, None, [*options, f"out={tmp_path / 'out'}", *more])

    loose = ["gates.reconstructs=9", "gates.beats_unigram=-9"]  # there is no sound to measure a reconstruction of
    made = bundle.load(run_recipe(config(*loose)))
    assert made.about["hours"].keys() == {"train", "valid", "test"}
    assert "split" in made.about
    assert not (tmp_path / "out" / "prepare").exists()
    verdict = json.loads((tmp_path / "out" / "codec" / "gates.json").read_text())["gates"]["reconstructs"]["verdict"]
    assert verdict == "not measured"
    assert make_plan(config(*loose)).rows[-2].note == "already done"
    with pytest.raises(InputError, match=r"a token store; give base=MODEL as well, whose tokenizers made it"):
        run_recipe(quick(tmp_path / "tokens", tmp_path / "out2"))
    with pytest.raises(InputError, match=r"give tokens\.speeds=\[1\]"):
        run_recipe(config("tokens.speeds=[0.9,1]"))
    with pytest.raises(InputError, match=r"not made by the tokenizers of base=speech \("):
        run_recipe(load_config(RecipeConfig, None, [*options, "base=speech", f"out={tmp_path / 'out3'}", *UNGATED]))
    sound = tmp_path / "more.wav"
    soundfile.write(sound, 0.1 * np.random.default_rng(0).standard_normal(32_000), 16_000)
    tokenize_corpus(model.semantic, model.codec, [*scan(corpus, skipped=skipped), *scan(sound)], tmp_path / "tokens")
    with pytest.raises(InputError, match=r"tokens: was made differently \(tokens\.store was"):
        run_recipe(config(*loose))


def test_a_store_is_trained_on_with_the_weights_that_made_it(whole: Path, corpus: Path, tmp_path: Path) -> None:
    base, out = bundle.load(whole / "bundle"), tmp_path / "out"
    bundle.save(base, tmp_path / "base", "", torch.int8)
    rounded = bundle.load(tmp_path / "base")
    tokenize_corpus(rounded.semantic, rounded.codec, scan(next(corpus.glob("*/0.wav"))), tmp_path / "tokens")

    def config(weights: str) -> RecipeConfig:
        options = [f"data={tmp_path / 'tokens'}", f"base={tmp_path / 'base'}", f"out={out}", 'stages=["semantic"]', *UNGATED]
        return load_config(RecipeConfig, None, [*options, f"weights={weights}"])

    with pytest.raises(InputError, match=r"weights=bfloat16: would round the tokenizers that made .*; give weights=int8"):
        run_recipe(config("bfloat16"))
    assert not out.exists()
    Workshop(config("float32"))  # which rounds nothing
    for name in ("codec", "units"):
        run_recipe(config("int8"), only=name)
    before, after = ({step.name: step for step in steps(config(weights))} for weights in ("int8", "bfloat16"))
    assert after["units"].differs(before["units"].config) == 'units.weights was "int8", is null'

    for name in ("begun.json", "done.json"):  # as older versions recorded it
        record = json.loads((out / "units" / name).read_text())
        del record["config"]["weights"]
        write_json(out / "units" / name, record)
    run_recipe(config("int8"), only="units")
    save_tensors(out / "units" / "units.safetensors", bundle.packed(base.semantic, torch.bfloat16))
    with pytest.raises(InputError, match=r"units: not saved with weights=int8; .*--only units --force"):
        run_recipe(config("int8"), only="tokens")
    for name in ("units", "tokens"):
        run_recipe(config("int8"), only=name, force=True)


def test_whom_a_base_has_not_heard_stays_held_out(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """Other shares or another seed would move the base's test speakers into training; a recipe may still ask for them."""
    shutil.copytree(whole / "bundle", tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["about"]["split"] = split = {"valid": 0.3, "test": 0.4, "seed": 7}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    few = [f"semantic.{key}={value}" for key, value in FEW.items()]
    options = [f"data={corpus}", f"base={tmp_path / 'base'}", 'stages=["semantic"]', "threads=1", "seed=3", *few, *UNGATED]
    recipe = load_config(RecipeConfig, None, [*options, f"out={tmp_path / 'out'}"])
    assert recipe.prepare.model_dump() == {**split, "minimum": 0.5}
    assert recipe.semantic.seed == 3
    own = load_config(RecipeConfig, None, [*options, "out=y", "prepare.seed=5", "prepare.test=0.1"]).prepare
    assert (own.valid, own.test, own.seed) == (0.3, 0.1, 5)
    with pytest.raises(InputError, match="prepare=5"):
        load_config(RecipeConfig, None, [*options, "out=y", "prepare=5"])

    theirs = {each.name: each.split for each in scan(corpus, **split, skipped=[])}
    assert theirs != {each.name: each.split for each in scan(corpus, skipped=[])}
    run_recipe(recipe, only="prepare")
    assert {each.name: each.split for each in AudioStore(tmp_path / "out" / "prepare").entries} == theirs
    tokenize(str(corpus), str(tmp_path / "tokens"), model=str(tmp_path / "base"))
    assert {each.name: each.split for each in TokenStore(tmp_path / "tokens").entries} == theirs
    stored = load_config(
        RecipeConfig, None, [*options, f"data={tmp_path / 'tokens'}", f"out={tmp_path / 'told'}", "prepare.test=0"]
    )
    assert bundle.load(run_recipe(stored)).about["split"] == split


def test_float32_weights_are_never_rounded(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """Neither trained ones nor the base's: a codec that is rounded makes other tokens."""
    base = bundle.load(whole / "bundle")
    with torch.no_grad():
        for part in bundle.parts(base).values():
            for weight in part.parameters():
                weight.mul_(1 + 1e-5)  # no number of bfloat16
    bundle.save(base, tmp_path / "base", "", torch.float32)
    few = [f"semantic.{key}={value}" for key, value in FEW.items()]
    options = [f"data={corpus}", f"base={tmp_path / 'base'}", 'stages=["semantic"]', f"out={tmp_path / 'out'}", "threads=1"]
    config = load_config(RecipeConfig, None, [*options, *few, *UNGATED, "weights=float32"])
    model = bundle.load(run_recipe(config))
    for name, part in bundle.parts(model).items():
        rounded = [torch.equal(weight, weight.bfloat16().float()) for weight in part.parameters()]
        assert not all(rounded)
        if name != "semantic":
            ours, theirs = (bundle.packed(bundle.parts(each)[name], torch.float32) for each in (model, base))
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(InputError, match=r'codec\.saved_as was "float32", is null'):
        run_recipe(config.model_copy(update={"weights": "bfloat16"}))


def test_a_damaged_base_is_named(tmp_path: Path) -> None:
    about = bundle.read_config(bundle.folder_of("speech"))
    del about["semantic"]["encoder"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"config\.json: not a bundle's configuration \('encoder'\); copy it again"):
        load_config(RecipeConfig, ROOT / "recipes" / "further.toml", ["data=x", "out=y", f"base={tmp_path}"])


def test_killed_anywhere_it_comes_to_the_same(whole: Path, corpus: Path, tmp_path: Path) -> None:
    out, moments = tmp_path / "out", random.Random(1)
    for sign in (
        "prepare/*.i16",
        "codec/step-00000002",
        "encoder/pass-1/step-00000004",
        "tokens/header.json",
        "coarse/step-00000002",
    ):
        child = multiprocessing.get_context("fork").Process(target=run_recipe, args=(quick(corpus, out),))
        child.start()
        while child.is_alive() and not list(out.glob(sign)):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -9, f"{sign} was not seen in time"
    run_recipe(quick(corpus, out))
    ours, theirs = results(out), results(whole)
    for each in (ours, theirs):
        each.pop("bundle")  # its card tells how long training took
    assert ours == theirs


def test_stopped_at_the_end_of_a_training_the_chain_stops_once_its_result_is_saved(
    whole: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "prepare", (out := tmp_path / "out") / "prepare")

    def asked(train: str) -> None:
        original = getattr(audiolm.training.steps, train)

        def trains(*args: Any) -> object:
            try:
                return original(*args)
            finally:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(audiolm.training.steps, train, trains)

    asked("train_codec")
    with pytest.raises(Stopped, match="codec: finished, then stopped; rerun"):
        run_recipe(quick(corpus, out))
    assert results(out) == {name: results(whole)[name] for name in ("prepare", "codec")}
    assert not (out / "codec" / "gates.json").exists()
    asked("train_encoder")
    passes = quick(corpus, out)
    with pytest.raises(Stopped, match="pass-1: finished"):
        run_recipe(passes.model_copy(update={"encoder": 2 * passes.encoder}), only="encoder")
    assert not (out / "encoder" / "pass-2").exists()


# --- the chain by itself


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def letters(log: list[str], **configs: int) -> list[Step]:
    """a -> b -> c, where b's result depends on its configuration only."""

    def do(name: str) -> Callable[[Path], str]:
        def work(out: Path) -> str:
            log.append(name)
            (out / name / "made.txt").write_text(str(configs.get(name, 0)))
            return f"{name}{configs.get(name, 0)}"

        return work

    names = ["a", "b", "c"]
    return [
        Step(name, tuple(names[max(0, index - 1) : index]), {"value": configs.get(name, 0)}, do(name))
        for index, name in enumerate(names)
    ]


def test_only_what_is_due_is_done(tmp_path: Path, fabric: Fabric, capsys: pytest.CaptureFixture[str]) -> None:
    log: list[str] = []
    with pytest.raises(InputError, match="b needs a, which is not done"):
        Chain(tmp_path, letters(log), fabric).run(tmp_path, only="b")
    with pytest.raises(InputError, match="no such step; this recipe has a, b, c"):
        Chain(tmp_path, letters(log), fabric).run(tmp_path, only="d")
    Chain(tmp_path, letters(log), fabric).run(tmp_path, only="a")
    Chain(tmp_path, letters(log), fabric).run(tmp_path)
    Chain(tmp_path, letters(log), fabric).run(tmp_path)
    assert log == ["a", "b", "c"]
    assert "c: already done" in capsys.readouterr().err
    Chain(tmp_path, letters(log), fabric).run(tmp_path, only="b", force=True)
    assert log == ["a", "b", "c", "b"]


def test_changes_are_refused_by_name_or_forced(tmp_path: Path, fabric: Fabric) -> None:
    log: list[str] = []
    Chain(tmp_path, letters(log), fabric).run(tmp_path)
    with pytest.raises(
        InputError, match=r"b\.value was 0, is 5\); undo the change, or redo the step: --only b --force"
    ) as caught:
        Chain(tmp_path, letters(log, b=5), fabric).run(tmp_path)
    assert "\n" not in str(caught.value)
    assert log == ["a", "b", "c"]
    Chain(tmp_path, letters(log, b=5), fabric).run(tmp_path, only="b", force=True)
    assert (tmp_path / "b" / "made.txt").read_text() == "5"
    with pytest.raises(InputError, match="b has been redone since"):
        Chain(tmp_path, letters(log, b=5), fabric).run(tmp_path)
    Chain(tmp_path, letters(log, b=5), fabric).run(tmp_path, force=True)
    assert log == ["a", "b", "c", "b", "c"]  # force does again what changed, and nothing else


def test_what_is_made_of_other_steps_is_refused(tmp_path: Path, fabric: Fabric) -> None:
    def made(*inputs: str) -> list[Step]:
        return [*letters([]), Step("all", inputs, {}, lambda _: "+".join(inputs))]

    Chain(tmp_path, made("a", "c"), fabric).run(tmp_path)
    with pytest.raises(InputError, match=r"c is no longer an input\); .* --only all --force"):
        Chain(tmp_path, made("a"), fabric).run(tmp_path)
    with pytest.raises(InputError, match="b was not an input then"):
        Chain(tmp_path, made("a", "b", "c"), fabric).run(tmp_path)
    Chain(tmp_path, made("a"), fabric).run(tmp_path, force=True)
    assert results(tmp_path)["all"] == "a"


@pytest.mark.parametrize("call", range(1, 15))
@pytest.mark.parametrize("fails", [False, True])
def test_killed_anywhere_a_forced_step_is_the_old_one_or_the_new(
    tmp_path: Path, fabric: Fabric, monkeypatch: pytest.MonkeyPatch, call: int, fails: bool
) -> None:
    """Killed before the n-th change to the folder. What the new step is to replace stays until that is finished."""
    Chain(tmp_path, letters([]), fabric).run(tmp_path)
    new, calls = letters([], b=5), iter(range(1, 100))

    def refuses(_: Path) -> str:
        raise InputError("wrong")

    def dying(do: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                raise KeyboardInterrupt
            return do(*args, **kwargs)

        return change

    def made() -> str:
        return (tmp_path / "b" / "made.txt").read_text()

    with monkeypatch.context() as patched:
        patched.setattr("audiolm.training.chain.shutil.rmtree", dying(shutil.rmtree))
        patched.setattr("audiolm.training.chain.write_json", dying(write_json))
        for name in ("unlink", "rename", "mkdir"):
            patched.setattr(Path, name, dying(getattr(Path, name)))
        with suppress(KeyboardInterrupt, InputError):
            chain = [replace(step, do=refuses) if fails and step.name == "b" else step for step in new]
            Chain(tmp_path, chain, fabric).run(tmp_path, only="b", force=True)
    said = ""
    try:
        Chain(tmp_path, letters([]), fabric).run(tmp_path, only="b")
    except InputError as error:
        said = str(error)
    finished, back = (tmp_path / "b" / "done.json").exists(), f", delete {tmp_path / 'b'} to have back what it was to replace,"
    assert (back in said) is (bool(said) and not finished)
    assert said or made() == "0"
    Chain(tmp_path, letters([], b=5), fabric).run(tmp_path, only="b", force=True)
    assert made() == "5"
    assert not list(tmp_path.glob(".b.*"))


def test_a_wrong_input_leaves_a_forced_step_as_it_was(tmp_path: Path, fabric: Fabric) -> None:
    def refused(out: Path) -> str:
        (out / "b" / "half").touch()
        raise InputError("wrong")

    def stopped(out: Path) -> str:
        (out / "b" / "half").touch()
        raise SystemExit("stopped and saved")

    def redo(do: Callable[[Path], str], **configs: int) -> None:
        chain = [replace(step, do=do) if step.name == "b" else step for step in letters([], **configs)]
        Chain(tmp_path, chain, fabric).run(tmp_path, force=True)

    def contents() -> dict[str, str]:
        return {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}

    Chain(tmp_path, letters([]), fabric).run(tmp_path)
    before = contents()
    with pytest.raises(InputError, match="wrong"):
        redo(refused, b=5)
    assert contents() == before
    with pytest.raises(SystemExit):
        redo(stopped, b=5)
    with pytest.raises(InputError, match="wrong"):
        redo(refused, b=6)
    assert contents() == before


def test_a_forced_step_that_was_stopped_goes_on_by_the_same_command(tmp_path: Path, fabric: Fabric) -> None:
    tried: list[bool] = []

    def stopped(out: Path) -> str:
        tried.append((out / "a" / "progress").exists())
        (out / "a" / "progress").write_text("")
        if len(tried) == 2:
            raise SystemExit("stopped and saved")
        return str(len(tried))

    chain = Chain(tmp_path, [Step("a", (), {}, stopped)], fabric)
    chain.run(tmp_path)
    with pytest.raises(SystemExit):
        chain.run(tmp_path, only="a", force=True)
    chain.run(tmp_path, only="a", force=True)
    assert tried == [False, False, True]


def test_a_step_that_failed_goes_on_and_keeps_what_it_had(tmp_path: Path, fabric: Fabric) -> None:
    def fails(out: Path) -> str:
        (out / "a" / "half").touch()
        raise OSError("no power")

    with pytest.raises(OSError, match="no power"):
        Chain(tmp_path, [Step("a", (), {}, fails)], fabric).run(tmp_path)
    assert not (tmp_path / "a" / "done.json").exists()
    with pytest.raises(InputError, match="was made differently"):
        Chain(tmp_path, [Step("a", (), {"new": 1}, fails)], fabric).run(tmp_path)
    Chain(tmp_path, [Step("a", (), {}, lambda out: str((out / "a" / "half").exists()))], fabric).run(tmp_path)
    assert results(tmp_path) == {"a": "True"}


def test_two_at_once_are_refused(tmp_path: Path, fabric: Fabric) -> None:
    def again(out: Path) -> str:
        with pytest.raises(InputError, match="another process is training there"):
            Chain(tmp_path, [Step("b", (), {}, lambda _: "")], fabric).run(out)
        return "a"

    Chain(tmp_path, [Step("a", (), {}, again)], fabric).run(tmp_path)


def test_unwritable_out_is_one_line(tmp_path: Path, fabric: Fabric) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another out="):
        Chain(tmp_path / "file" / "out", [], fabric).run(None)
    (tmp_path / "full" / ".lock").mkdir(parents=True)  # as little a file to be written as on a disk that is read only
    with pytest.raises(InputError, match=r"full: cannot be written \(is a directory\); choose another folder"):
        Chain(tmp_path / "full", [], fabric).run(None)


# --- recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_in_the_repository_are_whole(path: Path, others: Path) -> None:
    given = [f"take.encoder={others / 'hubert'}", f"take.codec={others / 'dac'}", "units.layer=2"]  # instead of the hub's
    config = load_config(RecipeConfig, path, ["data=x", "out=y", *(given if "[take]" in path.read_text() else [])])
    chain = steps(config)
    assert chain[0].name == "prepare"
    assert chain[-1].name == "bundle"
    json.dumps([step.config for step in chain])
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header
    for said in (f"audiolm train recipes/{path.name} data=FOLDER out=FOLDER", "Cost:", "Expect:"):
        assert said in header[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("precision=16-mixed", r"precision=16-mixed: precision: input should be 'auto', '32-true' or 'bf16-mixed'"),
        ("codec.stpes=3", r"codec\.stpes=3: unknown key 'codec\.stpes'; did you mean 'codec\.steps'\?"),
        ("encoder.0.stpes=3", r"unknown key 'encoder\.0\.stpes'; did you mean 'encoder\.steps'\?"),
        ("coarse.levels=6", r"fine: the other stages make all of the codec's 6 levels; leave fine out of stages"),
        ("coarse.levels=7", r"acoustic has 6 codebooks"),
        ("stages=['semantic','semantic']", r"each stage once"),
        ("stages=['semantics']", r"stages\.0: input should be 'semantic'"),
        ("codec.network.sample_rate=24000", r"24000 Hz"),
        ("semantic.network.width=63", r"width=63 must be a multiple"),
        ("encoder=[]", r"at least one \[\[encoder\]\] pass"),
        ("encoder.0.network.width=66 encoder.0.network.heads=4", r"encoder\.0\.network: width=66 must be a multiple of 8"),
        ("encoder.0.network.kernel=4", r"kernel=4 must be odd"),
        ("codec.network.codebook_size=65537", r"codebook_size: input should be less than or equal to 65536"),
        ("units.units=65537", r"units\.units: input should be less than or equal to 65536"),
        ("units.units=3201", r"units\.batches=16: 3200 frames are too few for 3201 units; give more"),
        ("units.layer=4", r"units\.layer=4: the encoder has 3 layers"),
        ("coarse.sampling={passes=4}", r"coarse\.sampling\.passes: only parallel stages have passes"),
        ("coarse.sampling={keep_repeats=true}", r"coarse\.sampling\.keep_repeats: only for stages that predict one level"),
        ("coarse.any_speed=true", r"coarse\.any_speed: tokens\.speeds has only one; give more"),
        ("semantic.any_speed=true tokens.speeds=[0.9,1]", r"semantic\.any_speed: only for stages that are given semantic"),
        ("encoder=[{network={layers=0}}] units={}", r"give units\.layer=0"),
        ("encoder=[{network={layers=0}},{objective={kind='clusters',layer=0},network={bins=40}}]", r"encoder\.1: .* another mel"),
        ("encoder.0.warm_start=true", r"encoder\.0: warm_start and objective\.layer need .* an earlier pass"),
        ("encoder.0.objective={kind='clusters',layer=1}", r"encoder\.0: warm_start and objective\.layer need"),
        ("encoder=[{},{objective={kind='clusters',layer=9}}]", r"encoder\.1: objective\.layer=9 is above .* 8 layers"),
        ("encoder=[{},{warm_start=true,network={layers=4}}]", r"encoder\.1: warm_start needs the earlier pass's network"),
        ("encoder.0.objective={kind='w2v_bert'}", r"encoder\.0: objective\.contrastive_layers=4 must be less than .* 3 layers"),
        ("encoder.0.objective={kind='w2v_bert',codebooks=3}", r"dimension=256 must be a multiple of codebooks=3"),
        ("codec.network.groups=5", r"codec\.network: groups=5 must divide latent=32"),
        ("codec.network.latent=321", r"latent=321: a spectrum has hop=320 numbers"),
        ("codec.network.strides=[5]", r"the spectral body needs a hop divisible by 2"),
        ("codec.seconds=0.01", r"codec: seconds=0\.01: less than one frame; give 0\.02 or more"),
        ("codec.windows=[320,-5]", r"codec\.windows\.1: input should be greater than or equal to 2"),
        ("encoder.0.seconds=0.04", r"encoder\.0: seconds=0\.04: a single frame, .* give 0\.08 or more"),
        ("decoder=parallel", r"decoder=parallel: stages does not list parallel"),
        ("fine.levels=2", r"fine\.levels: determined by the other stages"),
        ("data=", r"data: "),
        ("codebooks=7", r"codebooks=7: the codec has 6"),
        *((f"{key}seed=-1", r"seed: input should be greater than or equal to 0") for key in SEEDED),
        ("units.seed=4294967296", r"units\.seed: input should be less than 4294967296"),
    ],
)
def test_mistakes_in_a_recipe_are_found_before_anything_runs(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(RecipeConfig, ROOT / "recipes" / "tiny.toml", ["data=x", "out=y", *override.split()])
    assert "\n" not in str(caught.value)


def test_a_folder_is_the_same_with_a_slash() -> None:
    folders = [
        load_config(RecipeConfig, ROOT / "recipes" / "tiny.toml", [f"data={data}", "out=y"]).data for data in ("x", "x/", "/")
    ]
    assert folders == ["x", "x", "/"]


def test_a_last_layer_is_a_layer() -> None:
    chosen = ["units.layer=8", "encoder=[{},{warm_start=true,objective={kind='clusters',layer=8}}]"]
    assert load_config(RecipeConfig, None, ["data=x", "out=y", *chosen]).units.layer == 8


def test_one_seed_for_all_unless_given() -> None:
    config = load_config(RecipeConfig, ROOT / "recipes" / "tiny.toml", ["data=x", "out=y", "seed=7", "fine.seed=3"])
    assert (config.codec.seed, config.encoder[0].seed, config.units.seed, config.coarse.seed, config.fine.seed) == (7, 7, 7, 7, 3)
    assert load_config(RecipeConfig, None, ["data=x", "out=y", "seed=7"]).encoder[0].seed == 7
    prepared = [load_config(RecipeConfig, None, ["data=x", "out=y", *each]) for each in (["seed=7"], ["prepare.seed=7"])]
    assert [each.prepare.seed for each in prepared] == [7, 7]
    assert steps(prepared[0])[0].config["seed"] == 7  # where records of earlier versions have it


def test_stages_follow_the_recipe() -> None:
    paper = load_config(RecipeConfig, None, ["data=x", "out=y"])
    assert [stage_of(paper, name).crop for name in ("semantic", "coarse", "fine")] == [30, 10, 3]
    short = load_config(RecipeConfig, None, ["data=x", "out=y", "coarse.crop=5", "coarse.levels=3", "coarse.dedup=true"])
    coarse, fine, baseline = (stage_of(short, name) for name in ("coarse", "fine", "acoustic"))
    assert (coarse.crop, coarse.overlap, coarse.predict.last, coarse.dedup) == (5, 1.5, 3, True)
    assert (fine.given[0].last, fine.predict.first, baseline.predict.last) == (3, 3, 3)


def test_no_speakers_for_validation_is_no_obstacle(tmp_path: Path) -> None:
    """One recording trains on itself; only a layer to be chosen needs others."""
    soundfile.write(tmp_path / "only.wav", 0.1 * np.random.default_rng(0).standard_normal(48_000), 16_000)
    config = quick(tmp_path / "only.wav", tmp_path / "out")
    run_recipe(config, only="prepare")
    run_recipe(config, only="encoder")
    with pytest.raises(InputError, match=r"set units\.layer=NUMBER"):
        run_recipe(config.model_copy(update={"units": _unset_layer()}), only="units")
    assert torch.get_num_threads() == 1


def _unset_layer() -> UnitsConfig:
    return UnitsConfig.model_validate({"layer": None})
