"""Pairs of the ZeroSpeech layout, and the script that makes sets of it."""

import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from audiolm.audio import read
from audiolm.errors import InputError
from audiolm.measuring.zerospeech import Pair, read_pairs, score

SCRIPT = Path(__file__).parents[1] / "scripts" / "spoken_pairs.py"


@pytest.fixture(scope="module")
def script():
    spec = spec_from_file_location("spoken_pairs", SCRIPT)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lexical(folder: Path, rows: str) -> Path:
    place = folder / "lexical" / "dev"
    place.mkdir(parents=True)
    (place / "gold.csv").write_text("id,filename,voice,frequency,word,phones,length,correct\n" + rows)
    for name in "abcdef":
        (place / f"{name}.wav").touch()
    return place


def test_pairs_are_of_one_id_and_one_voice(tmp_path: Path) -> None:
    place = lexical(
        tmp_path, "1,a,v,7,cat,,3,1\n1,b,v,,cav,,3,0\n1,c,w,7,cat,,3,1\n2,d,v,0,wug,,3,1\n2,e,v,,vug,,3,0\n1,f,w,,cav,,3,0\n"
    )
    assert read_pairs(tmp_path, "lexical") == [
        Pair("1", place / "a.wav", place / "b.wav", True),
        Pair("1", place / "c.wav", place / "f.wav", True),
        Pair("2", place / "d.wav", place / "e.wav", False),
    ]
    assert read_pairs(tmp_path, "syntactic") == []


def test_the_score_is_the_mean_over_voices_and_a_tie_is_half() -> None:
    names = [Path(name) for name in "abcd"]
    pairs = [Pair("1", names[0], names[1], None), Pair("1", names[2], names[3], None)]
    assert score(pairs, dict(zip(names, (-1.0, -2.0, -3.0, -1.0), strict=True))) == {"1": 0.5}
    assert score(pairs, dict(zip(names, (-1.0, -1.0, -1.0, -3.0), strict=True))) == {"1": 0.75}


def test_mistakes_are_named(tmp_path: Path) -> None:
    place = lexical(tmp_path, "1,a,v,7,cat,,3,1\n1,lost,v,,cav,,3,0\n")
    with pytest.raises(InputError, match="lost.wav: missing"):
        read_pairs(tmp_path, "lexical")
    (place / "gold.csv").write_text("id,file\n1,a\n")
    with pytest.raises(InputError, match="not a list of pairs"):
        read_pairs(tmp_path, "lexical")


def test_the_script_makes_sets_that_can_be_read(script, tmp_path: Path) -> None:
    said: dict[Path, str] = {}

    def say(text: str, voice: str, path: Path) -> None:
        said[path] = text
        path.touch()

    count = script.make(tmp_path, say, ("one", "two"))
    pairs = {task: read_pairs(tmp_path, task) for task in ("lexical", "syntactic")}
    assert count == len(said) == 2 * sum(map(len, pairs.values()))
    assert len(pairs["lexical"]) == 2 * len(script.words()) > 100
    assert len(pairs["syntactic"]) == 2 * len(list(script.sentences())) > 100
    for pair in (*pairs["lexical"], *pairs["syntactic"]):
        assert said[pair.right] != said[pair.wrong]
    # As many words as twins begin and end alike: neither side may be known by its length alone.
    right, wrong = (sum(len(pair[side]) for pair in script.words()) for side in (0, 1))
    assert abs(right - wrong) < 0.03 * right
    # Every sentence is right once and wrong once, but for what makes it so.
    words = [sorted(" ".join(each[side] for each in script.sentences()).split()) for side in (1, 2)]
    assert words[0] == words[1]


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_it_speaks(script, tmp_path: Path) -> None:
    script.speaker("espeak-ng")("the dog sings", "en-us", tmp_path / "a.wav")
    assert 0.5 < read(tmp_path / "a.wav").seconds < 3


def test_a_missing_synthesiser_is_named(script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="apt install flite"):
        script.speaker("flite")
    monkeypatch.setattr(sys, "argv", ["spoken_pairs.py", "x", "--synthesiser", "nobody"])
    with pytest.raises(SystemExit):
        script.main()
