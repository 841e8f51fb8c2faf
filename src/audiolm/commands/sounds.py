"""Verbs that write sound."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from audiolm.commands import making
from audiolm.commands.making import COMMON, GENERATING, OUT, Chain, Common, Generating, MaybeOutput, Output
from audiolm.errors import InputError

if TYPE_CHECKING:  # importing torch takes seconds; help and error messages should not wait for it
    from audiolm.asking import How
    from audiolm.audio import Waveform
    from audiolm.model import AudioLM


def continue_(
    prompt: Path,
    /,
    output: MaybeOutput = None,
    *,
    seconds: float | None = None,
    until_end: Annotated[bool, Parameter(negative="")] = False,
    prompt_seconds: float | None = None,
    only_new: Annotated[bool, Parameter(negative="")] = False,
    stream: Annotated[bool, Parameter(negative="")] = False,
    play: Annotated[bool, Parameter(negative="")] = False,
    chain: Chain = "full",
    common: Generating = GENERATING,
) -> None:
    """Continue a recording: same voice, prosody, room, melody.

    Parameters
    ----------
    prompt
        A recording of any length, rate and format, or - for standard input; three seconds are enough.
    output
        The prompt followed by the continuation: .wav, .flac, .ogg, .opus or .mp3. Default: out.wav.
    seconds
        Length of the continuation; with --until-end, the most. Default: 7, or 30 with --until-end.
    until_end
        Stop where the model ends the recording: the packaged speech model after 13 s in the median, the piano hardly ever.
    prompt_seconds
        Use only this many seconds from the start of the recording.
    only_new
        Leave the prompt out of the output.
    stream
        Write no file; stream WAV to standard output as it is generated.
    play
        Write no file; play the sound as it is generated (pip install 'audiolm[play]').
    chain
        full: semantic tokens first, then acoustic. acoustic: the paper's baseline without semantic tokens.
    """
    from audiolm.asking import SHORTEST

    seconds = making.length(seconds, until_end)
    if prompt_seconds is not None and not prompt_seconds >= SHORTEST:
        raise InputError(f"--prompt-seconds {prompt_seconds:g}: give at least {SHORTEST:g} s")
    live = making.live(stream, play, output, common)
    if live is None:
        making.check_apart(output or OUT, common, prompt)
    sound = making.hear(prompt, most=prompt_seconds)
    _new("continue", sound, seconds, {"only_new": only_new, "chain": chain, "until_end": until_end}, output, live, common)


def generate(
    output: MaybeOutput = None,
    *,
    seconds: float | None = None,
    until_end: Annotated[bool, Parameter(negative="")] = False,
    stream: Annotated[bool, Parameter(negative="")] = False,
    play: Annotated[bool, Parameter(negative="")] = False,
    chain: Chain = "full",
    common: Generating = GENERATING,
) -> None:
    """Generate speech (or music) without a prompt: a new voice, new words.

    Parameters
    ----------
    output
        .wav, .flac, .ogg, .opus or .mp3. Default: out.wav.
    seconds
        Length of the sound; with --until-end, the most. Default: 7, or 30 with --until-end.
    until_end
        Stop where the model ends the recording: the packaged speech model after 13 s in the median, the piano hardly ever.
    stream
        Write no file; stream WAV to standard output as it is generated.
    play
        Write no file; play the sound as it is generated (pip install 'audiolm[play]').
    chain
        full: semantic tokens first, then acoustic. acoustic: the paper's baseline without semantic tokens.
    """
    seconds, live = making.length(seconds, until_end), making.live(stream, play, output, common)
    _new("generate", None, seconds, {"chain": chain, "until_end": until_end}, output, live, common)


def _new(
    verb: str,
    prompt: "Waveform | None",
    seconds: float,
    options: "How",
    output: Path | None,
    live: making.Live | None,
    common: Generating,
) -> None:
    """Generate, with or without a prompt, into a file or through `live`."""
    from audiolm.asking import Request

    request = Request(prompt, seconds)
    if live is not None:
        return live(common, request, options)

    def make(model: "AudioLM") -> list["Waveform"]:
        requests = [replace(request, seed=common.seed + index) for index in range(common.samples)]
        with making.bars() as show:
            return model.generate_batch(requests, show, **making.how(model, common, options))

    making.write_all(common, output or OUT, make, {"verb": verb}, request, options)


def revoice(source: Path, /, output: Output = OUT, *, voice: Path | None = None, common: Generating = GENERATING) -> None:
    """Say the words of a recording in another voice (the paper's acoustic generation).

    Parameters
    ----------
    source
        The recording whose words are kept.
    output
        .wav, .flac, .ogg, .opus or .mp3.
    voice
        A recording of the voice to use, about three seconds long; default: a random voice.
    """
    from audiolm.asking import Request

    making.check_apart(output, common, source, *([] if voice is None else [voice]))
    sound = making.hear(source)
    speaker = None if voice is None else making.hear(voice)

    def make(model: "AudioLM") -> list["Waveform"]:
        with making.bars() as show:
            words = model.semantic_tokens(sound, show)
            requests = [Request(speaker, semantic=words, seed=common.seed + index) for index in range(common.samples)]
            return model.generate_batch(requests, show, **making.how(model, common))

    making.write_all(common, output, make, {"verb": "revoice"})


def speak(
    text: str,
    /,
    output: Output = OUT,
    *,
    voice: Path | None = None,
    pace: float = 1.0,
    common: Generating = GENERATING,
) -> None:
    """Read a text aloud, in the voice of a recording or a random one.

    The model needs a text stage; the packaged speech model has a small one (see its card for how much of it is understood).

    Parameters
    ----------
    text
        What to say, or - to read it from standard input. Punctuation makes pauses.
    output
        .wav, .flac, .ogg, .opus or .mp3.
    voice
        A recording of the voice to use, about three seconds long; default: a random voice.
    pace
        1: that of the recordings the model was trained on; 0.8: slower.
    """
    from audiolm.asking import Request

    making.check_apart(output, common, *([] if voice is None else [voice]))
    words = _piped() if text == making.STDIN else text
    speaker = None if voice is None else making.hear(voice)

    def make(model: "AudioLM") -> list["Waveform"]:
        requests = [Request(speaker, seed=common.seed + index, text=words) for index in range(common.samples)]
        with making.bars() as show:
            return model.generate_batch(requests, show, **making.how(model, common, {"pace": pace}))

    making.write_all(common, output, make, {"verb": "speak", "pace": pace})


def _piped() -> str:
    making.check_piped("pipe the text into it or give it as an argument")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise InputError("-: the text is not UTF-8; convert it, for example by iconv") from None


def reconstruct(source: Path, /, output: Output = OUT, *, common: Common = COMMON) -> None:
    """Encode and decode a recording with the codec alone, at any of its bitrates.

    Parameters
    ----------
    source
        Any recording.
    output
        The reconstruction: the same length, at the codec's sample rate.
    """
    making.check_apart(output, common, source)
    sound = making.hear(source)

    def make(model: "AudioLM") -> list["Waveform"]:
        with making.bars() as show:
            return [model.reconstruct(sound, common.codebooks, common.watermark, show)]

    making.write_all(common, output, make, {"verb": "reconstruct"})
