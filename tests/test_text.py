"""Text as a stream of tokens, the stage that reads it aloud, and what holds of both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

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
    """Bytes at the rate asked for, and pauses where there is punctuation."""
    assert read(text.timed("A man, a plan.", 10.0)) == "a man a plan "
    words = text.timed("abcdefghij" * 10, 10.0)
    assert words.shape == (1, 10 * 25 + round(text.PAUSES["\n"] * 25))
    values, counts = text.timed("a day. A day", 10.0)[0].unique_consecutive(return_counts=True)
    assert counts[values == text.SPACE].tolist() == [2, 12, 2, 12]
    assert text.timed("abcdefghij", 5.0).shape[1] > text.timed("abcdefghij", 10.0).shape[1]


@pytest.mark.parametrize(("words", "rate", "says"), [("?!", 10.0, "nothing to read"), ("a", 30.0, "pace"), ("a", 0.5, "pace")])
def test_what_cannot_be_read(words: str, rate: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        text.timed(words, rate)


@given(st.text(alphabet="abc xyz", max_size=40), st.integers(30, 90), st.integers(0, 20))
def test_a_transcript_covers_what_is_spoken(words: str, speech: int, silence: int) -> None:
    """Silence at either end belongs to no letter, and between them every letter has its frames, in order."""
    size = 640
    audio = torch.cat([torch.zeros(silence * size), torch.sin(torch.arange(speech * size) * 0.3), torch.zeros(silence * size)])
    codes = text.spread(words, audio, speech + 2 * silence)
    said = text.normalised(words)
    if not said:
        assert codes.eq(text.UNKNOWN).all()
        return
    edge = silence if silence >= text.SHORTEST_PAUSE * 25 else 0
    inner = codes[0, edge : codes.shape[1] - edge]
    if edge:
        assert codes[0, :edge].eq(text.SPACE).all()
    assert len(codes[0]) == speech + 2 * silence
    if edge or not silence:
        letters = torch.tensor(list(said.encode()))
        assert inner.equal(letters[torch.arange(len(inner)) * len(letters) // len(inner)])


def test_pauses_of_a_real_voice(female: Waveform) -> None:
    """A pause is quiet; half a second of silence in the middle is found as one, wherever there are others."""
    audio = female.samples[0].clone()
    audio[32_000:40_000] = 0
    found = text.pauses(audio, 110)
    assert found[51:62].all()
    assert 0.1 < found.float().mean() < 0.5


def test_reading_rate(female: Waveform) -> None:
    codes = text.spread(SAID, female.samples[0], 110)
    rate = text.reading_rate([SAID], [codes])
    speaking = 110 - int(text.pauses(female.samples[0], 110).sum())
    assert rate == pytest.approx(len(text.normalised(SAID)) / speaking * 25, rel=0.01)


def test_read_aloud(reading_model: AudioLM, female: Waveform) -> None:
    """The same seed reads the same way, alone or in a batch, at once or streamed; a voice does not change the length."""
    requests = [Request(text=SAID, seed=3), Request(female.trim(2.0), text="And then?", seed=4), Request(seconds=1.0, seed=5)]
    together = reading_model.generate_batch(requests, watermark=False)
    frames = text.timed(SAID).shape[1]
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
    assert made.samples.shape[1] == text.timed(long).shape[1] * 640


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


def test_a_store_with_texts(tiny_model: AudioLM, tmp_path: Path) -> None:
    """Text has the frames of the semantic tokens, and crops of both are of the same time."""
    examples = Path(__file__).parent.parent / "examples"
    rows = ["path,speaker,split,transcript", f"{examples / 'prompt-female.flac'},f,train,{SAID.replace(',', '')}"]
    rows.append(f"{examples / 'prompt-male.flac'},m,train,")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    recordings = scan(tmp_path / "manifest.csv")
    store = tokenize_corpus(tiny_model.semantic, tiny_model.codec, recordings, tmp_path / "store", texts=True)
    whole = [store.read(number, "text") for number in range(2)]
    assert [each.shape[1] for each in whole] == store.entries.frames["semantic"].tolist()
    assert read(whole[0]).replace(" ", "").startswith("soishal")
    assert whole[1].eq(text.UNKNOWN).all()
    stage = replace(stages.text(tiny_model.semantic.spec), crop=1.0, overlap=0.2)
    for item in TokenCrops(store, stage, "train", 4).batch(0):
        assert item["given"][0].shape == item["predicted"].shape == (1, 25)


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
    assert run(["speak", "Good morning.", "-o", str(out), "-m", str(tmp_path / "bundle")]) == 0
    assert out.is_file()
    assert run(["speak", "?!", "-o", str(tmp_path / "none.wav"), "-m", str(tmp_path / "bundle")]) == 2
    assert "nothing to read" in capsys.readouterr().err
    assert not (tmp_path / "none.wav").exists()
