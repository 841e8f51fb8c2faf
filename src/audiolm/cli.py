"""The program: each verb calls one public function of the library.

Exit codes: 0 done; 2 the caller's mistake, told in one line on standard error; 1 anything else. With --json one object
stands on standard output and nothing else; progress and messages go to standard error.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from audiolm import making
from audiolm.errors import InputError
from audiolm.making import COMMON, Chain, Common, Output

if TYPE_CHECKING:  # torch takes seconds to import; help and mistakes should not wait for it
    from audiolm.audio import Waveform
    from audiolm.model import AudioLM

EXAMPLES = """
Examples:

  Go on from a recording, in the same voice; three times, with pictures:
    audiolm continue prompt.wav -o out.wav
    audiolm continue prompt.mp3 -o out.wav --samples 3 --plot out.png

  Listen while it is made:
    audiolm continue prompt.wav --seconds 60 --stream | aplay

  Speech from nothing; the same words in another voice; the codec alone:
    audiolm generate -o out.wav --seconds 5
    audiolm revoice in.wav -o out.wav --voice other.wav
    audiolm reconstruct in.wav -o out.wav --codebooks 3

  Was it made by audiolm:
    audiolm detect out.wav

  A model of your own recordings, and what came out:
    audiolm train recipes/tiny.toml data=my-recordings out=runs/mine
    audiolm info runs/mine/bundle
"""

app = App(
    name="audiolm",
    help="AudioLM learns to speak and to play from raw audio alone, and goes on from a few seconds of prompt.",
    help_epilogue=EXAMPLES,
    help_format="plaintext",
    version_flags=["--version"],
)


@app.command(name="continue")
def continue_(
    prompt: Path,
    /,
    output: Output = Path("out.wav"),
    *,
    seconds: float = 7.0,
    prompt_seconds: float | None = None,
    only_new: Annotated[bool, Parameter(negative="")] = False,
    stream: Annotated[bool, Parameter(negative="")] = False,
    chain: Chain = "full",
    common: Common = COMMON,
) -> None:
    """Go on from a recording: the same voice, prosody, room, melody.

    Parameters
    ----------
    prompt
        A recording of any length, rate and format; three seconds are enough.
    output
        The prompt followed by the continuation: .wav, .flac, .ogg, .opus or .mp3.
    seconds
        How much to add.
    prompt_seconds
        Use only the first so many seconds of the recording.
    only_new
        Leave the prompt out of the output.
    stream
        Write no file but a WAV to standard output while it is made.
    chain
        full: words first, then their sound. acoustic: the paper's baseline without semantic tokens.
    """
    from audiolm.audio import read
    from audiolm.model import Request

    making.check_length(seconds, "--seconds")
    sound = read(prompt, minimum_seconds=0.1)
    if prompt_seconds is not None:
        sound = sound.trim(prompt_seconds)
    if stream:
        return making.stream(common, sound, seconds, only_new, chain)

    def make(model: "AudioLM") -> list["Waveform"]:
        requests = [Request(sound, seconds, seed=common.seed + index) for index in range(common.samples)]
        with making.bars() as show:
            return model.generate_batch(
                requests, only_new, chain, common.decoder, making.sampling_of(model, common), show, common.watermark
            )

    making.write_all(common, output, make, {"verb": "continue", "chain": chain}, 0.0 if only_new else sound.seconds)


@app.command
def generate(
    output: Output = Path("out.wav"),
    *,
    seconds: float = 7.0,
    stream: Annotated[bool, Parameter(negative="")] = False,
    chain: Chain = "full",
    common: Common = COMMON,
) -> None:
    """Speech (or music) from nothing: a new voice, new words.

    Parameters
    ----------
    output
        .wav, .flac, .ogg, .opus or .mp3.
    seconds
        How much.
    stream
        Write no file but a WAV to standard output while it is made.
    chain
        full: words first, then their sound. acoustic: the paper's baseline without semantic tokens.
    """
    from audiolm.model import Request

    making.check_length(seconds, "--seconds")
    if stream:
        return making.stream(common, None, seconds, False, chain)

    def make(model: "AudioLM") -> list["Waveform"]:
        requests = [Request(None, seconds, seed=common.seed + index) for index in range(common.samples)]
        with making.bars() as show:
            return model.generate_batch(
                requests, False, chain, common.decoder, making.sampling_of(model, common), show, common.watermark
            )

    making.write_all(common, output, make, {"verb": "generate", "chain": chain})


@app.command
def revoice(source: Path, /, output: Output = Path("out.wav"), *, voice: Path | None = None, common: Common = COMMON) -> None:
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
    from audiolm.audio import read
    from audiolm.model import Request

    sound = read(source, minimum_seconds=0.1)
    speaker = None if voice is None else read(voice, minimum_seconds=0.1)

    def make(model: "AudioLM") -> list["Waveform"]:
        words = model.tokenize(sound).semantic
        requests = [Request(speaker, semantic=words, seed=common.seed + index) for index in range(common.samples)]
        with making.bars() as show:
            return model.generate_batch(
                requests,
                decoder=common.decoder,
                sampling=making.sampling_of(model, common),
                progress=show,
                watermark=common.watermark,
            )

    making.write_all(common, output, make, {"verb": "revoice"})


@app.command
def reconstruct(
    source: Path, /, output: Output = Path("out.wav"), *, codebooks: int | None = None, common: Common = COMMON
) -> None:
    """The codec alone: a recording through its tokens and back, at any bitrate.

    Parameters
    ----------
    source
        Any recording.
    output
        The same length, at the codec's rate.
    codebooks
        How many levels to keep, from 1 (0.5 kbit/s) to all (the default).
    """
    from audiolm.audio import read

    sound = read(source, minimum_seconds=0.1)
    how = {"verb": "reconstruct", "codebooks": codebooks}
    making.write_all(common, output, lambda model: [model.reconstruct(sound, codebooks, common.watermark)], how)


@app.command
def tokenize(
    source: Path,
    /,
    output: Output = Path("tokens"),
    *,
    model: str = "speech",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """A folder of recordings (or one with a manifest.csv) -> a token store. What is in the store already stays.

    Parameters
    ----------
    source
        A folder with any tree of audio in it, or a manifest.csv with a column path (and speaker, split, ...).
    output
        The store's folder.
    model
        Whose tokenizers: a packaged model, a bundle's folder, or a hub id.
    """
    from audiolm import bundle
    from audiolm.corpus import tokenize_corpus
    from audiolm.data import scan
    from audiolm.run import progress

    tokenizers, recordings = bundle.load(model), scan(source)
    with progress(len(recordings), label="tokenize") as show:
        store = tokenize_corpus(tokenizers.semantic, tokenizers.codec, recordings, output, show)
    making.show(store.summary(), json)


@app.command
def train(
    recipe: Path, /, *settings: str, only: str | None = None, force: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Run a recipe: from a folder of audio to a model of your own. Killed at any moment, the same command goes on.

    Parameters
    ----------
    recipe
        A .toml file; see recipes/.
    settings
        key=value, as data=FOLDER out=FOLDER coarse.steps=2000; they override the recipe.
    only
        Run this one step, whose predecessors must be done.
    force
        Delete and do again a step that was made with other settings (with --only: that step in any case).
    """
    from audiolm.config import load_config
    from audiolm.recipe import RecipeConfig, run_recipe

    run_recipe(load_config(RecipeConfig, recipe, settings), only, force)


@app.command
def evaluate(
    model: str = "speech",
    *,
    data: Path,
    report: Path,
    limit: int = 24,
    seconds: float = 7.0,
    seed: int = 0,
    split: Literal["train", "valid", "test", "all"] | None = None,
    parts: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """The paper's measures on recordings the model has not heard: report.md and report.json.

    Parameters
    ----------
    model
        A packaged model, a bundle's folder, or a hub id.
    data
        A folder or manifest.csv.
    report
        Folder for the report.
    limit
        How many clips are continued (the codec is measured on all).
    seconds
        How much each continuation adds, at most.
    split
        Which recordings; default: the test split where there is one.
    parts
        Some of codec,units,stages,continuation; default: all.
    """
    from audiolm.evaluation import PARTS, evaluate_folder

    chosen = tuple(PARTS) if parts is None else tuple(parts.split(","))
    with making.bars() as show:
        options = {"limit": limit, "seconds": seconds, "seed": seed, "split": split, "parts": chosen, "progress": show}
        figures = evaluate_folder(model, data, report, **options)
    if json:
        making.show(figures, True)
    else:
        print((report / "report.md").read_text(encoding="utf-8"))


@app.command
def detect(*files: Path, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Was this made by audiolm? Looks for the watermark in recordings of any format; 1.5 s of marked speech are enough.

    Parameters
    ----------
    files
        Recordings.
    """
    from audiolm.audio import read
    from audiolm.provenance import detect as look

    if not files:
        raise InputError("detect: name one or more recordings")
    note = "no detector of unmarked synthetic speech is packaged yet; a mark that is absent proves nothing"
    found = [
        {"file": str(file), "synthetic_probability": None, "watermark": look(read(file)).plain(), "note": note} for file in files
    ]
    if json:
        making.show(found[0] if len(found) == 1 else found, True)
        return
    for each in found:
        mark = each["watermark"]
        said = f"watermark found, payload {mark['payload'] or 'not legible'}, confidence {mark['confidence']:.7f}"
        print(f"{each['file']}: {said if mark['found'] else 'no watermark (which proves nothing)'}")


@app.command
def info(target: str = "speech", /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """What a model, a token store or a recording is.

    Parameters
    ----------
    target
        A packaged model, a bundle's folder, a token store's folder, or a sound file.
    """
    from audiolm.audio import probe, tags

    path = Path(target)
    if path.is_file():
        found = probe(path)
        about = {"file": target, "seconds": found.seconds, "sample_rate": found.sample_rate, "channels": found.channels}
        making.show({**about, "tags": tags(path)}, json)
    elif (path / "header.json").is_file():
        from audiolm.token_store import TokenStore

        making.show({"token_store": target, **TokenStore(path).summary()}, json)
    else:
        from audiolm import bundle

        making.show({"model": target, **bundle.describe(bundle.load(target))}, json)


@app.command
def doctor(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """What this machine can do, and what is missing."""
    from audiolm.doctor import examine

    making.show(examine(), json)


def main() -> None:
    """Entry point of the `audiolm` program."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the program and return its exit code."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_none")
    except (InputError, CycloptsError) as error:
        return _complain(" ".join(str(error).split()), 2)
    except KeyboardInterrupt:
        return _complain("stopped", 1)
    except BrokenPipeError:  # whoever listened has gone: nothing more may be written, not even what is buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # a training that was asked to stop says so itself
        return _complain(str(stop.code), 1) if isinstance(stop.code, str) else int(stop.code or 0)
    except Exception as error:
        if os.environ.get("AUDIOLM_TRACEBACK"):
            raise
        kind = type(error).__name__
        return _complain(f"{kind}: {' '.join(str(error).split())} (AUDIOLM_TRACEBACK=1 shows where)", 1)
    return 0


def _complain(text: str, code: int) -> int:
    print(f"audiolm: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
