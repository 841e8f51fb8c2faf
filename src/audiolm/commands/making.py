"""Shared by the verbs that produce sound: options, loading the model, writing sounds, showing progress."""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from audiolm.errors import InputError

if TYPE_CHECKING:  # importing torch takes seconds; help and error messages should not wait for it
    from audiolm.asking import How, Request
    from audiolm.audio import Waveform
    from audiolm.model import AudioLM

Decoder = Literal["autoregressive", "parallel"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
Json = Annotated[bool, Parameter(negative="", help="Print a single JSON document to standard output and nothing else.")]
STDIN = "/dev/stdin"  # what "-" stands for
EVERY = 30.0  # seconds between progress lines when stderr is not a terminal
MOST_THREADS = 1024  # torch segfaults if it asks for more threads than the system can provide


def _whole(_: type, tokens: Sequence[Token]) -> int:
    """A whole number; the library's own converter would round 2.7 to 3."""
    if not re.fullmatch("[+-]?[0-9]+", text := tokens[0].value):
        raise ValueError(f'give a whole number, not "{text}"')
    return int(text)


Whole = Annotated[int, Parameter(converter=_whole)]
Seed = Annotated[Whole, Parameter(validator=Number(gte=0, lt=2**32))]  # as the server's and the recipes'


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every verb that writes a sound."""

    model: Annotated[str, Parameter(name=["--model", "-m"])] = "speech"
    "A packaged model (speech, piano), a bundle's folder, or a hub id owner/name (only then is the network used)."
    codebooks: Whole | None = None
    "RVQ levels to use, 1 to 12 with the speech model; above 4 its fine stage runs too. Default: 4; reconstruct: all."
    plot: Path | None = None
    "Also plot waveform and spectrogram, with a grey line where the prompt ends (.png, .svg, .pdf, .jpg)."
    watermark: bool = True
    "Watermark generated sound, inaudibly, so that `audiolm detect` can recognise it."
    sidecar: Annotated[bool, Parameter(negative="")] = False
    "Also write out.json next to out.wav: model, seed, settings and prompt length, as in the file's own tags."
    device: str = "cpu"
    "cpu, cuda, cuda:1, mps."
    threads: Whole | None = None
    "CPU threads; default: one per core, fewer while other processes keep the cores busy."
    json: Json = False


@Parameter(name="*")
@dataclass(frozen=True)
class Generating(Common):
    """Options of the verbs that sample tokens."""

    seed: Seed = 0
    "The same seed gives the same sound. With --samples, the first sample's seed; each further one adds 1."
    samples: Whole = 1
    "Number of samples; with more than one, out.wav becomes out-1.wav, out-2.wav, ..."
    temperature: str | None = None
    "One number for all stages, or semantic,coarse,fine such as 0.6,0.8,0.6 (the paper's). 0 is greedy decoding."
    top_k: Annotated[Whole | None, Parameter(validator=Number(gte=1, lt=2**31))] = None
    "Sample only from the k most likely codes."
    top_p: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1))] = None
    "Nucleus sampling: only from the most likely codes that together reach this probability."
    decoder: Decoder | None = None
    "How semantic tokens become acoustic ones: code by code as in the paper, or in parallel. Default: the model's choice."
    precision: Precision = "auto"
    "Precision of the stages' weights on CPU: fewer bits are faster but less exact (docs/performance.md)."


Chain = Literal["full", "acoustic"]
Live = Callable[[Generating, "Request", "How"], None]  # see `stream` and `play`
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
MaybeOutput = Annotated[Path | None, Parameter(name=["--output", "-o"])]  # None: OUT, or no file with --stream or --play
OUT = Path("out.wav")
COMMON, GENERATING = Common(), Generating()


def write_all(
    common: Common,
    output: Path,
    make: Callable[["AudioLM"], list["Waveform"]],
    told: dict[str, Any],
    request: "Request | None" = None,
    options: "How | None" = None,
) -> None:
    """Check the outputs, load the model, make the sounds, write them, and report what was done, in their tags as well.

    request: for which they are made, if they are as long as it says. options: with which they are, besides the common ones.
    """
    from audiolm.audio import check_output, plot
    from audiolm.files import check_place, whole_file
    from audiolm.plots import check_picture
    from audiolm.provenance import tags

    drawn = isinstance(common, Generating)
    if drawn and common.samples < 1:
        raise InputError(f"--samples {common.samples}: give 1 or more")
    paths, pictures = outputs(output, common), outputs(common.plot, common) if common.plot else []
    for path in (output, *paths):  # `output` first, as an error should name what was given
        check_output(path)
    for path in paths if common.sidecar else []:
        check_place(path.with_suffix(".json"))
    for picture in pictures:
        check_picture(picture)
    model = load(common)
    sounds = make(model)
    if drawn:
        told |= model.record(**how(model, common, options))
    else:
        told |= {"codebooks": common.codebooks or model.codec.spec.num_codebooks}
        told |= {"watermark": f"{model.payload:04x}" if common.watermark else None}
    written, only_new = [], bool(options and options.get("only_new"))
    prompt_seconds = 0.0 if request is None or request.prompt is None or only_new else request.prompt.seconds
    for number, (sound, path) in enumerate(zip(sounds, paths, strict=True)):
        made = {"seed": common.seed + number} if drawn else {}
        made |= {"prompt_seconds": round(prompt_seconds, 6)}
        if request and told["until_end"]:
            made["ended"] = sound.samples.shape[1] < request.length(model.sample_rate, only_new)
        named = tags({"model": model.about.get("name"), **made, **told})
        sound.write(path, named)
        written.append({"file": str(path), "seconds": round(sound.seconds, 6), "sample_rate": sound.sample_rate, **made})
        if common.sidecar:
            with whole_file(path.with_suffix(".json")) as temporary:
                temporary.write_text(named["comment"] + "\n", encoding="utf-8")
            written[-1]["sidecar"] = str(path.with_suffix(".json"))
        if pictures:
            plot(sound, pictures[number], prompt_seconds or None)
            written[-1]["plot"] = str(pictures[number])
    if common.json:
        show(written[0] if len(written) == 1 else written, True)
        return
    for entry in written:
        extra = f", picture in {entry['plot']}" if "plot" in entry else ""
        print(f"{entry['file']}: {entry['seconds']:.2f} s{extra}", file=sys.stderr)


@contextmanager
def recording(path: Path) -> Iterator[Path]:
    """A path that the recording can be read from. A pipe is copied to a file first, because decoders seek."""
    from audiolm.audio import as_file

    if str(path) == STDIN:
        check_piped("pipe a recording into it or name a file")
    if str(path) == STDIN or path.is_fifo():
        with path.open("rb") as pipe, as_file(pipe, str(path)) as copy:
            yield copy
    else:
        yield path


def check_piped(cure: str) -> None:
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"-: standard input is {'a terminal' if sys.stdin else 'closed'}; {cure}")


def hear(path: Path, minimum_seconds: float = 0.1, most: float | None = None) -> "Waveform":
    """Read a recording, or its first `most` seconds, from a file or a pipe."""
    from audiolm.audio import read

    with recording(path) as there:
        return read(there, minimum_seconds, most)


def outputs(path: Path, common: Common) -> list[Path]:
    """The file of each sample: out.wav; of several, out-1.wav, out-2.wav, ... InputError if it is standard output."""
    if str(path) == STDIN:
        raise InputError("-: cannot be an output; name a file, or use --stream for standard output (continue, generate)")
    if not isinstance(common, Generating) or common.samples == 1:
        return [path]
    return [path.parent / f"{path.stem}-{number}{path.suffix}" for number in range(1, common.samples + 1)]


def check_apart(output: Path, common: Common, *recordings: Path) -> None:
    """InputError if an output would overwrite one of its input recordings."""
    for path in outputs(output, common):
        if path.exists() and any(each.exists() and path.samefile(each) for each in recordings):
            raise InputError(f"{path}: is an input recording and would be overwritten; choose another name with -o")


def load(common: Common) -> "AudioLM":
    from audiolm import bundle

    settle(common.device, common.threads)
    return bundle.load(common.model, common.device, common.precision if isinstance(common, Generating) else "auto")


def settle(device: str, threads: int | None) -> None:
    """Set the number of threads, by default `bearable()`. InputError if it is out of range or there is no such device."""
    import torch

    from audiolm.threads import bearable

    if threads is not None:
        if not 1 <= threads <= MOST_THREADS:
            raise InputError(f"--threads {threads}: give 1 to {MOST_THREADS}")
        torch.set_num_threads(threads)
    elif device == "cpu" and (bears := bearable()) < (cores := torch.get_num_threads()):
        note = f"other processes are busy: using {bears} of {cores} threads, as more would be slower (--threads overrides)"
        print(f"audiolm: {note}", file=sys.stderr)
        torch.set_num_threads(bears)
    try:
        torch.zeros(1, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device}: not available on this machine ({reason}); run `audiolm doctor`") from error


def how(model: "AudioLM", common: Generating, options: "How | None" = None) -> "How":
    """The command line's generation options as `How`, with `options` besides the common ones."""
    from audiolm.asking import changed

    return {
        **(options or {}),
        "decoder": common.decoder,
        "codebooks": common.codebooks,
        "sampling": changed(model.sampling, temperatures(common.temperature), common.top_k, common.top_p),
        "watermark": common.watermark,
    }


def live(streamed: bool, played: bool, output: Path | None, common: Generating) -> Live | None:
    """The function that outputs the sound as it is generated; None if it goes to a file."""
    if not (streamed or played):
        return None
    if (streamed and played) or output or common.samples != 1 or common.plot or common.json or common.sidecar:
        option, other = ("--stream", "--play") if streamed else ("--play", "--stream")
        raise InputError(f"{option}: one sound and no file; omit -o, --samples, --plot, --sidecar, --json and {other}")
    return stream if streamed else play


def stream(common: Generating, request: "Request", options: "How") -> None:
    """Write the sound to standard output as WAV, each block as soon as it is ready."""
    if sys.stdout is None:
        raise InputError("--stream: standard output is closed; pipe it to a player, or omit --stream and name a file with -o")
    if sys.stdout.isatty():
        raise InputError("--stream: standard output is a terminal; pipe it to a player: audiolm continue in.wav --stream | aplay")
    from audiolm.wav import wav

    blocks, samples, rate = _blocks(common, request, options)
    for part in wav(blocks, samples, rate, options.get("until_end", False)):
        try:
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the player was stopped
            raise
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(
                f"--stream: standard output cannot be written ({reason}); free space or pipe it elsewhere"
            ) from error


def play(common: Generating, request: "Request", options: "How") -> None:
    """Play the sound, each block as soon as it is ready."""
    try:
        import sounddevice
    except ImportError:
        raise InputError("--play needs sounddevice; install it: pip install 'audiolm[play]'") from None
    except OSError:  # its Linux wheels do not include PortAudio
        raise InputError("--play needs the PortAudio library; install it: apt install libportaudio2") from None
    try:
        sounddevice.check_output_settings(channels=1)
    except (sounddevice.PortAudioError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--play: no audio output ({reason}); write a file, or pipe --stream to another machine") from None
    blocks, _, rate = _blocks(common, request, options)
    with sounddevice.OutputStream(rate, channels=1, dtype="float32", latency="high") as speaker:
        for block in blocks:
            speaker.write(block.samples[0].numpy())


def _blocks(common: Generating, request: "Request", options: "How") -> tuple[Iterator["Waveform"], int, int]:
    """Blocks of sound as they are generated, their total number of samples at most, and the sample rate."""
    model = load(common)
    blocks = model.stream(request.prompt, request.seconds, seed=common.seed, **how(model, common, options))
    return blocks, request.length(model.sample_rate, options.get("only_new", False)), model.sample_rate


def temperatures(text: str | None) -> list[float]:
    """The numbers of --temperature: one, three, or none."""
    if text is None:
        return []
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(0 <= value < math.inf for value in values):
        raise InputError(f"--temperature {text}: give one number, or three such as 0.6,0.8,0.6; none may be negative")
    return values


def length(seconds: float | None, until_end: bool = False) -> float:
    """The seconds to generate, by default 7; with `until_end` the most, by default 30. InputError if they are out of range."""
    from audiolm.asking import LENGTH, LONGEST, UNTIL_END

    if seconds is None:
        return UNTIL_END if until_end else LENGTH
    if not 0 < seconds <= LONGEST:
        raise InputError(f"--seconds {seconds:g}: give the length to generate, above 0 and at most {LONGEST:.0f} s")
    return seconds


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """On a terminal, one progress bar per stage with the time left; elsewhere, a line every `EVERY` seconds."""
    if not sys.stderr.isatty():
        told = time.monotonic()

        def tell(stage: str, done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                print(f"{stage} {done}/{total}", file=sys.stderr, flush=True)

        yield tell
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


def show(value: Any, as_json: bool, indent: str = "") -> None:
    if as_json:
        print(json.dumps(value, indent=2))
        return
    for key, each in value.items():
        if isinstance(each, dict):
            print(f"{indent}{key}")
            show(each, False, indent + "  ")
        else:
            print(f"{indent}{key:<14} {each}")
