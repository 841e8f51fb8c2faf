"""What the generating verbs of the program share: their options, loading the model, writing sounds, showing progress."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from audiolm.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to import; help and mistakes should not wait for it
    from audiolm.asking import How, Sampling
    from audiolm.audio import Waveform
    from audiolm.model import AudioLM

Decoder = Literal["autoregressive", "parallel"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
STDIN = "/dev/stdin"  # what "-" stands for
EVERY = 30.0  # seconds between two lines of progress where there is no terminal
MOST_THREADS = 1024  # torch ends in a segmentation fault where the system has not as many


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """What all verbs that write a sound share."""

    model: Annotated[str, Parameter(name=["--model", "-m"])] = "speech"
    "A packaged model (speech, piano), a bundle's folder, or a hub id owner/name (only then is the network used)."
    codebooks: int | None = None
    "Levels of the sound, 1 to 12 of the packaged model's; above 4 its fine stage works too. Default: 4; reconstruct: all."
    plot: Path | None = None
    "Also draw waveform and spectrogram, a grey line where the prompt ends (.png, .svg, .pdf)."
    watermark: bool = True
    "Mark what is generated, inaudibly, so that `audiolm detect` knows it."
    sidecar: Annotated[bool, Parameter(negative="")] = False
    "Also write out.json beside out.wav: model, seed, settings and where the prompt ends, as in the file's own tags."
    device: str = "cpu"
    "cpu, cuda, cuda:1, mps."
    threads: int | None = None
    "Processor threads; default: one per core, fewer where other processes keep the cores busy."
    json: Annotated[bool, Parameter(negative="")] = False
    "Print one JSON object on standard output, and nothing else there."


@Parameter(name="*")
@dataclass(frozen=True)
class Generating(Common):
    """What those share that draw codes."""

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
    precision: Precision = "auto"
    "Bits of the stages' weights on a processor: fewer are faster and less exact (docs/performance.md)."


Chain = Literal["full", "acoustic"]
Live = Callable[[Generating, "Waveform | None", float, bool, Chain], None]  # see `stream` and `play`
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
MaybeOutput = Annotated[Path | None, Parameter(name=["--output", "-o"])]  # None: OUT, or no file where it is heard at once
OUT = Path("out.wav")
COMMON, GENERATING = Common(), Generating()


def write_all(
    common: Common,
    output: Path,
    make: Callable[["AudioLM"], list["Waveform"]],
    told: dict[str, Any],
    prompt_seconds: float = 0.0,
) -> None:
    """Check the outputs, load the model, make the sounds, write them, and say what was done: in their tags too."""
    from audiolm.audio import check_output, check_picture, plot
    from audiolm.files import whole_file
    from audiolm.provenance import tags

    drawn = isinstance(common, Generating)
    if drawn and common.samples < 1:
        raise InputError(f"--samples {common.samples}: give 1 or more")
    check_output(output)
    if common.plot is not None:
        check_picture(common.plot)
    model = load(common)
    sounds = make(model)
    if drawn:
        told |= model.chosen(told.get("chain", "full"), common.decoder, common.codebooks)
        told |= {"sampling": {name: each.plain() for name, each in sampling_of(model, common).items()}}
    else:
        told |= {"codebooks": common.codebooks or model.codec.spec.num_codebooks}
    told |= {"watermark": f"{model.payload:04x}" if common.watermark else None}
    written = []
    for number, sound in enumerate(sounds, 1):
        path = output if len(sounds) == 1 else output.with_name(f"{output.stem}-{number}{output.suffix}")
        made = {"seed": common.seed + number - 1} if drawn else {}
        made |= {"prompt_seconds": round(prompt_seconds, 6)}
        named = tags({"model": model.about.get("name"), **made, **told})
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
        show(written[0] if len(written) == 1 else written, True)
        return
    for entry in written:
        extra = f", picture in {entry['plot']}" if "plot" in entry else ""
        print(f"{entry['file']}: {entry['seconds']:.2f} s{extra}", file=sys.stderr)


@contextmanager
def recording(path: Path) -> Iterator[Path]:
    """Where a recording can be read. What a pipe gives is taken whole first: who decodes it goes to and fro."""
    from audiolm.audio import as_file

    if str(path) == STDIN and sys.stdin.isatty():
        raise InputError("-: standard input is a terminal; pipe a recording into it, or name a file")
    if str(path) == STDIN or path.is_fifo():
        with path.open("rb") as pipe, as_file(pipe, str(path)) as copy:
            yield copy
    else:
        yield path


def hear(path: Path, minimum_seconds: float = 0.1) -> "Waveform":
    """Read a recording, or what a pipe gives."""
    from audiolm.audio import read

    with recording(path) as there:
        return read(there, minimum_seconds)


def check_apart(output: Path, *recordings: Path) -> None:
    """InputError where the result would replace what it is made of."""
    if output.exists() and any(each.exists() and output.samefile(each) for each in recordings):
        raise InputError(f"{output}: is the recording itself, and would be replaced; give another name with -o")


def load(common: Common) -> "AudioLM":
    from audiolm import bundle

    settle(common.device, common.threads)
    return bundle.load(common.model, common.device, common.precision if isinstance(common, Generating) else "auto")


def settle(device: str, threads: int | None) -> None:
    """Take so many threads, or as many as bear it. InputError where that is no number of them, or there is no such device."""
    import torch

    from audiolm.threads import bearable

    if threads is not None:
        if not 1 <= threads <= MOST_THREADS:
            raise InputError(f"--threads {threads}: give 1 to {MOST_THREADS}")
        torch.set_num_threads(threads)
    elif device == "cpu" and (bears := bearable()) < (cores := torch.get_num_threads()):
        note = f"other processes are busy: {bears} of {cores} threads, as more would wait for each other (--threads decides)"
        print(f"audiolm: {note}", file=sys.stderr)
        torch.set_num_threads(bears)
    try:
        torch.zeros(1, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device}: not on this machine ({reason}); run `audiolm doctor`") from error


def how(model: "AudioLM", common: Generating, only_new: bool = False, chain: Chain = "full") -> "How":
    """What the command line says of how to generate."""
    return {
        "only_new": only_new,
        "chain": chain,
        "decoder": common.decoder,
        "codebooks": common.codebooks,
        "sampling": sampling_of(model, common),
        "watermark": common.watermark,
    }


def live(streamed: bool, played: bool, output: Path | None, common: Generating) -> Live | None:
    """How the sound leaves while it is made; None where it is to become a file."""
    if not (streamed or played):
        return None
    if (streamed and played) or output or common.samples != 1 or common.plot or common.json or common.sidecar:
        option, other = ("--stream", "--play") if streamed else ("--play", "--stream")
        raise InputError(f"{option}: one sound and no file; leave -o, --samples, --plot, --sidecar, --json and {other} out")
    return stream if streamed else play


def stream(common: Generating, prompt: "Waveform | None", seconds: float, only_new: bool, chain: Chain) -> None:
    """The same sound as a WAV on standard output, each block as soon as it is made."""
    if sys.stdout.isatty():
        raise InputError("--stream: standard output is a terminal; pipe it to a player: audiolm continue in.wav --stream | aplay")
    from audiolm.wav import wav

    blocks, samples, rate = _blocks(common, prompt, seconds, only_new, chain)
    for part in wav(blocks, samples, rate):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


def play(common: Generating, prompt: "Waveform | None", seconds: float, only_new: bool, chain: Chain) -> None:
    """The same sound on the loudspeaker, each block as soon as it is made."""
    try:
        import sounddevice
    except ImportError:
        raise InputError("--play needs sounddevice; install it: pip install 'audiolm[play]'") from None
    except OSError:  # its wheels for Linux leave PortAudio to the system
        raise InputError("--play needs the PortAudio library; install it: apt install libportaudio2") from None
    try:
        sounddevice.check_output_settings(channels=1)
    except (sounddevice.PortAudioError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--play: no loudspeaker here ({reason}); write a file, or pipe --stream to another machine") from None
    blocks, _, rate = _blocks(common, prompt, seconds, only_new, chain)
    with sounddevice.OutputStream(rate, channels=1, dtype="float32", latency="high") as speaker:
        for block in blocks:
            speaker.write(block.samples[0].numpy())


def _blocks(
    common: Generating, prompt: "Waveform | None", seconds: float, only_new: bool, chain: Chain
) -> tuple[Iterator["Waveform"], int, int]:
    """Blocks of sound while they are made, how many samples they will have together, and their rate."""
    model = load(common)
    rate = model.sample_rate
    prompt = None if prompt is None else prompt.mono().resample(rate)
    blocks = model.stream(prompt, seconds, seed=common.seed, **how(model, common, only_new, chain))
    return blocks, round(seconds * rate) + (0 if prompt is None or only_new else prompt.samples.shape[1]), rate


def sampling_of(model: "AudioLM", common: Generating) -> dict[str, "Sampling"]:
    """The model's own sampling settings with what the command line says instead."""
    settings = dict(model.sampling)
    if common.temperature is not None:
        from audiolm.asking import at_temperatures

        settings = at_temperatures(settings, temperatures(common.temperature))
    for name in ("top_k", "top_p"):
        value = getattr(common, name)
        if value is not None:
            if not (value >= 1 if name == "top_k" else 0 < value <= 1):
                raise InputError(
                    f"--{name.replace('_', '-')} {value}: give {'1 or more' if name == 'top_k' else 'above 0, at most 1'}"
                )
            settings = {stage: each.model_copy(update={name: value}) for stage, each in settings.items()}
    return settings


def temperatures(text: str) -> list[float]:
    """The numbers of --temperature: one, or three."""
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(0 <= value < math.inf for value in values):
        raise InputError(f"--temperature {text}: give one number, or three as 0.6,0.8,0.6, none below 0")
    return values


def check_length(seconds: float, option: str) -> None:
    from audiolm.asking import LONGEST

    if not 0 < seconds <= LONGEST:
        raise InputError(f"{option} {seconds:g}: say how much to generate, above 0 and at most {LONGEST:.0f} s")


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage with the time left, on a terminal; a line every `EVERY` seconds elsewhere."""
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
