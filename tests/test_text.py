"""Text as a stream of tokens, the stage that reads it aloud, and what holds of both."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiolm import stages, text
from audiolm.asking import Request
from audiolm.audio import Waveform
from audiolm.bundle import language_model
from audiolm.cli import run
from audiolm.errors import InputError
from audiolm.model import AudioLM
from audiolm.training.alignment import Reading, ReadStore
from audiolm.training.corpus import tokenize_corpus
from audiolm.training.data import scan
from audiolm.training.token_store import TokenCrops
from audiolm.training.train_lm import collate, take_over

SAID = "So I shall not tell you the rest until next Saturday. You see,"  # in examples/prompt-female.flac


def read(codes: torch.Tensor) -> str:
    """The text of codes (1, F) that hold no letter twice in a row."""
    return bytes(codes[0].unique_consecutive().tolist()).decode()


def test_normalised() -> None:
    assert text.normalised("  “Don\N{RIGHT SINGLE QUOTATION MARK}t”,\tshe SAID -- 3 times! ") == "don't she said 3 times"
    assert text.normalised("Ça va? これ") == "ça va これ"
    assert text.normalised("... !?") == ""


@given(st.text(max_size=60))
def test_normalised_twice_is_normalised_once(any_text: str) -> None:
    once = text.normalised(any_text)
    assert text.normalised(once) == once


def test_a_text_takes_its_time() -> None:
    """Letters last as long as they should, silence comes first, and punctuation makes pauses."""
    seconds = {ord(each): 0.04 for each in "abcdlmnp "}
    assert read(text.timed("A man, a plan.", seconds)) == " a man a plan "
    frames = round(text.LEAD * 25) + 10 + round(text.PAUSES["\n"] * 25)
    assert text.timed("a b c d ab", seconds).shape == (1, frames)
    values, counts = text.timed("a dab. A dab", seconds)[0].unique_consecutive(return_counts=True)
    assert counts[values == text.SPACE].tolist() == [5, 1, 12, 1, 12]
    slow, fast = (text.timed("abcd" * 20, seconds, pace).shape[1] for pace in (0.5, 2.0))
    assert slow - fast == pytest.approx(25 * (80 * 0.08 - 80 * 0.02) + 12 * 1.5, abs=2)
    assert text.timed("zzzz", {}).shape[1] == 5 + round(4 * text.LETTER * 25) + 12  # letters it does not know


@pytest.mark.parametrize(("words", "pace", "says"), [("?!", 1.0, "nothing to read"), ("a", 3.0, "pace"), ("a", 0.1, "pace")])
def test_what_cannot_be_read(words: str, pace: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        text.timed(words, {}, pace)


def spoken(words: str, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A text, units of a recording of it, and the letter of each: 1 to 4 frames long, a fifth of which have any unit."""
    random, said = np.random.default_rng(seed), words.encode()
    letters = np.concatenate([[text.SPACE] * 9, np.repeat(list(said), random.integers(1, 5, len(said))), [text.SPACE] * 9])
    sure = random.random(len(letters)) < 0.8
    return said, np.where(sure, letters * 2, random.integers(0, 256, len(letters))), letters


def test_letters_are_found_in_units() -> None:
    """From texts and units alone, nearly every frame of recordings that were not learned from gets its letter."""
    random = np.random.default_rng(0)
    words = ["so", "i", "shall", "not", "tell", "you", "the", "rest", "until", "next", "saturday", "see", "and", "what", "came"]
    lines = [spoken(" ".join(random.choice(words, 12)), seed) for seed in range(120)]
    reading = Reading.fit([line[:2] for line in lines[:100]], 256)
    right = [reading.align(said, heard) == letters for said, heard, letters in lines[100:]]
    assert np.concatenate(right).mean() > 0.85
    assert reading.seconds[ord("e")] == pytest.approx(2.5 / 25, rel=0.2)


@given(st.binary(max_size=30), st.integers(0, 60))
def test_an_alignment_is_a_path_through_the_text(said: bytes, frames: int) -> None:
    """Whatever the text and however few the units: a letter for every frame, in the order of the text."""
    reading = Reading.fit([(b"abc abc", np.arange(30) % 7), (b"cab", np.arange(20) % 7)], 7)
    made = reading.align(said, np.arange(frames) % 7)
    assert made.shape == (frames,)
    padded, place = [text.SPACE, *said, text.SPACE], 0
    for byte in made.tolist():
        place = padded.index(byte, place)


def test_read_aloud(reading_model: AudioLM, female: Waveform) -> None:
    """The same seed reads the same way, alone or in a batch, at once or streamed; a voice does not change the length."""
    requests = [Request(text=SAID, seed=3), Request(female.trim(2.0), text="And then?", seed=4), Request(seconds=1.0, seed=5)]
    together = reading_model.generate_batch(requests, watermark=False)
    frames = text.timed(SAID, {}).shape[1]
    assert together[0].samples.shape == (1, frames * 640)
    for request, sound in zip(requests, together, strict=True):
        alone = reading_model.generate_batch([request], watermark=False)[0]
        assert torch.allclose(alone.samples, sound.samples, atol=1e-5)
    blocks = list(reading_model.stream(text=SAID, seed=3, watermark=False))
    assert torch.allclose(torch.cat([each.samples for each in blocks], 1), together[0].samples, atol=1e-5)
    slow = reading_model.generate(text=SAID, pace=0.5, watermark=False)
    assert slow.seconds > 1.6 * together[0].seconds


def test_a_text_longer_than_a_window(reading_model: AudioLM) -> None:
    long = " ".join([SAID] * 4)
    made = reading_model.generate(text=long, watermark=False)
    assert made.samples.shape[1] == text.timed(long, {}).shape[1] * 640


def test_wrong_requests(reading_model: AudioLM, tiny_model: AudioLM, female: Waveform) -> None:
    units = reading_model.tokenize(female).semantic
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"text": "a", "semantic": units}, "give one of them"),
        ({"text": "a", "chain": "acoustic"}, "full chain"),
        ({"text": "a", "pace": 0.0}, "pace"),
        ({"text": "a", "pace": 9.0}, "pace"),
        ({"text": "?"}, "nothing to read"),
    ]
    for how, says in wrong:
        with pytest.raises(InputError, match=says):
            reading_model.generate(**how)
    with pytest.raises(InputError, match="no text stage"):
        tiny_model.generate(text="a")


def test_a_store_with_its_transcripts(tiny_model: AudioLM, tmp_path: Path) -> None:
    """Text has the frames of the semantic tokens, and crops of both are of the same time. What nobody wrote down is left out."""
    examples = Path(__file__).parent.parent / "examples"
    rows = ["path,speaker,split,transcript", f"{examples / 'prompt-female.flac'},f,train,{SAID.replace(',', '')}"]
    rows.append(f"{examples / 'prompt-male.flac'},m,train,")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    recordings = scan(tmp_path / "manifest.csv")
    store = tokenize_corpus(tiny_model.semantic, tiny_model.codec, recordings, tmp_path / "store")
    told = ReadStore(store)
    (number,) = told.split("train")
    whole = told.read(number, "text")
    assert whole.shape == told.read(number, "semantic").shape
    assert whole[:, 3:40].equal(told.read(number, "text", 3, 40))
    assert text.SPACE in whole
    stage = replace(stages.text(tiny_model.semantic.spec), crop=1.0, overlap=0.2)
    for item in TokenCrops(told, stage, "train", 4).batch(0):
        assert item["given"][0].shape == item["predicted"].shape == (1, 25)
    with pytest.raises(InputError, match="no train recording has a transcript"):
        ReadStore(tokenize_corpus(tiny_model.semantic, tiny_model.codec, recordings[1:], tmp_path / "untold"))


def test_a_text_stage_begins_with_what_the_semantic_stage_knows(reading_model: AudioLM) -> None:
    """Without a word of text, it foretells units as the semantic stage does, where blocks, ids and heads are copied."""
    semantic, network = reading_model.stages["semantic"]
    stage = reading_model.stages["text"][0]
    fresh = language_model(stage, network.transformer.config)
    take_over(fresh, stage, semantic, network)
    units = torch.randint(16, (1, 20), generator=torch.Generator().manual_seed(0))
    items = [({"given": given, "predicted": units, "ends": True}) for given in ([], [units[:, :0]])]
    batches = [collate(each, [item]) for each, item in zip((semantic, stage), items, strict=True)]
    with torch.inference_mode():
        own, theirs = (model(*batch)[0] for model, batch in zip((network, fresh), batches, strict=True))
    assert torch.allclose(own, theirs, rtol=1e-5)


def test_speak(
    reading_model: AudioLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from audiolm import bundle

    bundle.save(reading_model, tmp_path / "bundle", "# card")
    out = tmp_path / "said.wav"
    assert run(["speak", "Good morning.", "-o", str(out), "-m", str(tmp_path / "bundle"), "--pace", "0.8", "--sidecar"]) == 0
    made = json.loads((tmp_path / "said.json").read_text())
    assert (made["pace"], made["precision"]) == (0.8, "auto")  # nothing that decides the sound is missing
    for piped, code in ((b"Good morning.", 0), (b"caf\xe9", 2)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped)))
        assert run(["speak", "-", "-o", str(tmp_path / "piped.wav"), "-m", str(tmp_path / "bundle"), "--pace", "0.8"]) == code
        assert out.read_bytes() == (tmp_path / "piped.wav").read_bytes()
    assert "-: the text is not UTF-8" in capsys.readouterr().err
    assert run(["speak", "?!", "-o", str(tmp_path / "none.wav"), "-m", str(tmp_path / "bundle")]) == 2
    assert "nothing to read" in capsys.readouterr().err
    assert not (tmp_path / "none.wav").exists()
