"""Cost of a training step: each of our loops at two sizes, and audiolm-pytorch 2.4.0 with the same shapes in the same run.

    python benchmarks/training.py --peer PEER/bin/python                           # under 8 minutes on two idle cores
    python benchmarks/training.py --sizes tiny --steps 2                           # a minute, without the peer: a smoke test

The peer is installed in an environment of its own, never in ours:

    python3 -m venv PEER && PEER/bin/pip install torch==2.13.0 && PEER/bin/pip install --no-deps audiolm-pytorch==2.4.0
    PEER/bin/pip install accelerate beartype einops ema-pytorch gateloop-transformer hyper-connections==0.4.11 joblib \\
        local-attention==1.11.2 pytorch-warmup scikit-learn sentencepiece transformers vector-quantize-pytorch==1.32.0 tqdm

torchaudio, fairseq, encodec and wandb, which it imports, have stubs below; a step calls only the mel spectrogram of them.
Each row is measured in its own process (memory is the process's peak): one thread, float32, synthetic data, medians. Ours are
the very loops of `audiolm train`, including logging and checks, timed from batch to batch; the peer's are its trainer's steps
without the trainer (no logging, no EMA).
"""

import argparse
import importlib.machinery
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

import torch

# network: layers, width, heads, ffn of language models (the peer's ffn is 4 * 2 / 3 * width) and the encoder (its feed-forward
# is 4 * width). Codecs: channels of the waveform body; widths and layers of encoder and decoder of the spectral body.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"network": (1, 64, 2, 170), "batch": 2, "channels": 4, "widths": (48, 64), "layers": (1, 1)},
    "small": {"network": (4, 256, 4, 682), "batch": 4, "channels": 16, "widths": (128, 192), "layers": (3, 4)},
    "base": {"network": (6, 512, 8, 1365), "batch": 4, "channels": 32, "widths": (256, 384), "layers": (6, 8)},
}
# Seconds of a crop: 750 semantic ids; 100 + 800 ids; 300 + 600 ids. The codec's is 10,240 samples.
SECONDS = {"semantic": 30.0, "coarse": 4.0, "fine": 1.5, "encoder": 4.0, "codec": 0.64}
UNITS, CODES, COARSE, LEVELS = 512, 1024, 4, 12
ROWS = [
    *(("audiolm", row) for row in ("semantic", "coarse", "fine", "encoder", "codec, waveform body", "codec, spectral body")),
    *(("audiolm-pytorch", row) for row in ("semantic", "coarse", "fine", "codec, waveform body")),
]


class Clock:
    """Batches, with the time at which each was requested."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make, self.times = make, []

    def batch(self, step: int) -> Any:
        self.times.append(time.perf_counter())
        return self.make(step)


def codes(levels: int, frames: int, size: int, seed: int) -> torch.Tensor:
    return torch.randint(size, (levels, frames), generator=torch.Generator().manual_seed(seed))


def noise(batch: int, seconds: float, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 1, round(16_000 * seconds), generator=torch.Generator().manual_seed(seed))


# --- Ours -------------------------------------------------------------------------------------------------------------


def ours(row: str, size: dict[str, Any], steps: int) -> tuple[list[float], int]:
    """Step times and number of parameters."""
    from audiolm.training.engine import engine
    from audiolm.training.run import Run

    fabric = engine("cpu", "32-true")
    layers, width, heads, ffn = size["network"]
    kind, length = row.split(",")[0], SECONDS[row.split(",")[0]]
    every = {"log_every": max(1, steps // 2), "save_every": 10**6, "steps": steps + 2, "batch_size": size["batch"]}
    if kind == "encoder":
        from audiolm.conformer import ConformerConfig
        from audiolm.training.train_encoder import EncoderConfig, train_encoder

        network = ConformerConfig(layers=layers, width=width, heads=heads, feed_forward=4 * width)
        config: Any = EncoderConfig(network=network, seconds=length, fit_batches=1, **every)
        clock = Clock(lambda step: noise(size["batch"], length, step))

        def train(run: Run) -> Any:
            return train_encoder(config, clock, run, fabric)
    elif kind == "codec":
        from audiolm.codec import CodecConfig
        from audiolm.training.train_codec import CodecTrainConfig, train_codec

        body = {"body": "waveform", "channels": size["channels"]}
        if "spectral" in row:
            names = ("encoder_width", "decoder_width", "encoder_layers", "decoder_layers")
            body = {"body": "spectral", **dict(zip(names, (*size["widths"], *size["layers"]), strict=True))}
        own = {"start_batches": 18, "adversarial_from": 0.0, "discriminator_batch": size["batch"], "seconds": length}
        config = CodecTrainConfig(network=CodecConfig(num_codebooks=LEVELS, codebook_size=CODES, **body), **own, **every)
        clock = Clock(lambda step: noise(size["batch"], length, step))

        def train(run: Run) -> Any:
            return train_codec(config, clock, run, fabric)
    else:
        from audiolm import stages
        from audiolm.tokens import TokenSpec
        from audiolm.training.train_lm import LMTrainConfig, train_lm
        from audiolm.transformer import TransformerConfig

        semantic, acoustic = TokenSpec("semantic", UNITS, 1, 25.0), TokenSpec("acoustic", CODES, LEVELS, 50.0)
        stage = {
            "semantic": lambda: stages.semantic(semantic),
            "coarse": lambda: stages.coarse(semantic, acoustic, COARSE),
            "fine": lambda: stages.fine(acoustic, COARSE),
        }[kind]()

        def item(seed: int) -> dict[str, Any]:
            streams = [codes(each.levels, each.frames(length), each.spec.codebook_size, seed) for each in stage.streams]
            return {"given": streams[:-1], "predicted": streams[-1], "ends": False}

        network = TransformerConfig(layers=layers, width=width, heads=heads, ffn=ffn, dropout=0.0)
        config = LMTrainConfig(network=network, **every)
        clock = Clock(lambda step: [item(step * 100 + number) for number in range(size["batch"])])

        def train(run: Run) -> Any:
            return train_lm(stage, config, clock, run, fabric)

    with tempfile.TemporaryDirectory() as folder, Run(folder, config, tracker="none", listen_every=0) as run:
        trained = train(run)
    times = clock.times[-(steps + 2) :]
    return [later - earlier for earlier, later in itertools.pairwise(times[1:])], parameters(trained)


def parameters(*modules: torch.nn.Module) -> int:
    return sum(each.numel() for module in modules for each in module.parameters())


# --- The peer ---------------------------------------------------------------------------------------------------------


class MelSpectrogram(torch.nn.Module):
    """Stub for torchaudio's: the same operations, with random filters."""

    filters: torch.Tensor
    window: torch.Tensor

    def __init__(self, n_fft: int, win_length: int, hop_length: int, n_mels: int, **_: Any) -> None:
        super().__init__()
        self.n_fft, self.win, self.hop = n_fft, win_length, hop_length
        self.register_buffer("filters", torch.rand(n_mels, n_fft // 2 + 1))
        self.register_buffer("window", torch.hann_window(win_length))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        flat = audio.reshape(-1, audio.shape[-1])
        spectrum = torch.stft(flat, self.n_fft, self.hop, self.win, self.window, return_complex=True)
        return (self.filters @ spectrum.abs().square()).reshape(*audio.shape[:-1], len(self.filters), -1)


def stand_ins() -> None:
    """Stub modules that the peer imports, whose packages conflict with this torch or are not needed for a step."""
    contents: dict[str, dict[str, Any]] = {
        "torchaudio": {},
        "torchaudio.functional": {"resample": lambda audio, *_: audio},
        "torchaudio.transforms": {"MelSpectrogram": MelSpectrogram},
        "fairseq": {},
        "encodec": {"EncodecModel": object},
        "encodec.utils": {"_linear_overlap_add": None},
        "wandb": {},
    }
    for name, members in contents.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []  # a package
        module.__dict__.update(members)
        sys.modules[name] = module
    sys.modules["torchaudio"].__dict__.update(
        {part: sys.modules[f"torchaudio.{part}"] for part in ("functional", "transforms")} | {"__version__": "2.0"}
    )


def peer(row: str, size: dict[str, Any], steps: int) -> tuple[list[float], int]:
    """Step times and number of parameters."""
    stand_ins()
    import audiolm_pytorch as lucid
    from audiolm_pytorch import t5
    from audiolm_pytorch.optimizer import get_optimizer
    from transformers import T5Config

    t5.T5_CONFIGS[t5.DEFAULT_T5_NAME] = {"config": T5Config(d_model=768)}  # otherwise it would be downloaded
    layers, width, heads, _ = size["network"]
    batch, kind = size["batch"], row.split(",")[0]
    length = SECONDS[kind]
    if kind == "codec":
        codec = lucid.AudioLMSoundStream(channels=size["channels"], codebook_size=CODES, rq_num_quantizers=LEVELS).train()
        critics = [codec.stft_discriminator, *codec.discriminators]
        judged = {id(each) for critic in critics for each in critic.parameters()}
        own = [each for each in codec.parameters() if id(each) not in judged]
        optimizer, critic_optimizers = get_optimizer(own, lr=2e-4), [get_optimizer(c.parameters(), lr=2e-4) for c in critics]

        def step(number: int) -> None:
            codec(noise(batch, length, number)[:, 0]).backward()
            torch.nn.utils.clip_grad_norm_(codec.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            for each in critic_optimizers:
                each.zero_grad()
            separately = {"return_discr_loss": True, "return_discr_losses_separately": True}
            for _, loss in codec(noise(batch, length, number)[:, 0], **separately):
                loss.backward(retain_graph=True)
            for each in critic_optimizers:
                each.step()

        return timed(step, steps), parameters(codec) - sum(each.numel() for c in critics for each in c.parameters())

    shape = {"dim": width, "depth": layers, "heads": heads, "attn_dropout": 0.0, "ff_dropout": 0.0}
    bystander = lucid.SoundStream(channels=2, codebook_size=CODES, rq_num_quantizers=LEVELS)  # the wrappers require one
    if kind == "semantic":
        network = lucid.SemanticTransformer(num_semantic_tokens=UNITS, **shape)
        wrapper = lucid.SemanticTransformerWrapper(transformer=network, unique_consecutive=False)
    elif kind == "coarse":
        shape |= {"num_semantic_tokens": UNITS, "codebook_size": CODES, "num_coarse_quantizers": COARSE}
        network = lucid.CoarseTransformer(**shape)
        wrapper = lucid.CoarseTransformerWrapper(transformer=network, codec=bystander, unique_consecutive=False)
    else:
        shape |= {"codebook_size": CODES, "num_coarse_quantizers": COARSE, "num_fine_quantizers": LEVELS - COARSE}
        network = lucid.FineTransformer(**shape)
        wrapper = lucid.FineTransformerWrapper(transformer=network, codec=bystander)
    optimizer = get_optimizer(network.parameters(), lr=3e-4)
    units, frames = round(25 * length), round(50 * length)

    def step(number: int) -> None:
        acoustic = torch.stack([codes(LEVELS, frames, CODES, number * 100 + row).T for row in range(batch)])
        semantic = torch.stack([codes(1, units, UNITS, number * 100 + row)[0] for row in range(batch)])
        given = {
            "semantic": {"semantic_token_ids": semantic},
            "coarse": {"semantic_token_ids": semantic, "coarse_token_ids": acoustic[..., :COARSE]},
            "fine": {"coarse_token_ids": acoustic[..., :COARSE], "fine_token_ids": acoustic[..., COARSE:]},
        }[kind]
        wrapper(**given, return_loss=True).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()

    wrapper.train()
    return timed(step, steps), parameters(network)


def timed(step: Callable[[int], None], steps: int) -> list[float]:
    """Seconds of each step after the first; at least two, and no more once 20 s are spent."""
    times: list[float] = []
    while len(times) < 3 or (len(times) <= steps and sum(times) < 20):
        began = time.perf_counter()
        step(len(times))
        times.append(time.perf_counter() - began)
    return times[1:]


# --- The table --------------------------------------------------------------------------------------------------------


def measure(python: str, who: str, row: str, size: str, steps: int) -> dict[str, Any] | None:
    """Measure one row in its own process; None if it fails, with the last line of its error on stderr."""
    command = [python, __file__, "--row", who, row, "--sizes", size, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{who}, {row}, {size}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    """Markdown table with a line for each row and size: ours, the peer's, and their ratio."""
    lines = [
        "| loop | size | batch | parameters | step | audio h / h | memory | peer: parameters | step | memory | faster |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (who, row, size), found in results.items():
        if who != "audiolm":
            continue
        batch, seconds = SIZES[size]["batch"], SECONDS[row.split(",")[0]]
        # The peer has one codec body; both of ours are compared with it.
        other = results.get(("audiolm-pytorch", row.replace("spectral", "waveform"), size))
        hours = batch * seconds / found["seconds"]
        cells = [row, size, f"{batch} x {seconds:g} s", f"{found['parameters'] / 1e6:.1f} M", f"{found['seconds']:.2f} s"]
        cells += [f"{hours:.1f}", f"{found['gigabytes']:.2f} GB"]
        if other:
            cells += [f"{other['parameters'] / 1e6:.1f} M", f"{other['seconds']:.2f} s", f"{other['gigabytes']:.2f} GB"]
            cells += [f"{other['seconds'] / found['seconds']:.1f} x"]
        lines.append(f"| {' | '.join(cells + [''] * (11 - len(cells)))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="Python executable of an environment with audiolm-pytorch")
    parser.add_argument("--sizes", nargs="+", default=["small", "base"], choices=SIZES)
    parser.add_argument("--steps", type=int, default=3, help="timed steps per row")
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("--row", nargs=2, metavar=("WHO", "LOOP"), help="measure this row in this process; prints JSON")
    options = parser.parse_args()
    if options.row:
        torch.set_num_threads(1)
        who, row = options.row
        times, count = (ours if who == "audiolm" else peer)(row, SIZES[options.sizes[0]], options.steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": statistics.median(times), "gigabytes": peak / 1e9, "parameters": count}))
        return
    began, results = time.monotonic(), {}
    for size in options.sizes:
        for who, row in ROWS:
            python = sys.executable if who == "audiolm" else options.peer
            if python and (options.only or "") in row and (found := measure(python, who, row, size, options.steps)):
                results[who, row, size] = found
                print(f"{who}, {row}, {size}: {found['seconds']:.2f} s", file=sys.stderr, flush=True)
    text = table(results)
    print(text + f"\n{time.monotonic() - began:.0f} s in all, one thread, torch {torch.__version__}")


if __name__ == "__main__":
    main()
