"""Attacks: what happens to recordings in use (re-encoding, resampling, noise, gain) and watermark and detector must survive.

Each of `ATTACKS`, under which figures are measured, depends on the sound alone: the same sound gives the same result.
`random_attack` draws one of random strength, for training.
"""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import soundfile
import torch
from torch import Generator

from audiolm.audio import Waveform

Attack = Callable[[Waveform], Waveform]


def recoded(sound: Waveform, form: str, subtype: str, level: float, **options: Any) -> Waveform:
    """Through a lossy codec and back, mono; `level` is libsndfile's compression level, 0 (best) to 1."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sound.sample_rate, 1, subtype, format=form, compression_level=level, **options) as file:
        for part in sound.samples[0].split(1 << 16):
            file.write(part.numpy())
    buffer.seek(0)
    samples, rate = soundfile.read(buffer, dtype="float32")
    return Waveform(torch.from_numpy(samples)[None], rate)


def mp3(sound: Waveform, level: float = 0.62) -> Waveform:
    """MP3 at a constant bit rate: level 0.62 is 64 kbit/s for 16 kHz sound."""
    return recoded(sound, "MP3", "MPEG_LAYER_III", level, bitrate_mode="CONSTANT")


def opus(sound: Waveform, level: float = 0.925) -> Waveform:
    """Opus: level 0.925 is 24 kbit/s, 0.96 is 16 kbit/s."""
    return recoded(sound, "OGG", "OPUS", level)


def noisy(sound: Waveform, decibel: float, seed: int | None = None) -> Waveform:
    """Add white noise, `decibel` dB below the sound's RMS level; without a seed, the noise depends on the length only."""
    generator = Generator().manual_seed(sound.samples.shape[1] if seed is None else seed)
    noise = torch.randn(sound.samples.shape, generator=generator)
    return Waveform(sound.samples + noise * sound.samples.square().mean().sqrt() * 10 ** (-decibel / 20), sound.sample_rate)


def by_way_of(sound: Waveform, sample_rate: int) -> Waveform:
    """Resample to `sample_rate` and back."""
    return sound.resample(sample_rate).resample(sound.sample_rate)


def louder(sound: Waveform, decibel: float) -> Waveform:
    """Apply a gain; samples beyond full scale are not clipped, as in a float file."""
    return Waveform(sound.samples * 10 ** (decibel / 20), sound.sample_rate)


def sixteen_bits(sound: Waveform) -> Waveform:
    """Round to 16 bits, as a file does."""
    return Waveform((sound.samples * 32768).round().clamp(-32768, 32767) / 32768, sound.sample_rate)


ATTACKS: dict[str, Attack] = {
    "none": lambda sound: sound,
    "16-bit PCM": sixteen_bits,
    "MP3 64 kbit/s": mp3,
    "Opus 24 kbit/s": opus,
    "Opus 16 kbit/s": partial(opus, level=0.96),
    "white noise 20 dB": partial(noisy, decibel=20),
    "white noise 10 dB": partial(noisy, decibel=10),
    "16 -> 22.05 -> 16 kHz": partial(by_way_of, sample_rate=22_050),
    "to 44.1 kHz": lambda sound: sound.resample(44_100),
    "to 8 kHz": lambda sound: sound.resample(8_000),
    "gain -26 dB": partial(louder, decibel=-26),
    "1 % faster": lambda sound: Waveform(sound.samples, round(sound.sample_rate * 1.01)),
}


def random_attack(sound: Waveform, generator: Generator) -> Waveform:
    """An attack of random kind and strength, or none (two times in five); the result has the sound's rate and length."""
    kind, seed = (int(torch.randint(limit, (), generator=generator)) for limit in (10, 1 << 31))
    strength = float(torch.rand((), generator=generator))
    attack: Attack = (
        *[ATTACKS["none"]] * 4,
        partial(mp3, level=0.3 + 0.65 * strength),
        partial(opus, level=0.85 + 0.12 * strength),
        partial(noisy, decibel=8 + 27 * strength, seed=seed),
        partial(noisy, decibel=8 + 27 * strength, seed=seed),
        partial(by_way_of, sample_rate=int(7_000 + 9_000 * strength)),
        lambda sound: noisy(opus(sound, 0.85 + 0.12 * strength), 20, seed),
    )[kind]
    attacked = attack(sound).resample(sound.sample_rate).samples[:, : sound.samples.shape[1]]
    missing = sound.samples.shape[1] - attacked.shape[1]
    return Waveform(torch.nn.functional.pad(attacked, (0, missing)), sound.sample_rate)
