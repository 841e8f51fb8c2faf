"""Sound: read, write, resample, trim and plot it.

The library's interfaces take and return `Waveform`; networks inside see bare (B, C, T) tensors. libsndfile reads files
(wav, flac, mp3, ogg, opus, aiff, ...) at any rate; PyAV, if installed, reads what libsndfile cannot (m4a, aac, mp4, ...).
Any problem with a file raises an `InputError` that names the file and says what to do.
"""

import base64
import io
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from audiolm import containers, plots
from audiolm.errors import InputError
from audiolm.files import check_place, whole_file

MAX_CHANNELS = 32
CHUNK = 1 << 18  # samples per channel decoded at a time
LOWEST_RATE = 1000  # Hz
LOUDEST = 64.0  # +36 dB: beyond it a float file holds unscaled integers rather than a hot recording
BY_SNDFILE = frozenset({".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64"})
BY_AV = frozenset({".m4a", ".m4b", ".mp4", ".aac", ".3gp", ".mov", ".mkv", ".webm", ".wma"})
TAGS = ("title", "artist", "album", "comment", "software", "date", "copyright", "license", "genre", "tracknumber")
READABLE = BY_SNDFILE | BY_AV  # suffixes to look for when searching for recordings

_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


class _Kind(NamedTuple):
    """How libsndfile writes one kind of file: its names for it, supported rates (empty: any) and maximum channels."""

    format: str
    subtype: str
    rates: tuple[int, ...] = ()
    channels: int = MAX_CHANNELS


_WRITABLE = {
    ".wav": _Kind("WAV", "PCM_16"),
    ".flac": _Kind("FLAC", "PCM_16", channels=8),
    ".ogg": _Kind("OGG", "VORBIS"),
    ".opus": _Kind("OGG", "OPUS", rates=_OPUS_RATES, channels=8),
    ".mp3": _Kind("MP3", "MPEG_LAYER_III", rates=_MP3_RATES, channels=2),
}


@dataclass(frozen=True)
class AudioInfo:
    """Metadata of a file. `seconds` is exact if libsndfile reads the file, otherwise as the container states it."""

    seconds: float  # inf if a stream's header lacks the length and it was not counted
    sample_rate: int  # Hz
    channels: int


@dataclass(frozen=True, eq=False)
class Waveform:
    """Sound: `samples` (C, T) float32, full scale [-1, 1], all finite; T may be 0. `sample_rate` in Hz."""

    samples: Tensor
    sample_rate: int

    def __post_init__(self) -> None:
        x = self.samples
        if not isinstance(x, Tensor) or x.ndim != 2 or x.dtype != torch.float32 or not 1 <= x.shape[0] <= MAX_CHANNELS:
            got = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"samples must be a (1 to {MAX_CHANNELS} channels, time) float32 tensor, got {got}")
        if self.sample_rate <= 0:
            raise InputError(f"sample_rate must be above 0 Hz, got {self.sample_rate}")
        if x.numel() and not all(torch.isfinite(bound) for bound in x.aminmax()):
            raise InputError("samples must be finite, got NaN or infinity")

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples.shape[-1] / self.sample_rate

    def mono(self) -> "Waveform":
        """The mean of the channels."""
        return self if len(self.samples) == 1 else Waveform(self.samples.mean(0, keepdim=True), self.sample_rate)

    def resample(self, sample_rate: int) -> "Waveform":
        """Resample to another rate in Hz; the result has `resampled_length` samples."""
        if sample_rate == self.sample_rate:
            return self
        if sample_rate <= 0:
            raise InputError(f"sample_rate must be above 0 Hz, got {sample_rate}")
        chunks = _resampled([_to_numpy(self.samples)], len(self.samples), self.sample_rate, sample_rate)
        return _from_numpy(np.concatenate(list(chunks)), sample_rate)

    def trim(self, seconds: float | None = None, start: float = 0.0) -> "Waveform":
        """Keep `seconds` (default: all) from `start` on, or as much as there is. InputError if nothing would be left."""
        if not (start >= 0 and (seconds is None or seconds > 0)):
            raise InputError(f"cannot keep {seconds} s from {start} s on; give a length above 0 and a non-negative start")
        # Clamp first: infinity cannot be converted to a number of samples.
        first = round(min(start, self.seconds) * self.sample_rate)
        if first >= self.samples.shape[-1]:
            raise InputError(f"cannot start at {start:g} s; the sound is only {self.seconds:.3f} s long")
        last = None if seconds is None else first + max(1, round(min(seconds, self.seconds) * self.sample_rate))
        return Waveform(self.samples[:, first:last], self.sample_rate)

    def write(self, path: str | os.PathLike[str], tags: Mapping[str, str] | None = None) -> None:
        """Write a .wav or .flac (16 bits), .ogg, .opus or .mp3 file atomically; samples beyond [-1, 1] are clipped.

        If opus or mp3 does not support the rate, the sound is resampled to the next higher one that it does, or its highest.
        `tags` (names in `TAGS`) are kept as far as the format allows. InputError if the path or its suffix is unusable.
        """
        kind = check_output(path)
        encoded = _encode(self, kind, str(path), tags or {})
        with whole_file(path) as temporary:
            temporary.write_bytes(encoded)

    def to_bytes(self, suffix: str = ".wav", tags: Mapping[str, str] | None = None) -> bytes:
        """The bytes that `write` would write to a file with this suffix."""
        return _encode(self, _kind(suffix, suffix), suffix, tags or {})

    def _repr_html_(self) -> str:
        """Notebook view: a player and, if matplotlib is installed, a plot. At most two minutes are embedded."""
        if not self.samples.numel():
            return "<p>Waveform of 0 s</p>"
        shown = self.trim(120.0)
        html = f'<audio controls src="data:audio/wav;base64,{base64.b64encode(shown.to_bytes()).decode()}"></audio>'
        try:
            picture = plots.picture(shown.mono().samples[0].detach().cpu(), shown.sample_rate)
        except ImportError:
            return html
        return f'{html}<br><img alt="waveform and spectrogram" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def read(path: str | os.PathLike[str], minimum_seconds: float = 0.0, seconds: float | None = None) -> Waveform:
    """Read a sound file, or no more than its first `seconds`, at its own sample rate, with its own channels.

    InputError if the file is missing, is not a sound file, is damaged or cut off, holds no samples, NaN, infinity or more than
    32 channels, peaks above 64 times full scale, or is shorter than `minimum_seconds`.
    """
    if seconds is None:
        info = probe(path, count=False)
        sound = _from_numpy(np.concatenate(list(_decode(Path(path)))), info.sample_rate)
    else:
        sound = next(blocks(path, seconds))
    if sound.seconds < minimum_seconds:
        raise InputError(f"{path}: only {sound.seconds:.3g} s of sound; give a recording of at least {minimum_seconds:g} s")
    return sound


def probe(path: str | os.PathLike[str], count: bool = True) -> AudioInfo:
    """Length, rate and channels of a file without decoding it. InputError as for `read`, as far as the header shows.

    count: if the header does not state the length, decode the file to count it.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name one sound file in it")
    if path.suffix.lower() in BY_AV:
        with containers.open_audio(path) as container:
            stream = container.streams.audio[0]
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / 1e6
            info = AudioInfo(seconds, stream.codec_context.sample_rate, stream.codec_context.channels)
    else:
        with containers.open_sndfile(path) as file:
            info = AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels)
            if lacks := containers.cut_off(path):
                raise InputError(f"{path}: damaged or cut off ({lacks}); {containers.CURE}")
            if why := containers.unread(path, file.format, info.seconds):
                raise InputError(f"{path}: cannot be read to its end ({why}); convert it: ffmpeg -i FILE whole.wav")
            if file.frames > 1 << 48:  # a stream's header that lacks the length
                frames = sum(map(len, _decode(path))) if count else math.inf
                info = AudioInfo(frames / file.samplerate, file.samplerate, file.channels)
    if info.sample_rate < LOWEST_RATE:
        raise InputError(f"{path}: states {info.sample_rate} samples a second, which is no sound; correct its header")
    if info.channels > MAX_CHANNELS:
        raise InputError(f"{path}: {info.channels} channels; mix it down to {MAX_CHANNELS} or fewer")
    return info


def tags(path: str | os.PathLike[str]) -> dict[str, str]:
    """A file's tags named in `TAGS`, such as those of `Waveform.write`; empty for files that libsndfile does not read."""
    if Path(path).suffix.lower() in BY_AV:
        return {}
    with containers.open_sndfile(Path(path)) as file:
        return {name: text for name in TAGS if (text := getattr(file, name))}


def blocks(
    path: str | os.PathLike[str], seconds: float, sample_rate: int | None = None, mono: bool = False
) -> Iterator[Waveform]:
    """Read a file of any length in blocks of `seconds` (the last may be shorter), in constant memory.

    Joined, the blocks equal `read(path)`, mixed down if `mono` and resampled to `sample_rate`.
    """
    info = probe(path, count=False)
    rate = info.sample_rate if sample_rate is None else sample_rate
    if seconds <= 0 or rate <= 0:
        raise InputError(f"{path}: cannot be read in blocks of {seconds} s at {rate} Hz; give numbers above 0")
    channels = 1 if mono else info.channels
    chunks = _decode(Path(path))
    if mono:
        chunks = (chunk.mean(1, keepdims=True) for chunk in chunks)
    if rate != info.sample_rate:
        chunks = _resampled(chunks, channels, info.sample_rate, rate)
    length = max(1, round(seconds * rate))
    held = np.empty((0, channels), np.float32)
    for chunk in chunks:
        held = np.concatenate([held, chunk])
        while len(held) >= length:
            yield _from_numpy(held[:length], rate)
            held = held[length:]
    if len(held):
        yield _from_numpy(held, rate)


@contextmanager
def as_file(stream: IO[bytes], name: str) -> Iterator[Path]:
    """Copy the rest of a stream to a temporary file for the duration of the context; errors refer to it as `name`."""
    head = stream.read(12)
    with NamedTemporaryFile(suffix=_suffix(head)) as copy:
        copy.write(head)
        shutil.copyfileobj(stream, copy)
        copy.flush()
        try:
            yield Path(copy.name)
        except InputError as error:
            raise InputError(str(error).replace(copy.name, name)) from None


def sixteen_bits(samples: np.ndarray) -> np.ndarray:
    """16-bit samples as written to files. libsndfile writes with 32767 but reads with 32768; this round-trips bit-exactly."""
    return (samples * 32768).round().clip(-32768, 32767).astype("<i2")


def resampled_length(samples: int, old: int, new: int) -> int:
    """Number of samples at rate `new` equivalent to `samples` at rate `old`, rounded half up."""
    return (2 * samples * new + old) // (2 * old)


def concatenate(waveforms: Sequence[Waveform]) -> Waveform:
    """Join sounds end to end; they must share one sample rate and number of channels."""
    kinds = {(sound.sample_rate, len(sound.samples)) for sound in waveforms}
    if len(kinds) != 1:
        raise InputError(f"sounds to join must share one (rate, channels), got {sorted(kinds)}; use .resample() and .mono()")
    return Waveform(torch.cat([sound.samples for sound in waveforms], dim=1), waveforms[0].sample_rate)


def check_output(path: str | os.PathLike[str]) -> _Kind:
    """Reject a path that `Waveform.write` could not write, before any expensive work is done."""
    check_place(Path(path))
    return _kind(Path(path).suffix, str(path))


def plot(waveform: Waveform, path: str | os.PathLike[str], prompt_seconds: float | None = None, title: str | None = None) -> None:
    """Draw the waveform over its spectrogram (mel scale, 0 to 8 kHz) as .png, .svg, .pdf or .jpg.

    A grey line marks the end of the prompt. Needs matplotlib, the extra `plot`.
    """
    plots.check_picture(path)
    if not waveform.samples.numel():
        raise InputError(f"{path}: there is no sound to draw")
    samples = waveform.mono().samples[0].detach().cpu()
    picture = plots.picture(samples, waveform.sample_rate, prompt_seconds, title, Path(path).suffix.lower()[1:])
    with whole_file(path) as temporary:
        temporary.write_bytes(picture)


# --- Files -----------------------------------------------------------------------------------------------------------


def _decode(path: Path) -> Iterator[np.ndarray]:
    """A file's samples as (T, C) float32 chunks, each checked."""
    empty = True
    for chunk in (containers.decode if path.suffix.lower() in BY_AV else containers.decode_sndfile)(path, CHUNK):
        empty = False
        peak = np.abs(chunk).max()
        if not np.isfinite(peak):
            raise InputError(f"{path}: holds NaN or infinite samples; save it again from the program that made it")
        if peak > LOUDEST:
            raise InputError(f"{path}: samples reach {peak:.0f}, but full scale is 1; divide by 32768 and save it again")
        yield chunk
    if empty:
        raise InputError(f"{path}: holds no samples; record it again")


def _suffix(head: bytes) -> str:
    """The suffix that selects a decoder for a file starting with `head`; libsndfile (.wav) detects its formats itself."""
    if head[4:8] == b"ftyp":
        return ".m4a"
    if head[:4] == b"\x1aE\xdf\xa3":
        return ".webm"
    # The sync word of raw AAC frames; MP3's has different layer bits.
    return ".aac" if head[:1] == b"\xff" and head[1:2] and head[1] & 0xF6 == 0xF0 else ".wav"


def _kind(suffix: str, name: str) -> _Kind:
    try:
        return _WRITABLE[suffix.lower()]
    except KeyError:
        raise InputError(f"{name}: cannot write '{suffix}' files; use one of {', '.join(_WRITABLE)}") from None


def _encode(sound: Waveform, kind: _Kind, name: str, tags: Mapping[str, str]) -> bytes:
    # Encoded in memory, because libsndfile does not report a disk that fills up as it closes a file.
    if not sound.samples.numel():
        raise InputError(f"{name}: there is no sound to write")
    if len(sound.samples) > kind.channels:
        raise InputError(f"{name}: {kind.format} holds at most {kind.channels} channels; use .mono() or a .wav file")
    if kind.rates and sound.sample_rate not in kind.rates:
        sound = sound.resample(min((rate for rate in kind.rates if rate >= sound.sample_rate), default=kind.rates[-1]))
    data = _to_numpy(sound.samples).clip(-1.0, 1.0)
    if kind.subtype == "PCM_16":
        data = sixteen_bits(data)
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", sound.sample_rate, data.shape[1], kind.subtype, format=kind.format) as file:
            for key, text in tags.items():
                if key not in TAGS:
                    raise InputError(f"{name}: unknown tag '{key}'; choose from {', '.join(TAGS)}")
                setattr(file, key, text)
            for first in range(0, len(data), 1 << 16):  # the Vorbis encoder overflows the stack on one long write
                file.write(data[first : first + (1 << 16)])
    except soundfile.SoundFileError as error:
        raise InputError(f"{name}: cannot be encoded ({str(error).rstrip('.')}); choose a .wav file or other tags") from error
    return buffer.getvalue()


# --- Samples ---------------------------------------------------------------------------------------------------------


def _to_numpy(samples: Tensor) -> np.ndarray:
    return samples.detach().cpu().numpy().T


def _from_numpy(samples: np.ndarray, sample_rate: int) -> Waveform:
    return Waveform(torch.from_numpy(np.ascontiguousarray(samples.T)), sample_rate)


def _resampled(chunks: Iterable[np.ndarray], channels: int, old: int, new: int) -> Iterator[np.ndarray]:
    """Resample (T, C) chunks from rate `old` to `new`; their total length is exactly `resampled_length`."""
    stream = soxr.ResampleStream(old, new, channels, dtype="float32")
    taken = given = 0
    length = max(1, (1 << 28) * old // new)  # soxr crashes if one chunk becomes more than 2^31 samples
    for piece in (chunk[first : first + length] for chunk in chunks for first in range(0, len(chunk), length)):
        resampled = stream.resample_chunk(np.ascontiguousarray(piece))
        taken, given = taken + len(piece), given + len(resampled)
        yield resampled
    rest = stream.resample_chunk(np.empty((0, channels), np.float32), last=True)
    missing = resampled_length(taken, old, new) - given - len(rest)  # soxr is occasionally off by one sample
    yield np.pad(rest, ((0, missing), (0, 0))) if missing > 0 else rest[: len(rest) + missing]
