"""The page of a report and the listening test: whole, without network, true to their sounds; ratings counted as in the paper."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
import torch

from audiolm import provenance
from audiolm.audio import Waveform, read
from audiolm.cli import run
from audiolm.errors import InputError
from audiolm.measuring.blindtest import count_ratings, outcome, write_test
from audiolm.measuring.page import Example, Section, page, rendered, sections, spectrogram, write_page
from audiolm.model import AudioLM
from audiolm.training.data import scan

REPORT = {"model": "<b>speech", "command": "audiolm evaluate a", "seed": 3, "versions": "audiolm 1", "recordings.speakers": 2}


class Outline(HTMLParser):
    """Tags with their attributes, and which were left open."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def sound_of(source: str | None, path: Path) -> Waveform:
    kind, _, content = str(source).partition(";base64,")
    assert kind == "data:audio/mpeg"
    path.write_bytes(base64.b64decode(content))
    return read(path)


def test_a_page_is_whole_and_asks_the_network_for_nothing(tiny_model: AudioLM, female: Waveform, tmp_path: Path) -> None:
    parts = sections(tiny_model, [female], 1.0, 0)
    assert [part.title for part in parts] == [
        "Continuation",
        "Acoustic generation",
        "Unconditional",
        "Acoustic tokens alone",
        "Codec",
    ]
    text = page(parts, REPORT, "### Codec\n\n| a | b |\n|---|---|\n| 1 | <i>2 |\n")
    outline = Outline(text)
    assert outline.open == []
    addresses = [each.get("src") or each.get("href") for _, each in outline.tags if each.get("src") or each.get("href")]
    assert all(re.match(r"data:|#|report\.json$|https://arxiv\.org/", str(each)) for each in addresses)
    assert not [each for _, each in outline.tags if "http" in str(each.get("src"))]
    assert "&lt;b&gt;speech" in text
    assert "&lt;i&gt;2" in text
    assert {"audiolm evaluate a", "audiolm 1"} <= {piece.strip() for piece in re.split("[<>·]", text)}
    links = [str(each["href"])[1:] for each in outline.all("a") if str(each.get("href")).startswith("#")]
    assert {each["id"] for each in outline.all("section")} >= set(links)
    assert len(outline.all("audio")) == sum(len(row) for part in parts for row in part.rows) == len(outline.all("img"))
    assert all(each["aria-label"] for each in outline.all("audio"))
    # a continuation begins with the prompt, its line stands at 3 s of the 4, and it is marked
    continuation = parts[0].rows[0][1]
    ends = [each["style"] for each in outline.all("span") if each.get("class") == "end"]
    assert ends[0] == f"left:{75 * continuation.sound.seconds / max(e.sound.seconds for e in parts[0].rows[0]):.2f}%"
    torch.testing.assert_close(continuation.sound.samples[:, :48_000], female.samples[:, :48_000])
    heard = sound_of(outline.all("audio")[1]["src"], tmp_path / "sound.mp3")
    assert heard.seconds == pytest.approx(continuation.sound.seconds, abs=0.1)


def test_what_is_generated_is_marked(tiny_model: AudioLM, female: Waveform) -> None:
    made = [row[-1].sound for part in sections(tiny_model, [female], 2.5, 0) for row in part.rows]
    assert [provenance.detect(sound).payload for sound in made] == [tiny_model.payload] * len(made)


def test_a_bundle_without_language_models_shows_its_codec(tiny_model: AudioLM, female: Waveform) -> None:
    bare = AudioLM(tiny_model.semantic, tiny_model.codec, {})
    assert [part.title for part in sections(bare, [female], 1.0, 0)] == ["Codec"]


def test_a_spectrogram_shows_where_a_tone_is() -> None:
    tone = Waveform(torch.sin(2 * torch.pi * 1000 * torch.arange(16_000) / 16_000)[None], 16_000)
    picture = spectrogram(tone)
    width, height = (int.from_bytes(picture[at : at + 4]) for at in (16, 20))
    assert (width, height) == (51, 72)
    start = picture.index(b"IDAT") + 4
    pixels = torch.frombuffer(bytearray(zlib.decompress(picture[start:])), dtype=torch.uint8).view(height, width + 1)[:, 1:]
    loudest = int(pixels[:, 25].argmax())
    hertz = 700 * (10 ** ((72 - loudest) / 73 * 2840.02 / 2595) - 1)
    assert hertz == pytest.approx(1000, rel=0.07)
    assert int(pixels[0, 25]) == 0


def test_tables_scroll_and_html_does_not_pass() -> None:
    assert rendered("| a |\n|---|\n| 1 |\n").count("<div class=table") == 1
    assert "<script>" not in rendered("<script>alert()</script>")


def test_written_from_recordings(tiny_model: AudioLM, female: Waveform, tmp_path: Path) -> None:
    female.write(tmp_path / "a.flac")
    write_page(tmp_path / "report.html", tiny_model, scan(tmp_path), REPORT, "", 1.0)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    (tmp_path / "short").mkdir()
    female.trim(3.5).write(tmp_path / "short" / "a.flac")
    write_page(tmp_path / "short" / "report.html", tiny_model, scan(tmp_path / "short"), REPORT, "### Codec\n", 1.0)
    text = (tmp_path / "short" / "report.html").read_text()
    assert "<h3>Codec</h3>" in text
    assert not Outline(text).all("audio")


def test_the_page_says_whose_recordings_it_holds_and_leaves_damaged_ones_out(
    tiny_model: AudioLM, female: Waveform, tmp_path: Path
) -> None:
    female.write(tmp_path / "a.flac")
    (tmp_path / "b.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:9000])
    columns = "path,speaker,seconds,split,title,creator,licence"
    rows = ["a.flac,ann,5.9,test,A <b>tale</b>,Bo,CC-BY-SA-3.0", "b.flac,ann,5.9,test,Lost,,"]
    for order in (rows, rows[::-1]):
        (tmp_path / "manifest.csv").write_text("\n".join([columns, *order]) + "\n")
        recordings = scan(tmp_path)
        assert len(recordings) == 2  # nobody has read them yet
        write_page(tmp_path / "report.html", tiny_model, recordings, REPORT, "", 1.0)
        text = (tmp_path / "report.html").read_text()
        assert "<li>a.flac (speaker ann), A &lt;b&gt;tale&lt;/b&gt;, Bo, CC-BY-SA-3.0</li>" in text
        assert "Lost" not in text


# The listening test


@pytest.fixture(scope="module")
def listening(tiny_model: AudioLM, female: Waveform, male: Waveform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listening")
    write_test(folder, tiny_model, [female, male, female.trim(4.2), male.trim(4.3)], seconds=7.0, seed=1)
    return folder


def test_a_test_says_nothing_of_the_truth(listening: Path, tmp_path: Path) -> None:
    text = (listening / "listening.html").read_text()
    Outline(text)
    data = json.loads(re.search(r"const TEST = (.*);\n", text)[1])  # type: ignore[index]
    key = json.loads((listening / "listening-key.json").read_text())
    assert (data["test"], [clip["id"] for clip in data["clips"]]) == (key["test"], list(key["clips"]))
    assert sorted(key["clips"].values()) == ["generated", "generated", "real", "real"]
    assert set(data["clips"][0]) == {"id", "sound"}
    sounds = [sound_of(clip["sound"], tmp_path / "sound.mp3") for clip in data["clips"]]
    assert {sound.samples.shape[1] for sound in sounds} == {sounds[0].samples.shape[1]}  # the shortest decides
    assert sounds[0].seconds == pytest.approx(4.2, abs=0.1)
    info = soundfile.info(tmp_path / "sound.mp3")
    assert (info.channels, info.samplerate) == (1, 16_000)


def test_too_few(tiny_model: AudioLM, female: Waveform, tmp_path: Path) -> None:
    for sounds in ([female], [female, female.trim(3.9)]):
        with pytest.raises(InputError, match="two recordings"):
            write_test(tmp_path, tiny_model, sounds)
    assert not list(tmp_path.iterdir())


def test_the_paper_s_own_ratings() -> None:
    paper = outcome(512, 1000)
    assert paper.accuracy == 0.512
    assert paper.p == pytest.approx(0.23, abs=0.005)  # AudioLM section IV-G
    assert outcome(0, 7).p == 1
    assert outcome(7, 7).p == 2**-7
    assert outcome(5, 10).p > 0.5
    with pytest.raises(InputError):
        outcome(0, 0)


def test_ratings_are_counted(capsys, listening: Path, tmp_path: Path) -> None:
    key = listening / "listening-key.json"
    truth = json.loads(key.read_text())
    for name, answers in {"ann": truth["clips"], "bob": dict.fromkeys(truth["clips"], "real")}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"test": truth["test"], "rater": name, "ratings": answers}))
    files = [tmp_path / "ann.json", tmp_path / "bob.json"]
    found = count_ratings(files, key)
    assert {name: (each.right, each.ratings) for name, each in found.items()} == {"ann": (4, 4), "bob": (2, 4), "all": (6, 8)}
    assert found["all"].p == pytest.approx(37 / 256)
    assert run(["ratings", *map(str, files), "--key", str(key), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ann"] == {"ratings": 4, "right": 4, "p": 1 / 16}
    (tmp_path / "other.json").write_text(json.dumps({"test": "x", "ratings": {}}))
    (tmp_path / "mute.json").write_text(json.dumps({"test": truth["test"], "ratings": {}}))
    for wrong, reason in (
        ([*files, files[0]], "second file"),
        ([tmp_path / "other.json"], "its own key"),
        ([*files, tmp_path / "mute.json"], "mute.json: 'mute' answered nothing"),
        ([key], "no ratings"),
        ([tmp_path / "none.json"], "cannot be read"),
        ([], "one or more"),
    ):
        assert run(["ratings", *map(str, wrong), "--key", str(key)]) == 2
        assert reason in capsys.readouterr().err


def test_examples_are_shown_as_they_are(female: Waveform) -> None:
    long, short = Example("Long", female, 3.0), Example("Short & sweet", female.trim(1.1))
    text = page([Section("Two", "of them", ((long, short),))], {}, "")
    assert f"width:{100 * 1.1 / female.seconds:.2f}%" in text
    assert "Short &amp; sweet" in text
