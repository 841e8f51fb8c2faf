"""How files hold sound: reading them by libsndfile, or what it cannot (m4a, mp4, ...) by PyAV, and whether all of it is there.

Only this module imports PyAV, the extra `m4a`.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile

from audiolm.errors import InputError

CURE = "copy or record it again, or keep what there is: ffmpeg -i FILE whole.wav"
_ALLOWED_LOSS = 0.5  # s that a file may lack of its header's length; mp3 headers may count the encoder's padding
_TOLD_BY_NAME = {".mp3", ".gsm", ".vox"}  # their first bytes may not tell what they are
_SLACK = 128  # bytes: some writers count the header among the samples
_UNKNOWN = {0x7FFF, 0x8000, 0xFFFF}  # upper half of the sizes that sox, arecord and ffmpeg state in a pipe, the largest they can
_PAGE = 27 + 255 + 255 * 255  # bytes of the longest Ogg page
_BOS, _EOS = 2, 4  # flags of an Ogg stream's first and last page
_PADDING = 0.5  # s of an MP3 that players skip, at most
_KBITS = (
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)


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
                if size == 0 and held > _SLACK and not file.read(4).strip().isalnum():  # not the name of another chunk
                    return f"its header counts 0 bytes of samples, but {held} bytes follow"
                cut = size - held > _SLACK and size >> 16 not in _UNKNOWN
                return f"{held} of {size} bytes of samples are there" if cut else ""
            file.seek(size + size % 2, os.SEEK_CUR)
    return ""


def unread(path: Path, form: str, seconds: float) -> str:
    """How an Ogg or MP3 file shows that libsndfile, which reads `seconds` of it, passes over the rest; "" if it reads all.

    form: libsndfile's name of the format. Chained streams are only read to the end of the first, joined MP3s to the first one's
    stated length, and MP3s of variable bit rate without a header to a length that is guessed from the first frame.
    """
    with path.open("rb") as file:
        if form == "OGG" and _is_chained(file):
            return "it is several streams, one after the other"
        if form == "MP3" and (held := _mp3_seconds(file)) - seconds > _PADDING:
            return f"of {held:.2f} s only {seconds:.2f} s; its header states another length, or none"
    return ""


def _is_chained(file: IO[bytes]) -> bool:
    """Whether an Ogg stream begins after pages of another."""
    begun = False
    while (head := file.read(27))[:4] == b"OggS" and len(head) == 27:
        first = bool(head[5] & _BOS)
        if begun and first:
            return True
        begun |= not first
        file.seek(sum(file.read(head[26])), os.SEEK_CUR)
    return False


def _mp3_frames() -> dict[bytes, tuple[int, float]]:
    """Bytes and seconds of a layer III frame, by its header's second and third byte."""
    frames = {}
    for second in (0xE2, 0xE3, 0xF2, 0xF3, 0xFA, 0xFB):  # MPEG 2.5, 2 and 1, each with and without a checksum
        low = second < 0xFA
        for third in range(0x10, 0xF0):
            if third & 12 != 12:
                rate = (44_100, 48_000, 32_000)[third >> 2 & 3] >> low + (second < 0xF2)
                length = (72 if low else 144) * 1000 * _KBITS[low][(third >> 4) - 1] // rate + (third >> 1 & 1)
                frames[bytes((second, third))] = length, (576 if low else 1152) / rate
    return frames


def _mp3_seconds(file: IO[bytes]) -> float:
    """Length of an MP3 by its frames; 0 if its header states as many bytes as there are, and so can be believed."""
    frames, at, seconds, within = _mp3_frames(), 0, 0.0, False
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while (at := data.find(b"\xff", at)) >= 0:
            size, length = frames.get(data[at + 1 : at + 3], (0, 0.0))
            following = data[at + size : at + size + 2]
            # Other bytes, such as a tag's picture, may look like a frame, but hardly like two.
            if size and (following == data[at : at + 2] or (within and not following)):
                if not seconds:
                    _, said, stated = data[at : at + 64].replace(b"Info", b"Xing").partition(b"Xing")
                    if said and stated[3] & 2 and abs(int.from_bytes(stated[8:12], "big") - (len(data) - at)) <= 1024:
                        return 0.0
                at, seconds, within = at + size, seconds + length, True
            else:
                at, within = at + 1, False
    return seconds


class _FrontToBack(soundfile.SoundFile):
    """Disables soundfile's seek to the current position after each read, which loses the mp3 decoder's overlap."""

    def seekable(self) -> bool:
        return False


def open_sndfile(path: Path) -> soundfile.SoundFile:
    """An open file. InputError if it is none that libsndfile reads.

    By descriptor: given a name, libsndfile takes a Mac's "._" file beside an MP3 for a part of it, and refuses it.
    """
    name: Any = path
    try:
        if os.name == "posix":  # elsewhere a C library does not know another's descriptors
            try:
                return _FrontToBack(os.open(path, os.O_RDONLY))  # libsndfile closes it, even if it refuses the file
            except soundfile.SoundFileError:
                if path.suffix.lower() not in _TOLD_BY_NAME:
                    raise
            name = os.fsencode(path)  # soundfile refuses names that are not UTF-8
        return _FrontToBack(name)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a .raw file does not state its rate
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        if "does not exist" in reason:  # libsndfile's message for an mp3 without frames
            reason = "it contains no audio"
        raise InputError(
            f"{path}: not a sound file that can be read ({reason}); convert it to wav, flac, mp3, ogg or opus"
        ) from error


def decode_sndfile(path: Path, chunk_size: int) -> Iterator[np.ndarray]:
    """A file's samples as (T, C) float32 chunks of at most `chunk_size` frames. InputError where it is damaged or cut off."""
    with open_sndfile(path) as file:
        taken, stated = 0, file.frames if file.frames < 1 << 48 else 0
        while True:  # never all at once: a streamed file's header may claim 2^63 frames
            try:
                chunk = file.read(chunk_size, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise InputError(f"{path}: damaged after {file.tell() / file.samplerate:.2f} s; {CURE}") from error
            if not len(chunk):
                break
            taken += len(chunk)
            yield chunk
        if stated - taken > _ALLOWED_LOSS * file.samplerate:
            lengths = f"{taken / file.samplerate:.2f} s of {stated / file.samplerate:.2f} s"
            raise InputError(f"{path}: damaged or cut off; only {lengths} can be read; {CURE}")


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
