"""Speed of generation, compared with the machine's limits and with other implementations: Markdown tables on standard output.

    python benchmarks/generation.py                                        every section, about 10 minutes on an idle machine
    python benchmarks/generation.py --sections limit,decode --quick        some sections, with shorter sounds
    python benchmarks/generation.py --peer transformers=VENV/bin/python --peer audiolm-pytorch=VENV/bin/python

Each section runs in its own process, so that peak memory is the section's. Figures are medians of --repeats runs after a
warm-up run. Peers run in their own environments (docs/performance.md says how to make them). Sections:

    limit      the machine's memory bandwidth (a sum over 1 GB) and arithmetic (square matrix products)
    kernels    1 to 256 rows times a matrix in each precision
    decode     tokens per second of each stage at two sizes, as a fraction of what memory bandwidth allows, and the peers'
    packaged   continuing 3 s by 10 s and by 30 s: seconds of each part, real-time factor, time to the first sound, memory
    batch      1, 4 and 16 prompts at once
    growth     one stream of --longest seconds: time and memory against length
    codec      encoding and decoding 10 s, and the peers' codecs
    quality    bits per token in each precision
    start      import, help, loading
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EXAMPLES = Path(__file__).parents[1] / "examples"
PEERS = Path(__file__).with_name("peers.py")
SHAPES = {"6x512": (6, 512, 8, 1368), "12x1024": (12, 1024, 16, 2736)}
BYTES = {None: 4, "fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds, after a warm-up run."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(f'{each:.3g}' if isinstance(each, float) else str(each) for each in row)} |", flush=True)


def peak() -> float:
    """Peak memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peer(options: argparse.Namespace, environment: str, *arguments: object) -> dict[str, float] | None:
    """A measurement by benchmarks/peers.py; None if there is no such environment, or if it fails (reported on stderr)."""
    python = dict(each.split("=", 1) for each in options.peer).get(environment)
    if python is None:
        return None
    command = [python, str(PEERS), *map(str, arguments), str(options.repeats)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"\n{' '.join(map(str, arguments))}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def bandwidth(repeats: int) -> float:
    """Bytes per second of a sum over 1 GB: the best run, since this is a limit."""
    block = torch.ones(1 << 28)
    return 4 * block.numel() / min(timed(block.sum, 1) for _ in range(max(3, repeats)))


def limit(options: argparse.Namespace) -> None:
    rows: list[Sequence[object]] = [("memory, sum over 1 GB", bandwidth(options.repeats) / 1e9, "GB/s")]
    from audiolm.kernels import available, packed

    with torch.inference_mode():
        for precision in (None, *available(torch.device("cpu"))):
            weight, x = torch.randn(1024, 1024), torch.randn(1024, 1024)
            run = packed(weight, precision) if precision else lambda x, weight=weight: torch.nn.functional.linear(x, weight)
            seconds = min(timed(lambda run=run, x=x: run(x), 1) for _ in range(max(3, options.repeats)))
            rows.append(
                (f"product of 1024 x 1024, {precision or 'torch.nn.functional.linear'}", 2 * 1024**3 / seconds / 1e9, "GFLOP/s")
            )
    table("The machine's limits (best, not median)", ("what", "rate", ""), rows)


def kernels(options: argparse.Namespace) -> None:
    from audiolm.kernels import available, packed

    rows: list[Sequence[object]] = []
    for outputs, inputs in ((4096, 1024), (1408, 256)):
        weights = [torch.randn(outputs, inputs) * 0.05 for _ in range(24)]
        for precision in (None, *available(torch.device("cpu"))):
            with torch.inference_mode():
                products = [
                    packed(w, precision) if precision else lambda x, w=w: torch.nn.functional.linear(x, w) for w in weights
                ]
                own: list[object] = []
                for count in (1, 4, 16, 256):
                    x = torch.randn(count, inputs)
                    seconds = timed(lambda x=x, products=products: [run(x) for run in products], options.repeats) / len(products)
                    if count == 1:
                        own.append(outputs * inputs * BYTES[precision] / seconds / 1e9)
                    own.append(seconds * 1e6)
            rows.append((f"{outputs} x {inputs}", precision or "torch.nn.functional.linear", *own))
    heads = ("matrix", "kernel", "GB/s, 1 row", "us, 1 row", "us, 4", "us, 16", "us, 256")
    table("Rows times one matrix (of 24 used in turn)", heads, rows)


def decode(options: argparse.Namespace) -> None:
    from audiolm import stages
    from audiolm.bundle import language_model
    from audiolm.kernels import available, use
    from audiolm.tokens import TokenSpec
    from audiolm.transformer import TransformerConfig

    semantic, acoustic = TokenSpec("semantic", 1024, 1, 25.0), TokenSpec("acoustic", 1024, 12, 50.0)
    fast, rows = bandwidth(options.repeats), []
    for shape, (layers, width, heads, ffn) in SHAPES.items():
        count = 60 if shape == "12x1024" or options.quick else 200
        for stage in (stages.semantic(semantic), stages.coarse(semantic, acoustic), stages.fine(acoustic)):
            config = TransformerConfig(layers=layers, width=width, heads=heads, ffn=ffn, dropout=0.0)
            network = language_model(stage, config).eval().requires_grad_(False)
            frames = max(2, count // stage.predict.levels)
            given = [
                torch.zeros(own.levels, own.frames(6.0 if own.spec is semantic else 2.0), dtype=torch.long) for own in stage.given
            ]
            before = sum(each.numel() for each in given)
            for precision in (None, *available(torch.device("cpu"))):
                use(network, precision)
                rate = timed_steps(network, stage, given, frames, options.repeats)
                weights = sum(each.numel() for name, each in network.transformer.named_parameters() if each.ndim == 2)
                read = (weights + 1024 * width) * BYTES[precision] + 8 * layers * width * (
                    before + frames * stage.predict.levels / 2
                )
                rows.append((shape, stage.name, f"audiolm, {precision or 'plain torch'}", rate, f"{rate * read / fast:.0%}"))
            for name, environment in (
                ("audiolm-pytorch", "audiolm-pytorch"),
                ("llama", "transformers"),
                ("audiocraft", "audiocraft"),
            ):
                if name != "audiolm-pytorch" and stage.name != "semantic":
                    continue
                found = peer(options, environment, name, shape, stage.name, options.threads)
                if found:
                    note = f"{name} ({found['parameters'] / 1e6:.1f} M, fp32)"
                    rows.append(
                        (
                            shape,
                            stage.name,
                            note,
                            found["tokens_per_second"],
                            f"{found['tokens_per_second'] * 4 * found['parameters'] / fast:.0%}",
                        )
                    )
    heads_ = ("size", "stage", "implementation", "tokens/s", "of memory bandwidth")
    table(f"Decoding at batch 1 ({fast / 1e9:.1f} GB/s; audiocraft makes four tokens per step)", heads_, rows)


def timed_steps(network: Any, stage: Any, given: Sequence[Tensor], frames: int, repeats: int) -> float:
    """Tokens per second after the first frame, whose step also processes the given codes."""
    from audiolm.sampling import sample_frames

    empty, rates = torch.zeros(stage.predict.levels, 0, dtype=torch.long), []
    for _ in range(repeats + 1):
        steps = sample_frames(network, stage, [given], [empty], [frames], [0])
        next(steps)
        began = time.perf_counter()
        for _ in steps:
            pass
        rates.append((frames - 1) * stage.predict.levels / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def loaded(options: argparse.Namespace) -> Any:
    import audiolm

    model = audiolm.load(options.model)
    if options.codebooks:
        model.about["codebooks"] = options.codebooks
    return model


def ways(model: Any) -> list[str]:
    """The decoders that the model has."""
    return ["autoregressive"] * bool({"coarse", "piano"} & set(model.stages)) + ["parallel"] * ("parallel" in model.stages)


def named(model: Any, decoder: str) -> str:
    return f"{decoder}, {model.record(decoder=decoder)['codebooks']} levels"


def packaged(options: argparse.Namespace) -> None:
    import audiolm

    model, rows = loaded(options), []
    prompt = audiolm.read(EXAMPLES / "prompt-female.flac").trim(3.0)
    repeats = min(options.repeats, 5)
    for decoder in ways(model):
        for seconds in (10.0,) if options.quick else (10.0, 30.0):
            parts: dict[str, float] = {}
            whole = statistics.median(per_part(model, prompt, seconds, decoder, parts) for _ in range(repeats))
            first = statistics.median(to_first_sound(model, prompt, seconds, decoder) for _ in range(max(5, repeats)))
            told = ", ".join(f"{name} {spent / repeats:.2f}" for name, spent in parts.items())
            rows.append((named(model, decoder), seconds, whole, told, whole / seconds, first, f"{peak():.0f}"))
    head = ("decoder", "new s", "seconds", "by part (means)", "real-time factor", "s to first new sound", "peak MB so far")
    table(f"Continuing a 3 s prompt, model {options.model}", head, rows)


def per_part(model: Any, prompt: Any, seconds: float, decoder: str, parts: dict[str, float]) -> float:
    """Seconds of one continuation, added to `parts` by stage; "rest" is both tokenizers and the codec's decoder."""
    began = last = time.perf_counter()
    inside = 0.0

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal last, inside
        now = time.perf_counter()
        if stage in seen:
            parts[stage] = parts.get(stage, 0.0) + now - last
            inside += now - last
        seen.add(stage)
        last = now

    seen: set[str] = set()
    model.generate(prompt, seconds, decoder=decoder, progress=tell)
    whole = time.perf_counter() - began
    parts["rest"] = parts.get("rest", 0.0) + whole - inside
    return whole


def to_first_sound(model: Any, prompt: Any, seconds: float, decoder: str) -> float:
    """Seconds from the request to the first new block."""
    began = time.perf_counter()
    blocks = model.stream(prompt, seconds, decoder=decoder, only_new=True)
    next(blocks)
    return time.perf_counter() - began


def batch(options: argparse.Namespace) -> None:
    import audiolm
    from audiolm.asking import Request

    model, rows = loaded(options), []
    prompt = audiolm.read(EXAMPLES / "prompt-male.flac")
    seconds = 2.0 if options.quick else 10.0
    for decoder in ways(model):
        for count in (1, 4, 16):
            requests = [Request(prompt.trim(3.0 - 0.05 * index), seconds, seed=index) for index in range(count)]
            spent = timed(
                lambda requests=requests, decoder=decoder: model.generate_batch(requests, decoder=decoder),
                min(options.repeats, 5),
            )
            rows.append((named(model, decoder), count, spent, spent / count / seconds, f"{peak():.0f}"))
    head = ("decoder", "prompts", "seconds", "real-time factor per prompt", "peak MB so far")
    table(f"Batches of prompts of unequal lengths, {seconds:g} s each", head, rows)


def growth(options: argparse.Namespace) -> None:
    import audiolm

    model, rows = loaded(options), []
    prompt = audiolm.read(EXAMPLES / "prompt-male.flac").trim(3.0)
    lengths = [each for each in (1.0, 10.0, 60.0, 180.0, 600.0) if each < options.longest] + [options.longest]
    for decoder in ways(model):
        for reached, spent, memory in streamed(model.stream(prompt, lengths[-1], decoder=decoder, only_new=True), lengths):
            rows.append((named(model, decoder), reached, spent, spent / reached, f"{memory:.0f}"))
    head = ("decoder", "seconds of sound", "seconds", "real-time factor", "peak MB so far")
    table("One stream, measured along the way", head, rows)


def streamed(blocks: Iterator[Any], lengths: Sequence[float]) -> Iterator[tuple[float, float, float]]:
    """Length of the sound, time taken and peak memory whenever one of `lengths` is reached."""
    began, reached, waiting = time.perf_counter(), 0.0, list(lengths)
    for block in blocks:
        reached += block.seconds
        if waiting and reached >= waiting[0] - 1e-6:
            yield waiting.pop(0), time.perf_counter() - began, peak()


def codec(options: argparse.Namespace) -> None:
    rows: list[Sequence[object]] = []
    from audiolm.codec import Codec, CodecConfig

    own = loaded(options).codec
    audio = torch.randn(1, 1, 10 * own.sample_rate) * 0.1
    codecs = {
        f"audiolm, packaged ({own.config.body})": own,
        "audiolm, waveform (the paper's)": Codec(CodecConfig(body="waveform")).eval(),
    }
    for threads in sorted({1, options.threads}):
        torch.set_num_threads(threads)
        for name, each in codecs.items():
            with torch.inference_mode():
                codes = each.encode(audio)
                times = [timed(lambda each=each: each.encode(audio), options.repeats)]
                times.append(timed(lambda each=each, codes=codes: each.decode(codes), options.repeats))
            size = sum(weight.numel() for weight in each.parameters()) / 1e6
            rows.append((name, f"{size:.1f} M", threads, 10 / times[0], 10 / times[1]))
        for name in ("encodec", "mimi", "dac"):
            found = peer(options, "transformers", name, "-", "-", threads)
            if found:
                size = f"{found['parameters'] / 1e6:.1f} M"
                rows.append((f"transformers {name}, its defaults", size, threads, found["encode"], found["decode"]))
    table("Codecs on 10 s", ("codec", "parameters", "threads", "encode, times real time", "decode, times real time"), rows)


class Clips:
    """Crops of real recordings as a stage's batches."""

    def __init__(self, model: Any, stage: Any, sounds: Sequence[Any]) -> None:
        self.items = []
        for sound in sounds:
            tokens = model.tokenize(sound.trim(stage.crop))
            of = {"semantic": tokens.semantic.codes, "acoustic": tokens.acoustic.codes}
            given = [each.take(of[each.spec.name]) for each in stage.given]
            self.items.append({"given": given, "predicted": stage.predict.take(of[stage.predict.spec.name]), "ends": False})

    def batch(self, step: int) -> Sequence[dict[str, Any]]:
        return self.items[step : step + 1]


def quality(options: argparse.Namespace) -> None:
    """Bits per token; for audible effects (speaker similarity, PESQ, unit errors of both decoders) see `audiolm evaluate`."""
    import audiolm
    from audiolm.audio import READABLE
    from audiolm.kernels import available, use
    from audiolm.training.train_lm import bits_per_token

    model, rows = loaded(options), []
    paths = sorted(path for path in options.data.rglob("*") if path.suffix.lower() in READABLE)
    sounds = [audiolm.read(path).mono().resample(model.sample_rate) for path in paths[:: max(1, len(paths) // 100)]]
    for name, (stage, network) in model.stages.items():
        clips = Clips(model, stage, sounds)
        bits = []
        for precision in (None, *available(torch.device("cpu"))):
            use(network, precision)
            with torch.no_grad():
                bits.append(bits_per_token(network, stage, clips, len(sounds))["bits"])
        rows.append((name, *(f"{each:.4f}" for each in bits)))
    head = ("stage", "plain torch", *available(torch.device("cpu")))
    table(f"Bits per token on {len(sounds)} clips of {options.data.name}", head, rows)


def start(options: argparse.Namespace) -> None:
    rows = []
    for what, code in {
        "python alone": "pass",
        "import audiolm": "import audiolm",
        "audiolm --help": "import sys; from audiolm.cli import run; sys.stdout = open('/dev/null', 'w'); run(['--help'])",
        "import torch": "import torch",
        "import audiolm.bundle": "import audiolm.bundle",
        "audiolm.load()": f"import audiolm; audiolm.load({options.model!r})",
    }.items():
        run = [sys.executable, "-c", code]
        rows.append((what, timed(lambda run=run: subprocess.run(run, check=True, stderr=subprocess.DEVNULL), options.repeats)))
    table("Start-up", ("what", "seconds"), rows)


SECTIONS = {each.__name__: each for each in (limit, kernels, decode, packaged, batch, growth, codec, quality, start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="names, separated by commas")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="shorter sounds, to check that it runs")
    parser.add_argument("--longest", type=float, default=600.0, help="seconds of the longest stream of `growth`")
    parser.add_argument("--model", default="speech")
    parser.add_argument("--codebooks", type=int, help="RVQ levels to generate (default: the model's own choice)")
    parser.add_argument("--data", type=Path, default=EXAMPLES, help="recordings for `quality`")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON", help="transformers, audiolm-pytorch, audiocraft"
    )
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = options.sections.split(",")
    if unknown := sorted(set(chosen) - set(SECTIONS)):
        parser.error(f"no section {unknown[0]}; choose from {', '.join(SECTIONS)}")
    if options.alone:
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        SECTIONS[chosen[0]](options)
        return
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith(("model name", "cpu family"))][:2]
    print(f"{' family '.join(reversed(names)) or platform.processor()}, {options.threads} threads, torch {torch.__version__}, "
          f"medians of {options.repeats}", flush=True)  # fmt: skip
    rest = [each for each in sys.argv[1:] if each != "--alone"]
    for section in chosen:
        began = time.perf_counter()
        subprocess.run([sys.executable, __file__, *rest, "--sections", section, "--alone"], check=False)
        print(f"\n({section}: {time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
