"""The program: verbs on a tiny bundle, exit codes, one-line mistakes, nothing written on failure (contracts 8 and 10)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolm import audio, bundle
from audiolm.audio import Waveform, read
from audiolm.cli import EXAMPLES, app, run
from audiolm.commands import making
from audiolm.model import AudioLM


@pytest.fixture(scope="module")
def model(tiny_model: AudioLM, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    bundle.save(tiny_model, folder, "# A card\n")
    return str(folder)


def ok(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run([str(each) for each in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a mistake is answered with."""
    assert run([str(each) for each in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("audiolm: ")
    return shown.err


def test_continue_writes_the_prompt_and_what_follows(capsys, tmp_path: Path, model: str, female_path: Path) -> None:
    out, picture = tmp_path / "out.wav", tmp_path / "out.png"
    told = json.loads(ok(capsys, "continue", female_path, "-o", out, "--seconds", "1", "-m", model, "--plot", picture, "--json"))
    prompt, sound = read(female_path), read(out)
    assert np.array_equal(sound.samples[:, : prompt.samples.shape[1]], prompt.samples)
    assert sound.seconds == pytest.approx(prompt.seconds + 1) == told["seconds"]
    assert told["prompt_seconds"] == pytest.approx(prompt.seconds)
    assert (told["file"], told["plot"]) == (str(out), str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_sound_is_heard_while_it_is_made(capsysbinary, tmp_path: Path, model: str, female_path: Path) -> None:
    """--stream writes to standard output what -o writes to a file: a whole WAV, its length known from the start."""
    prompted = [female_path, "--prompt-seconds", "1.5"]
    for verb, options, seconds in (("continue", prompted, 1.2), ("continue", prompted, 1e-5), ("generate", [], 1.2)):
        arguments = [verb, *options, "--seconds", seconds, "-m", model, "--seed", "3"]
        assert run([str(each) for each in [*arguments, "--stream"]]) == 0
        shown = capsysbinary.readouterr()
        assert shown.err == b""
        (tmp_path / "streamed.wav").write_bytes(shown.out)
        assert run([str(each) for each in [*arguments, "-o", tmp_path / "file.wav"]]) == 0
        plain = read(tmp_path / "file.wav").to_bytes()  # without the tags, which a pipe does not get
        assert len(shown.out) == len(plain)
        assert shown.out[:44] == plain[:44]
        streamed, whole = (read(tmp_path / name).samples for name in ("streamed.wav", "file.wav"))
        assert float((streamed - whole).abs().max()) <= 1 / 32768
        capsysbinary.readouterr()


def test_a_sound_says_whether_it_ended_by_itself(capsysbinary, tmp_path: Path, model: str, female_path: Path) -> None:
    """In its tags and in the report. A pipe's header cannot say when, and is read as one that does not."""
    arguments = ["continue", female_path, "--prompt-seconds", "1.01", "--seconds", "1.33", "--until-end", "-m", model]
    assert run([str(each) for each in [*arguments, "--samples", "4", "-o", tmp_path / "out.wav", "--json"]]) == 0
    several = json.loads(capsysbinary.readouterr().out)
    assert {each["ended"] for each in several} == {False, True}
    for each in several:
        assert 1.9 < each["seconds"] <= 2.34
        assert each["ended"] == (each["seconds"] < 2.34)
        beside = json.loads(audio.tags(each["file"])["comment"])
        assert (beside["until_end"], beside["ended"]) == (True, each["ended"])
        assert run([str(one) for one in [*arguments, "--seed", each["seed"], "--stream"]]) == 0
        (tmp_path / "streamed.wav").write_bytes(capsysbinary.readouterr().out)
        streamed, whole = (read(path).samples for path in (tmp_path / "streamed.wav", each["file"]))
        assert float((streamed - whole).abs().max()) <= 1 / 32768
    assert (making.length(None), making.length(None, True), making.length(3, True)) == (7, 30, 3)


def test_samples_are_numbered_and_each_has_its_seed(capsys, tmp_path: Path, model: str, female_path: Path) -> None:
    arguments = ["continue", female_path, "--seconds", "0.5", "--only-new", "-m", model, "--json"]
    several = json.loads(ok(capsys, *arguments, "-o", tmp_path / "out.flac", "--samples", "2", "--seed", "4"))
    assert [entry["seed"] for entry in several] == [4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-1.flac", "out-2.flac"]
    ok(capsys, *arguments, "-o", tmp_path / "again.flac", "--seed", "5")
    assert np.array_equal(read(tmp_path / "again.flac").samples, read(tmp_path / "out-2.flac").samples)
    assert read(tmp_path / "again.flac").seconds == pytest.approx(0.5)


def test_the_other_verbs(capsys, tmp_path: Path, model: str, female_path: Path, male_path: Path) -> None:
    out = tmp_path / "out.ogg"
    ok(capsys, "generate", "-o", out, "--seconds", "0.5", "-m", model, "--temperature", "0.6,0.8,0.6", "--top-k", "5")
    assert read(out).seconds == pytest.approx(0.5, abs=0.01)
    ok(capsys, "generate", "-o", out, "--seconds", "0.4", "--chain", "acoustic", "-m", model)
    ok(capsys, "revoice", male_path, "-o", tmp_path / "a.wav", "--voice", female_path, "-m", model)
    assert read(tmp_path / "a.wav").seconds == pytest.approx(read(male_path).seconds, abs=0.04)
    ok(capsys, "reconstruct", male_path, "-o", tmp_path / "b.wav", "--codebooks", "3", "-m", model)
    assert read(tmp_path / "b.wav").samples.shape == read(male_path).samples.shape
    told = json.loads(ok(capsys, "info", model, "--json"))
    assert told["sample_rate"] == 16_000
    assert json.loads(ok(capsys, "info", male_path, "--json"))["channels"] == 1
    assert "torch" in json.loads(ok(capsys, "doctor", "--json"))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus"])
def test_what_is_written_says_what_it_is(
    capsys, tmp_path: Path, model: str, female_path: Path, tiny_model: AudioLM, suffix: str
) -> None:
    """In a mark that is heard by `detect`, in its tags, and in a file beside it on request."""
    out = tmp_path / f"out{suffix}"
    arguments = ["continue", female_path, "--prompt-seconds", "1", "--seconds", "2.5", "--seed", "3", "-m", model, "-o", out]
    told = json.loads(ok(capsys, *arguments, "--sidecar", "--json"))
    beside = json.loads((tmp_path / "out.json").read_text())
    assert told["sidecar"] == str(tmp_path / "out.json")
    tags = json.loads(ok(capsys, "info", out, "--json"))["tags"]
    assert json.loads(tags["comment"]) == beside
    assert beside["by"].startswith("audiolm")  # the tag `software` belongs to the encoder in some formats
    assert (beside["generated"], beside["verb"], beside["seed"], beside["prompt_seconds"]) == (True, "continue", 3, 1.0)
    assert beside["watermark"] == f"{tiny_model.payload:04x}"
    assert beside["sampling"]["semantic"]["temperature"] == 0.6
    assert (beside["decoder"], beside["codebooks"]) == ("autoregressive", 6)  # what the model chose, as nothing was asked
    assert str(tmp_path) not in json.dumps(beside)  # no word of whose machine it was
    marked = json.loads(ok(capsys, "detect", out, "-m", model, "--json"))
    assert (marked["file"], marked["synthetic_probability"]) == (str(out), None)
    assert marked["watermark"]["found"]
    assert marked["watermark"]["payload"] == beside["watermark"]


@pytest.mark.parametrize("verb", ["continue", "revoice", "reconstruct"])
def test_a_recording_is_not_replaced(capsys, tmp_path: Path, model: str, female_path: Path, verb: str) -> None:
    kept = tmp_path / "kept.flac"
    kept.write_bytes(female_path.read_bytes())
    (tmp_path / "link.flac").symlink_to(kept)
    for name in ("kept.flac", "link.flac"):
        assert "is an input recording" in mistake(capsys, verb, kept, "-o", tmp_path / name, "-m", model)
    assert kept.read_bytes() == female_path.read_bytes()


def test_each_sample_has_a_place_before_any_is_made(capsys, tmp_path: Path, model: str, female_path: Path) -> None:
    """No numbered file replaces the recording, and none is written if a later one, its sidecar or its picture cannot be."""
    kept = tmp_path / "out-1.flac"
    kept.write_bytes(female_path.read_bytes())
    for name in ("wide-2.wav", "side-2.json", "drawn-2.png"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.iterdir())
    arguments = ["continue", kept, "--samples", "2", "--seconds", "0.1", "-m", model, "-o"]
    assert "out-1.flac: is an input recording" in mistake(capsys, *arguments, tmp_path / "out.flac")
    assert "wide-2.wav: is a folder" in mistake(capsys, *arguments, tmp_path / "wide.wav")
    assert "side-2.json: is a folder" in mistake(capsys, *arguments, tmp_path / "side.wav", "--sidecar")
    assert "drawn-2.png: is a folder" in mistake(capsys, *arguments, tmp_path / "drawn.wav", "--plot", tmp_path / "drawn.png")
    assert sorted(tmp_path.iterdir()) == before
    assert kept.read_bytes() == female_path.read_bytes()


def test_without_matplotlib_nothing_is_made(capsys, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    arguments = ["generate", "--samples", "2", "--seconds", "0.1", "-m", model, "-o", tmp_path / "out.wav"]
    assert "pictures need matplotlib; run: pip install" in mistake(capsys, *arguments, "--plot", tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []


def test_no_more_of_a_recording_is_read_than_is_used(capsys, tmp_path: Path, model: str, female_path: Path) -> None:
    sound = read(female_path)
    long = Waveform(sound.samples.repeat(1, 400), sound.sample_rate)
    long.write(tmp_path / "long.flac")
    read_from: list[int] = []
    decode = audio._decode

    def counted(path: Path) -> Iterator[np.ndarray]:
        for chunk in decode(path):
            read_from.append(len(chunk))
            yield chunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "_decode", counted)
        prompted = ["continue", tmp_path / "long.flac", "--prompt-seconds", "1", "--seconds", "0.1", "-m", model]
        ok(capsys, *prompted, "-o", tmp_path / "out.wav")
    assert sum(read_from) < long.samples.shape[1] / 20
    assert torch.equal(read(tmp_path / "out.wav").samples[:, : sound.sample_rate], sound.trim(1.0).samples)


def test_no_mark_where_none_is_wanted(capsys, tmp_path: Path, model: str, female_path: Path) -> None:
    out = tmp_path / "out.wav"
    ok(capsys, "continue", female_path, "--seconds", "2", "-m", model, "-o", out, "--no-watermark")
    both = json.loads(ok(capsys, "detect", out, female_path, "-m", model, "--json"))
    assert [each["watermark"] for each in both] == [{"found": False, "payload": None, "confidence": 0.0}] * 2
    assert "no watermark" in ok(capsys, "detect", out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]
    assert "one or more" in mistake(capsys, "detect")
    assert "missing.wav: no such file" in mistake(capsys, "detect", tmp_path / "missing.wav")


def test_tokenize_a_folder(capsys, tmp_path: Path, model: str, female_path: Path) -> None:
    store = tmp_path / "tokens"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good.flac").write_bytes(female_path.read_bytes())
    (tmp_path / "data" / "bad.wav").write_text("no sound")
    assert run(["tokenize", str(tmp_path / "data"), "-o", str(store), "--model", model, "--json"]) == 0
    shown = capsys.readouterr()
    assert "bad.wav" in shown.err  # reported and left out
    summary = json.loads(shown.out)
    assert summary["recordings"] == 1
    assert summary["frames"]["acoustic"] == 2 * summary["frames"]["semantic"]
    assert json.loads(ok(capsys, "info", store, "--verify", "--json"))["verified_shards"] == 1
    (store / "00000.safetensors").write_bytes((store / "00000.safetensors").read_bytes()[:-9])
    assert "1 of 1 shards damaged (shard 00000" in mistake(capsys, "info", store, "--verify")
    assert "--engine ray" in mistake(capsys, "tokenize", tmp_path / "data", "-o", store, "--address", "auto")
    (tmp_path / "data" / "bad.wav").unlink()
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "in it"):
        line = mistake(capsys, "tokenize", tmp_path / "data", "-o", place, "--model", model)
        assert line.startswith(f"audiolm: {place}: cannot be created (")


def test_a_store_of_other_tokenizers_is_refused(capsys, tmp_path: Path, model: str, tiny_model: AudioLM) -> None:
    (tmp_path / "data").mkdir()
    soundfile.write(tmp_path / "data" / "a.wav", np.random.default_rng(0).normal(size=16_000) * 0.1, 16_000)
    ok(capsys, "tokenize", tmp_path / "data", "-o", tmp_path / "tokens", "--model", model)
    layer = tiny_model.semantic.layer
    tiny_model.semantic.layer = 2
    try:
        bundle.save(tiny_model, tmp_path / "other", "")
    finally:
        tiny_model.semantic.layer = layer
    line = mistake(capsys, "tokenize", tmp_path / "data", "-o", tmp_path / "tokens", "--model", tmp_path / "other")
    assert "another tokenizer (layer" in line


def _bad_inputs(folder: Path) -> dict[str, str]:
    """Bad recordings by file name, and a word of the line that each must be answered with."""
    (folder / "text.wav").write_text("this is no sound")
    (folder / "frames.mp3").write_bytes(b"\xff\xfb\x90\x00" + bytes(range(256)) * 12)
    soundfile.write(folder / "none.wav", np.zeros((0, 1)), 16_000)
    soundfile.write(folder / "nan.wav", np.full((16_000, 1), np.nan), 16_000, subtype="FLOAT")
    soundfile.write(folder / "blink.wav", np.zeros((16, 1)), 16_000)
    soundfile.write(folder / "choir.wav", np.zeros((1600, 50)), 16_000)
    return {
        "missing.wav": "no such file",
        "text.wav": "not a sound file",
        "frames.mp3": "it contains no audio",
        "none.wav": "no samples",
        "nan.wav": "NaN",
        "blink.wav": "only 0.001 s",
        "choir.wav": "50 channels",
    }


@pytest.mark.parametrize("verb", ["continue", "revoice", "reconstruct"])
def test_bad_recordings(capsys, tmp_path: Path, model: str, verb: str) -> None:
    out = tmp_path / "out.wav"
    for name, word in _bad_inputs(tmp_path).items():
        line = mistake(capsys, verb, tmp_path / name, "-o", out, "-m", model)
        assert name in line
        assert word in line
        assert not out.exists()


def test_bad_options(capsys, tmp_path: Path, model: str, female_path: Path) -> None:
    out = tmp_path / "out.wav"
    base = ["continue", female_path, "-o", out, "-m", model]
    for extra, word in {
        ("--seconds", "-3"): "--seconds",
        ("--seconds", "nan"): "--seconds",
        ("--seconds", "inf"): "--seconds",
        ("--seconds", "three"): "three",
        ("--samples", "0"): "--samples",
        ("--samples", "2.7"): '--samples: give a whole number, not "2.7"',
        ("--seed", "1.5"): '--seed: give a whole number, not "1.5"',
        ("--seed", "-1"): "--seed",
        ("--seed", str(2**32)): "--seed",
        ("--temperature", "hot"): "--temperature",
        ("--temperature", "1,2"): "--temperature",
        ("--temperature", "-1"): "--temperature",
        ("--temperature", "nan"): "--temperature",
        ("--temperature", "0.6,0.8,inf"): "--temperature",
        ("--top-k", "0"): "--top-k",
        ("--top-k", str(2**31)): "--top-k",
        ("--top-p", "1.5"): "--top-p",
        ("--top-p", "nan"): "--top-p",
        ("--device", "cuda:99"): "--device",
        ("--device", "toaster"): "--device",
        ("--threads", "0"): "--threads",
        ("--prompt-seconds", "-1"): "--prompt-seconds -1: give",
        ("--prompt-seconds", "nan"): "--prompt-seconds nan: give",
        ("--prompt-seconds", "0.05"): "--prompt-seconds 0.05: give",
        ("--plot", str(tmp_path / "picture.doc")): "picture.doc",
        ("--plot", str(tmp_path / "nowhere" / "picture.png")): "nowhere",
        ("--secnds", "3"): "--seconds",
    }.items():
        assert word in mistake(capsys, *base, *extra)
        assert not out.exists()
    for live in (["--stream", "--samples", "2"], ["--stream", "-o", out], ["--play", "-o", out], ["--stream", "--play"]):
        assert f"{live[0]}: one sound and no file; omit -o" in mistake(capsys, "continue", female_path, "-m", model, *live)
    assert "no parallel stage" in mistake(capsys, *base, "--decoder", "parallel")
    assert "no parallel stage" in mistake(capsys, "generate", "-m", model, "--stream", "--decoder", "parallel")
    assert "--decoder" in mistake(capsys, *base, "--decoder", "fast")
    assert "no-such-model" in mistake(capsys, "continue", female_path, "-o", out, "-m", "no-such-model")
    wrong_outputs = {"a.doc": "a.doc", "nowhere/a.wav": "nowhere", "": "folder"}
    for wrong, word in {**{tmp_path / name: word for name, word in wrong_outputs.items()}, "-": "-: cannot be an output"}.items():
        assert word in mistake(capsys, "continue", female_path, "-o", wrong, "-m", model)
    for unused in ("--seed", "--samples", "--temperature", "--top-k", "--top-p", "--decoder", "--precision"):
        assert f"Unknown option: {unused}" in mistake(capsys, "reconstruct", female_path, "-o", out, "-m", model, unused, "1")
    assert "1 to 6" in mistake(capsys, "reconstruct", female_path, "-o", out, "-m", model, "--codebooks", "7")
    assert not out.exists()


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_no_verb_takes_what_is_no_number(capsys, tmp_path: Path, number: str) -> None:
    (tmp_path / "data").mkdir()
    out, data = tmp_path / "out", tmp_path / "data"
    for option in ("--seconds", "--temperature", "--recordings"):
        assert option in mistake(capsys, "evaluate", "--data", data, "--report", out, option, number)
    assert "--recordings -1: give" in mistake(capsys, "evaluate", "--data", data, "--report", out, "--recordings", "-1")
    assert "parts=sound: no such part" in mistake(capsys, "evaluate", "--data", data, "--report", out, "--parts", "codec, sound")
    assert "seconds: input" in mistake(capsys, "train-detector", "--data", data, "--out", out, "--seconds", number)
    assert f"rate={number}: rate: input" in mistake(capsys, "serve", f"rate={number}")
    if number == "nan":  # of infinite length there is one shard
        assert "--shard-seconds" in mistake(capsys, "tokenize", data, "-o", out, "--shard-seconds", number)
    assert not out.exists()


def test_no_verb_rounds(capsys) -> None:
    """Every option that counts takes whole numbers only, and every seed is one that the server takes too."""
    seen = set()
    for verb in EXAMPLES:
        for each in app[verb].assemble_argument_collection():
            if each.hint in (int, int | None):
                seen.add(each.name)
                assert each.parameter.converter is making._whole, (verb, each.name)
                assert each.name != "--seed" or each.parameter.validator, verb
    assert seen > {"--seed", "--samples", "--top-k", "--threads", "--port", "--steps", "--recordings", "--workers"}
    for number in ("80.0", "0x50", "8_0", "\N{ARABIC-INDIC DIGIT EIGHT}", "9" * 5000):
        assert "--port" in mistake(capsys, "serve", "--port", number)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    capsys, tmp_path: Path, model: str, female_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    line = mistake(capsys, "reconstruct", female_path, "-o", tmp_path / "out.wav", "-m", model)
    assert "no space left" in line
    assert list(tmp_path.iterdir()) == []


def test_damaged_models(capsys, tmp_path: Path, model: str, female_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(model).iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    base = ["continue", female_path, "-o", tmp_path / "out.wav", "-m", broken]
    weights = (broken / "codec.safetensors").read_bytes()
    (broken / "codec.safetensors").write_bytes(weights[:1000])
    assert "codec.safetensors" in mistake(capsys, *base)
    (broken / "codec.safetensors").write_bytes(weights)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "format": 99}))
    assert "newer" in mistake(capsys, *base)
    assert not (tmp_path / "out.wav").exists()


def test_bad_recipes(capsys, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("no_such_key = 1\n")
    assert "no_such_key" in mistake(capsys, "train", recipe, f"data={tmp_path}", f"out={tmp_path / 'run'}")
    assert "missing.toml" in mistake(capsys, "train", tmp_path / "missing.toml")
    assert not (tmp_path / "run").exists()


def test_an_unexpected_error_is_no_traceback(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("the unexpected\nhappened")

    monkeypatch.setattr("audiolm.doctor.examine", broken)
    monkeypatch.delenv("AUDIOLM_TRACEBACK", raising=False)
    assert run(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("audiolm: RuntimeError: the unexpected happened")


def test_the_package_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "audiolm", "continue", "nowhere.wav", "-o", "x.wav"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("audiolm: nowhere.wav: ")


def test_every_way_to_start_it_tells_its_version() -> None:
    """README and docs/training.md start it by its module, as torchrun needs it."""
    for module in ("audiolm", "audiolm.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
        assert done.stdout.strip() == version("audiolm")


def test_help_is_quick_and_teaches_by_examples() -> None:
    """Neither torch nor any other heavy import stands between a user and the help."""
    code = "import sys; from audiolm.cli import run; run(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "audiolm continue prompt.wav -o out.wav" in done.stdout


def test_every_verb_has_examples_of_its_own(capsys) -> None:
    for verb in EXAMPLES:
        text = ok(capsys, verb, "--help")
        assert f"audiolm {verb}" in text.partition("Examples:")[2]
        assert [other for other in EXAMPLES if EXAMPLES[other].strip("\n") in text] == [verb]
    assert {each for each in app if not each.startswith("-")} == set(EXAMPLES)


def test_a_recording_by_a_pipe(capsys, tmp_path: Path, model: str, female_path: Path) -> None:
    """ "-" is standard input, for every verb that takes a recording."""
    for verb, options in {"reconstruct": ["-o", tmp_path / "out.wav", "-m", model], "info": [], "detect": ["-m", model]}.items():
        command = [sys.executable, "-m", "audiolm", verb, "-", *map(str, options)]
        done = subprocess.run(command, input=female_path.read_bytes(), capture_output=True)
        assert done.returncode == 0, done.stderr
        damaged = subprocess.run(command, input=b"no sound at all", capture_output=True)
        assert damaged.returncode == 2
        assert damaged.stderr.startswith(b"audiolm: /dev/stdin: not a sound file")
    ok(capsys, "reconstruct", female_path, "-o", tmp_path / "same.wav", "-m", model)
    assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "same.wav").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text(tmp_path: Path, model: str, female_path: Path) -> None:
    """A file whose name is not UTF-8 is examined like the others, and its name can be printed."""
    odd = tmp_path / os.fsdecode(b"caf\xe9.flac")
    odd.write_bytes(female_path.read_bytes())
    command = [sys.executable, "-m", "audiolm", "detect", str(female_path), str(odd), "-m", model]
    for options, name in ([], "caf\\udce9.flac: no watermark"), (["--json"], odd.name):
        done = subprocess.run([*command, *options], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        assert done.returncode == 0, done.stderr
        shown = done.stdout.decode()
        assert name in (json.loads(shown)[1]["file"] if options else shown)
    odd.write_text("no sound")
    done = subprocess.run([*command], capture_output=True)
    assert done.returncode == 2
    assert b"caf\\udce9.flac: not a sound file" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_what_cannot_be_said_is_one_line(model: str, female_path: Path) -> None:
    """Standard streams that are closed, full, or not read any more."""
    program = f"'{sys.executable}' -m audiolm"
    stream = f"{program} generate --seconds 0.3 --threads 1 --stream -m '{model}'"  # on a busy machine others are a line
    for command, code, line in (
        (f"{stream} > /dev/full", 2, "--stream: standard output cannot be written (no space left on device)"),
        (f"{stream} >&-", 2, "--stream: standard output is closed; pipe it"),
        (f"{program} info '{female_path}' > /dev/full", 2, "standard output: cannot be written (no space left on device)"),
        (f"{program} info - <&-", 2, "-: standard input is closed; pipe a recording"),
        (f"{stream} 2>&- > /dev/null", 0, ""),
        (f"{program} info '{female_path}' | true; exit ${{PIPESTATUS[0]}}", 1, ""),
    ):
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # else print fails, not the flush at the end
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=buffered)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert done.stderr.startswith(f"audiolm: {line}" if line else ""), command
        assert done.stderr.count("\n") == bool(line), done.stderr


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with making.bars() as show:
        show("coarse", 1, 9)
    assert not capsys.readouterr().err  # sooner than EVERY
    monkeypatch.setattr(making, "EVERY", 0.0)
    with making.bars() as show:
        show("coarse", 2, 9)
    assert capsys.readouterr().err == "coarse 2/9\n"
