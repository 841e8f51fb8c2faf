"""A corpus to tokens: killed or spread out, local or in an object store, the same tokens; what cannot be read is told."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from upath import UPath

import audiolm.training.corpus
from audiolm.audio import read
from audiolm.errors import InputError
from audiolm.model import AudioLM
from audiolm.training.corpus import plan_shards, tokenize_corpus
from audiolm.training.data import Skipped, scan
from audiolm.training.storage import place
from audiolm.training.token_store import TokenStore, TokenWriter, verify

NAMES = [f"{speaker}/{take}.wav" for speaker in "abcd" for take in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve recordings of four speakers, 0.5 s to 0.9 s, one of them NaN: found out only when it is decoded."""
    folder = tmp_path_factory.mktemp("corpus")
    noise = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        samples = 0.1 * noise.normal(size=8000 + 600 * number)
        if name == "b/1.wav":
            samples[100] = np.nan
        soundfile.write(folder / name, samples, 16_000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, tiny_model: AudioLM, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    out = tmp_path_factory.mktemp("whole") / "store"
    return tokenize_corpus(tiny_model.semantic, tiny_model.codec, scan(folder), out, shard_seconds=1.5)


def same(one: TokenStore, other: TokenStore) -> bool:
    """The same recordings in the same shards, token for token."""
    return list(one.entries) == list(other.entries) and all(
        torch.equal(one.read(number, stream), other.read(number, stream)) for number in range(len(one)) for stream in one.specs
    )


def test_shards_hold_what_their_size_says_and_the_bad_one_is_told(whole: TokenStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert [entry.name for entry in whole.entries] == [name for name in NAMES if name != "b/1.wav"]
    assert verify(whole.folder) == 5
    for shard in range(4):
        seconds = [entry.seconds for entry in whole.entries if entry.shard == shard]
        assert sum(seconds[:-1]) < 1.5
    assert "NaN" in whole.skipped["b/1.wav"]
    assert [each["name"] for each in json.loads((whole.folder / "skipped.json").read_text())] == ["b/1.wav"]


def test_one_process_has_the_tokens_of_the_model(whole: TokenStore, folder: Path, tiny_model: AudioLM) -> None:
    number = [entry.name for entry in whole.entries].index("c/2.wav")
    tokens = tiny_model.tokenize(read(folder / "c" / "2.wav"))
    assert torch.equal(whole.read(number, "semantic"), tokens.semantic.codes)
    assert torch.equal(whole.read(number, "acoustic"), tokens.acoustic.codes)


@pytest.mark.parametrize("count", [2, 7, 11])
def test_killed_it_goes_on_to_the_same_store(
    whole: TokenStore, folder: Path, tiny_model: AudioLM, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = audiolm.training.corpus._mono, []

    def dies(*args: object) -> torch.Tensor:
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)  # pyright: ignore[reportArgumentType]

    def work() -> TokenStore:
        networks = tiny_model.semantic, tiny_model.codec
        return tokenize_corpus(*networks, scan(folder), tmp_path / "store", shard_seconds=1.5)

    with monkeypatch.context() as patch:
        patch.setattr("audiolm.training.corpus._mono", dies)
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join(60)
    assert child.exitcode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("[0-9]*")}
    assert same(work(), whole)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())  # nothing is done twice
    assert json.loads((tmp_path / "store" / "skipped.json").read_text()) == json.loads(
        (whole.folder / "skipped.json").read_text()
    )


def test_a_lost_shard_alone_is_made_again_and_newcomers_come_last(
    whole: TokenStore, folder: Path, tiny_model: AudioLM, tmp_path: Path
) -> None:
    networks = tiny_model.semantic, tiny_model.codec
    recordings = scan(folder)
    store = tokenize_corpus(*networks, recordings[:9], tmp_path / "store", shard_seconds=1.5)
    for path in store.folder.glob("00001.*"):
        path.unlink()
    missing = {entry.name for entry in whole.entries if entry.shard == 1}
    assert {recordings[n].name for n in plan_shards(TokenStore(store.folder), recordings[:9], 1.5)[1]} == missing | {"b/1.wav"}
    seen: list[int] = []
    again = tokenize_corpus(*networks, recordings, store.folder, seen.append, shard_seconds=1.5)
    assert again.names == whole.names
    assert seen == list(range(12 - len(missing) - 1 - 3 + 1, 13))  # the shard, the bad one again, and three newcomers


def test_a_repaired_recording_is_taken_in(whole: TokenStore, folder: Path, tiny_model: AudioLM, tmp_path: Path) -> None:
    networks = tiny_model.semantic, tiny_model.codec
    recordings = [each for each in scan(folder) if each.name.startswith("b")]
    store = tokenize_corpus(*networks, recordings, tmp_path / "store")
    assert list(store.skipped) == ["b/1.wav"]
    (tmp_path / "b").mkdir()
    soundfile.write(tmp_path / "b" / "1.wav", np.zeros(16_000), 16_000)
    repaired = [each for each in scan(tmp_path / "b") if each.name == "1.wav"]
    recordings[1] = replace(recordings[1], path=repaired[0].path)
    store = tokenize_corpus(*networks, recordings, tmp_path / "store")
    assert (store.skipped, len(store)) == ({}, 3)
    assert json.loads((store.folder / "skipped.json").read_text()) == []


def test_nothing_that_can_be_read_is_a_mistake(folder: Path, tiny_model: AudioLM, tmp_path: Path) -> None:
    bad = [each for each in scan(folder) if each.name == "b/1.wav"]
    left_out: Skipped = [("c.wav", "no sound file")]
    with pytest.raises(InputError, match="no recording could be tokenized"):
        tokenize_corpus(tiny_model.semantic, tiny_model.codec, bad, tmp_path / "store", skipped=left_out)
    assert len(json.loads((tmp_path / "store" / "skipped.json").read_text())) == 2


# --- object storage


@pytest.fixture
def bucket(folder: Path) -> Iterator[str]:
    """An object store: the corpus in memory://corpus."""
    source = UPath("memory://corpus")
    for name in NAMES:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((folder / name).read_bytes())
    yield "memory://corpus"
    source.fs.rm("/", recursive=True)


def test_an_object_store_gives_and_takes_the_same(bucket: str, whole: TokenStore, tiny_model: AudioLM) -> None:
    networks = tiny_model.semantic, tiny_model.codec
    recordings = scan(bucket)
    assert [each.name for each in recordings] == NAMES
    (UPath(bucket) / "manifest.csv").write_text("path,seconds\n" + "".join(f"{name},0.6\n" for name in NAMES[:6]))
    assert [each.name for each in scan(bucket)] == NAMES[:6]
    store = tokenize_corpus(*networks, recordings, "memory://tokens", shard_seconds=1.5)
    assert same(store, whole)
    assert "memory://corpus/b/1.wav: holds NaN" in store.skipped["b/1.wav"]  # not the name of a temporary copy
    assert verify("memory://tokens") == 5
    UPath("memory://tokens/00003.parquet").unlink()
    seen: list[int] = []
    assert same(tokenize_corpus(*networks, recordings, "memory://tokens", seen.append, shard_seconds=1.5), whole)
    assert len(seen) < 6
    shard = UPath("memory://tokens/00002.safetensors")
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"1 of 5 shards damaged \(shard 00002: memory://tokens/00002\.safetensors: missing"):
        verify("memory://tokens")


def test_what_others_wrote_meanwhile_is_seen(bucket: str, whole: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's file systems of object stores keep listings; this one does as s3fs does."""
    memory = type(UPath("memory://x").fs)
    kept: dict[str, Any] = {}
    original = memory.glob

    def glob(self: Any, path: str, **options: Any) -> Any:
        return kept.setdefault(path, original(self, path, **options))

    monkeypatch.setattr(memory, "glob", glob)
    monkeypatch.setattr(memory, "invalidate_cache", lambda self, path=None: kept.clear())
    store = TokenStore.create("memory://shared", whole.key)
    writer = TokenWriter(store.folder, store.specs, next(store.unused()))
    writer.add("a", {name: whole.read(0, name) for name in whole.specs}, seconds=1.0)
    writer.flush()
    assert len(TokenStore("memory://shared")) == 1
    assert verify("memory://shared") == 1


def test_an_unknown_store_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nosuch://a/b: cannot be reached"):
        place("nosuch://a/b")
    with pytest.raises(InputError, match="no such folder"):
        scan("memory://nowhere")
    assert place(f"file://{tmp_path}") == tmp_path
