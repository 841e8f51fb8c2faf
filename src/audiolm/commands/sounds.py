"""Verbs that write a sound."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from audiolm.commands import making
from audiolm.commands.making import COMMON, GENERATING, OUT, Chain, Common, Generating, MaybeOutput, Output

if TYPE_CHECKING:  # torch takes seconds to import; help and mistakes should not wait for it
    from audiolm.audio import Waveform
    from audiolm.model import AudioLM


def continue_(
    prompt: Path,
    /,
    output: MaybeOutput = None,
    *,
    seconds: float = 7.0,
    prompt_seconds: float | None = None,
    only_new: Annotated[bool, Parameter(negative="")] = False,
    stream: Annotated[bool, Parameter(negative="")] = False,
    play: Annotated[bool, Parameter(negative="")] = False,
    chain: Chain = "full",
    common: Generating = GENERATING,
) -> None:
    """Go on from a recording: the same voice, prosody, room, melody.

    Parameters
    ----------
    prompt
        A recording of any length, rate and format, - for standard input; three seconds are enough.
    output
        The prompt followed by the continuation: .wav, .flac, .ogg, .opus or .mp3. Default: out.wav.
    seconds
        How much to add.
    prompt_seconds
        Use only the first so many seconds of the recording.
    only_new
        Leave the prompt out of the output.
    stream
        Write no file but a WAV to standard output while it is made.
    play
        Write no file but play it while it is made (pip install 'audiolm[play]').
    chain
        full: words first, then their sound. acoustic: the paper's baseline without semantic tokens.
    """
    making.check_length(seconds, "--seconds")
    live = making.live(stream, play, output, common)
    if live is None:
        making.check_apart(output or OUT, prompt)
    sound = making.hear(prompt)
    if prompt_seconds is not None:
        sound = sound.trim(prompt_seconds)
    _new("continue", sound, seconds, only_new, chain, output, live, common)


def generate(
    output: MaybeOutput = None,
    *,
    seconds: float = 7.0,
    stream: Annotated[bool, Parameter(negative="")] = False,
    play: Annotated[bool, Parameter(negative="")] = False,
    chain: Chain = "full",
    common: Generating = GENERATING,
) -> None:
    """Speech (or music) from nothing: a new voice, new words.

    Parameters
    ----------
    output
        .wav, .flac, .ogg, .opus or .mp3. Default: out.wav.
    seconds
        How much.
    stream
        Write no file but a WAV to standard output while it is made.
    play
        Write no file but play it while it is made (pip install 'audiolm[play]').
    chain
        full: words first, then their sound. acoustic: the paper's baseline without semantic tokens.
    """
    making.check_length(seconds, "--seconds")
    _new("generate", None, seconds, False, chain, output, making.live(stream, play, output, common), common)


def _new(
    verb: str,
    prompt: "Waveform | None",
    seconds: float,
    only_new: bool,
    chain: Chain,
    output: Path | None,
    live: making.Live | None,
    common: Generating,
) -> None:
    """New sound after a prompt or nothing: into a file, or `live`."""
    from audiolm.asking import Request

    if live is not None:
        return live(common, prompt, seconds, only_new, chain)

    def make(model: "AudioLM") -> list["Waveform"]:
        requests = [Request(prompt, seconds, seed=common.seed + index) for index in range(common.samples)]
        with making.bars() as show:
            return model.generate_batch(requests, show, **making.how(model, common, only_new, chain))

    heard = 0.0 if prompt is None or only_new else prompt.seconds
    making.write_all(common, output or OUT, make, {"verb": verb, "chain": chain}, heard)


def revoice(source: Path, /, output: Output = OUT, *, voice: Path | None = None, common: Generating = GENERATING) -> None:
    """Say the words of a recording in another voice (acoustic generation).

    Parameters
    ----------
    source
        The recording whose words are kept.
    output
        .wav, .flac, .ogg, .opus or .mp3.
    voice
        A recording of the voice to use, about three seconds; without it, a random one.
    """
    from audiolm.asking import Request

    making.check_apart(output, source, *([] if voice is None else [voice]))
    sound = making.hear(source)
    speaker = None if voice is None else making.hear(voice)

    def make(model: "AudioLM") -> list["Waveform"]:
        words = model.tokenize(sound).semantic
        requests = [Request(speaker, semantic=words, seed=common.seed + index) for index in range(common.samples)]
        with making.bars() as show:
            return model.generate_batch(requests, show, **making.how(model, common))

    making.write_all(common, output, make, {"verb": "revoice"})


def reconstruct(source: Path, /, output: Output = OUT, *, common: Common = COMMON) -> None:
    """The codec alone: a recording through its tokens and back, at any bitrate.

    Parameters
    ----------
    source
        Any recording.
    output
        The same length, at the codec's rate.
    """
    making.check_apart(output, source)
    sound = making.hear(source)

    def make(model: "AudioLM") -> list["Waveform"]:
        return [model.reconstruct(sound, common.codebooks, common.watermark)]

    making.write_all(common, output, make, {"verb": "reconstruct"})
