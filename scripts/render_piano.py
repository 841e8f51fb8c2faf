"""Render a folder of MIDI files to a corpus of piano sound with fluidsynth and a free sound font, for recipes/piano.toml.

    python scripts/render_piano.py MIDI_FOLDER -o piano
    audiolm train recipes/piano.toml data=piano out=runs/piano

Every piece is rendered in one of several rooms (or, with --takes, in several), with the velocities and the pedal of the
file, as 16-bit flac. MIDI_FOLDER may have a manifest.csv with a column `path` and any others, which are kept (`licence`,
`composer`, ...). If it has no `split`, pieces are assigned to train, valid and test by hash, all takes of a piece (and
copies of its file) to the same one. A file that cannot be rendered is named and left out. If the command is killed, run it
again to resume.

Debian, Ubuntu: apt install fluidsynth fluid-soundfont-gm (Frank Wen's Fluid R3, MIT licence). macOS: brew install fluid-synth.
Renderings remain under the licence of their MIDI files.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from audiolm import audio
from audiolm.errors import InputError
from audiolm.files import file_hash, whole_file
from audiolm.training.audio_store import write_header
from audiolm.training.data import Skipped, report
from audiolm.training.run import progress

FONTS = (
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/soundfonts/FluidR3_GM.sf2",
    "/usr/share/sounds/sf3/MuseScore_General.sf3",
    "/usr/share/sounds/sf2/default-GM.sf2",
    "/usr/share/sounds/sf3/default-GM.sf3",
)
INSTALL = "Debian: apt install fluidsynth fluid-soundfont-gm"
RATE = 44_100  # Hz, at which the font was recorded: rendering at a lower rate would alias its high notes
MINUTES = 30.0  # a rendering that takes longer is considered hung


@dataclass(frozen=True)
class Room:
    """fluidsynth's reverberation; all values but the width are from 0 to 1."""

    size: float
    damp: float
    width: float
    level: float


ROOMS: Mapping[str, Room | None] = {
    "close": None,
    "study": Room(0.2, 0.6, 0.3, 0.35),
    "salon": Room(0.45, 0.4, 0.5, 0.5),
    "studio": Room(0.6, 0.7, 0.6, 0.4),
    "hall": Room(0.8, 0.3, 0.8, 0.6),
}


@dataclass(frozen=True)
class Piece:
    """A MIDI file: its path, its name inside the folder, its split, and the manifest's other columns."""

    path: Path
    name: str
    split: str
    columns: Mapping[str, str]


def pieces_of(folder: Path, valid: float, test: float, seed: int) -> list[Piece]:
    """The pieces of a folder of MIDI files. Raises InputError if there are none, or the manifest is not valid."""
    manifest = folder / "manifest.csv"
    if manifest.is_file():
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval=""))
        if not rows or "path" not in rows[0]:
            raise InputError(f"{manifest}: a manifest needs a header line of column names including 'path', and a line per piece")
    else:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".mid", ".midi"))
        rows = [{"path": path.relative_to(folder).as_posix(), "composer": path.parent.name} for path in found]
    if not rows:
        raise InputError(f"{folder}: no MIDI files in it; give a folder with .mid files, or with a manifest.csv")
    pieces = []
    for row in rows:
        path = folder / row["path"]
        other = {name: text for name, text in row.items() if name not in ("path", "split", "seconds", "speaker")}
        pieces.append(Piece(path, row["path"], row.get("split") or dealt(path, valid, test, seed), other))
    return pieces


def dealt(path: Path, valid: float, test: float, seed: int) -> str:
    """The split of a piece, by the hash of its file, so that all copies of it are in the same split."""
    content = file_hash(path) if path.is_file() else path.name
    draw = int(hashlib.sha256(f"{seed}/{content}".encode()).hexdigest()[:12], 16) / 16**12
    return "valid" if draw < valid else "test" if draw < valid + test else "train"


def rooms_for(piece: Piece, takes: int, seed: int) -> list[str]:
    """The rooms of a piece, a different one for each take; over all pieces, rooms are about equally frequent."""
    names = list(ROOMS)
    first = int(hashlib.sha256(f"{seed}/room/{piece.name}".encode()).hexdigest()[:12], 16)
    return [names[(first + take) % len(names)] for take in range(takes)]


def render(piece: Piece, room: str, font: Path, rate: int, gain: float, out: Path) -> None:
    """Render one piece in one room to a flac file, atomically. Raises InputError that names the MIDI file if that fails."""
    if not piece.path.is_file():
        raise InputError(f"{piece.path}: no such file; correct the manifest")
    if piece.path.read_bytes()[:4] != b"MThd":
        raise InputError(f"{piece.path}: not a MIDI file; leave it out")
    settings = {"synth.chorus.active": 0, "synth.reverb.active": 0}
    if reverb := ROOMS[room]:
        settings["synth.reverb.active"] = 1
        settings |= {
            f"synth.reverb.{name}": value
            for name, value in zip(("room-size", "damp", "width", "level"), asdict(reverb).values(), strict=True)
        }
    with tempfile.TemporaryDirectory(prefix="audiolm-piano-") as folder:
        wav = Path(folder) / "piece.wav"
        # Floats do not clip: a piece whose peak is too high is scaled down as a whole below.
        command = ["fluidsynth", "-ni", "-q", "-F", wav, "-T", "wav", "-O", "float", "-r", RATE, "-g", gain]
        command += [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        try:
            done = subprocess.run([str(each) for each in [*command, font, piece.path]], capture_output=True, timeout=60 * MINUTES)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{piece.path}: not rendered after {MINUTES:g} minutes; check it in a MIDI editor") from error
        if done.returncode or not wav.is_file():
            said = " ".join(done.stderr.decode(errors="replace").split()[:40])
            raise InputError(f"{piece.path}: fluidsynth cannot render it ({said or done.returncode}); leave it out")
        sound = torch.cat([block.samples for block in audio.blocks(wav, 30.0, rate, mono=True)], 1)
    peak = float(sound.abs().max())
    if peak < 1e-4:
        raise InputError(f"{piece.path}: its rendering is silent (no notes?); leave it out")
    out.parent.mkdir(parents=True, exist_ok=True)
    audio.Waveform(sound / max(1.0, peak / 0.98), rate).write(out)


def render_all(pieces: Sequence[Piece], args: argparse.Namespace, font: Path) -> Skipped:
    """Render missing files and write the manifest of all rendered ones; returns what was left out, and why."""
    jobs = [(piece, room) for piece in pieces for room in rooms_for(piece, args.takes, args.seed)]
    paths = [args.output / room / Path(piece.name).with_suffix(".flac") for piece, room in jobs]
    skipped: Skipped = []

    def work(number: int) -> str | None:
        try:
            if not paths[number].is_file():
                render(*jobs[number], font, args.rate, args.gain, paths[number])
        except InputError as error:
            return str(error)
        return None

    with progress(len(jobs), label="render") as show, ThreadPoolExecutor(args.jobs) as pool:
        for number, wrong in enumerate(pool.map(work, range(len(jobs)))):
            if wrong:
                skipped.append((f"{jobs[number][0].name} ({jobs[number][1]})", wrong))
            show(number + 1)
    rows = []
    for (piece, room), path in zip(jobs, paths, strict=True):
        if path.is_file():
            place = {"path": path.relative_to(args.output).as_posix(), "split": piece.split, "midi": piece.name, "room": room}
            sound = {"speaker": piece.columns.get("composer", ""), "seconds": f"{audio.probe(path).seconds:.3f}"}
            rows.append({**place, **sound, **piece.columns})
    if not rows:
        raise InputError(f"{args.folder}: nothing could be rendered: {skipped[0][1]}")
    with whole_file(args.output / "manifest.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    report(skipped, args.output / "skipped.json")
    return skipped


def find_font(named: Path | None) -> Path:
    """The sound font. Raises InputError that says what to install if it or fluidsynth is missing."""
    if shutil.which("fluidsynth") is None:
        raise InputError(f"fluidsynth is not installed; {INSTALL}")
    if named is not None and not named.is_file():
        raise InputError(f"--font {named}: no such file; {INSTALL}")
    font = named or next((Path(path) for path in FONTS if Path(path).is_file()), None)
    if font is None:
        raise InputError(f"no sound font in /usr/share/sounds; {INSTALL}, or name one: --font FILE.sf2")
    return font


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes like audiolm's: 0 on success, 2 on a user error, reported in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="MIDI files in any tree, or with a manifest.csv")
    parser.add_argument("-o", "--output", type=Path, default=Path("piano"), help="folder for the corpus")
    parser.add_argument("--font", type=Path, help="a .sf2 or .sf3 file; default: Fluid R3 or another installed one")
    parser.add_argument("--takes", type=int, default=1, help=f"rooms for each piece, 1 to {len(ROOMS)}: {', '.join(ROOMS)}")
    parser.add_argument("--rate", type=int, default=16_000, help="sample rate in Hz")
    parser.add_argument("--gain", type=float, default=1.5, help="fluidsynth's; pieces that would clip are scaled down")
    parser.add_argument("--valid", type=float, default=0.05, help="share of the pieces, if no manifest gives a split")
    parser.add_argument("--test", type=float, default=0.05)
    parser.add_argument("--limit", type=int, help="render only this many pieces, evenly spread, for a first listen")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel renderings; about 300 MB each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if not (1 <= args.takes <= len(ROOMS) and args.jobs >= 1 and args.rate >= 8000 and args.gain > 0):
            raise InputError(f"give --takes 1 to {len(ROOMS)}, --jobs from 1, --rate from 8000, --gain above 0")
        if not args.folder.is_dir():
            raise InputError(f"{args.folder}: no such folder; give one with .mid files")
        font = find_font(args.font)
        pieces = pieces_of(args.folder, args.valid, args.test, args.seed)
        if args.limit is not None:
            pieces = pieces[:: max(1, len(pieces) // max(1, args.limit))][: args.limit]
        settings = {"font": f"{font.name} {font.stat().st_size}", "gain": args.gain, "rate": args.rate}
        write_header(
            args.output, "rendered piano", settings | {"rooms": {name: room and asdict(room) for name, room in ROOMS.items()}}
        )
        skipped = render_all(pieces, args, font)
    except InputError as error:
        print(f"render_piano: {error}", file=sys.stderr)
        return 2
    with (args.output / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    hours: dict[str, float] = {}
    for row in rows:
        hours[row["split"]] = hours.get(row["split"], 0.0) + float(row["seconds"]) / 3600
    print(json.dumps({"files": len(rows), "left_out": len(skipped), "hours": {name: round(h, 3) for name, h in hours.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
