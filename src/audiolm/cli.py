"""The program: each verb calls one public function of the library.

Exit codes: 0 done; 2 the caller's mistake, told in one line on standard error; 1 anything else. With --json one object
stands on standard output and nothing else; progress and messages go to standard error.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from audiolm.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to import; help and mistakes should not wait for it
    from audiolm.audio import Waveform
    from audiolm.model import AudioLM, Sampling

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


Decoder = Literal["parallel", "autoregressive"]


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """What all generating verbs share."""

    model: Annotated[str, Parameter(name=["--model", "-m"])] = "speech"
    "A packaged model (speech), a bundle's folder, or a hub id owner/name (only then is the network used)."
    seed: int = 0
    "The same seed gives the same sound; with --samples, the first one's."
    samples: int = 1
    "How many to make; out.wav becomes out-1.wav, out-2.wav, ..."
    temperature: str | None = None
    "One number for all stages, or semantic,coarse,fine as 0.6,0.8,0.6 (the paper's). 0 takes the likeliest code."
    top_k: int | None = None
    "Draw from the k likeliest codes only."
    top_p: float | None = None
    "Draw from the likeliest codes that together have this probability."
    decoder: Decoder | None = None
    "How words become sound, where the model can do both: as in the paper, or many codes at once. Default: the model's own."
    plot: Path | None = None
    "Also draw waveform and spectrogram, a grey line where the prompt ends (.png, .svg, .pdf)."
    watermark: bool = True
    "Mark what is generated, inaudibly, so that `audiolm detect` knows it."
    sidecar: Annotated[bool, Parameter(negative="")] = False
    "Also write out.json beside out.wav: model, seed, settings and where the prompt ends, as in the file's own tags."
    device: str = "cpu"
    "cpu, cuda, cuda:1, mps."
    threads: int | None = None
    "Processor threads; default: one per core."
    json: Annotated[bool, Parameter(negative="")] = False
    "Print one JSON object on standard output, and nothing else there."


Chain = Literal["full", "acoustic"]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
COMMON = Common()


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

    _check_length(seconds, "--seconds")
    sound = read(prompt, minimum_seconds=0.1)
    if prompt_seconds is not None:
        sound = sound.trim(prompt_seconds)
    if stream:
        return _stream(common, sound, seconds, only_new, chain)

    def make(model: "AudioLM") -> list["Waveform"]:
        requests = [Request(sound, seconds, seed=common.seed + index) for index in range(common.samples)]
        with _progress() as show:
            return model.generate_batch(
                requests, only_new, chain, common.decoder, _sampling(model, common), show, common.watermark
            )

    _run(common, output, make, {"verb": "continue", "chain": chain}, 0.0 if only_new else sound.seconds)


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

    _check_length(seconds, "--seconds")
    if stream:
        return _stream(common, None, seconds, False, chain)

    def make(model: "AudioLM") -> list["Waveform"]:
        requests = [Request(None, seconds, seed=common.seed + index) for index in range(common.samples)]
        with _progress() as show:
            return model.generate_batch(requests, False, chain, common.decoder, _sampling(model, common), show, common.watermark)

    _run(common, output, make, {"verb": "generate", "chain": chain})


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
        with _progress() as show:
            return model.generate_batch(
                requests, decoder=common.decoder, sampling=_sampling(model, common), progress=show, watermark=common.watermark
            )

    _run(common, output, make, {"verb": "revoice"})


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
    _run(common, output, lambda model: [model.reconstruct(sound, codebooks, common.watermark)], how)


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
    _print(store.summary(), json)


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
    with _progress() as show:
        options = {"limit": limit, "seconds": seconds, "seed": seed, "split": split, "parts": chosen, "progress": show}
        figures = evaluate_folder(model, data, report, **options)
    if json:
        _print(figures, True)
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
        _print(found[0] if len(found) == 1 else found, True)
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
        _print({**about, "tags": tags(path)}, json)
    elif (path / "header.json").is_file():
        from audiolm.token_store import TokenStore

        _print({"token_store": target, **TokenStore(path).summary()}, json)
    else:
        from audiolm import bundle

        model = bundle.load(target)
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in bundle.parts(model).items()}
        _print(
            {
                "model": target,
                **model.about,
                "sample_rate": model.sample_rate,
                "watermark": f"{model.payload:04x}",
                "semantic": f"{model.semantic.spec.codebook_size} units at {model.semantic.spec.frame_rate:g} Hz",
                "acoustic": f"{model.codec.spec.num_codebooks} x {model.codec.spec.codebook_size} codes at "
                f"{model.codec.spec.frame_rate:g} Hz, {model.codec.spec.bitrate / 1000:g} kbit/s",
                "parameters": sizes,
                "sampling": {name: sampling.plain() for name, sampling in model.sampling.items()},
            },
            json,
        )


@app.command
def doctor(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """What this machine can do, and what is missing."""
    from audiolm.doctor import examine

    _print(examine(), json)


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


def _run(
    common: Common,
    output: Path,
    make: Callable[["AudioLM"], list["Waveform"]],
    how: dict[str, Any],
    prompt_seconds: float = 0.0,
) -> None:
    """Check the outputs, load the model, make the sounds, write them, and say what was done: in their tags too."""
    from audiolm.audio import check_output, check_picture, plot
    from audiolm.files import whole_file
    from audiolm.provenance import tags

    if common.samples < 1:
        raise InputError(f"--samples {common.samples}: give 1 or more")
    check_output(output)
    if common.plot is not None:
        check_picture(common.plot)
    model = _load(common)
    sounds = make(model)
    how = {
        **how,
        "decoder": common.decoder,
        "sampling": {name: each.plain() for name, each in _sampling(model, common).items()}
        if how["verb"] != "reconstruct"
        else None,
        "watermark": f"{model.payload:04x}" if common.watermark else None,
    }
    written = []
    for number, sound in enumerate(sounds, 1):
        path = output if len(sounds) == 1 else output.with_name(f"{output.stem}-{number}{output.suffix}")
        made = {"seed": common.seed + number - 1, "prompt_seconds": round(prompt_seconds, 6)}
        named = tags({"model": model.about.get("name"), **made, **how})
        sound.write(path, named)
        written.append({"file": str(path), "seconds": round(sound.seconds, 6), "sample_rate": sound.sample_rate, **made})
        if common.sidecar:
            with whole_file(path.with_suffix(".json")) as temporary:
                temporary.write_text(named["comment"] + "\n", encoding="utf-8")
            written[-1]["sidecar"] = str(path.with_suffix(".json"))
        if common.plot is not None:
            picture = common.plot
            if len(sounds) > 1:
                picture = picture.with_name(f"{picture.stem}-{number}{picture.suffix}")
            plot(sound, picture, prompt_seconds or None)
            written[-1]["plot"] = str(picture)
    if common.json:
        _print(written[0] if len(written) == 1 else written, True)
        return
    for entry in written:
        extra = f", picture in {entry['plot']}" if "plot" in entry else ""
        print(f"{entry['file']}: {entry['seconds']:.2f} s{extra}", file=sys.stderr)


def _load(common: Common) -> "AudioLM":
    import torch

    from audiolm import bundle

    if common.threads is not None:
        torch.set_num_threads(max(1, common.threads))
    try:
        device = torch.device(common.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {common.device}: not on this machine ({reason}); run `audiolm doctor`") from error
    return bundle.load(common.model, common.device)


def _stream(common: Common, prompt: "Waveform | None", seconds: float, only_new: bool, chain: Chain) -> None:
    """The same sound as a WAV on standard output, each block as soon as it is made."""
    if common.samples != 1 or common.plot is not None or common.json or common.sidecar:
        raise InputError(
            "--stream: one sound goes to standard output and nothing else; leave --samples, --plot, --sidecar and --json out"
        )
    if sys.stdout.isatty():
        raise InputError("--stream: standard output is a terminal; pipe it to a player: audiolm continue in.wav --stream | aplay")
    from audiolm.wav import wav

    model = _load(common)
    settings, rate = _sampling(model, common), model.sample_rate
    prompt = None if prompt is None else prompt.mono().resample(rate)
    samples = round(seconds * rate) + (0 if prompt is None or only_new else prompt.samples.shape[1])
    blocks = model.stream(
        prompt,
        seconds,
        seed=common.seed,
        only_new=only_new,
        chain=chain,
        decoder=common.decoder,
        sampling=settings,
        watermark=common.watermark,
    )
    for part in wav(blocks, samples, rate):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


def _sampling(model: "AudioLM", common: Common) -> dict[str, "Sampling"]:
    """The model's own sampling settings with what the command line says instead."""
    settings = dict(model.sampling)
    if common.temperature is not None:
        try:
            values = [float(value) for value in common.temperature.split(",")]
        except ValueError:
            values = []
        if len(values) not in (1, 3) or any(value < 0 for value in values):
            raise InputError(f"--temperature {common.temperature}: give one number, or three as 0.6,0.8,0.6, none below 0")
        semantic, coarse, fine = values * (3 if len(values) == 1 else 1)
        given = {"semantic": semantic, "fine": fine}
        settings = {name: each.model_copy(update={"temperature": given.get(name, coarse)}) for name, each in settings.items()}
    for name in ("top_k", "top_p"):
        value = getattr(common, name)
        if value is not None:
            if not (value >= 1 if name == "top_k" else 0 < value <= 1):
                raise InputError(
                    f"--{name.replace('_', '-')} {value}: give {'1 or more' if name == 'top_k' else 'above 0, at most 1'}"
                )
            settings = {stage: each.model_copy(update={name: value}) for stage, each in settings.items()}
    return settings


def _check_length(seconds: float, option: str) -> None:
    from audiolm.model import LONGEST

    if not 0 < seconds <= LONGEST:
        raise InputError(f"{option} {seconds:g}: say how much to generate, above 0 and at most {LONGEST:.0f} s")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar per stage with the time left, on a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>9}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield show


def _print(value: Any, as_json: bool, indent: str = "") -> None:
    if as_json:
        print(json.dumps(value, indent=2))
        return
    for key, each in value.items():
        if isinstance(each, dict):
            print(f"{indent}{key}")
            _print(each, False, indent + "  ")
        else:
            print(f"{indent}{key:<14} {each}")


if __name__ == "__main__":
    main()
