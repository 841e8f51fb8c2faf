"""The HTTP API says what the library says: sounds, tokens, marks and mistakes, by the same words (contracts 3, 8, 10)."""

import asyncio
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from fastapi.testclient import TestClient

from audiolm import bundle
from audiolm.asking import Sampling
from audiolm.audio import Waveform
from audiolm.cli import run
from audiolm.commands.serving import _keys
from audiolm.errors import InputError
from audiolm.model import AudioLM
from audiolm.provenance import detect
from audiolm.serving import server
from audiolm.serving.limits import Limits
from audiolm.serving.server import Service, create_app

LIMITS = Limits(seconds=5, sound_seconds=6, upload_mb=1, samples=3, rate=0)


@pytest.fixture(scope="module")
def client(tiny_model: AudioLM) -> Iterator[TestClient]:
    with TestClient(create_app(tiny_model, LIMITS), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def flac(female: Waveform) -> bytes:
    """1.5 s of a voice."""
    return female.trim(1.5).to_bytes(".flac")


def samples(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="int16")[0]


def made(sound: Waveform) -> np.ndarray:
    return samples(sound.to_bytes())


def test_continue_is_the_librarys(client: TestClient, tiny_model: AudioLM, female: Waveform, flac: bytes) -> None:
    alone = tiny_model.generate(female.trim(1.0), 0.7, seed=5)
    query = "seconds=0.7&seed=5&prompt_seconds=1"
    form = client.post(f"/v1/continue?{query}", files={"audio": ("my name.flac", flac)})
    assert (form.status_code, form.headers["content-type"]) == (200, "audio/wav")
    assert [form.headers[f"x-audiolm-{name}"] for name in ("seed", "prompt-seconds", "model")] == ["5", "1.000000", "audiolm"]
    assert np.array_equal(samples(form.content), made(alone))
    assert b'"generated": true' in form.content  # its tags
    body = client.post(f"/v1/continue?{query}", content=flac, headers={"Content-Type": "audio/flac"})
    fields = {"seconds": "0.7", "seed": "5", "prompt_seconds": "1"}
    fields = client.post("/v1/continue", data=fields, files={"audio": flac})
    assert body.content == fields.content == form.content
    new = client.post(f"/v1/continue?{query}&only_new=true", files={"audio": flac})
    assert new.headers["x-audiolm-prompt-seconds"] == "0.000000"
    assert np.array_equal(samples(new.content), made(alone)[16_000:])


@pytest.mark.parametrize(
    ("form", "codec", "kind"), [("webm", "libopus", "video/webm"), ("mp4", "aac", "audio/mp4"), ("adts", "aac", "audio/aac")]
)
def test_what_phones_and_browsers_record(client: TestClient, female: Waveform, form: str, codec: str, kind: str) -> None:
    sound, file = female.trim(1.5).resample(48_000), io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=48_000, layout="mono", format="fltp" if codec == "aac" else "flt")
        frame = av.AudioFrame.from_ndarray(sound.samples.numpy(), format=stream.format.name, layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    form_answer = client.post("/v1/reconstruct", files={"audio": ("memo", file.getvalue())})
    body_answer = client.post("/v1/reconstruct", content=file.getvalue(), headers={"Content-Type": kind})
    for answer in (form_answer, body_answer):
        assert answer.status_code == 200, answer.text
        assert len(samples(answer.content)) / 16_000 == pytest.approx(1.5, abs=0.06)


def test_sampling_as_in_the_program(client: TestClient, tiny_model: AudioLM) -> None:
    temperatures = {"semantic": 0.5, "coarse": 0.9, "fine": 0.0, "acoustic": 0.9}
    settings = {name: Sampling(temperature=each, top_k=7, top_p=0.9) for name, each in temperatures.items()}
    alone = tiny_model.generate(seconds=0.5, sampling=settings)
    answer = client.post("/v1/generate?seconds=0.5&temperature=.5,0.9,0&top_k=7&top_p=0.9&decoder=autoregressive")
    assert np.array_equal(samples(answer.content), made(alone))


@pytest.mark.parametrize(("form", "kind"), [("flac", "FLAC"), ("ogg", "VORBIS"), ("opus", "OPUS")])
def test_formats(client: TestClient, form: str, kind: str) -> None:
    answer = client.post(f"/v1/generate?seconds=0.5&format={form}")
    file = soundfile.info(io.BytesIO(answer.content))
    assert kind in (file.format, file.subtype)
    assert file.duration == pytest.approx(0.5, abs=0.02)


def test_speak(reading_model: AudioLM, client: TestClient, female: Waveform, flac: bytes) -> None:
    """A text from the form or the URL, in any voice, at any pace, streamed or whole: as the library reads it."""
    assert client.post("/v1/speak?text=hello").status_code == 404
    assert not client.get("/v1/models").json()["models"][0]["speaks"]
    with TestClient(create_app(reading_model, LIMITS), raise_server_exceptions=False) as reader:
        assert reader.get("/v1/models").json()["models"][0]["speaks"]
        alone = reading_model.generate(female.trim(1.5), text="Hello, you.", seed=3, pace=0.8)
        fields = {"text": "Hello, you.", "seed": "3", "pace": "0.8"}
        answer = reader.post("/v1/speak", data=fields, files={"voice": flac})
        assert np.array_equal(samples(answer.content), made(alone))
        assert answer.headers["x-audiolm-prompt-seconds"] == "0.000000"
        whole = reader.post("/v1/speak?text=Good%20morning&samples=2")
        assert len(zipfile.ZipFile(io.BytesIO(whole.content)).namelist()) == 2
        single = reader.post("/v1/speak?text=Good%20morning&seed=1")
        streamed = reader.post("/v1/speak?text=Good%20morning&seed=1&stream=true")
        assert np.abs(samples(streamed.content).astype(int) - samples(single.content)).max() <= 1
        assert zipfile.ZipFile(io.BytesIO(whole.content)).read("speak-1.wav")[44:100] == single.content[44:100]
        for query, says in (
            ("", "text"),
            ("text=?!", "nothing to read"),
            ("text=a&pace=3", "pace"),
            (f"text={'word ' * 99}", "text"),
        ):
            wrong = reader.post(f"/v1/speak?{query}")
            assert wrong.status_code == 422, query
            assert says in wrong.json()["detail"]


def test_a_text_may_come_in_a_plain_form(reading_model: AudioLM) -> None:
    with TestClient(create_app(reading_model, LIMITS)) as reader:
        plain = reader.post("/v1/speak", data={"text": "Hello, you.", "seed": "3"})
        assert plain.headers["content-type"] == "audio/wav", plain.text
        assert plain.content == reader.post("/v1/speak?text=Hello,%20you.&seed=3").content
        wrong = reader.post("/v1/speak", json={"text": "Hello"})
        assert wrong.status_code == 415
        assert wrong.json()["detail"].startswith("JSON is not read; send parameters in the URL or as a form, recordings as")
        assert reader.post("/v1/generate", json={}).json()["detail"].endswith("send parameters in the URL or as a form")
        asked = reader.get("/openapi.json").json()["paths"]["/v1/speak"]["post"]["requestBody"]
        assert asked["required"]
        for kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
            assert asked["content"][kind]["schema"]["required"] == ["text"]
        assert "<td>text<td>string" in reader.get("/docs").text


def test_streamed_is_the_whole(client: TestClient, flac: bytes) -> None:
    for path in ("continue?seconds=2.2", "continue?seconds=1.3&only_new=1", "revoice?seed=2"):
        whole = client.post(f"/v1/{path}", files={"audio": flac})
        with client.stream("POST", f"/v1/{path}&stream=true", files={"audio": flac}) as answer:
            parts = list(answer.iter_raw())
        assert len(parts) > 3
        assert len(parts[0]) == 44
        assert int.from_bytes(parts[0][40:44], "little") == sum(map(len, parts[1:]))
        assert answer.headers["x-audiolm-seed"] == whole.headers["x-audiolm-seed"]
        assert answer.headers["content-disposition"] == whole.headers["content-disposition"]
        difference = samples(b"".join(parts)).astype(int) - samples(whole.content)
        assert abs(difference).max() <= 1


def test_a_sound_that_ends_is_the_librarys(client: TestClient, tiny_model: AudioLM, female: Waveform, flac: bytes) -> None:
    ended = set()
    for seed in range(4):
        alone = tiny_model.generate(female.trim(1.5), 1.33, seed=seed, until_end=True)
        query = f"/v1/continue?seconds=1.33&until_end=true&seed={seed}"
        whole = client.post(query, files={"audio": flac}).content
        assert np.array_equal(samples(whole), made(alone))
        told = json.loads(soundfile.SoundFile(io.BytesIO(whole)).comment)
        assert (told["until_end"], told["ended"]) == (True, alone.seconds < 2.83)
        ended.add(told["ended"])
        streamed = client.post(f"{query}&stream=true", files={"audio": flac}).content
        assert streamed[40:44] == b"\xff" * 4  # nobody knew the length
        assert abs(samples(streamed).astype(int) - samples(whole)).max() <= 1
    assert ended == {False, True}
    assert (
        soundfile.info(io.BytesIO(client.post("/v1/generate?until_end=true&seed=1").content)).duration <= 5
    )  # all that is allowed


def test_several_samples_are_those_of_their_seeds(client: TestClient) -> None:
    answer = client.post("/v1/generate?seconds=0.4&seed=7&samples=3&format=flac")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert answer.headers["content-disposition"] == 'attachment; filename="generate-7.zip"'
    assert archive.namelist() == ["generate-7.flac", "generate-8.flac", "generate-9.flac"]
    alone = client.post("/v1/generate?seconds=0.4&seed=8&format=flac")
    assert alone.headers["content-disposition"] == 'inline; filename="generate-8.flac"'
    assert archive.read("generate-8.flac") == alone.content


def test_the_other_operations(client: TestClient, tiny_model: AudioLM, female: Waveform, male: Waveform, flac: bytes) -> None:
    voice = male.trim(0.8)
    answer = client.post("/v1/revoice?seed=3", files={"audio": flac, "voice": voice.to_bytes()})
    assert np.array_equal(samples(answer.content), made(tiny_model.revoice(female.trim(1.5), voice, seed=3)))
    answer = client.post("/v1/reconstruct?codebooks=2", files={"audio": flac})
    assert np.array_equal(samples(answer.content), made(tiny_model.reconstruct(female.trim(1.5), 2)))
    told = json.loads(soundfile.SoundFile(io.BytesIO(answer.content)).comment)
    assert (told["watermark"], told["prompt_seconds"]) == (f"{tiny_model.payload:04x}", 0.0)
    tokens, told = tiny_model.tokenize(female.trim(1.5)), client.post("/v1/tokenize", files={"audio": flac}).json()
    assert told["semantic"] == {"codes": tokens.semantic.codes.tolist(), "frame_rate": 25.0, "codebook_size": 16}
    assert told["acoustic"] == {"codes": tokens.acoustic.codes.tolist(), "frame_rate": 50.0, "codebook_size": 32}
    assert told["seconds"] == tokens.seconds
    marked = client.post("/v1/generate?seconds=4").content
    assert detect(Waveform(tiny_model.generate(seconds=4).samples, 16_000)).found
    for content, found in ((marked, True), (flac, False)):
        told = client.post("/v1/detect", files={"audio": content}).json()
        assert told["watermark"]["found"] is found
        assert (told["file"], told["synthetic_probability"]) == ("audio", None)
        assert told["note"] == f"{server.name_of(tiny_model)} has no detector (audiolm train-detector makes one)"


def test_detection_holds_up_nothing_else_and_is_bounded(client: TestClient, flac: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(server, "examine", lambda *_: {"looked": free.wait(30)})

    def detect() -> int:
        return client.post("/v1/detect", files={"audio": flac}).status_code

    with ThreadPoolExecutor(8) as others:
        looking = [others.submit(detect) for _ in range(8)]
        try:
            deadline = time.monotonic() + 20
            while "\naudiolm_waiting 8.0\n" not in client.get("/metrics").text:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert client.post("/v1/reconstruct", files={"audio": flac}).status_code == 200
            refused = client.post("/v1/detect", files={"audio": flac})
            assert (refused.status_code, refused.headers["retry-after"].isdecimal()) == (429, True)
        finally:
            free.set()
        assert [each.result() for each in looking] == [200] * 8
    assert detect() == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("continue?secnds=1", b"flac", 422, "unknown key 'secnds'; did you mean 'seconds'?"),
        ("continue?seconds=5.5", b"flac", 422, "seconds=5.5 s are more than this server generates at once; ask for 5 s"),
        ("revoice?until_end=true", b"flac", 422, "unknown key 'until_end'"),
        ("continue?seconds=0", b"flac", 422, "seconds: input should be greater than or equal to 0.1"),
        *(
            (f"continue?{name}={value}", b"flac", 422, name)
            for name in ("seconds", "prompt_seconds", "temperature", "top_p")
            for value in ("nan", "inf", "-inf", "1e999")
        ),
        ("continue?temperature=1,2", b"flac", 422, "temperature: one number for all stages, or three for semantic,coarse,fine"),
        ("continue?seed=-1", b"flac", 422, "seed"),
        ("continue?samples=4", b"flac", 422, "samples=4: give 3 or less"),
        ("continue?stream=1&samples=2", b"flac", 422, "stream=true: only one WAV"),
        ("continue?stream=1&format=ogg", b"flac", 422, "stream=true: only one WAV"),
        ("continue?decoder=parallel", b"flac", 422, "this model has no parallel stage"),
        ("continue?decoder=parallel&stream=1", b"flac", 422, "this model has no parallel stage"),
        ("generate?decoder=magic", b"", 422, "decoder: input should be 'autoregressive' or 'parallel'"),
        ("reconstruct?codebooks=7", b"flac", 422, "codebooks=7: give 1 to 6 for this codec"),
        ("continue", b"", 422, "audio: no recording was sent"),
        ("continue", b"not a sound", 422, "audio: not a sound file that can be read"),
        ("tokenize", b"RIFF\0\0\0\0WAVE", 422, "audio: not a sound file that can be read"),
        ("detect", b"long", 413, "audio: more than 6 s; send a shorter recording"),
        ("detect", b"big", 413, "more than 1 MB"),
        ("detect", b"short", 422, "audio: only 0.05 s of sound; give a recording of at least 0.1 s"),
        ("nothing", b"flac", 404, "no such page"),
    ],
)
def test_mistakes_are_one_line(
    client: TestClient, male: Waveform, flac: bytes, path: str, body: bytes, status: int, words: str
) -> None:
    named = {b"flac": flac, b"long": Waveform(male.samples.repeat(1, 2), 16_000).to_bytes(".flac"), b"big": b"x" * 1_100_000}
    named |= {b"short": male.trim(0.05).to_bytes()}
    files = {"audio": named.get(body, body)} if body else None
    answer = client.post(f"/v1/{path}", files=files)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    told = answer.json()
    assert set(told) == {"type", "title", "status", "detail"}
    assert words in told["detail"]
    assert "\n" not in told["detail"]
    assert "/tmp" not in answer.text


def test_wrong_kinds_of_bodies(client: TestClient, flac: bytes) -> None:
    # The last is what curl --data-binary says of any file.
    for kind in (
        "text/plain",
        "application/json",
        "multipart/mixed; boundary=x",
        "nonsense",
        "application/x-www-form-urlencoded",
    ):
        refused = client.post("/v1/detect", content=flac, headers={"Content-Type": kind})
        assert (refused.status_code, "a body of type audio/*" in refused.json()["detail"]) == (415, True)
    broken = client.post("/v1/detect", content=b"--x\r\nContent", headers={"Content-Type": "multipart/form-data"})
    assert broken.status_code == 400
    assert client.post("/v1/detect", files={"audio": (None, "words")}).json()["detail"].startswith("audio: a text")
    unwanted = client.post("/v1/generate", files={"audio": flac})
    assert (unwanted.status_code, unwanted.json()["detail"]) == (
        422,
        "audio: no recording of that name expected; leave it out",
    )
    twice = [client.post("/v1/generate?seed=1", data={"seed": "2"}), client.post("/v1/generate?seed=1&seed=2")]
    twice.append(client.post("/v1/detect", files=[("audio", flac), ("audio", flac)]))
    for answer in twice:
        assert (answer.status_code, "twice" in answer.json()["detail"]) == (422, True)
    wrong = client.get("/v1/detect")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_the_same_words_as_the_program(client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.full(16_000, np.nan, np.float32), 16_000, "FLOAT")
    assert run(["continue", str(path)]) == 2
    said = capsys.readouterr().err.removeprefix("audiolm: ").strip()
    assert client.post("/v1/continue", files={"audio": path.read_bytes()}).json()["detail"] == said.replace(str(path), "audio")


def test_what_there_is(client: TestClient) -> None:
    model = client.get("/v1/models").json()["models"][0]
    assert (model["id"], model["sample_rate"], model["decoders"], model["codebooks"]) == (
        "audiolm",
        16_000,
        ["autoregressive"],
        6,
    )
    assert (model["max_seconds"], model["max_samples"]) == (5, 3)
    examples = client.get("/v1/examples").json()
    assert {each["name"]: each["seconds"] for each in examples} == {"female": 4.4, "male": 4.4, "piano": 5.0}
    assert client.get(examples[0]["url"]).content[:4] == b"fLaC"
    assert client.get("/healthz").json() == {"status": "ok"}
    client.post("/v1/generate?seconds=0.2")
    figures = client.get("/metrics").text
    assert 'audiolm_requests_total{path="/v1/generate",status="200"}' in figures
    assert "audiolm_batch_size_count" in figures
    told = [line for line in figures.splitlines() if line.startswith("audiolm_sound_seconds_total")]
    assert client.post("/v1/generate?seconds=3&stream=1&codebooks=99").status_code == 422
    assert told[0] in client.get("/metrics").text  # nothing was made
    assert client.post("/v1/generate?seconds=0.5&stream=1").status_code == 200
    made = [line for line in client.get("/metrics").text.splitlines() if line.startswith("audiolm_sound_seconds_total")]
    assert float(made[0].split()[1]) == pytest.approx(float(told[0].split()[1]) + 0.5)
    for path in ("/../pyproject.toml", "/..%2fserver.py", "/examples/..%2fREADME.md", "/examples/%2e%2e", "/web", "/server.py"):
        assert client.get(path).status_code == 404


def test_the_documents_need_nobody_else_and_tell_no_version(client: TestClient) -> None:
    page = client.get("/docs")
    document = client.get("/openapi.json")
    for path in document.json()["paths"]:
        assert path in page.text
    assert "://" not in page.text.replace("http://127.0.0.1:8000", "")
    assert "<script" not in page.text
    limits = {each["name"]: each["schema"] for each in document.json()["paths"]["/v1/continue"]["post"]["parameters"]}
    assert limits["seconds"]["maximum"] == LIMITS.seconds
    for answer in (page, document, client.get("/nothing"), client.get("/v1/models")):
        shown = (answer.text + str(answer.headers)).lower()
        assert not any(word in shown for word in ("fastapi", "starlette", "uvicorn", "python/", "0.1.0"))
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_page_is_served(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WEB", tmp_path)
    assert client.get("/").status_code == 404
    for name, kind in {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}.items():
        (tmp_path / name).write_text(name)
        answer = client.get(f"/{name}")
        assert answer.text == name
        assert answer.headers["content-type"].startswith(kind)
    assert client.get("/").text == "index.html"


def test_what_fails_inside_stays_inside(
    client: TestClient, tiny_model: AudioLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args, **kwargs):
        raise RuntimeError("a secret of /home/someone")

    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "generate_batch", fail)
        answer = client.post("/v1/generate")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text
    assert "secret" in caplog.text
    assert client.post("/v1/generate?seconds=0.2").status_code == 200


def test_keys(tiny_model: AudioLM) -> None:
    with TestClient(create_app(tiny_model, LIMITS, keys=["first", "second", "clé"])) as client:
        refused = client.get("/v1/models")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/metrics").status_code == client.post("/v1/generate").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer third"}).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer second"}).status_code == 200
        assert client.get("/v1/models", headers=[(b"Authorization", "Bearer clé".encode())]).status_code == 200
        assert client.get("/v1/models", headers={"X-API-Key": "first"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        document = client.get("/openapi.json").json()
        assert set(document["components"]["securitySchemes"]) == {"bearer", "key"}
        for path, operations in document["paths"].items():
            assert all(("security" in each) == (path != "/healthz") for each in operations.values())


def test_keys_of_an_editor_that_marks_its_files(tiny_model: AudioLM, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("first\nsecond\n", encoding="utf-8-sig")
    with TestClient(create_app(tiny_model, LIMITS, keys=_keys(file))) as client:
        for key in ("first", "second"):
            assert client.get("/v1/models", headers={"X-API-Key": key}).status_code == 200


def test_only_lines_are_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word of a comment lets anyone in, and no newline behind a key keeps everyone out."""
    file = tmp_path / "keys.txt"
    file.write_text("# keys of the team\n\n  first \r\n#second\nthird\n")
    monkeypatch.delenv("AUDIOLM_API_KEY", raising=False)
    assert _keys(file) == ["first", "third"]
    monkeypatch.setenv("AUDIOLM_API_KEY", "secret\n")
    assert _keys(file) == ["secret", "first", "third"]
    monkeypatch.setenv("AUDIOLM_API_KEY", " \n")
    assert _keys(None) == []
    for text, words in (("first\nfor Anna: sesame\n", "line 2 has blanks in it"), ("# none\n \n", "holds no keys")):
        file.write_text(text)
        with pytest.raises(InputError, match=words) as mistake:
            _keys(file)
        assert str(file) in str(mistake.value)
        assert "sesame" not in str(mistake.value)


def test_other_sites_and_other_names_are_refused(tiny_model: AudioLM) -> None:
    with TestClient(create_app(tiny_model, LIMITS, hosts=["localhost", "[::1]"]), base_url="http://localhost:8000") as client:
        path = "/v1/generate?seconds=0.2"
        assert client.post(path).status_code == 200
        assert client.post(path, headers={"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}).status_code == 200
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://["},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            assert client.post(path, headers=headers).status_code == 403
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 400
        assert client.get("/healthz", headers={"Host": "[::1]:8000"}).status_code == 200


def test_a_proxy_shows_it_under_another_name(tiny_model: AudioLM) -> None:
    """Names in any case, with or without the usual port; and no other name."""
    public = "https://Audio.example.com:443/audio/"
    with TestClient(create_app(tiny_model, LIMITS, hosts=["127.0.0.1"], public=public), base_url="http://127.0.0.1") as client:
        for host, origin, status in (
            ("audio.example.com", "https://audio.example.com", 200),
            ("AUDIO.example.com:443", "https://Audio.Example.com", 200),
            ("127.0.0.1:8000", "https://audio.example.com", 200),  # a proxy that does not pass the name on
            ("127.0.0.1", "http://127.0.0.1:80", 200),
            ("audio.example.com", "http://evil.example", 403),
            ("audio.example.com", "https://audio.example.com:8443", 403),
            ("example.com", "https://audio.example.com", 400),
        ):
            answer = client.post("/v1/generate?seconds=0.1", headers={"Host": host, "Origin": origin})
            assert answer.status_code == status, (host, origin)


@pytest.mark.parametrize("public", ["audio.example.com", "ftp://a.example", "https://", "https://a:b", "https://me@a.example"])
def test_what_is_no_address_is_refused(public: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--public", public]) == 2
    assert (
        capsys.readouterr().err
        == f"audiolm: --public {public}: give the address that browsers show, as https://audio.example.com\n"
    )


def test_a_client_may_ask_so_often(tiny_model: AudioLM) -> None:
    limits = LIMITS.model_copy(update={"rate": 2.0})
    with TestClient(create_app(tiny_model, limits, keys=["a", "b"])) as client:
        path = "/v1/generate?seconds=0.1"
        statuses = [client.post(path, headers={"X-API-Key": "a"}).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        refused = client.post(path, headers={"X-API-Key": "a"})
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert client.post(path, headers={"X-API-Key": "b"}).status_code == 200


def test_less_than_one_request_a_minute_is_one_now_and_then(tiny_model: AudioLM) -> None:
    with TestClient(create_app(tiny_model, LIMITS.model_copy(update={"rate": 0.5}))) as client:
        assert client.post("/v1/generate?seconds=0.1").status_code == 200
        refused = client.post("/v1/generate?seconds=0.1")
        assert refused.status_code == 429
        assert 60 < int(refused.headers["retry-after"]) <= 120


def test_who_asks_for_too_long_is_told(tiny_model: AudioLM) -> None:
    with TestClient(create_app(tiny_model, LIMITS.model_copy(update={"timeout": 0.05}))) as client:
        answer = client.post("/v1/generate?seconds=5")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        assert "not done within 0.05 s" in answer.json()["detail"]


def test_only_the_models_thread_has_helpers(tiny_model: AudioLM) -> None:
    """OpenMP lets everybody's helpers sleep as soon as they are more than the cores (Service.open)."""

    async def threads() -> tuple[int, int]:
        service.open()
        assert service.worker is not None
        assert service.files is not None
        try:
            loop = asyncio.get_running_loop()
            others = await loop.run_in_executor(service.files, torch.get_num_threads)
            return others, await service.worker.call(torch.get_num_threads)
        finally:
            await asyncio.to_thread(service.close)

    service, before = Service(tiny_model, Limits(), None), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert asyncio.run(threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)


def test_the_packaged_model_answers(flac: bytes) -> None:
    """The one test here that is not of tiny networks."""
    import audiolm

    voice = bundle.detector_of(bundle.folder_of("speech"))
    with TestClient(create_app(audiolm.load(), detector=voice)) as client:
        answer = client.post("/v1/continue?seconds=0.4", files={"audio": flac})
        assert answer.status_code == 200
        assert answer.headers["x-audiolm-model"] == "speech"
        assert abs(samples(answer.content)[-6400:]).max() > 10
        heard = client.post("/v1/detect", files={"audio": answer.content}).json()["synthetic_probability"]
        assert (heard is None) == (voice is None)
