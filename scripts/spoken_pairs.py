"""Make small test sets like sWUGGY and sBLIMP with a speech synthesiser, for `audiolm evaluate --parts pairs --pairs FOLDER`.

    sudo apt install espeak-ng flite
    python scripts/spoken_pairs.py FOLDER [--synthesiser flite]

Words paired with plausible non-words, and sentences paired with ones that have an agreement error, each said by several voices.
The layout is that of ZeroSpeech 2021 (audiolm.measuring.zerospeech). Figures are not comparable to ZeroSpeech's: the words are
frequent, the voices are synthetic, and some 60 pairs of each kind are few.
"""

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# All words are frequent in English books; each twin differs in one or two sounds and is spelled to be pronounced that way.
WORDS = """
    morning/mordning window/wimdow little/lottle mother/mopher father/fasher brother/brofter sister/sispel children/chilnren
    country/counfry garden/garpen summer/summel winter/winfer river/rimer mountain/mounfain village/vimmage soldier/soldiek
    captain/caftain doctor/domtor master/mashter servant/serbant evening/evesing yesterday/yesderpay tomorrow/tonorrow
    together/togemer always/alvays never/nemmer nothing/nothib something/somefing question/quesfion answer/amswer letter/lemmer
    paper/papel money/moley silver/siltor golden/golben yellow/yemmow orange/oramge table/tavel kitchen/kitchep picture/picfure
    story/spory language/lamguage nation/natiom history/hispory nature/napure science/scienfe reason/reajon danger/damger
    pleasure/pleakure moment/mobent minute/mimmute hundred/humdred thousand/thoupand person/persog woman/wobban animal/amimal
    forest/forept ocean/oceal island/islamp bridge/brimge journey/journeb
"""
SUBJECTS = (
    *(("dog", "dogs"), ("teacher", "teachers"), ("old man", "old men")),
    *(("child", "children"), ("bird", "birds"), ("sailor", "sailors")),
)
VERBS = (("sings", "sing"), ("was here", "were here"), ("has gone home", "have gone home"), ("knows the way", "know the way"))
VOICES = {
    "espeak-ng": ("en-us", "en-us+f3", "en-gb", "en-gb-x-rp+f4"),
    "flite": ("slt", "rms", "awb", "kal16"),
}

Say = Callable[[str, str, Path], None]  # text, voice, the WAV to be written


def words() -> list[tuple[str, str]]:
    """Words and their twins."""
    return [(word, twin) for word, _, twin in (pair.partition("/") for pair in WORDS.split())]


def sentences() -> Iterator[tuple[str, str, str]]:
    """Kind, sentence, and its twin with an agreement error."""
    for one, many in SUBJECTS:
        for singular, plural in VERBS:
            yield "subject_verb", f"the {one} {singular}", f"the {one} {plural}"
            yield "subject_verb", f"the {many} {plural}", f"the {many} {singular}"
        yield "determiner_noun", f"i saw this {one} there", f"i saw these {one} there"
        yield "determiner_noun", f"i saw these {many} there", f"i saw this {many} there"


def speaker(synthesiser: str) -> Say:
    """A function that says a text with a synthesiser. Raises SystemExit if the synthesiser is not installed."""
    if shutil.which(synthesiser) is None:
        sys.exit(f"{synthesiser} is not installed; on Debian and Ubuntu: sudo apt install {synthesiser}")
    if synthesiser == "espeak-ng":
        return lambda text, voice, path: _run("espeak-ng", "-v", voice, "-s", "150", "-w", str(path), text)
    return lambda text, voice, path: _run("flite", "-voice", voice, "-t", text, "-o", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make(folder: Path, say: Say, voices: tuple[str, ...]) -> int:
    """Write both sets; returns the number of recordings."""
    lexical = [({"frequency": "", "phones": "", "length": len(word)}, "word", word, twin) for word, twin in words()]
    syntactic = [({"type": kind, "subtype": kind}, "transcription", right, wrong) for kind, right, wrong in sentences()]
    count = 0
    for task, pairs in (("lexical", lexical), ("syntactic", syntactic)):
        rows: list[dict[str, object]] = []
        place = folder / task / "dev"
        place.mkdir(parents=True, exist_ok=True)
        for number, (columns, title, *texts) in enumerate(pairs):
            for voice in voices:
                for correct, text in ((1, texts[0]), (0, texts[1])):
                    name = f"{number:03d}-{voice}-{correct}"
                    say(text, voice, place / f"{name}.wav")
                    about = {"id": number, "filename": name, "voice": voice, **columns, title: text, "correct": correct}
                    rows.append(about)
        with (place / "gold.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        count += len(rows)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--synthesiser", choices=sorted(VOICES), default="espeak-ng")
    options = parser.parse_args()
    count = make(options.folder, speaker(options.synthesiser), VOICES[options.synthesiser])
    print(f"{options.folder}: {count} recordings")


if __name__ == "__main__":
    main()
