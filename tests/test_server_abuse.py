"""What nobody should send: damaged, lying, endless and wrong recordings, broken forms, and whatever the OpenAPI document allows.

Everything is answered, in bounded time and memory, and the server is as well afterwards as before.
"""

import io
import random
import resource
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import httpx2
import numpy as np
import pytest
import schemathesis
import soundfile
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok
from test_server_live import connection, everything, figure, serving, wait

from audiolm.audio import Waveform
from audiolm.model import AudioLM
from audiolm.serving.limits import Limits
from audiolm.serving.server import create_app

LIMITS = Limits(seconds=0.2, sound_seconds=3, upload_mb=2, samples=2, rate=0, upload_seconds=2)
PATHS = ("detect", "tokenize", "reconstruct", "continue?seconds=0.1", "revoice?prompt_seconds=1", "revoice")
ALLOWED = {200, 400, 408, 413, 415, 422}
HOURS = 10 * 3600

Body = tuple[dict[str, str], bytes]  # headers and content


@lru_cache
def originals() -> tuple[bytes, ...]:
    """One small good file of each kind."""
    noise = np.random.default_rng(0).normal(0, 0.1, (4000, 2)).astype(np.float32)
    kinds = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "MS_ADPCM"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
    kinds += [
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("AU", "ULAW"),
        ("CAF", "ALAC_16"),
        ("W64", "PCM_24"),
        ("RF64", "PCM_16"),
    ]
    files = []
    for form, subtype in kinds:
        buffer = io.BytesIO()
        soundfile.write(buffer, noise, 16_000, subtype, format=form)
        files.append(buffer.getvalue())
    return tuple(files)


@lru_cache
def silence(seconds: int, rate: int = 8000) -> bytes:
    """Long silence as a small flac."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, "PCM_16", format="FLAC") as file:
        for _ in range(seconds // 60):
            file.write(np.zeros(60 * rate, np.int16))
    return buffer.getvalue()


def flac_that_says(samples: int, content: bytes) -> bytes:
    """With another number of samples in its header; 0 means that it does not know."""
    packed = bytearray(content)
    packed[21] = packed[21] & 0xF0 | samples >> 32 & 0x0F
    packed[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(packed)


def wav_that_says(draw: random.Random) -> bytes:
    """A header of extremes before a few samples."""
    extremes = [0, 1, 2, 7, 8, 16, 31, 33, 0xFFFF]
    form, channels, bits, align = (draw.choice([*extremes, 1, 2, 3, 16, 0xFFFE]) for _ in range(4))
    rate, size, total = (draw.choice([0, 1, 3999, 16_000, 192_001, 2**31, 2**32 - 1]) for _ in range(3))
    fields = (b"RIFF", total, b"WAVE", b"fmt ", 16, form, channels, rate, rate, align, bits, b"data", size)
    return struct.pack("<4sI4s4sIHHIIHH4sI", *fields) + draw.randbytes(draw.choice([0, 1, 4000]))


def floats(draw: random.Random) -> bytes:
    values = np.zeros(8000, np.float32)
    values[draw.randrange(8000)] = draw.choice([np.nan, np.inf, -np.inf, 3e38, 1e5, 1e-40])
    buffer = io.BytesIO()
    soundfile.write(buffer, values, 16_000, "FLOAT", format=draw.choice(["WAV", "AU", "AIFF"]))
    return buffer.getvalue()


def damaged(draw: random.Random) -> bytes:
    content = bytearray(draw.choice(originals()))
    how = draw.randrange(5)
    if how == 0:
        for _ in range(draw.randint(1, 20)):
            content[draw.randrange(min(120, len(content)))] = draw.randrange(256)
    elif how == 1:
        place = draw.randrange(min(100, len(content) - 8))
        content[place : place + 4] = draw.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
    elif how == 2:
        del content[draw.randrange(len(content)) :]
    elif how == 3:
        place = draw.randrange(len(content))
        content[place:place] = draw.randbytes(draw.randrange(1, 3000))
    else:
        content += draw.choice(originals())
    return bytes(content)


def endless(draw: random.Random) -> bytes:
    long = silence(120)
    return draw.choice([long, flac_that_says(0, long), flac_that_says(HOURS * 8000, originals()[3]), flac_that_says(1, long)])


def junk(draw: random.Random) -> bytes:
    heads = [
        b"",
        b"fLaC",
        b"OggS",
        b"ID3",
        b"\0\0\0\x20ftypM4A ",
        b"\x1aE\xdf\xa3",
        b"#EXTM3U\n/etc/passwd",
        b"ffconcat version 1.0",
    ]
    return draw.choice(heads) + draw.randbytes(draw.choice([0, 1, 100, 5000]))


def body(draw: random.Random) -> Body:
    """One malformed request."""
    content = draw.choice([damaged, damaged, damaged, wav_that_says, floats, endless, junk])(draw)
    how = draw.randrange(6)
    if how == 0:
        return {"Content-Type": draw.choice(["audio/wav", "audio/x", "audio/flac; x=y", "application/octet-stream"])}, content
    if how == 1:
        kinds = [
            "text/plain",
            "application/json",
            "audio",
            "",
            "multipart/form-data",
            "application/x-www-form-urlencoded",
            "\x7f",
        ]
        return {"Content-Type": draw.choice(kinds)}, content
    name = draw.choice(["audio", "audio", "audio", "voice", "Audio", "", "seconds", "a" * 5000])
    file = draw.choice(["a.wav", "../../etc/passwd", "", 'a\\"b', "\u202e.wav", "a" * 3000])
    head = f'--B\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\nContent-Type: audio/wav\r\n\r\n'
    form = head.encode() + content + b"\r\n--B--\r\n"
    if how == 2:
        form = form[: draw.randrange(len(form))]
    elif how == 3:
        form = form.replace(b"--B", b"--B", 1).replace(b"--B--", form) + draw.randbytes(50)
    elif how == 4:
        fields = [
            f'--B\r\nContent-Disposition: form-data; name="f{number}"\r\n\r\n1\r\n' for number in range(draw.choice([1, 50]))
        ]
        form = "".join(fields).encode() + form
    return {"Content-Type": "multipart/form-data; boundary=B"}, form


def resident() -> float:
    """Megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_malformed_bodies_are_answered_and_leave_nothing_behind(tiny_model: AudioLM, female: Waveform, count: int) -> None:
    draw = random.Random(6)
    statuses: list[int] = []
    memory = 0.0
    good = {"audio": female.trim(1.0).to_bytes()}
    with serving(tiny_model, LIMITS) as (address, _), httpx2.Client(base_url=address, timeout=30) as client:
        alone = client.post("/v1/continue?seconds=0.2&seed=4", files=good).content
        for number in range(count):
            headers, content = body(draw)
            if number % 10 == 9:  # somebody hangs up in the middle
                head = f"POST /v1/detect HTTP/1.1\nHost: x\nContent-Type: audio/wav\nContent-Length: {len(content) + 1}\n\n"
                with connection(address, head) as broken:
                    broken.sendall(content)
                continue
            answer = client.post(f"/v1/{draw.choice(PATHS)}", headers=headers, content=content)
            statuses.append(answer.status_code)
            assert answer.status_code in ALLOWED, answer.text
            assert answer.elapsed.total_seconds() < 10
            if answer.status_code != 200:
                told = answer.json()
                assert told["status"] == answer.status_code
                assert not any(secret in told["detail"] for secret in ("/tmp", str(Path(__file__).parents[1]), "Traceback", "\n"))
            if number == count // 3:
                memory = resident()
        wait(lambda: figure(address, "audiolm_waiting") == 0)
        assert resident() - memory < 60
        assert client.post("/v1/continue?seconds=0.2&seed=4", files=good).content == alone
        assert client.get("/healthz").status_code == 200
    assert {200, 413, 415, 422} <= set(statuses)  # some damage does not matter, and each way of refusing was seen


def test_a_small_file_of_ten_hours_is_not_decoded(tiny_model: AudioLM) -> None:
    """Whether its header says so, lies, or does not know."""
    hour = silence(3600)
    assert len(hour) < 200_000
    before = resident()
    with TestClient(create_app(tiny_model, LIMITS)) as client:
        for content in (flac_that_says(HOURS * 8000, hour), flac_that_says(0, hour), flac_that_says(8000, hour)):
            answer = client.post("/v1/detect", files={"audio": content})
            assert answer.status_code in (200, 413)  # the last one may pass for the second that it claims
            assert answer.elapsed.total_seconds() < 5
    assert resident() - before < 60


def test_more_than_may_be_sent_is_refused_without_being_kept(tiny_model: AudioLM) -> None:
    """Said beforehand, or found out on the way; and a client that waits for leave is told before it sends."""
    with serving(tiny_model, LIMITS) as (address, _):
        head = "POST /v1/detect HTTP/1.1\nHost: x\nContent-Type: audio/wav\n"
        with connection(address, head + "Content-Length: 900000000\nExpect: 100-continue\n\n") as client:
            assert everything(client).startswith(b"HTTP/1.1 413 ")

        def chunks() -> Iterator[bytes]:
            for _ in range(40):
                yield bytes(100_000)

        answer = httpx2.post(f"{address}/v1/detect", content=chunks(), headers={"Content-Type": "audio/wav"})
        assert answer.status_code == 413
        with connection(address, "GARBAGE\n\n") as client:
            assert everything(client).startswith(b"HTTP/1.1 400 ")
        with suppress(ConnectionError), connection(address, "GET / HTTP/1.1\n" + "X: y\n" * 20_000) as client:
            assert everything(client)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")  # or it closes while we still send
        assert httpx2.get(f"{address}/healthz").status_code == 200


@pytest.mark.parametrize("examples", [6, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_document_is_kept(reading_model: AudioLM, mode: GenerationMode, examples: int) -> None:
    """Right requests, wrong ones, and those whose recording only the server can know to be none: all as the document says."""
    # The document can say "bytes"; that these are no recording, only the answer can.
    accepted = {"positive_data_acceptance": {"expected-statuses": ["2xx", "413", "415", "422"]}}
    with serving(reading_model, LIMITS) as (address, _):
        schema = schemathesis.openapi.from_url(
            f"{address}/openapi.json", config=SchemathesisConfig.from_dict({"checks": accepted})
        )
        operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
        assert len(operations) == 11
        for operation in operations:
            if mode is GenerationMode.NEGATIVE and not operation.definition.raw.get("requestBody"):
                continue  # nothing can be wrong where nothing can be said

            @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                case.call_and_validate()

            ask()
