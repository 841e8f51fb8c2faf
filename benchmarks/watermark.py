"""The watermark under attack, on a folder of real recordings: python benchmarks/watermark.py FOLDER --clips 200

Each clip (its first 8 s) is marked with its own payload, attacked, and tested whole and as a 2 s crop. False alarms are counted
on the unmarked clips: whole, every 2 s crop at 1 s steps, through Opus, and with noise. Bounding a rate of 1e-4 takes more tests
than there are clips, so `--keys N` also looks for the marks of N other keys in each marked clip's original and a crop of it.
Prints Markdown.
"""

import argparse
import time
from pathlib import Path

import torch

from audiolm.attacks import ATTACKS, noisy, opus
from audiolm.audio import READABLE, Waveform, read
from audiolm.errors import InputError
from audiolm.measuring.metrics import pesq_wb, stoi, visqol
from audiolm.provenance import detect, embed

RATE, SECONDS, CROP = 16_000, 8.0, 2.0


def clips(folder: Path, count: int) -> list[Waveform]:
    """Clips evenly spread over the files of a folder (of its test and valid splits, if it has a manifest.csv)."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READABLE)
    if (folder / "manifest.csv").is_file():
        from audiolm.training.data import scan

        paths = [each.path for each in scan(folder) if each.split in ("test", "valid")]
    paths = paths[:: max(1, len(paths) // count)]
    found = []
    for path in paths:
        sound = read(path).mono().resample(RATE)
        if sound.seconds >= 4 and len(found) < count:
            found.append(sound.trim(SECONDS))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--no-attacks", action="store_true", help="false alarms and quality only")
    parser.add_argument("--keys", type=int, default=0, help="number of other keys to look for in unmarked sounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sounds = clips(options.folder, options.clips)
    draw = torch.Generator().manual_seed(0)
    payloads = torch.randint(0, 1 << 16, (len(sounds),), generator=draw).tolist()
    starts = [float(torch.rand(1, generator=draw)) * (sound.seconds - CROP) for sound in sounds]
    started = time.process_time()
    marked = [embed(sound, payload) for sound, payload in zip(sounds, payloads, strict=True)]
    length = sum(sound.seconds for sound in sounds)
    spent = (time.process_time() - started) / length * 10
    print(f"{len(sounds)} clips, {length / 60:.1f} minutes; marking takes {spent:.3f} s per 10 s")

    if not options.no_attacks:
        columns = ["attack", "payload, whole", "found, 2 s", "payload, 2 s", "wrong payload", "bit errors", "score: mean (min)"]
        print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for name, attack in ATTACKS.items():
            whole, found, right, wrong, bits, scores = 0, 0, 0, 0, 0, []
            for sound, payload, start in zip(marked, payloads, starts, strict=True):
                attacked = attack(sound)
                whole += detect(attacked).payload == payload
                mark = detect(
                    attacked.trim(CROP, start * sound.sample_rate / attacked.sample_rate if "faster" in name else start)
                )
                scores.append(mark.score)
                found += mark.found
                right += mark.payload == payload
                wrong += mark.payload not in (None, payload)
                bits += 0 if mark.payload is None else (mark.payload ^ payload).bit_count()
            count = len(sounds)
            print(
                f"| {name} | {whole}/{count} | {found}/{count} | {right}/{count} | {wrong} | {bits}/{16 * (right + wrong)} "
                f"| {sum(scores) / count:.1f} ({min(scores):.1f}) |",
                flush=True,
            )

    alarms, tried, highest, spent = 0, 0, 0.0, 0.0
    for sound in sounds:
        crops = [sound, *(sound.trim(CROP, start * 1.0) for start in range(int(sound.seconds - CROP) + 1))]
        for crop in (*crops, opus(sound), noisy(sound, 20)):
            started = time.process_time()
            mark = detect(crop)
            spent += (time.process_time() - started) * (crop is sound)
            alarms, tried, highest = alarms + mark.found, tried + 1, max(highest, mark.score)
    print(
        f"\nWithout a mark: {alarms} of {tried} tests are false alarms, highest score {highest:.2f}; "
        f"{spent / length * 10:.2f} s per 10 s"
    )
    if options.keys:
        alarms, tried, highest = 0, 0, 0.0
        for number in range(options.keys):
            for sound, start in zip(sounds, starts, strict=True):
                for look in (sound, sound.trim(CROP, start)):
                    mark = detect(look, f"another key {number}".encode())
                    alarms, tried, highest = alarms + mark.found, tried + 1, max(highest, mark.score)
        bound = 1 - 0.05 ** (1 / tried) if alarms == 0 else float("nan")
        print(
            f"With {options.keys} other keys: {alarms} of {tried}, highest score {highest:.2f}; rate below {bound:.1e} (95 %)",
            flush=True,
        )
    for name, measure in {
        "PESQ": pesq_wb,
        "STOI": lambda x, y: stoi(x, y, RATE),
        "ViSQOL (5 for identical sounds)": lambda x, y: visqol(x, y).fit,
    }.items():
        try:
            values = [measure(sound.samples[0], other.samples[0]) for sound, other in zip(sounds, marked, strict=True)]
        except InputError as error:
            print(f"{name}: {error}")
            continue
        print(f"{name} of marked against unmarked: mean {sum(values) / len(values):.3f}, min {min(values):.3f}")


if __name__ == "__main__":
    main()
