"""The training loops of a recipe: their size from fake tensors, and their speed from running a few real steps.

    for loop in loops("codec", shop):
        needs = loop.needs("32-true")                 # with fake tensors, which have shapes but no memory
        timing = loop.rehearse(shop.fabric.device)    # the real loop, with a stopwatch in place of its run folder

A loop runs on the results of earlier steps if they exist, else on random numbers of the same shape.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from audiolm.bundle import language_model
from audiolm.codec import Codec
from audiolm.conformer import FRAME, SAMPLE_RATE, Conformer
from audiolm.spectra import mel_filters
from audiolm.stages import Stage
from audiolm.training.adversarial import Discriminators, mel_loss, spectral_losses
from audiolm.training.checkpoint import State
from audiolm.training.recipe import codec_network, stage_config, stage_of, taken
from audiolm.training.run import Run
from audiolm.training.token_store import TokenStore
from audiolm.training.train_codec import train_codec
from audiolm.training.train_encoder import train_encoder
from audiolm.training.train_lm import train_lm
from audiolm.training.workshop import Workshop

SECONDS, STEPS = 2.0, 10  # a loop is timed until either is reached, after one warm-up step; for at least one step


class Needs(NamedTuple):
    """Bytes held throughout training; and per batch, bytes of activations kept for the backward pass, and FLOPs."""

    throughout: int
    activations: int
    products: int


class Timing(NamedTuple):
    """Seconds per step, seconds before the first step, and peak memory in bytes (None if the system does not report it)."""

    step: float
    before: float
    peak: float | None


@dataclass(frozen=True)
class Loop:
    """`build` returns the network (and any helper networks), `forward` its loss on a batch of zeros of the real shape."""

    table: str  # its table in the recipe
    config: Any
    seconds: float  # of audio in a crop
    build: Callable[[], tuple[nn.Module, ...]]
    forward: Callable[..., Tensor]
    run: Callable[[Any, Run], object]  # the real loop
    share: float = 1.0  # of the step's training steps that run this loop
    tokens: int = 0  # in a crop
    copies: int = 4  # of the weights: weights, gradients, two moments, and a moving average if there is one
    looks: tuple[str, int] | None = (
        None  # the option for the number of batches read before the first step, and the fewest that will do
    )

    def parameters(self) -> int:
        """Number of parameters of the network."""
        with FakeTensorMode():
            return sum(each.numel() for each in self.build()[0].parameters())

    def needs(self, precision: str) -> Needs:
        """Memory and compute, found with fake tensors, which allocate nothing."""
        kept: dict[int, Any] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage  # kept alive, so that no other storage gets the same address
            return tensor

        with FakeTensorMode(allow_non_fake_inputs=True):
            parts = self.build()
            with (
                FlopCounterMode(display=False) as counter,
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled="bf16" in precision),
            ):
                self.forward(*parts)
            mel_filters.cache_clear()  # the filters of this pass are fake
            weights = [each for part in parts for each in (*part.parameters(), *part.buffers())]
        own = {each.untyped_storage()._cdata for each in weights}
        throughout = self.copies * sum(each.nbytes for each in weights)
        activations = sum(storage.nbytes() for name, storage in kept.items() if name not in own)
        return Needs(throughout, activations, 3 * counter.get_total_flops())  # the backward pass takes twice the forward's

    def rehearse(self, device: torch.device) -> "Timing":
        """Run a few steps and time them."""
        changed: dict[str, Any] = {"steps": 1_000_000, "minutes": None}
        more = 1.0
        if self.looks:
            option, few = self.looks
            all_of_them = getattr(self.config, option)
            changed[option] = min(few, all_of_them)
            more = all_of_them / changed[option]
        known = {name: value for name, value in changed.items() if name in type(self.config).model_fields}
        _forget_peak(device)
        with TemporaryDirectory() as folder:
            watch = Stopwatch(folder, self.config)
            with suppress(Enough):
                self.run(self.config.model_copy(update=known), watch)
        step = (watch.moments[-1] - watch.moments[0]) / (len(watch.moments) - 1)
        return Timing(step, max(0.0, watch.moments[0] - watch.began - step) * more, _peak(device))


class Enough(Exception):
    """Raised to end a loop once enough steps are timed."""


class Stopwatch(Run):
    """Replaces a run folder: keeps nothing, and ends the loop when enough steps are timed."""

    def __init__(self, folder: str, config: Any) -> None:
        super().__init__(folder, config, tracker="none", listen_every=0)
        self.began, self.moments = time.monotonic(), list[float]()

    def checkpoint(
        self, step: int, state: State, every: int, total: int, score: float | Tensor | None = None, **checked: float | Tensor
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.moments.append(time.monotonic())
        if len(self.moments) > STEPS or (len(self.moments) > 1 and self.moments[-1] - self.moments[0] > SECONDS):
            raise Enough


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # not Linux
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> float | None:
    """Peak memory in bytes since `_forget_peak`, of the GPU or this process; None if the system does not report it."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


# --- The loops of a recipe ----------------------------------------------------------------------------------------------


def loops(step: str, shop: Workshop) -> list[Loop]:
    """The loops of a step: the codec's without and with discriminators, the encoder's passes, or a stage's; else none."""
    if step in taken(shop.config):
        return []
    if step == "codec":
        return _codec_loops(shop)
    if step == "encoder":
        return [_encoder_loop(shop, number) for number, each in enumerate(shop.config.encoder) if each.network.layers]
    return [_stage_loop(shop, step)] if step in shop.config.stages else []


def _codec_loops(shop: Workshop) -> list[Loop]:
    own = shop.config.codec
    rate, spec = own.network.sample_rate, own.network.spec
    few = math.ceil(2 * spec.codebook_size / (own.batch_size * own.seconds * spec.frame_rate))

    def forward(codec: nn.Module, critics: nn.Module | None = None) -> Tensor:
        sound = torch.zeros(own.batch_size, 1, round(own.seconds * rate))
        made, _ = codec.eval()(sound)  # eval: codebooks must not be updated from zeros
        judged = [] if critics is None else [logits.sum() for logits, _ in critics(made[: own.discriminator_batch])]
        return mel_loss(made, sound, rate) + sum(spectral_losses(made, sound, own.windows)) + sum(judged)

    def run(begin: float, copy: Any, watch: Run) -> object:
        return train_codec(copy.model_copy(update={"adversarial_from": begin}), _sound(shop, own), watch, shop.fabric)

    make = partial(Loop, "codec", own, own.seconds, forward=forward, copies=5, looks=("start_batches", few))
    codec, critics = partial(Codec, own.network), partial(Discriminators, channels=own.discriminator_channels)
    loops = [
        make(build=lambda: (codec(),), run=partial(run, 1.0), share=own.adversarial_from),
        make(build=lambda: (codec(), critics()), run=partial(run, 0.0), share=1 - own.adversarial_from),
    ]
    return [loop for loop in loops if loop.share > 0]


def _encoder_loop(shop: Workshop, number: int) -> Loop:
    own, before = shop.config.encoder[number], shop.config.encoder[number - 1].network if number else None
    few = math.ceil(2 * getattr(own.objective, "units", 1) / (own.batch_size * own.seconds * SAMPLE_RATE / FRAME))

    def forward(conformer: Any) -> Tensor:
        return conformer(conformer.log_mel(torch.zeros(own.batch_size, 1, round(own.seconds * SAMPLE_RATE))))[-1].sum()

    def run(copy: Any, watch: Run) -> object:
        return train_encoder(copy, _sound(shop, own), watch, shop.fabric, None, Conformer(before).eval() if before else None)

    build = partial(Conformer, own.network)
    return Loop(f"encoder.{number}", own, own.seconds, lambda: (build(),), forward, run, looks=("fit_batches", few))


def _stage_loop(shop: Workshop, name: Any) -> Loop:
    own, stage = stage_config(shop.config, name), stage_of(shop.config, name)
    frames, levels = stage.predict.frames(stage.crop), stage.predict.levels
    tokens = 1 + sum(stream.levels * stream.frames(stage.crop) for stream in stage.streams)

    def forward(network: Any) -> Tensor:
        due = torch.zeros(own.batch_size, frames, 1 if stage.parallel else levels, dtype=torch.int64)
        if not stage.parallel:
            ids = torch.zeros(own.batch_size, tokens, dtype=torch.int64)
            return network(ids, ids[:, 0], due)[0].sum()
        ids = torch.zeros(own.batch_size, frames, sum(stream.levels for stream in stage.streams), dtype=torch.int64)
        hidden = network.transformer(network.embedding(ids).sum(2))
        return nn.functional.cross_entropy(network.logits(hidden, 0).flatten(0, 1).float(), due.flatten())

    def run(copy: Any, watch: Run) -> object:
        made = shop.out / "tokens"
        # Tokens of a recipe that has been changed since cannot be used.
        ready = (made / "done.json").is_file() and {each.spec for each in stage.streams} <= {*TokenStore(made).specs.values()}
        batches: Any = shop.token_crops(name, "train") if ready else RandomTokens(stage, own.batch_size)
        return train_lm(stage, copy, batches, watch, shop.fabric)

    build = partial(language_model, stage, own.network)
    _ = stage.offsets  # a stage caches them: they must not be fake
    return Loop(name, own, stage.crop, lambda: (build(),), forward, run, tokens=tokens, copies=5 if own.ema else 4)


def _sound(shop: Workshop, own: Any) -> Any:
    """Crops of the prepared recordings, else of noise."""
    if (shop.out / "prepare" / "done.json").is_file():
        return shop.crops(own)[0]
    return Noise(own.batch_size, round(own.seconds * codec_network(shop.config).sample_rate))


@dataclass(frozen=True)
class Noise:
    """Batches (B, 1, T) of noise."""

    size: int
    length: int

    def batch(self, step: int) -> Tensor:
        return 0.1 * torch.randn(self.size, 1, self.length, generator=torch.Generator().manual_seed(step))


@dataclass(frozen=True)
class RandomTokens:
    """A stage's crops of random codes: these rarely repeat, so deduplication hardly shortens them and sequences are longest."""

    stage: Stage
    size: int

    def batch(self, step: int) -> list[dict[str, Any]]:
        draw = torch.Generator().manual_seed(step)

        def codes(stream: Any) -> Tensor:
            return torch.randint(stream.spec.codebook_size, (stream.levels, stream.frames(self.stage.crop)), generator=draw)

        streams = self.stage.streams
        return [{"given": [*map(codes, streams[:-1])], "predicted": codes(streams[-1]), "ends": False} for _ in range(self.size)]
