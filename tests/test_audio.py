import errno
import io
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiolm import audio
from audiolm.audio import Waveform, blocks, check_output, concatenate, plot, probe, read, resampled_length
from audiolm.errors import InputError

ENCODED = ("wav", "flac", "ogg", "opus", "mp3")


def chirp(seconds: float, sample_rate: int, channels: int = 1) -> Waveform:
    """A rising tone with other loudness in each channel: every moment of it is different."""
    time = torch.arange(round(seconds * sample_rate)) / sample_rate
    tone = 0.5 * torch.sin(2 * math.pi * (100 + 300 * time) * time)
    return Waveform(torch.stack([tone / (1 + channel) for channel in range(channels)]), sample_rate)


def similarity(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


# --- Round trips -----------------------------------------------------------------------------------------------------


@given(
    suffix=st.sampled_from([".wav", ".flac"]),
    rate=st.integers(1000, 48000) | st.sampled_from([88200, 96000, 192000]),  # above 65535 Hz flac wants tens
    channels=st.integers(1, 8),
    length=st.integers(1, 3000),
    seed=st.integers(0, 1000),
)
def test_a_lossless_file_gives_back_every_sample(tmp_path_factory, suffix, rate, channels, length, seed):
    path = tmp_path_factory.getbasetemp() / f"round{suffix}"
    levels = torch.randint(-32768, 32768, (channels, length), generator=torch.Generator().manual_seed(seed))
    sound = Waveform(levels.float() / 32768, rate)
    sound.write(path)
    again = read(path)
    assert again.sample_rate == rate
    assert torch.equal(again.samples, sound.samples)


@pytest.mark.parametrize("suffix", ENCODED)
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 96000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_gives_back_the_sound(tmp_path: Path, suffix: str, rate: int, channels: int):
    path = tmp_path / f"sound.{suffix}"
    sound = chirp(0.5, rate, channels)
    sound.write(path)
    again = read(path)
    assert probe(path) == audio.AudioInfo(again.seconds, again.sample_rate, channels)
    assert again.seconds == pytest.approx(0.5, abs=1e-4)
    if suffix not in ("opus", "mp3"):
        assert again.sample_rate == rate
    wanted = sound.resample(again.sample_rate).samples
    for channel in range(channels):
        assert similarity(again.samples[channel], wanted[channel]) > 0.98


@pytest.mark.parametrize("suffix", ENCODED)
def test_a_real_voice_survives(tmp_path: Path, female: Waveform, suffix: str):
    path = tmp_path / f"voice.{suffix}"
    female.write(path)
    again = read(path)
    assert (again.sample_rate, again.samples.shape) == (16000, female.samples.shape)
    assert similarity(again.samples, female.samples) > 0.97
    if suffix in ("wav", "flac"):
        assert torch.equal(again.samples, female.samples)


def test_what_is_too_loud_is_clipped_not_wrapped(tmp_path: Path):
    Waveform(torch.tensor([[3.0, -3.0, 1.0, -1.0]]), 16000).write(tmp_path / "loud.wav")
    assert read(tmp_path / "loud.wav").samples[0].tolist() == [32767 / 32768, -1, 32767 / 32768, -1]


@pytest.mark.parametrize("suffix", ENCODED)
def test_tags_are_kept(tmp_path: Path, suffix: str):
    path = tmp_path / f"tagged.{suffix}"
    chirp(0.2, 16000).write(path, tags={"title": "a voice", "comment": "made by a machine"})
    with soundfile.SoundFile(path) as file:
        assert (file.title, file.comment) == ("a voice", "made by a machine")


def test_bytes_are_what_a_file_holds(tmp_path: Path, male: Waveform):
    male.write(tmp_path / "a.wav")
    assert male.to_bytes(".wav") == (tmp_path / "a.wav").read_bytes()


def test_a_long_vorbis_file_is_written(tmp_path: Path):
    # libsndfile's encoder dies on one write of this length: it must be given pieces.
    chirp(60, 44100).write(tmp_path / "long.ogg")
    assert probe(tmp_path / "long.ogg").seconds == pytest.approx(60)


def test_m4a(tmp_path: Path):
    av = pytest.importorskip("av")
    sound = chirp(1.0, 44100, 2)
    path = tmp_path / "phone.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(sound.samples.numpy(), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    again = read(path)
    assert again.samples.shape == sound.samples.shape  # without the encoder's padding
    assert probe(path) == audio.AudioInfo(1.0, 44100, 2)
    assert similarity(again.samples, sound.samples) > 0.98
    joined = concatenate(list(blocks(path, 0.3, sample_rate=16000, mono=True)))
    torch.testing.assert_close(joined.samples, again.mono().resample(16000).samples, atol=1e-6, rtol=0)


@pytest.mark.parametrize("suffix", [*ENCODED, "aiff", "caf", "au", "w64"])
def test_a_macs_companion_beside_a_file_changes_nothing(tmp_path: Path, female: Waveform, suffix: str):
    path = tmp_path / f"voice.{suffix}"
    if suffix in ENCODED:
        female.write(path)
    else:
        soundfile.write(path, female.samples[0].numpy(), 16_000, "PCM_16", format=suffix.upper())
    alone = read(path)
    (tmp_path / f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000))
    assert torch.equal(read(path).samples, alone.samples)
    assert probe(path).seconds == 4.4
    assert torch.equal(next(blocks(path, 1.0)).samples, alone.samples[:, :16_000])


def test_an_mp3_is_found_behind_other_bytes(tmp_path: Path, female: Waveform):
    whole = female.to_bytes(".mp3")
    (tmp_path / "voice.mp3").write_bytes(bytes(3000) + whole)
    assert read(tmp_path / "voice.mp3").samples.shape == female.samples.shape


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chirp(0.1, 8000).write(tmp_path / "x.wav")

    def refuse(path: Path, flags: int) -> int:  # root may read files of mode 000
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    for act in (probe, read, audio.tags):
        one_line(lambda act=act: act(tmp_path / "x.wav"), r"x.wav: cannot be read \(Permission denied\); check .* permissions")


# --- Resampling, blocks, cutting -------------------------------------------------------------------------------------


@given(
    length=st.integers(1, 5000),
    old=st.sampled_from([7350, 8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    new=st.sampled_from([8000, 16000, 22050, 24000, 48000]),
    channels=st.integers(1, 3),
)
def test_the_length_after_resampling_is_the_rounded_one(length, old, new, channels):
    resampled = Waveform(torch.zeros(channels, length), old).resample(new)
    assert resampled.samples.shape == (channels, resampled_length(length, old, new))
    assert abs(resampled.samples.shape[1] - length * new / old) <= 0.5


def test_resampling_never_asks_for_more_than_the_resampler_can_count(monkeypatch: pytest.MonkeyPatch):
    given, real = [], soxr.ResampleStream.resample_chunk

    def resample_chunk(self: soxr.ResampleStream, samples: np.ndarray, last: bool = False) -> np.ndarray:
        given.append(len(samples))
        return real(self, samples[:1], last)

    monkeypatch.setattr(soxr.ResampleStream, "resample_chunk", resample_chunk)
    next(iter(audio._resampled([np.zeros((1 << 20, 1), np.float32)], 1, 1, 16_000)))
    assert max(given) * 16_000 < 1 << 31


@pytest.mark.parametrize(("old", "new"), [(44100, 16000), (16000, 48000), (22050, 24000)])
def test_resampling_keeps_a_tone(old: int, new: int):
    def tone(rate: int) -> Waveform:
        return Waveform(torch.sin(2 * math.pi * 440 * torch.arange(rate) / rate)[None], rate)

    middle = slice(new // 10, -new // 10)  # the ends ring: there is silence beyond them
    assert (tone(old).resample(new).samples - tone(new).samples)[:, middle].abs().max() < 1e-3


@pytest.mark.parametrize("suffix", ENCODED)
@pytest.mark.parametrize("seconds", [0.01, 0.3, 10])
@pytest.mark.parametrize("rate", [None, 16000, 48000])
def test_blocks_joined_are_the_whole(tmp_path: Path, suffix: str, seconds: float, rate: int | None, monkeypatch):
    path = tmp_path / f"long.{suffix}"
    chirp(1.2345, 24000, 2).write(path)
    whole = read(path).resample(rate or 24000)
    monkeypatch.setattr(audio, "CHUNK", 1000)  # the decoder's own pieces must not show either
    parts = list(blocks(path, seconds, rate))
    torch.testing.assert_close(concatenate(parts).samples, whole.samples, atol=1e-6, rtol=0)
    assert {part.samples.shape[1] for part in parts[:-1]} <= {round(seconds * whole.sample_rate)}
    mixed = concatenate(list(blocks(path, seconds, rate, mono=True)))
    torch.testing.assert_close(mixed.samples, whole.mono().samples, atol=1e-6, rtol=0)


def test_blocks_read_only_what_they_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chirp(10, 16000).write(tmp_path / "long.wav")
    monkeypatch.setattr(audio, "CHUNK", 4000)
    taken = []
    real = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: taken.append(len(out := real(*a, **k))) or out)
    parts = blocks(tmp_path / "long.wav", 1.0, 8000)
    for count in range(1, 4):
        assert next(parts).seconds == 1.0
        assert sum(taken) <= count * 16000 + 2 * 4000


def test_trim_and_concatenate(male: Waveform):
    parts = [male.trim(1.5), male.trim(1.0, start=1.5), male.trim(start=2.5)]
    assert [round(part.seconds, 6) for part in parts] == [1.5, 1.0, 1.9]
    assert torch.equal(concatenate(parts).samples, male.samples)
    assert [male.trim(long).seconds for long in (100, 1e308, float("inf"))] == [male.seconds] * 3


def test_mono_is_the_mean():
    assert chirp(0.1, 8000, 2).mono().samples.allclose(chirp(0.1, 8000).samples * 0.75, atol=1e-6)


# --- What is wrong with it -------------------------------------------------------------------------------------------


def one_line(act: Callable[[], object], *words: str) -> None:
    """`act` fails with one line that has all the words."""
    with pytest.raises(InputError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message


def bad_files(folder: Path) -> dict[str, str]:
    """name -> what its message must say."""
    (folder / "text.wav").write_text("not sound at all\n" * 100)
    (folder / "text.m4a").write_text("not sound at all\n" * 100)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "headerless.raw").write_bytes(bytes(1000))
    (folder / "text.au").write_text("not sound at all\n" * 100)  # by its name alone libsndfile takes it for mu-law
    soundfile.write(folder / "silent.wav", np.zeros((0, 1), np.float32), 16000)
    soundfile.write(folder / "nan.wav", np.full((100, 1), np.nan, np.float32), 16000, "FLOAT")
    soundfile.write(folder / "inf.wav", np.full((100, 1), np.inf, np.float32), 16000, "FLOAT")
    soundfile.write(folder / "unscaled.wav", np.full((100, 1), 20000, np.float32), 16000, "FLOAT")
    soundfile.write(folder / "slow.wav", np.zeros((100, 1), np.float32), 1)
    soundfile.write(folder / "crowd.wav", np.zeros((100, 50), np.float32), 16000)
    (folder / "folder.wav").mkdir()
    for name in ("cut.flac", "cut.mp3"):
        chirp(2.0, 16000).write(folder / name)
        os.truncate(folder / name, (folder / name).stat().st_size // 2)
    return {
        "missing.wav": "no such file",
        "text.wav": "convert it to",
        "text.m4a": "convert it to|pip install",
        "empty.wav": "convert it to",
        "headerless.raw": "convert it to",
        "text.au": "convert it to",
        "silent.wav": "no samples",
        "nan.wav": "NaN",
        "inf.wav": "infinite",
        "unscaled.wav": "divide by 32768",
        "slow.wav": "1 samples a second, which is no sound",
        "crowd.wav": "50 channels; mix it down",
        "folder.wav": "a folder",
        "cut.flac": "damaged after",
        "cut.mp3": r"damaged or cut off; only .* of 2\.00 s can be read",
    }


def test_bad_files_are_one_line_each(tmp_path: Path):
    for name, words in bad_files(tmp_path).items():
        one_line(lambda path=tmp_path / name: read(path), re.escape(name), words)
        one_line(lambda path=tmp_path / name: list(blocks(path, 1.0, 8000)), re.escape(name), words)


def encoded(form: str, subtype: str) -> bytes:
    noise = np.random.default_rng(0).normal(0, 0.1, (48_001, 1)).astype(np.float32)  # odd, for a padding byte
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, 16_000, subtype, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "FLOAT", "ALAW", "IMA_ADPCM"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_a_wav_that_was_cut_off_is_not_taken_for_whole(tmp_path: Path, form: str, subtype: str):
    if (form, subtype) == ("WAVEX", "IMA_ADPCM"):
        pytest.skip("there is no such file")
    path, whole = tmp_path / "x.wav", encoded(form, subtype)
    at = whole.index(b"data") + 4
    stated = int.from_bytes(whole[at : at + 4], "little")
    sizes = [(0x7FFFFFFF - 44).to_bytes(4, "little"), b"\0\0\0\x80", b"\xff\xff\xff\xff"]  # sox, arecord, ffmpeg in a pipe
    piped = [whole[:at] + size + whole[at + 4 : at + 4 + stated] for size in sizes]
    counted = whole[:at] + (stated + at + 4).to_bytes(4, "little") + whole[at + 4 : at + 4 + stated]
    for good in (whole, whole + b"LIST\4\0\0\0INFO", whole[: at + 4 + stated], counted, *piped):
        path.write_bytes(good)
        assert read(path).seconds == pytest.approx(3, abs=0.07)  # whole blocks of ADPCM
    path.write_bytes(whole[:at] + bytes(4) + whole[at + 4 :])  # the recorder died before it could count
    one_line(lambda: read(path), "x.wav: damaged or cut off .its header counts 0 bytes of samples, but", "ffmpeg -i")
    for length in (len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:length])
        one_line(lambda: read(path), "x.wav: damaged or cut off", f"of {stated} bytes of samples", "ffmpeg -i")
        one_line(lambda: probe(path), "x.wav: damaged or cut off")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_was_cut_off_is_not_taken_for_whole(tmp_path: Path, subtype: str):
    path, whole = tmp_path / "x.ogg", encoded("OGG", subtype)
    for good in (whole, whole + b"TAG" + bytes(125)):
        path.write_bytes(good)
        assert read(path).samples.shape[1] >= 48_001
    pages = [match.start() for match in re.finditer(b"OggS", whole)]
    assert len(pages) > 3
    for length in (pages[-1], pages[-1] + 3, pages[-1] + 20, pages[-1] + 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        one_line(lambda: read(path), "x.ogg: damaged or cut off .its last page", "ffmpeg -i")
    with audio.as_file(io.BytesIO(whole), "upload") as copy:
        assert read(copy).samples.shape[1] == 48_001

    def uploaded() -> Waveform:
        with audio.as_file(io.BytesIO(whole[:-1]), "upload") as copy:
            return read(copy)

    one_line(uploaded, "^upload: damaged or cut off")


@pytest.mark.parametrize("suffix", ["ogg", "opus", "mp3"])
def test_a_file_is_not_read_in_part(tmp_path: Path, female: Waveform, suffix: str):
    path = tmp_path / f"joined.{suffix}"
    start, end = (part.to_bytes(f".{suffix}") for part in (female.trim(2.0), female.trim(start=2.0)))
    path.write_bytes(start + end)
    for act in (probe, read, lambda path: next(blocks(path, 1.0))):
        one_line(lambda act=act: act(path), f"joined.{suffix}: cannot be read to its end", "ffmpeg -i")
    path.write_bytes(start)
    assert read(path).seconds == pytest.approx(2)


def test_an_mp3s_length_is_that_of_its_frames(tmp_path: Path, female: Waveform):
    path, whole = tmp_path / "x.mp3", female.to_bytes(".mp3")
    noise = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8).tobytes()
    picture = b"ID3\3\0\0" + bytes([0, 1 << 20 >> 14, 0, 0]) + noise  # a cover of 1 MB
    for good in (whole, picture + whole, whole + b"APETAGEX" + noise):
        path.write_bytes(good)
        assert read(path).seconds == female.seconds
    headless = whole[whole.index(whole[:2], 2) :]  # variable bit rate: the first frame tells nothing of the length
    path.write_bytes(headless)
    one_line(lambda: probe(path), r"x.mp3: cannot be read to its end .of 4\.\d\d s only [23]\.\d\d s", "ffmpeg -i")


def test_too_short_is_refused_where_a_minimum_is_asked_for(tmp_path: Path):
    path = tmp_path / "click.wav"
    chirp(0.001, 16000).write(path)
    assert read(path).samples.shape == (1, 16)
    one_line(lambda: read(path, minimum_seconds=0.1), "click.wav: only 0.001 s", "at least 0.1 s")


def test_m4a_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "phone.m4a").write_bytes(b"x")
    one_line(lambda: read(tmp_path / "phone.m4a"), "phone.m4a", re.escape("pip install audiolm[m4a]"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.xyz", "'.xyz'.*use one of .wav"),
        ("plain", "use one of"),
        ("nowhere/x.wav", "no such folder"),
        ("", "folder"),
    ],
)
def test_an_output_that_cannot_be_written(tmp_path: Path, name: str, words: str):
    one_line(lambda: chirp(0.1, 8000).write(tmp_path / name), words)
    one_line(lambda: check_output(tmp_path / name), words)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    one_line(lambda: check_output(tmp_path / "file" / "x.wav"), r"file is a file\); name a file in a folder")


def test_what_was_there_keeps_its_permissions_and_links(tmp_path: Path):
    private, link = tmp_path / "private.wav", tmp_path / "link.wav"
    private.write_bytes(b"an earlier result")
    private.chmod(0o600)
    link.symlink_to("private.wav")
    chirp(0.1, 8000).write(link)
    assert link.is_symlink()
    assert read(private).seconds == pytest.approx(0.1)
    assert private.stat().st_mode & 0o777 == 0o600
    private.chmod(0o444)
    chirp(0.2, 8000).write(private)
    assert private.stat().st_mode & 0o777 == 0o444
    (tmp_path / "new.wav").symlink_to("elsewhere.wav")
    chirp(0.1, 8000).write(tmp_path / "new.wav")
    assert (tmp_path / "elsewhere.wav").is_file()
    (tmp_path / "lost.wav").symlink_to("nowhere/x.wav")
    one_line(lambda: check_output(tmp_path / "lost.wav"), "lost.wav: .*no such folder.; create .*nowhere first")
    assert {path.name for path in tmp_path.iterdir()} == {"private.wav", "link.wav", "new.wav", "elsewhere.wav", "lost.wav"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_not_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to("pipe.wav")
    for path in (tmp_path / "pipe.wav", tmp_path / "link.wav"):
        one_line(lambda path=path: check_output(path), f"{path.name}: is a pipe or a device, not a file")
        one_line(lambda path=path: chirp(0.1, 8000).write(path), f"{path.name}: is a pipe or a device, not a file")
    one_line(lambda: chirp(0.1, 8000).write(tmp_path / f"{'x' * 300}.wav"), "file name too long")
    assert (tmp_path / "pipe.wav").is_fifo()


def test_more_channels_than_a_format_holds(tmp_path: Path):
    one_line(lambda: chirp(0.1, 16000, 3).write(tmp_path / "x.mp3"), "x.mp3: MP3 holds at most 2 channels", "mono")
    one_line(lambda: chirp(0.1, 16000, 9).write(tmp_path / "x.flac"), "x.flac: FLAC holds at most 8 channels")
    chirp(0.1, 16000, 32).write(tmp_path / "x.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]


def test_wrong_words_and_numbers(tmp_path: Path, male: Waveform):
    one_line(lambda: male.trim(-1), "-1 s")
    one_line(lambda: male.trim(1, start=-1), "non-negative")
    one_line(lambda: male.trim(float("nan")), "keep nan s")
    one_line(lambda: male.trim(1, start=float("nan")), "from nan s")
    one_line(lambda: male.trim(1, start=float("inf")), "start at inf s")
    one_line(lambda: male.trim(1, start=9), "only 4.400 s long")
    one_line(lambda: male.resample(0), "above 0 Hz")
    one_line(lambda: male.write(tmp_path / "x.wav", tags={"mood": "calm"}), "unknown tag 'mood'")
    one_line(lambda: concatenate([]), "to join")
    one_line(lambda: concatenate([male, male.resample(8000)]), "share one")
    one_line(lambda: list(blocks(tmp_path / "x.wav", 1)), "no such file")
    one_line(lambda: Waveform(torch.zeros(1, 0), 8000).write(tmp_path / "x.wav"), "no sound to write")
    assert list(tmp_path.iterdir()) == []


def test_a_waveform_refuses_what_it_is_not():
    for samples in (torch.zeros(5), torch.zeros(1, 5, dtype=torch.float64), torch.zeros(0, 5), torch.zeros(50, 5), [0.0]):
        one_line(lambda samples=samples: Waveform(samples, 16000), "samples must be a")  # type: ignore[arg-type]
    for value in (math.nan, math.inf, -math.inf):
        one_line(lambda value=value: Waveform(torch.tensor([[0.0, value]]), 16000), "finite")
    one_line(lambda: Waveform(torch.zeros(1, 5), 0), "sample_rate")


@pytest.mark.parametrize("old", [None, b"an earlier result"])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None):
    path = tmp_path / "out.wav"
    if old is not None:
        path.write_bytes(old)

    def write_half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    one_line(lambda: chirp(0.1, 8000).write(path), "out.wav: cannot be written", "no space left")
    assert [other.name for other in tmp_path.iterdir()] == ([] if old is None else ["out.wav"])
    if old is not None:
        assert path.read_bytes() == old


# --- Pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sound", [chirp(1, 16000), chirp(0.5, 44100, 2), chirp(1, 4000), Waveform(torch.zeros(1, 1), 16000)])
def test_a_picture_is_drawn_of_any_sound(tmp_path: Path, sound: Waveform):
    image = pytest.importorskip("matplotlib.image")
    plot(sound, tmp_path / "out.png")
    assert image.imread(tmp_path / "out.png").shape == (576, 1200, 4)


def test_a_grey_line_stands_where_the_prompt_ends(tmp_path: Path, female: Waveform):
    image = pytest.importorskip("matplotlib.image")
    plot(female, tmp_path / "plain.png")
    plot(female, tmp_path / "line.png", prompt_seconds=3.3)
    pixels = image.imread(tmp_path / "line.png")
    changed = np.abs(pixels - image.imread(tmp_path / "plain.png"))[300:500].sum((0, 2))  # of the spectrogram alone
    left, right = np.flatnonzero(changed)[[0, -1]]
    assert right - left < 8
    axes = np.flatnonzero((pixels[300:500, :, :3] < 0.5).all(2).any(0))  # the dark picture, from its left to its right end
    assert (left - axes[0]) / (axes[-1] - axes[0]) == pytest.approx(3.3 / 4.4, abs=0.05)


def test_pictures_that_cannot_be_drawn(tmp_path: Path, male: Waveform, monkeypatch: pytest.MonkeyPatch):
    one_line(lambda: plot(male, tmp_path / "out.gif"), "out.gif", "name a .png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    one_line(lambda: plot(male, tmp_path / "out.png"), "out.png", re.escape("pip install audiolm[plot]"))
    assert "<audio" in male._repr_html_()
    assert "<img" not in male._repr_html_()
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_shows_a_player_and_a_picture(male: Waveform):
    pytest.importorskip("matplotlib")
    html = male._repr_html_()
    sound = re.search(r'src="data:audio/wav;base64,([^"]+)"', html)
    assert sound
    samples, rate = soundfile.read(io.BytesIO(__import__("base64").b64decode(sound[1])), dtype="float32")
    assert rate == 16000
    assert np.array_equal(samples, male.samples[0].numpy())
    assert "data:image/png;base64," in html


# --- The house's own rule --------------------------------------------------------------------------------------------


def test_no_test_reaches_the_network():
    import socket

    with pytest.raises(pytest.fail.Exception):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(pytest.fail.Exception):
        socket.getaddrinfo("example.org", 80)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
