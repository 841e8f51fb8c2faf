"""Read formats that libsndfile cannot (m4a, aac, mp4, webm, ...) with PyAV, the extra `m4a`; only this module imports it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from audiolm.errors import InputError


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
