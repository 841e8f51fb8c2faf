"""Stream a WAV file while its sound is still being generated: for pipes, players and web pages."""

import struct
from collections.abc import Iterable, Iterator

from audiolm.audio import Waveform, sixteen_bits
from audiolm.errors import InputError

UNKNOWN = 2**32 - 1
LARGEST = UNKNOWN - 36  # bytes of samples that a WAV file can hold


def wav(blocks: Iterable[Waveform], samples: int, sample_rate: int, fewer: bool = False) -> Iterator[bytes]:
    """The file that `Waveform.write` would make from the joined blocks (mono, 16 bits), in parts: its header, then each block.

    samples: the total number of samples, which the header states in advance. fewer: there may be fewer; then the header states
    the largest size there is, as ffmpeg's does in a pipe: until the end.
    """
    size = 2 * samples
    if size > LARGEST:
        raise InputError(
            f"{samples / sample_rate:.0f} s do not fit in one WAV file; ask for {LARGEST // 2 // sample_rate} s or less"
        )
    form = (b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)  # PCM, one channel
    whole, size = (UNKNOWN, UNKNOWN) if fewer else (36 + size, size)
    yield struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", whole, b"WAVE", *form, b"data", size)
    for block in blocks:
        yield sixteen_bits(block.samples[0].numpy()).tobytes()
