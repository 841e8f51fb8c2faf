"""How files hold sound: whether one was cut off, and reading what libsndfile cannot (m4a, aac, mp4, webm, ...).

Only this module imports PyAV, the extra `m4a`.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from audiolm.errors import InputError

_SLACK = 128  # bytes: some writers count the header among the samples
_UNKNOWN = {0x7FFF, 0x8000, 0xFFFF}  # upper half of the sizes that sox, arecord and ffmpeg state in a pipe, the largest they can
_PAGE = 27 + 255 + 255 * 255  # bytes of the longest Ogg page
_EOS = 4  # flag of an Ogg stream's last page


def cut_off(path: Path) -> str:
    """How a .wav or .ogg shows that its end is missing, which libsndfile passes over; "" if it is whole or does not tell."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[:4] == b"OggS":
            file.seek(max(0, length - 2 * _PAGE))
            tail = file.read()
            start = tail.rfind(b"OggS")
            page = tail[start:] if start >= 0 else b""
            parts = page[27 : 27 + page[26]] if len(page) > 26 else b""
            ended = len(page) >= 27 + len(parts) + sum(parts) and len(page) > 5 and page[5] & _EOS
            return "its last page does not end the stream" if page and not ended else ""
        if head[:4] + head[8:] != b"RIFFWAVE":
            return ""
        for _ in range(1000):  # chunks; no recording has as many
            name, size = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
            if name == b"data":
                held = length - file.tell()
                cut = size - held > _SLACK and size >> 16 not in _UNKNOWN
                return f"{held} of {size} bytes of samples are there" if cut else ""
            file.seek(size + size % 2, os.SEEK_CUR)
    return ""


def open_audio(path: Path) -> Any:
    """An open av.container.InputContainer with an audio track. Raises InputError if there is none or it cannot be opened."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise InputError(f"{path}: reading {path.suffix} needs PyAV; run: pip install audiolm[m4a]") from error
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path}: not a sound file that can be read; convert it to wav, flac, mp3, ogg or opus") from error
    if not container.streams.audio:
        container.close()
        raise InputError(f"{path}: contains no audio track; give a recording")
    return container


def decode(path: Path, chunk: int) -> Iterator[np.ndarray]:
    """The samples as (T, C) float32 pieces of at least about `chunk` samples. Raises InputError if the file is damaged."""
    with open_audio(path) as container:
        import av
        import av.error

        stream = container.streams.audio[0]
        to_float = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=stream.codec_context.sample_rate)
        left = 1 << 62
        if "mp4" in container.format.name and stream.duration is not None and stream.time_base is not None:
            # The last AAC packet is padded with silence; only the container knows where the recording ends.
            left = round(stream.duration * stream.time_base * stream.codec_context.sample_rate)
        held: list[np.ndarray] = []
        try:
            for packet in container.decode(stream):
                for frame in to_float.resample(packet):
                    held.append(frame.to_ndarray().T[: max(0, left)])
                    left -= len(held[-1])
                if sum(map(len, held)) >= chunk:
                    yield np.concatenate(held)
                    held = []
        except av.error.FFmpegError as error:
            raise InputError(f"{path}: damaged; copy or record it again") from error
        if sum(map(len, held)):
            yield np.concatenate(held)
