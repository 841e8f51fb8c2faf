"""Decodes uploaded recordings, or refuses them with one clear line, in bounded time and memory.

The header is checked first. Then the file is decoded block by block, mixed down at once, and abandoned if it is too long,
whatever its header says: ten hours of silence are a few kilobytes of flac.
"""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from audiolm.audio import Waveform, as_file, blocks, concatenate, probe
from audiolm.errors import InputError

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # malformed forms are not worth logging
RATES = (4_000, 192_000)  # Hz
SHORTEST = 0.1  # seconds
DECODING = 10.0  # seconds that decoding a file may take
IN_MEMORY = 1 << 20  # bytes of a body kept in memory; more goes to a temporary file
FIELDS, FIELD_BYTES = 24, 4096
ANY = ("audio/", "application/octet-stream", "application/ogg", "video/webm", "video/mp4")  # a microphone's webm is a "video"


@dataclass
class Sent:
    """The contents of a request: its parameters, from the URL and the form, and its recordings by name."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, IO[bytes]] = field(default_factory=dict)

    def close(self) -> None:
        """Close the recordings."""
        for file in self.files.values():
            file.close()


async def receive(request: Request, names: tuple[str, ...], needed: int = 0) -> Sent:
    """Read a request: a form with files of these names, or a body that is the first of them, or no body.

    needed: how many of `names`, the first ones, must be sent; if none, the form may be urlencoded.
    HTTPException 415 for any other kind of body, 400 for a malformed form; InputError for unknown or repeated parts.
    """
    sent = Sent(dict(request.query_params))
    if len(sent.fields) < len(request.query_params.multi_items()):
        raise InputError("parameters: one is given twice in the URL; give it once")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        # curl --data-binary calls a recording urlencoded unless told its type; such a form cannot hold one.
        if kind == "multipart/form-data" or (kind == "application/x-www-form-urlencoded" and not names[:needed]):
            form = await request.form(max_files=len(names) + 1, max_fields=FIELDS, max_part_size=FIELD_BYTES)
            for name, value in form.multi_items():
                if name in sent.files:
                    raise InputError(f"{name}: sent twice; send one recording")
                if isinstance(value, UploadFile):
                    sent.files[name] = value.file
                elif name in names:
                    raise InputError(f"{name}: a text; send the recording itself, as a file of the form")
                elif name in sent.fields:
                    raise InputError(f"{name}: given twice; give it once, in the URL or in the form")
                else:
                    sent.fields[name] = value
        elif kind.startswith(ANY) and names:
            sent.files[names[0]] = body = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
            async for chunk in request.stream():
                body.write(chunk)
            if not body.tell():
                sent.files.pop(names[0]).close()
        elif kind or await request.body():
            wrong = "JSON is not read; " if "json" in kind else ""
            sounds = ", recordings as files of a form (multipart/form-data) or as a body of type audio/*" if names else ""
            raise HTTPException(415, f"{wrong}send parameters in the URL or as a form{sounds}")
        if unknown := [name for name in sent.files if name not in names]:
            raise InputError(
                f"{unknown[0]}: no recording of that name expected; {'send ' + ' or '.join(names) if names else 'leave it out'}"
            )
    except BaseException:
        sent.close()
        raise
    return sent


def sound_of(file: IO[bytes], name: str, seconds: float, rate: int, keep: float | None = None) -> Waveform:
    """Decode a recording of at most `seconds` to mono at `rate` Hz, and return its first `keep` seconds (None: all).

    InputError, naming it `name`, if it is unusable; HTTPException 413 if it is too long or takes too long to decode.
    """
    file.seek(0)
    with as_file(file, name) as path:
        return _decoded(path, name, seconds, rate, keep)


def _decoded(path: Path, name: str, seconds: float, rate: int, keep: float | None) -> Waveform:
    deadline = time.monotonic() + DECODING
    info = probe(path, count=False)
    if not RATES[0] <= info.sample_rate <= RATES[1]:
        raise InputError(f"{name}: {info.sample_rate} Hz; give a recording of {RATES[0]} to {RATES[1]} Hz")
    too_long = HTTPException(413, f"{name}: more than {seconds:g} s; send a shorter recording")
    if seconds < info.seconds < math.inf:
        raise too_long
    parts: list[Waveform] = []
    heard = 0.0
    for part in blocks(path, 1.0, mono=True):
        parts.append(part)
        heard += part.seconds
        if heard > seconds + 1e-6:
            raise too_long
        if time.monotonic() > deadline:
            raise HTTPException(413, f"{name}: takes too long to decode; send it as wav or flac")
    sound = concatenate(parts)
    if sound.seconds < SHORTEST:
        raise InputError(f"{name}: only {sound.seconds:.3g} s of sound; give a recording of at least {SHORTEST:g} s")
    return sound.trim(keep).resample(rate)
