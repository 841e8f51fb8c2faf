"""From a folder of sound to batches: bad files are named and left out, nothing is half there, batches are pure."""

import functools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

import audiolm.training.audio_store
import audiolm.training.data
import audiolm.training.token_store
from audiolm.errors import InputError
from audiolm.files import save_tensors, whole_file
from audiolm.stages import Stage, Stream
from audiolm.tokens import TokenSpec
from audiolm.training.audio_store import AudioCrops, AudioStore, Placement
from audiolm.training.data import Recording, Skipped, scan
from audiolm.training.token_store import TokenCrops, TokenStore, TokenWriter, same_at_other_speeds, store_key, verify

RATE = 16_000


def tone(path: Path, seconds: float, rate: int = RATE, pitch: float = 220.0, channels: int = 1) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(samples[:, None], channels, 1), rate, subtype="PCM_16")
    return samples


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for speaker in range(5):
        for clip in range(3):
            tone(folder / f"s{speaker}" / f"{clip}.flac", 1.0 + 0.4 * clip + 0.1 * speaker, pitch=200 + 50 * speaker)
    tone(folder / "s0" / "stereo.wav", 1.5, rate=44_100, channels=2)
    return folder


@pytest.fixture(scope="module")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    return AudioStore.prepare(tmp_path_factory.mktemp("store") / "audio", scan(corpus), shard_seconds=4.0)


# --- scan


def test_folder_speakers_are_folders_and_no_split_shares_one(corpus: Path) -> None:
    recordings = scan(corpus, valid=0.2, test=0.2)
    assert len(recordings) == 16
    assert {recording.speaker for recording in recordings} == {f"s{n}" for n in range(5)}
    assert {recording.split for recording in recordings} == {"train", "valid", "test"}
    for speaker in range(5):
        assert len({r.split for r in recordings if r.speaker == f"s{speaker}"}) == 1


@pytest.mark.parametrize(
    ("names", "speakers"),
    [
        (["19/191/a", "19/192/b", "26/261/c", "26/262/d"], "19 19 26 26"),  # speaker/chapter/file, as in LibriSpeech
        (["ann/wav/a", "bob/wav/b", "cy/wav/c"], "ann bob cy"),
        (["wav48/p225/a", "wav48/p226/b"], "p225 p226"),
        (["train-clean-5/19/191/a", "train-clean-100/19/192/b", "dev-clean/26/261/c"], "19 19 26"),
        (["s0/a/1", "s0/b/2", "3"], "s0 s0 c"),
        (["only/one/1", "only/one/2", "only/3"], "one one only"),
        (["1", "2"], "c c"),
    ],
)
def test_speakers_are_the_first_folders_that_differ(names: list[str], speakers: str, tmp_path: Path) -> None:
    for name in names:
        tone(tmp_path / "c" / f"{name}.wav", 0.2)
    found = {each.name: each.speaker for each in scan(tmp_path / "c")}
    assert [found[f"{name}.wav"] for name in names] == speakers.split()
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"c/{name}.wav\n" for name in names))
    if len(set(speakers.split()) - {"c"}) > 1 and "train" not in names[0]:
        assert [each.speaker for each in scan(tmp_path / "list.csv")] == speakers.split()


def test_folders_named_after_the_splits_are_the_splits(tmp_path: Path) -> None:
    names = ["train-clean/19/1/a", "train-other/20/1/b", "dev-clean/26/1/c", "test/30/1/d"]
    for name in names:
        tone(tmp_path / "c" / f"{name}.wav", 0.2)
    found = {each.name: (each.speaker, each.split) for each in scan(tmp_path / "c", seed=3)}
    expected = [("19", "train"), ("20", "train"), ("26", "valid"), ("30", "test")]
    assert [found[f"{name}.wav"] for name in names] == expected


def test_transcripts_lie_where_corpora_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {
        "libri/dev-clean/19/191/19-191-0000.flac": "THE FIRST",
        "libri/dev-clean/19/191/19-191-0001.flac": "THE SECOND ONE",
        "libri/dev-clean/19/191/19-191-0002.flac": None,
        "any/ann/a.b.wav": "Beside, in lines.",
        "any/ann/none.wav": None,
        "any/ann/latin.wav": None,
        "any/ann/empty.wav": None,
        "vctk/wav48/p225/p225_001.wav": "Please call Stella.",
        "vctk/wav48/p226/p225_001.wav": None,
        "new/wav48_silence_trimmed/p225/p225_001_mic1.flac": "Ünd Stella.",
        "tts/train-clean-100/103/1241/103_1241_000000_000001.wav": "Mister Ray said, yes.",
        "lj/LJSpeech-1.1/wavs/LJ001-0001.wav": 'in "sixteen sixty", he said,',
        "lj/LJSpeech-1.1/wavs/LJ001-0002.wav": "only as written",
        "lj/LJSpeech-1.1/wavs/LJ001-0003.wav": None,
        "lj/other/LJ001-0001.wav": None,
    }
    texts = {
        "libri/dev-clean/19/191/19-191.trans.txt": b"19-191-0000 THE FIRST\r\n19-191-0001 THE SECOND ONE\n",
        "any/ann/a.b.txt": b"\xef\xbb\xbf Beside,\n in lines.\n",
        "any/ann/latin.txt": "fünf".encode("latin-1"),
        "any/ann/empty.txt": b" \n",
        "any/readme.txt": b"not a transcript",
        "vctk/txt/p225/p225_001.txt": b"Please call Stella.\n",
        "new/txt/p225/p225_001.txt": "Ünd Stella.".encode(),
        "tts/train-clean-100/103/1241/103_1241_000000_000001.normalized.txt": b"Mister Ray said, yes.",
        "tts/train-clean-100/103/1241/103_1241_000000_000001.original.txt": b"Mr. Ray said, yes.",
        "lj/LJSpeech-1.1/metadata.csv": b'LJ001-0001|in "1660", he said,|in "sixteen sixty", he said,\n'
        b"LJ001-0002|only as written|\n",
    }
    for name in told:
        tone(tmp_path / name, 0.2)
    for name, content in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for name in ("libri", "any", "vctk", "new", "tts", "lj"):
        found = {f"{name}/{each.name}": each.columns for each in scan(tmp_path / name)}
        assert found == {key: {"transcript": text} if text else {} for key, text in told.items() if key.startswith(name)}
    assert capsys.readouterr().err.count("latin.txt: no transcript (") == 1
    (tmp_path / "new" / "manifest.csv").write_text("path,told\nwav48_silence_trimmed/p225/p225_001_mic1.flac,twice\n")
    assert [each.columns for each in scan(tmp_path / "new")] == [{"told": "twice"}]
    inside = {each.name: each.columns.get("transcript") for each in scan(tmp_path / "lj" / "LJSpeech-1.1")}
    assert inside["wavs/LJ001-0002.wav"] == "only as written"
    libri = {each.name: each.columns.get("transcript") for each in scan(tmp_path / "libri" / "dev-clean" / "19" / "191")}
    assert libri["19-191-0001.flac"] == "THE SECOND ONE"

    def refuse(*_: object, **__: object) -> str:
        raise AssertionError("read")

    monkeypatch.setattr(Path, "read_text", refuse)  # a name tells that a recording is new
    assert audiolm.training.data.listed(tmp_path / "vctk") == {"wav48/p225/p225_001.wav", "wav48/p226/p225_001.wav"}


@pytest.mark.parametrize(
    ("folders", "share", "drawn"),
    [
        (["train-clean-100", "test-clean"], 0.2, "valid"),
        (["train-clean-100", "dev-clean"], 0.2, "test"),
        (["train-clean-100", "test-clean"], 0.0, ""),
        (["train", "validation", "eval"], 0.2, ""),
    ],
)
def test_a_split_without_a_folder_is_drawn_from_train(
    folders: list[str], share: float, drawn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Speakers of test-clean must not be trained on because there is no dev-clean."""
    for number, folder in enumerate(folders):
        for speaker in range(6 if number == 0 else 2):
            for clip in range(2):
                tone(tmp_path / "c" / folder / f"{10 * number + speaker}" / f"{clip}.wav", 0.2)
    recordings = scan(tmp_path / "c", valid=share, test=share)
    said = capsys.readouterr().err
    own = {name: audiolm.training.data._split_of(f"{name}/x") for name in folders}
    speakers: dict[str, set[str]] = {}
    for each in recordings:
        folder = each.name.split("/")[0]
        assert each.split in ({"train", drawn} if folder == folders[0] else {own[folder]})
        speakers.setdefault(each.split, set()).add(each.speaker)
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values()))  # none is in two
    assert speakers.keys() == {*own.values(), *filter(None, [drawn])}
    assert (f"{drawn} drawn from train's speakers" in said) if drawn else not said
    settled = {each.speaker: each.split for each in recordings}
    tone(tmp_path / "c" / folders[0] / "new" / "0.wav", 0.2)
    again = {each.name: each.split for each in scan(tmp_path / "c", valid=share, test=share, seed=5, settled=settled)}
    assert again.items() >= {each.name: each.split for each in recordings}.items()


def test_a_manifest_of_two_splits_has_two(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tone(tmp_path / f"{name}.wav", 0.2)
    (tmp_path / "manifest.csv").write_text("path,split\na.wav,train\nb.wav,test\n")
    assert [each.split for each in scan(tmp_path)] == ["train", "test"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=30),
    st.integers(0, 1000),
    st.floats(0.01, 0.4),
    st.floats(0.01, 0.4),
)
def test_splits_are_speaker_disjoint(speakers: list[str], seed: int, valid: float, test: float) -> None:
    rows = [{"name": f"{speaker}/{n}", "speaker": speaker} for n, speaker in enumerate(speakers)]
    splits = audiolm.training.data._splits(rows, valid, test, seed, Path("x"), {})
    by = "speaker" if len(set(speakers)) > 1 else "name"
    dealt = {(row[by], split) for row, split in zip(rows, splits, strict=True)}
    assert len(dealt) == len({row[by] for row in rows})
    # Every split that was asked for has someone, as far as there are enough to go round, training first.
    assert set(splits) >= set(("train", "valid", "test")[: len(dealt)])


def test_what_is_written_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
        with whole_file(tmp_path / "b.txt") as temporary:
            temporary.write_text("b")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"a.safetensors": 0o640, "b.txt": 0o640}


def test_newcomers_do_not_move_the_others() -> None:
    rows = [{"name": f"{n}", "speaker": f"{n}"} for n in range(200)]
    few, many = (audiolm.training.data._splits(rows[:count], 0.1, 0.1, 0, Path("x"), {}) for count in (100, 200))
    assert many[:100] == few


@settings(max_examples=50, deadline=None)
@given(first=st.integers(2, 12), then=st.integers(1, 12), seed=st.integers(0, 999))
def test_settled_speakers_stay_where_they_are(first: int, then: int, seed: int) -> None:
    """Few speakers move to fill an empty split; those of a store must not when others join them."""
    rows = [{"name": f"{n}", "speaker": f"{n}"} for n in range(first + then)]
    split = functools.partial(audiolm.training.data._splits, valid=0.1, test=0.1, seed=seed, source=Path("x"))
    few = split(rows[:first], settled={})
    settled = {row["speaker"]: where for row, where in zip(rows, few, strict=False)}
    assert split(rows, settled=settled)[:first] == few
    assert set(split(rows[first:], settled=settled)) <= {"train", "valid", "test"}


def test_manifest_is_taken_at_its_word(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "c")
    (tmp_path / "c" / "manifest.csv").write_text(
        "path,speaker,split,transcript\ns0/0.flac,ann,dev,hello there\ns1/0.flac,bob,train,\ns1/1.flac,bob,test,x\n"
    )
    for source in (tmp_path / "c", tmp_path / "c" / "manifest.csv"):
        first, second, third = scan(source)
        assert (first.name, first.speaker, first.split, first.columns) == (
            "s0/0.flac",
            "ann",
            "valid",
            {"transcript": "hello there"},
        )
        assert first.seconds == pytest.approx(1.0)
        assert (second.split, third.split) == ("train", "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\ns0/0.flac,train\ns1/0.flac,\n", "split of s1/0.flac is ''"),
        ("path,split\ns0/0.flac,later\n", "split of s0/0.flac is 'later'"),
        ("file,split\ns0/0.flac,train\n", "including 'path'"),
        ("path\n", "including 'path'"),
        ("path\ns0/0.flac,5,6\n", "line 2 has too many columns"),
        ("path\nnot there.wav\n", "none of 1 recordings can be used"),
        ("path,seconds\ns0/0.flac,inf\n", "s0/0.flac: seconds is 'inf'"),
        ("path,seconds\ns0/0.flac,nan\n", "s0/0.flac: seconds is 'nan'"),
        ("path,seconds\ns0/0.flac,long\n", "s0/0.flac: seconds is 'long'"),
        ("path, split\ns0/0.flac, later\n", "split of s0/0.flac is 'later'"),  # a space after a comma is none of a name
    ],
)
def test_bad_manifests_are_one_line(corpus: Path, text: str, message: str, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "c")
    (tmp_path / "c" / "manifest.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        scan(tmp_path / "c")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_recordings_are_reported_and_left_out(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "c"
    shutil.copytree(corpus, folder)
    (folder / "s0" / "text.wav").write_text("this is no sound")
    tone(folder / "s1" / "short.wav", 0.001)
    soundfile.write(folder / "s2" / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")  # its header is fine
    data = (folder / "s3" / "2.flac").read_bytes()
    (folder / "s3" / "cut.flac").write_bytes(data[: len(data) // 2])
    (folder / "readme.txt").write_text("not a recording at all")
    skipped: Skipped = []
    recordings = scan(folder, skipped=skipped)
    store = AudioStore.prepare(tmp_path / "audio", recordings, skipped=skipped)
    said = capsys.readouterr().err
    listed = json.loads((tmp_path / "audio" / "skipped.json").read_text())
    assert {"s0/text.wav", "s1/short.wav", "s2/nan.wav"} <= {each["name"] for each in listed}
    assert all(each["name"] in said or len(listed) > 5 for each in listed)
    good = {entry.name for entry in store.entries}
    assert good >= {recording.name for recording in scan(corpus)}
    assert good.isdisjoint(each["name"] for each in listed)
    assert good | {each["name"] for each in listed} == {p.relative_to(folder).as_posix() for p in folder.rglob("*.[fw][la][av]*")}


def test_folders_behind_links_are_of_the_tree(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for speaker in ("s0", "s1"):
        (tmp_path / "c" / speaker).symlink_to(corpus / speaker)
    (tmp_path / "c" / "all").symlink_to(tmp_path / "c")  # without end
    (tmp_path / "c" / "again").symlink_to(tmp_path / "c" / "s0")  # what is found twice could be learned from and measured on
    (tmp_path / "c" / "up").symlink_to("..")
    names = {each.name for each in scan(tmp_path / "c")}
    assert names == {
        f"{name}/{path.name}" for name, speaker in {"again": "s0", "s1": "s1"}.items() for path in (corpus / speaker).iterdir()
    }


def test_a_link_to_nothing_is_named(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "c")
    (tmp_path / "c" / "s0" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    skipped: Skipped = []
    assert len(scan(tmp_path / "c", skipped=skipped)) == len(scan(corpus))
    assert [name for name, _ in skipped] == ["s0/gone.wav"]


def test_what_cannot_be_looked_into_is_named(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(corpus, tmp_path / "c")
    (tmp_path / "c" / "manifest.csv").write_text(f"path\ns0/0.flac\n{'long' * 99}.wav\n")
    skipped: Skipped = []
    assert [each.name for each in scan(tmp_path / "c", skipped=skipped)] == ["s0/0.flac"]
    assert "cannot be read (File name too long)" in skipped[0][1]
    (tmp_path / "c" / "manifest.csv").unlink()
    everything, listed = len(scan(tmp_path / "c")), Path.iterdir

    def iterdir(folder: Path) -> Any:  # whoever runs the tests may be allowed everything
        if folder.name == "s1":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    skipped = []
    assert 0 < len(scan(tmp_path / "c", skipped=skipped)) < everything
    assert skipped == [("s1", f"{tmp_path / 'c' / 's1'}: cannot be read (Permission denied)")]


def test_names_that_are_not_utf8_are_left_out(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c").mkdir()
    shutil.copy(corpus / "s0" / "0.flac", tmp_path / "c" / "good.flac")
    try:
        shutil.copy(corpus / "s0" / "0.flac", tmp_path / "c" / os.fsdecode(b"f\xfcnf.flac"))
    except OSError:
        pytest.skip("this file system has no such names")
    skipped: Skipped = []
    recordings = scan(tmp_path / "c", skipped=skipped)
    AudioStore.prepare(tmp_path / "audio", recordings, skipped=skipped)
    assert [each.name for each in recordings] == ["good.flac"]
    assert "its name is not UTF-8; rename it" in capsys.readouterr().err


def test_one_sound_file_is_a_corpus_of_one(corpus: Path) -> None:
    (only,) = scan(corpus / "s0" / "0.flac")
    assert (only.path, only.name, only.speaker) == (corpus / "s0" / "0.flac", "0.flac", "s0")


@pytest.mark.parametrize("empty", ["nothing", "folder", "bad"])
def test_nothing_to_use_is_one_line(tmp_path: Path, empty: str) -> None:
    folder = tmp_path / "c"
    if empty != "nothing":
        folder.mkdir()
    if empty == "bad":
        (folder / "a.wav").write_text("no")
    with pytest.raises(InputError, match=str(folder)):
        scan(folder)


# --- decoded once


def test_digital_silence_teaches_nothing(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    soundfile.write(tmp_path / "c" / "silent.wav", np.zeros(RATE), RATE)
    with pytest.raises(InputError, match=r"no recording can be used \(.*silent\.wav: digital silence from end to end"):
        AudioStore.prepare(tmp_path / "audio", scan(tmp_path / "c"))
    tone(tmp_path / "c" / "heard.wav", 1.0)
    store = AudioStore.prepare(tmp_path / "audio", scan(tmp_path / "c"))
    assert [entry.name for entry in store.entries] == ["heard.wav"]


def test_store_gives_back_the_sound(corpus: Path, store: AudioStore) -> None:
    number = next(n for n, entry in enumerate(store.entries) if entry.name == "s2/1.flac")
    original, _ = soundfile.read(corpus / "s2" / "1.flac", dtype="float32")
    assert np.abs(store.read(number).numpy() - original).max() < 1 / 32000
    assert torch.equal(store.read(number, 640, 1000), store.read(number)[640:1640])
    assert len(store.read(number, store.entries[number].length - 10, 1000)) == 10
    stereo = next(n for n, entry in enumerate(store.entries) if entry.name == "s0/stereo.wav")
    assert store.entries[stereo].length == 1.5 * RATE
    expected = 0.5 * np.sin(2 * np.pi * 220 * np.arange(round(1.5 * RATE)) / RATE)
    assert np.abs(store.read(stereo).numpy() - expected)[500:-500].max() < 1e-3


def test_prepared_again_is_free_and_newcomers_are_appended(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = scan(corpus)
    AudioStore.prepare(tmp_path / "audio", recordings[:5])
    decoded: list[str] = []
    original = audiolm.training.audio_store._decode_into
    monkeypatch.setattr(
        "audiolm.training.audio_store._decode_into", lambda f, r, *a: decoded.append(r.name) or original(f, r, *a)
    )
    store = AudioStore.prepare(tmp_path / "audio", recordings)
    assert decoded == [recording.name for recording in recordings[5:]]
    assert [entry.name for entry in store.entries] == [recording.name for recording in recordings]
    with pytest.raises(InputError, match="sample_rate 16000, not 8000"):
        AudioStore.prepare(tmp_path / "audio", recordings, sample_rate=8000)


def in_child(work: Callable[[], object]) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    return child.exitcode


def die_at(count: int, original: Callable[..., object]) -> Callable[..., object]:
    calls = iter(range(1, 1000))

    def dies(*args: object, **kwargs: object) -> object:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return dies


def test_preparation_killed_goes_on(corpus: Path, store: AudioStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = scan(corpus)
    for place, count in (("_decode_into", 2), ("_decode_into", 8), ("whole_file", 2), ("whole_file", 3), ("whole_file", 5)):
        with monkeypatch.context() as patch:
            patch.setattr(f"audiolm.training.audio_store.{place}", die_at(count, getattr(audiolm.training.audio_store, place)))
            code = in_child(lambda: AudioStore.prepare(tmp_path / "audio", recordings, shard_seconds=4.0))
        assert code == -signal.SIGKILL
        if (tmp_path / "audio" / "header.json").exists():
            AudioStore(tmp_path / "audio")  # whatever is there is whole
    again = AudioStore.prepare(tmp_path / "audio", recordings, shard_seconds=4.0)
    assert [entry.name for entry in again.entries] == [entry.name for entry in store.entries]
    assert all(torch.equal(again.read(n), store.read(n)) for n in range(len(store)))


def test_damaged_audio_store_is_named(store: AudioStore, tmp_path: Path) -> None:
    shutil.copytree(store.folder, tmp_path / "audio")
    shard = tmp_path / "audio" / "00001.i16"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"00001\.i16: damaged"):
        AudioStore(tmp_path / "audio")
    with pytest.raises(InputError, match="not a valid audio store"):
        AudioStore(tmp_path)


# --- crops


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(10, 150), st.integers(0, 9))
def test_placement_covers_each_recording_once_an_epoch(lengths: list[int], crop: int, seed: int) -> None:
    placement = Placement(lengths, crop, seed)
    epoch = [placement[n] for n in range(len(placement))]
    for recording, length in enumerate(lengths):
        starts = [start for owner, start in epoch if owner == recording]
        assert len(starts) == max(1, round(length / crop))
        assert all(0 <= start <= max(0, length - crop) for start in starts)
    assert epoch == [Placement(lengths, crop, seed)[n] for n in range(len(placement))]
    assert epoch[-1] == Placement(lengths, crop, seed)[len(placement) - 1]  # whatever was asked before


def test_every_moment_is_trained_on_equally_often() -> None:
    """A plain uniform start would visit the first and last moments far too rarely to learn an end of sequence."""
    placement, seen = Placement([100], 30, seed=0), np.zeros(100)
    for n in range(6000):
        _, start = placement[n]
        seen[start : start + 30] += 1
    assert seen.min() > 0.5 * seen.mean()
    ends = sum(placement[n][1] == 70 for n in range(3000)) / 3000
    assert 0.1 < ends < 0.2  # half a crop of the whole, 15 %


def test_audio_batches_depend_on_seed_and_step_only(store: AudioStore) -> None:
    crops = AudioCrops(store, "train", seconds=0.5, batch_size=4, seed=3)
    forward = [crops.batch(step) for step in range(30)]
    again = AudioCrops(store, "train", seconds=0.5, batch_size=4, seed=3)
    assert all(torch.equal(again.batch(step), forward[step]) for step in reversed(range(30)))
    assert forward[0].shape == (4, 1, 8000)
    assert forward[0].dtype == torch.float32
    assert not torch.equal(forward[0], AudioCrops(store, "train", seconds=0.5, batch_size=4, seed=4).batch(0))
    assert not torch.equal(forward[0], forward[1])


def test_crops_of_long_recordings_are_the_placements(store: AudioStore) -> None:
    """Whatever fills the rows of short recordings, recipes for long ones see what they always saw."""
    crops = AudioCrops(store, "train", seconds=0.5, batch_size=4, seed=3)
    for step in range(20):
        for row, crop in enumerate(crops.batch(step)[:, 0]):
            recording, start = crops.placement[4 * step + row]
            assert torch.equal(crop, store.read(crops.recordings[recording], start // 640 * 640, 8000))


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.3])  # longer than some recordings, than all, than any two
def test_rows_of_short_recordings_are_filled_with_others(tmp_path: Path, seconds: float) -> None:
    """A second of sound and three of zeros would fit the mel's statistics, the codebooks and the units to silence."""
    lengths = [5_000 + 1_111 * number for number in range(8)]  # samples; each frame says whose it is, and which
    for number, length in enumerate(lengths):
        samples = (100 * number + np.arange(length) // 640 + 1).astype(np.int16)
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE)
    recordings = [Recording(tmp_path / f"{number}.wav", f"{number}", "s", "train", 1.0) for number in range(8)]
    store = AudioStore.prepare(tmp_path / "audio", recordings)
    crops, again = (AudioCrops(store, "train", seconds, 8, seed=3) for _ in range(2))
    batches, followers = [crops.batch(step) for step in range(4)], set[int]()
    assert all(torch.equal(again.batch(step), batches[step]) for step in (3, 1, 0, 2))
    for place, row in enumerate(torch.cat(batches)[:, 0]):
        frames = (row[::640] * 32767).round().long() - 1
        assert torch.equal(row * 32767, (frames + 1.0).repeat_interleave(640)[: len(row)])  # joined at frames, nothing silent
        owners, numbers = (frames // 100).tolist(), (frames % 100).tolist()
        assert (owners[0], numbers[0]) == (crops.placement[place][0], crops.placement[place][1] // 640)
        for k in range(1, len(owners)):
            if (owners[k], numbers[k]) != (owners[k - 1], numbers[k - 1] + 1):  # the one before is over
                assert numbers[k - 1] == lengths[owners[k - 1]] // 640 - 1
                followers.add(owners[k])
    assert len(followers) > 4


def test_an_only_recording_is_repeated(tmp_path: Path) -> None:
    """However short: one below a frame, too."""
    for samples in (1000, 100):
        noise = np.random.default_rng(0).uniform(0.1, 0.5, samples)
        soundfile.write(tmp_path / f"{samples}.wav", noise, RATE)
        recordings = scan(tmp_path / f"{samples}.wav", minimum=0.001)
        store = AudioStore.prepare(tmp_path / f"{samples}", recordings, minimum=0.001)
        (row,) = AudioCrops(store, "train", seconds=0.2, batch_size=1).batch(0)[:, 0]
        period = 640 if samples > 640 else samples
        assert torch.equal(row[period:1700], row[: 1700 - period])
        assert (row > 0).all()


def test_a_split_without_recordings_is_refused(store: AudioStore) -> None:
    with pytest.raises(InputError, match="holds no other recordings"):
        AudioCrops(store, "other", seconds=1.0, batch_size=1)


# --- tokens

SEMANTIC, ACOUSTIC = TokenSpec("semantic", 50, 1, 25.0), TokenSpec("acoustic", 64, 6, 50.0)
KEY = store_key(RATE, {"semantic": (SEMANTIC, "aaaa"), "acoustic": (ACOUSTIC, "bbbb")}, layer=5)
COARSE = Stage("coarse", (Stream(SEMANTIC, 0, 1),), Stream(ACOUSTIC, 0, 4), crop=2.0)
FINE = Stage("fine", (Stream(ACOUSTIC, 0, 4),), Stream(ACOUSTIC, 4, 6), crop=0.6)


def codes_of(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    samples = 16_000 + 3_210 * number
    return {
        spec.name: torch.randint(spec.codebook_size, (spec.num_codebooks, -(-samples // hop)), generator=generator)
        for spec, hop in ((SEMANTIC, 640), (ACOUSTIC, 320))
    }


@contextmanager
def writing(store: TokenStore) -> Iterator[TokenWriter]:
    writer = TokenWriter(store.folder, store.specs, next(store.unused()))
    yield writer
    writer.flush()


def fill(folder: Path) -> None:
    """Twelve recordings, three in a shard; those that are missing."""
    store = TokenStore.create(folder, KEY)
    for first in range(0, 12, 3):
        with writing(store) as writer:
            for number in range(first, first + 3):
                if f"r{number}" not in store:
                    split = "valid" if number % 4 == 3 else "train"
                    writer.add(f"r{number}", codes_of(number), seconds=1 + number / 5, speaker=f"s{number}", split=split)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("tokens") / "store"
    fill(folder)
    return TokenStore(folder, expect=KEY)


def test_tokens_come_back(tokens: TokenStore) -> None:
    assert len(tokens) == 12
    assert len(list(tokens.folder.glob("*.safetensors"))) > 2
    for number in range(12):
        for name, codes in codes_of(number).items():
            assert torch.equal(tokens.read(number, name), codes)
            assert torch.equal(tokens.read(number, name, 3, 7), codes[:, 3:7])
    assert verify(tokens.folder) == 4
    assert tokens.summary()["splits"]["valid"]["recordings"] == 3


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("streams", "acoustic", "hash"), "cccc", r"streams\.acoustic\.hash was \"bbbb\", is \"cccc\""),
        (("streams", "semantic", "spec", "codebook_size"), 500, r"streams\.semantic\.spec\.codebook_size was 50, is 500"),
        (("sample_rate",), 24_000, r"sample_rate was 16000, is 24000"),
        (("layer",), 7, r"layer was 5, is 7"),
    ],
)
def test_stale_or_foreign_store_is_refused_by_name(tokens: TokenStore, place: tuple[str, ...], value: object, said: str) -> None:
    other = json.loads(json.dumps(KEY))
    table = other
    for part in place[:-1]:
        table = table[part]
    table[place[-1]] = value
    for refused in (lambda: TokenStore(tokens.folder, expect=other), lambda: TokenStore.create(tokens.folder, other)):
        with pytest.raises(InputError, match=said) as caught:
            refused()
        assert str(tokens.folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_stage_of_other_tokens_is_refused(tokens: TokenStore) -> None:
    other = replace(COARSE, predict=Stream(replace(ACOUSTIC, codebook_size=1024), 0, 4))
    with pytest.raises(InputError, match="stage coarse needs"):
        TokenCrops(tokens, other, "train", 2)
    with pytest.raises(InputError, match="no test recordings"):
        TokenCrops(tokens, COARSE, "test", 2)


@pytest.mark.parametrize("place", ["save_tensors", "write_index", "stored"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_killed_writer_leaves_whole_shards_and_goes_on(
    tokens: TokenStore, tmp_path: Path, place: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"audiolm.training.token_store.{place}", die_at(count, getattr(audiolm.training.token_store, place)))
        assert in_child(lambda: fill(tmp_path / "store")) == -signal.SIGKILL
    left = TokenStore(tmp_path / "store", expect=KEY)
    verify(left.folder)
    assert len(left) < 12
    fill(tmp_path / "store")
    whole = TokenStore(tmp_path / "store", expect=KEY)
    assert [entry.name for entry in whole.entries] == [f"r{number}" for number in range(12)]
    verify(whole.folder)
    assert all(torch.equal(whole.read(n, "acoustic"), tokens.read(n, "acoustic")) for n in range(12))


def test_damage_is_found(tokens: TokenStore, tmp_path: Path) -> None:
    shutil.copytree(tokens.folder, tmp_path / "cut")
    shard = tmp_path / "cut" / "00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=r"00001\.safetensors: missing or damaged"):
        TokenStore(tmp_path / "cut")
    shard.write_bytes(whole[:-7] + b"\x01" * 7)
    with pytest.raises(InputError, match=r"1 of \d shards damaged \(shard 00001: r\d+ is damaged\); delete 00001\.\*"):
        verify(tmp_path / "cut")
    shard.write_bytes(whole[:-7])
    (tmp_path / "cut" / "00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"2 of \d shards damaged .*delete 00001\.\* and 00002\.\*, tokenise again"):
        verify(tmp_path / "cut")  # also what does not open any more
    for number in (1, 2):
        (tmp_path / "cut" / f"{number:05d}.parquet").unlink()
    fill(tmp_path / "cut")  # as it says
    assert verify(tmp_path / "cut") == len(list(tokens.folder.glob("*.parquet")))
    assert TokenStore(tmp_path / "cut").names == tokens.names
    index = tmp_path / "cut" / "00000.parquet"
    index.write_bytes(index.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"00000\.parquet: damaged index"):
        TokenStore(tmp_path / "cut")
    (tmp_path / "cut" / "header.json").write_text(json.dumps({"kind": "token store", "format": 99, "key": KEY}))
    with pytest.raises(InputError, match="newer version"):
        TokenStore(tmp_path / "cut")


def test_many_processes_share_one_map_of_the_codes(tokens: TokenStore) -> None:
    """Pickled or forked, a worker reads the file, not a copy; a piece of a recording costs no more than the piece."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(tokens.read, (7, "acoustic", 3, 9)), codes_of(7)["acoustic"][:, 3:9])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert torch.equal(pool.apply(tokens.read, (7, "acoustic", 3, 9)), codes_of(7)["acoustic"][:, 3:9])
    assert len(pickle.dumps(tokens)) < 1500


def test_what_was_left_out_stands_in_the_index(tmp_path: Path) -> None:
    store = TokenStore.create(tmp_path / "store", KEY)
    with writing(store) as writer:
        writer.add("a", codes_of(0), seconds=1.0)
        writer.skip("b", "no sound")
    store = TokenStore(tmp_path / "store")
    assert store.skipped == {"b": "no sound"}
    assert store.summary()["left_out"] == 1
    with writing(store) as writer:
        writer.add("b", codes_of(1), seconds=1.0)  # repaired
    store = TokenStore(tmp_path / "store")
    assert (store.skipped, len(store)) == ({}, 2)


def test_wrong_codes_never_enter(tmp_path: Path) -> None:
    store = TokenStore.create(tmp_path / "store", KEY)
    good = codes_of(1)
    for bad, said in (
        (good | {"semantic": good["semantic"] + 50}, "must lie in"),
        ({"semantic": good["semantic"]}, "the store keeps"),
        (good | {"acoustic": good["acoustic"][:3]}, "3 of 6 acoustic levels"),
    ):
        with writing(store) as writer, pytest.raises(InputError, match=said):
            writer.add("x", bad, seconds=1.0)
    with writing(store) as writer:
        writer.add("x", good, seconds=1.0)
    assert len(TokenStore(tmp_path / "store")) == 1


@pytest.mark.parametrize("stage", [COARSE, FINE])
def test_token_crops_are_aligned_and_end_only_at_true_ends(tokens: TokenStore, stage: Stage) -> None:
    crops = TokenCrops(tokens, stage, "train", batch_size=4, seed=1)
    ended = started = inside = 0
    for step in range(60):
        for row, item in enumerate(crops.batch(step)):
            place, start = crops.placement[step * 4 + row]
            whole = {stream: codes_of(crops.recordings[place])[stream.spec.name] for stream in stage.streams}
            pieces = dict(zip(stage.streams, [*item["given"], item["predicted"]], strict=True))
            true_end = []
            for stream, piece in pieces.items():
                first = start * round(stream.spec.frame_rate * stage.grid)
                assert first / stream.spec.frame_rate == pytest.approx(start * stage.grid)  # one instant for all streams
                assert torch.equal(piece, whole[stream][stream.first : stream.last, first : first + piece.shape[1]])
                assert piece.shape[1] <= round(stage.crop * stream.spec.frame_rate)
                true_end.append(first + piece.shape[1] == whole[stream].shape[1])
            assert item["ends"] == all(true_end)
            ended, started, inside = ended + item["ends"], started + (start == 0), inside + (not item["ends"])
    assert ended
    assert started
    assert inside


def test_token_batches_depend_on_seed_and_step_only(tokens: TokenStore) -> None:
    one, other = (TokenCrops(tokens, COARSE, "train", 3, seed=5) for _ in range(2))
    forward = [one.batch(step)[1]["predicted"] for step in range(20)]
    assert all(torch.equal(other.batch(step)[1]["predicted"], forward[step]) for step in reversed(range(20)))
    assert len(one) * 3 >= len(one.placement) > (len(one) - 1) * 3


def test_units_of_any_speed_keep_time_with_the_recording(tmp_path: Path) -> None:
    """Codes that say at which second and speed they were made: a crop's units come from the same seconds, at any speed."""
    lengths = {"a": 100, "a@1.25": 80, "a@0.8": 125, "b@c": 60, "a@x/b": 60}
    store = TokenStore.create(tmp_path / "store", KEY)
    with writing(store) as writer:
        for number, (name, frames) in enumerate(lengths.items()):
            units = (10 * torch.arange(frames) // frames + 10 * number)[None]  # tenth of the recording, and which recording
            writer.add(name, {"semantic": units, "acoustic": torch.zeros(6, 2 * frames, dtype=torch.long)}, seconds=frames / 25)
    store = TokenStore(tmp_path / "store")
    assert same_at_other_speeds(store, range(5)) == {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2], 3: [3], 4: [4]}

    own, crops = (TokenCrops(store, replace(COARSE, crop=2.0), "train", 4, 3, any_speed) for any_speed in (False, True))
    seen: set[tuple[int, int]] = set()
    for step in range(60):
        for ours, theirs in zip(own.batch(step), crops.batch(step), strict=True):
            assert torch.equal(ours["predicted"], theirs["predicted"])
            mine, given = ours["given"][0], theirs["given"][0]
            assert mine.shape == given.shape
            assert (mine % 10 - given % 10).abs().max() <= 1  # at a tenth's border, rounding to frames decides
            assert (mine % 10 == given % 10).float().mean() > 0.9
            assert len((given // 10).unique()) == 1  # one voice in a crop
            seen.add((int(mine[0, 0]) // 10, int(given[0, 0]) // 10))
        assert all(torch.equal(a["given"][0], b["given"][0]) for a, b in zip(crops.batch(step), crops.batch(step), strict=True))
    assert seen == {(a, b) for a in range(3) for b in range(3)} | {(3, 3), (4, 4)}


def test_recording_columns_survive(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 1.0)
    recording = Recording(tmp_path / "a.wav", "a.wav", "ann", "train", 1.0, {"transcript": 'hé, "you"'})
    store = AudioStore.prepare(tmp_path / "audio", [recording])
    assert store.entries[0].columns == {"transcript": 'hé, "you"'}
    tokens = TokenStore.create(tmp_path / "tokens", KEY)
    with writing(tokens) as writer:
        writer.add("a", codes_of(0), seconds=1.0, columns=store.entries[0].columns)
    assert TokenStore(tmp_path / "tokens").entries[0].columns == {"transcript": 'hé, "you"'}


@pytest.mark.parametrize("remote", [False, True])
def test_hidden_files_and_folders_hold_no_recordings(tmp_path: Path, female_path: Path, remote: bool) -> None:
    folder = UPath("memory://hidden") if remote else tmp_path
    for name in ("a.flac", "._a.flac", "s/b.flac", "s/._b.flac", ".Trash-1000/files/c.flac", "s/.cache/d.flac"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(female_path.read_bytes())
    assert [each.name for each in scan(str(folder))] == ["a.flac", "s/b.flac"]
    UPath("memory://").fs.rm("/", recursive=True)


@pytest.mark.parametrize(
    ("place", "mark"),
    [
        ("run/coarse/samples/step-00001000/0.flac", "run/coarse/begun.json"),
        ("coarse/samples/step-00001000/0.flac", "coarse/begun.json"),  # where the recordings' folder is the run's
        ("detector/sounds/test-0000.real.flac", "detector/sounds.json"),
        ("sounds/test-0000.real.flac", "sounds.json"),
    ],
)
def test_what_training_made_holds_no_recordings(place: str, mark: str, tmp_path: Path, female_path: Path) -> None:
    for each in ("a.flac", "sounds-of-mine/sounds/b.flac", place):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(female_path, tmp_path / each)
    (tmp_path / mark).touch()
    assert [each.name for each in scan(tmp_path)] == ["a.flac", "sounds-of-mine/sounds/b.flac"]
