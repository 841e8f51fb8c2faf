"""The piano corpus: from MIDI to a folder that the recipe takes. What needs fluidsynth is skipped where it is not installed."""

import csv
import importlib.util
import json
import shutil
import struct
import sys
from collections import Counter
from pathlib import Path

import pytest

from audiolm.audio import read
from audiolm.errors import InputError
from audiolm.training.data import scan

SCRIPT = Path(__file__).parents[1] / "scripts" / "render_piano.py"
spec = importlib.util.spec_from_file_location("render_piano", SCRIPT)
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
sys.modules["render_piano"] = script
spec.loader.exec_module(script)


def midi(path: Path, keys: list[int], velocity: int = 80) -> None:
    """One key after the other, half a second each: a MIDI file of one track at 120 quarter notes a minute."""
    events = b"".join(bytes([0, 0x90, key, velocity, 96, 0x80, key, 0]) for key in keys) + bytes([0, 0xFF, 0x2F, 0])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"MThd" + struct.pack(">IHHH", 6, 0, 1, 96) + b"MTrk" + struct.pack(">I", len(events)) + events)


def _missing() -> str | None:
    try:
        script.find_font(None)
    except InputError as error:
        return str(error)
    return None


needs_fluidsynth = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


def ok(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict:
    assert script.main([str(each) for each in (*arguments, "--jobs", "2")]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@needs_fluidsynth
def test_a_folder_of_midi_is_a_corpus(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number in range(4):
        midi(tmp_path / "midi" / "Anon" / f"{number}.mid", [60 + number, 64, 67])
    midi(tmp_path / "midi" / "Anon" / "silent.mid", [])
    (tmp_path / "midi" / "Other").mkdir()
    (tmp_path / "midi" / "Other" / "broken.mid").write_bytes(b"MThd\0\0")
    out = tmp_path / "piano"
    told = ok(capsys, tmp_path / "midi", "-o", out, "--takes", "2", "--valid", "0.4")
    assert (told["files"], told["left_out"]) == (8, 4)
    left_out = json.loads((out / "skipped.json").read_text())
    assert {Path(each["name"].split(" ")[0]).stem for each in left_out} == {"silent", "broken"}
    assert all(str(tmp_path / "midi") in each["reason"] for each in left_out)
    recordings = scan(out)
    assert len(recordings) == 8
    splits = {recording.columns["midi"]: set() for recording in recordings}
    for recording in recordings:
        splits[recording.columns["midi"]].add(recording.split)
        sound = read(recording.path)
        assert (sound.sample_rate, len(sound.samples)) == (16_000, 1)
        assert sound.seconds == pytest.approx(recording.seconds, abs=0.01)
        assert sound.seconds > 1.5
    assert all(len(split) == 1 for split in splits.values())  # both rooms of a piece on one side
    # Again: what is there stays. Other settings: refused by name.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.flac")}
    next(iter(before)).unlink()
    assert ok(capsys, tmp_path / "midi", "-o", out, "--takes", "2", "--valid", "0.4")["files"] == 8
    assert sum(path.stat().st_mtime_ns != then for path, then in before.items()) == 1
    assert script.main([str(tmp_path / "midi"), "-o", str(out), "--gain", "1"]) == 2
    assert "has gain 1.5, not 1.0" in capsys.readouterr().err


@needs_fluidsynth
def test_velocities_and_rooms_are_heard(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    midi(tmp_path / "midi" / "soft.mid", [60], 25)
    midi(tmp_path / "midi" / "loud.mid", [60], 100)
    ok(capsys, tmp_path / "midi", "-o", tmp_path / "piano", "--takes", str(len(script.ROOMS)))
    power = {
        (room, name): float(read(tmp_path / "piano" / room / f"{name}.flac").samples.square().mean())
        for room in script.ROOMS
        for name in ("soft", "loud")
    }
    assert all(power[room, "loud"] > 10 * power[room, "soft"] for room in script.ROOMS)
    assert len({round(power[room, "loud"], 7) for room in script.ROOMS}) == len(script.ROOMS)


@needs_fluidsynth
def test_a_manifest_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    midi(tmp_path / "midi" / "a.mid", [60])
    midi(tmp_path / "midi" / "b.mid", [62])
    text = "path,composer,licence,split,seconds\na.mid,Bach,CC0,test,9\nb.mid,Satie,CC-BY-4.0,train,9\ngone.mid,X,CC0,train,9\n"
    (tmp_path / "midi" / "manifest.csv").write_text(text)
    assert ok(capsys, tmp_path / "midi", "-o", tmp_path / "piano")["left_out"] == 1
    with (tmp_path / "piano" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["midi"], row["speaker"], row["licence"], row["split"]) for row in rows] == [
        ("a.mid", "Bach", "CC0", "test"),
        ("b.mid", "Satie", "CC-BY-4.0", "train"),
    ]


def test_copies_share_a_split_and_rooms_come_equally_often(tmp_path: Path) -> None:
    for number in range(200):
        midi(tmp_path / f"{number}.mid", [number % 100, 1 + number // 100])
    shutil.copy(tmp_path / "3.mid", tmp_path / "copy.mid")
    pieces = {piece.name: piece for piece in script.pieces_of(tmp_path, 0.2, 0.2, 0)}
    assert pieces["copy.mid"].split == pieces["3.mid"].split
    counts = Counter(piece.split for piece in pieces.values())
    assert 20 < counts["valid"] < 60
    assert 20 < counts["test"] < 60
    rooms = Counter(room for piece in pieces.values() for room in script.rooms_for(piece, 2, 0))
    assert min(rooms.values()) > 50
    assert all(len(set(script.rooms_for(piece, 5, 0))) == 5 for piece in pieces.values())


def test_what_is_missing_is_told_with_its_cure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    midi(tmp_path / "midi" / "a.mid", [60])

    def mistake(*arguments: str | Path) -> str:
        assert script.main([str(each) for each in arguments]) == 2
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        return shown.err

    assert "no such folder" in mistake(tmp_path / "nowhere")
    assert "--takes 1 to 5" in mistake(tmp_path / "midi", "--takes", "9")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert "apt install fluidsynth fluid-soundfont-gm" in mistake(tmp_path / "midi", "-o", tmp_path / "out")
    monkeypatch.setattr(script.shutil, "which", lambda name: name)
    assert "--font" in mistake(tmp_path / "midi", "--font", tmp_path / "no.sf2")
    monkeypatch.setattr(script, "FONTS", ())
    assert "no sound font" in mistake(tmp_path / "midi", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
