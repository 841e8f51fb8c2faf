"""Train the language model of any stage (AudioLM §III-B): one loop, whatever is given and predicted.

The loss is cross entropy on the predicted codes only, and on EOS where a recording ends. Progress is reported in bits per
token for each level, next to those of a unigram model, which knows only each code's frequency. A parallel stage differs only
in its batches, in which `collate_items` masks codes; its figures are on masked codes, with their neighbours visible.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from audiolm.audio import Waveform
from audiolm.bundle import language_model
from audiolm.config import Config, Seed
from audiolm.parallel import Masked, mask
from audiolm.stages import Stage
from audiolm.training.checkpoint import whole
from audiolm.training.engine import batches_of, clip, follow, placed
from audiolm.training.randomness import random_untouched
from audiolm.training.run import Run, learning_rate
from audiolm.training.token_store import Batches
from audiolm.transformer import IGNORED, LanguageModel, TransformerConfig

Listener = Callable[[LanguageModel], Mapping[str, Waveform]]  # a model's continuations of a fixed set of prompts
Vectors = Mapping[str, Sequence[Tensor]]  # token kind -> for each level, the vectors that its codes stand for (N, D)


class LMTrainConfig(Config):
    """Architecture and budget. A batch has `batch_size` crops; each step takes `accumulate` batches."""

    network: TransformerConfig = TransformerConfig()
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    steps: int = Field(default=20_000, ge=1)
    minutes: float | None = Field(default=None, gt=0)  # a time budget instead of `steps`; the schedule follows it
    lr: float = Field(default=1e-3, gt=0)
    floor: float = Field(default=0.02, ge=0, le=1)  # share of lr at the end of the cosine
    warmup: float = Field(default=0.02, ge=0, lt=1)  # share of the budget
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)  # moving average of the weights; if above 0, it is what is evaluated and kept
    compile: bool = False
    log_every: int = Field(default=50, ge=1)
    valid_every: int = Field(default=500, ge=1)  # each validation makes a checkpoint; the best one is what training returns
    valid_batches: int = Field(default=8, ge=1)
    unigram_batches: int = Field(default=64, ge=1)
    save_every: int = Field(default=500, ge=1)
    seed: Seed = 0


def train_lm(
    stage: Stage,
    config: LMTrainConfig,
    batches: Batches,
    run: Run,
    fabric: Fabric,
    valid: Batches | None = None,
    listener: Listener | None = None,
    start: LanguageModel | None = None,
    vectors: Vectors | None = None,
    kin: tuple[Stage, LanguageModel] | None = None,
) -> LanguageModel:
    """Train a stage's language model and return the best on the valid batches (if there are none, the last), in eval mode.

    start: a network of the same sizes whose weights are the initial ones. Without it, vectors: for `place_codes`, and then kin:
    for `take_over`.
    """
    torch.manual_seed(config.seed)
    network = language_model(stage, config.network)
    if start is not None:
        network.load_state_dict(start.state_dict())
    elif vectors is not None:
        place_codes(network, stage, vectors)
    if start is None and kin is not None:
        take_over(network, stage, *kin)
    network = network.to(fabric.device)
    average = placed(copy.deepcopy(network).requires_grad_(False), fabric) if config.ema else network
    if config.compile:
        network.transformer.compile()
    model = fabric.setup_module(network)
    optimizer: Any = optimizer_of(network, config)
    told = torch.zeros(2, stage.predict.levels)  # nats and token counts of each level since the last line of metrics
    state: dict[str, Any] = {"model": network, "optimizer": optimizer, "seconds": 0.0, "told": told, "hours": 0.0}
    if config.ema:
        state["average"] = average
    kept = "average" if config.ema else "model"
    step = run.resume(state)
    optimizer = fabric.setup_optimizers(optimizer)
    unigram = unigram_bits(stage, batches, valid, config.unigram_batches, config.valid_batches) if valid is not None else {}
    sums = state["told"] = state["told"].to(fabric.device)
    began, line_began = time.monotonic() - state["seconds"], time.monotonic()

    budget = config.steps if config.minutes is None else math.ceil(60 * config.minutes)

    def position() -> float:
        """How much of the budget is spent, in finished steps or in seconds."""
        return step if config.minutes is None else state["seconds"]

    def scheduled() -> float:
        thousandths = max(1, int(1000 * position()))
        return learning_rate(thousandths, config.lr, 1000 * budget, round(1000 * budget * config.warmup), config.floor)

    with run.progress(budget, int(position())) as show:
        while position() < budget:
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = scheduled()
            model.train()
            for index, _ in batches_of(step - 1, config.accumulate, config.seed, fabric, model):
                items = batches.batch(index)
                batch = collate_items(stage, items, index, config.seed)
                nats, counts = model(*fabric.to_device(batch))
                fabric.backward(nats.sum() / counts.sum() / config.accumulate)
                sums += torch.stack((nats.detach(), counts))
                frames = sum(item["predicted"].shape[-1] for item in items)
                state["hours"] += fabric.world_size * frames / stage.predict.spec.frame_rate / 3600
            norm = clip(fabric, model, optimizer, config.clip)
            optimizer.step()
            optimizer.zero_grad()
            if config.ema:
                follow(average, network, min(config.ema, step / (step + 10)))
            if config.minutes is not None:
                state["seconds"] = fabric.broadcast(time.monotonic() - began)

            last = position() >= budget
            score = None
            if step % config.log_every == 0 or last:
                run.check(step, loss=sums[0].sum(), norm=norm)
                bits, now = _bits(stage, *sums.cpu()), time.monotonic()
                speed = fabric.world_size * float(sums[1].sum()) / (now - line_began)
                figures = {"norm": norm, "lr": optimizer.param_groups[0]["lr"], "hours": state["hours"]}
                run.log(step, **bits, **figures, tokens_per_second=speed)
                show(int(position()), **bits)
                line_began = now
                sums.zero_()
            if valid is not None and (step % config.valid_every == 0 or last):
                with fabric.autocast():
                    bits = bits_per_token(average, stage, valid, config.valid_batches)
                score = bits["bits"]
                run.log(step, **_named("valid", bits), **_named("unigram", unigram))
            if listener is not None and run.listening(step):
                listen(step, run, listener, stage, config, average)
            run.checkpoint(step, state, config.save_every, total=step if last else step + 1, score=score, norm=norm)
    fabric.barrier()
    trained = {kept: language_model(stage, config.network)}
    run.load(run.steps()[-1] if run.best is None else run.best, trained)
    return trained[kept].to(fabric.device).eval()


@torch.no_grad()
def place_codes(network: LanguageModel, stage: Stage, vectors: Vectors) -> None:
    """Initialise each code's embedding, and its row of the output head, as a random projection of the vector it stands for.

    Codes that sound alike are thus neighbours from the first step on: 300 steps achieve what took some 700 before
    (docs/training-log.md). The levels of one kind of tokens share a projection, since their vectors add up to one sound.
    """
    width, projections = network.embedding.embedding_dim, dict[str, Tensor]()
    for stream, offsets in zip(stage.streams, stage.offsets, strict=True):
        if stream.spec.name not in vectors:  # text stands for no sound
            continue
        tables = vectors[stream.spec.name][stream.first : stream.last]
        size = tables[0].shape[1]
        if stream.spec.name not in projections:
            projections[stream.spec.name] = torch.linalg.qr(torch.randn(max(size, width), max(size, width))).Q[:size, :width]
        for level, table in enumerate(tables):
            placed = (table.float().cpu() - table.float().cpu().mean(0)) @ projections[stream.spec.name]
            placed = placed * (network.embedding.weight.std() / placed.std().clamp_min(1e-8))
            first = int(offsets[level])
            network.embedding.weight[first : first + len(placed)] = placed
            if stream is stage.predict:
                network.heads[level] = placed


@torch.no_grad()
def take_over(network: LanguageModel, stage: Stage, theirs: Stage, kin: LanguageModel) -> None:
    """Initialise with what another stage knows of the same tokens: a text stage with how units follow one another (SPEAR-TTS
    §3.2), a coarse stage of two levels with what one of four knows of these.

    The embeddings of codes and special ids that both have, the heads of levels that both predict, and the blocks are copied, as
    far as they have the same shapes.
    """
    own, known = network.state_dict(), kin.state_dict()
    same = {name: each for name, each in known.items() if name in own and own[name].shape == each.shape}
    same = {name: each for name, each in same.items() if name not in ("embedding.weight", "heads")}
    network.load_state_dict(same, strict=False)
    if own["embedding.weight"].shape[1] != known["embedding.weight"].shape[1]:
        return
    mine, others = _ids_by_meaning(stage), _ids_by_meaning(theirs)
    for meaning in mine.keys() & others.keys():
        here, there = (slice(first, first + size) for first, size in (mine[meaning], others[meaning]))
        network.embedding.weight[here] = kin.embedding.weight[there].to(network.embedding.weight)
    if stage.predict.spec == theirs.predict.spec:
        for level in range(max(stage.predict.first, theirs.predict.first), min(stage.predict.last, theirs.predict.last)):
            head = kin.heads[level - theirs.predict.first]
            network.heads[level - stage.predict.first] = head.to(network.heads)


def _ids_by_meaning(stage: Stage) -> dict[Any, tuple[int, int]]:
    """A level's tokens, or a special id -> the first of its ids, and their number."""
    found: dict[Any, tuple[int, int]] = {}
    for stream, offsets in zip(stage.streams, stage.offsets, strict=True):
        for level, first in enumerate(offsets[:, 0].tolist(), stream.first):
            found[stream.spec, level] = first, stream.spec.codebook_size
    if stage.parallel:
        return found | {("mask", level): (int(id_), 1) for level, id_ in enumerate(stage.masks, stage.predict.first)}
    return found | {"start": (stage.start, 1), "eos": (stage.eos, 1), "pad": (stage.pad, 1)}


@torch.no_grad()
def listen(step: int, run: Run, listener: Listener, stage: Stage, config: LMTrainConfig, network: LanguageModel) -> None:
    """Save a network copy's continuations of the prompts, so that neither the network nor training's randomness is touched."""
    weights = whole(network.state_dict(), keep=run.main)  # every process contributes its shards; only the main one generates
    if run.main:
        with random_untouched():
            twin = language_model(stage, config.network).to(network.heads.device)
            twin.load_state_dict(weights)
            run.listen(step, listener(twin.eval()))


class Batch(NamedTuple):
    """Input of the language model: ids (B, L), the index of each START (B,), codes to predict (B, F, Q)."""

    ids: Tensor
    starts: Tensor
    targets: Tensor


def collate_items(stage: Stage, items: Sequence[Mapping[str, Any]], step: int, seed: int = 0) -> Batch | Masked:
    """Items as input of the stage's network; for a parallel stage, (seed, step) decide which codes are masked."""
    return mask(stage, items, seed * 1_000_003 + step) if stage.parallel else collate(stage, items)


def collate(stage: Stage, items: Sequence[Mapping[str, Any]]) -> Batch:
    """Pack and pad on the right. Targets are the codes after START, N for EOS, IGNORED elsewhere."""
    levels, ends = stage.predict.levels, stage.predict.spec.codebook_size
    lines = [stage.pack(item["given"], item["predicted"], item["ends"]) for item in items]
    starts = [int((line == stage.start).nonzero()) for line in lines]
    frames = max(-(-(len(line) - start - 1) // levels) for line, start in zip(lines, starts, strict=True))
    targets = torch.full((len(lines), frames * levels), IGNORED)
    offsets = stage.offsets[-1].flatten().repeat(frames)
    for row, (line, start) in enumerate(zip(lines, starts, strict=True)):
        after = line[start + 1 :]
        targets[row, : len(after)] = torch.where(after == stage.eos, ends, after - offsets[: len(after)])
    ids = pad_sequence(lines, batch_first=True, padding_value=stage.pad)
    return Batch(ids, torch.tensor(starts), targets.view(len(lines), frames, levels))


def optimizer_of(network: nn.Module, config: LMTrainConfig) -> torch.optim.AdamW:
    """Fused AdamW; weight decay applies to matrices, heads and T5's table of biases, not to embeddings and norms."""
    decaying = {name: parameter.ndim > 1 and "embedding" not in name for name, parameter in network.named_parameters()}
    groups = [
        {"params": [p for name, p in network.named_parameters() if decaying[name] is decays], "weight_decay": decay}
        for decays, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, config.lr, (0.9, 0.95), fused=True)


@torch.no_grad()
def bits_per_token(model: LanguageModel, stage: Stage, batches: Batches, count: int) -> dict[str, float]:
    """Bits per token over the first `count` batches: "bits" of all, "bits_1" of codebook 1, and so on; EOS is a token too.

    Restores the model's mode and all random states.
    """
    training = model.training
    sums = torch.zeros(2, stage.predict.levels)
    with random_untouched():
        model.eval()
        for index in range(count):
            batch = collate_items(stage, batches.batch(index), index)
            sums += torch.stack(model(*(each.to(model.heads.device) for each in batch))).cpu()
        model.train(training)
    return _bits(stage, *sums)


def unigram_bits(stage: Stage, batches: Batches, valid: Batches, count: int, valid_count: int) -> dict[str, float]:
    """Like `bits_per_token`, for a unigram model: each level's code frequencies in `count` training batches."""
    levels, codes = stage.predict.levels, stage.predict.spec.codebook_size + 1
    found, seen = torch.ones(levels, codes), torch.zeros(levels, codes)  # start from one each, so that no code is impossible
    found[1:, -1] = 0  # except EOS inside a frame
    for counts, source, length in ((found, batches, count), (seen, valid, valid_count)):
        for index in range(length):
            for level, targets in enumerate(collate_items(stage, source.batch(index), index).targets.flatten(0, 1).T):
                counts[level] += targets[targets != IGNORED].bincount(minlength=codes)
    nats = torch.special.xlogy(seen, found / found.sum(1, keepdim=True)).neg().sum(1)
    return _bits(stage, nats, seen.sum(1))


def _bits(stage: Stage, nats: Tensor, counts: Tensor) -> dict[str, float]:
    each = nats / counts / math.log(2)
    names = [f"bits_{level}" for level in range(stage.predict.first + 1, stage.predict.last + 1)]
    return {"bits": float(nats.sum() / counts.sum() / math.log(2)), **dict(zip(names, each.tolist(), strict=True))}


def _named(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in values.items()}
