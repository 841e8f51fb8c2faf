"""One loop for any stage: it learns, evaluation leaves it alone (contract 6), resumed is uninterrupted (contract 4)."""

import math
import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Generator, Tensor

from audiolm.bundle import language_model
from audiolm.files import load_tensors, save_tensors
from audiolm.stages import Stage, acoustic_only, coarse, fine, semantic
from audiolm.tokens import TokenSpec
from audiolm.training.engine import engine
from audiolm.training.run import Run, Stopped
from audiolm.training.train_lm import LMTrainConfig, bits_per_token, collate, optimizer_of, place_codes, train_lm, unigram_bits
from audiolm.transformer import IGNORED, LanguageModel, TransformerConfig

S = TokenSpec("semantic", 12, 1, 25.0)
A = TokenSpec("acoustic", 9, 5, 50.0)
STAGES = [semantic(S), semantic(S, dedup=True), coarse(S, A, 2), coarse(S, A, 2, dedup=True), fine(A, 2), acoustic_only(A, 3)]
NAMES = ["semantic", "semantic deduped", "coarse", "coarse deduped", "fine", "acoustic"]


class Walks:
    """Codes that go up by one or stay, in each level; every third item ends. `only`: always the same batch."""

    def __init__(self, stage: Stage, seed: int = 0, only: int | None = None, kill_at: int | None = None) -> None:
        self.stage, self.seed, self.only, self.kill_at = stage, seed, only, kill_at

    def batch(self, step: int) -> Sequence[dict[str, Any]]:
        if step == self.kill_at:
            raise KeyboardInterrupt
        generator = Generator().manual_seed(self.seed * 1_000 + (step if self.only is None else self.only))
        return [self._item(generator, row % 3 == 0) for row in range(4)]

    def _item(self, generator: Generator, ends: bool) -> dict[str, Any]:
        seconds = 0.04 * int(torch.randint(4, 9, (1,), generator=generator))
        codes = []
        for stream in self.stage.streams:
            steps = torch.randint(2, (stream.levels, stream.frames(seconds)), generator=generator)
            steps[:, 0] = torch.randint(stream.spec.codebook_size, (stream.levels,), generator=generator)
            codes.append(steps.cumsum(1) % stream.spec.codebook_size)
        return {"given": codes[:-1], "predicted": codes[-1], "ends": ends}


def config_of(**changes: Any) -> LMTrainConfig:
    network = TransformerConfig(layers=2, heads=2, width=32, ffn=48, dropout=changes.pop("dropout", 0.1))
    settings = {"steps": 12, "lr": 3e-3, "log_every": 2, "valid_every": 100, "save_every": 4, "valid_batches": 2}
    return LMTrainConfig(network=network, **{**settings, **changes})


def train(
    folder: Path, stage: Stage, config: LMTrainConfig, batches: Walks, valid: Walks | None = None, precision: Any = "32-true"
):
    with Run(folder, config, tracker="none") as run:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        return train_lm(stage, config, batches, run, fabric, valid), run


def weights(model: LanguageModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_targets_are_what_follows_and_eos_stands_at_true_ends_only(stage: Stage) -> None:
    items = Walks(stage).batch(0)
    ids, starts, targets = collate(stage, items)
    size, levels = stage.predict.spec.codebook_size, stage.predict.levels
    for row, item in enumerate(items):
        line = stage.pack(item["given"], item["predicted"], item["ends"])
        assert torch.equal(ids[row, : len(line)], line)
        assert bool((ids[row, len(line) :] == stage.pad).all())
        assert int(ids[row, starts[row]]) == stage.start
        wanted = targets[row].flatten()
        wanted = wanted[wanted != IGNORED].tolist()
        named = [stage.eos if code == size else code + int(stage.offsets[-1][k % levels]) for k, code in enumerate(wanted)]
        assert named == line[starts[row] + 1 :].tolist()
        assert (size in wanted) is item["ends"]
        assert wanted.count(size) == int(item["ends"])
        assert wanted.index(size) == len(wanted) - 1 if item["ends"] else True


@pytest.mark.parametrize("stage", [STAGES[1], STAGES[2]], ids=[NAMES[1], NAMES[2]])
def test_a_tiny_model_learns_one_batch_by_heart(tmp_path: Path, stage: Stage) -> None:
    config = config_of(steps=80, dropout=0.0, lr=2e-2, weight_decay=0.0, save_every=1000, log_every=40)
    batches = Walks(stage, only=3)
    model, run = train(tmp_path, stage, config, batches)
    # What even a perfect memory cannot know: which of the lines that began alike this one is.
    lines = [stage.pack(item["given"], item["predicted"], item["ends"]).tolist() for item in batches.batch(0)]
    places = [(line, k) for line in lines for k in range(line.index(stage.start) + 1, len(line))]
    alike = [[sum(other[:end] == line[:end] for other in lines) for end in (k, k + 1)] for line, k in places]
    floor = sum(math.log2(before / after) for before, after in alike) / len(alike)
    assert bits_per_token(model, stage, batches, 1)["bits"] < floor + 0.1
    lines = run.metrics()
    assert lines[-1]["bits"] < lines[0]["bits"]
    assert lines[-1]["lr"] < 0.05 * config.lr < max(line["lr"] for line in lines)


def test_it_learns_what_a_unigram_cannot_and_returns_the_best(tmp_path: Path) -> None:
    stage = coarse(S, A, 2)
    config = config_of(steps=80, lr=1e-2, dropout=0.0, valid_every=20, log_every=20, save_every=1000)
    valid = Walks(stage, seed=1)
    model, run = train(tmp_path, stage, config, Walks(stage), valid, "bf16-mixed")
    scores = {line["step"]: line["valid_bits"] for line in run.metrics() if "valid_bits" in line}
    assert sorted(scores) == list(range(20, 81, 20))
    unigram = next(line["unigram_bits"] for line in run.metrics() if "unigram_bits" in line)
    assert min(scores.values()) < 0.8 * unigram
    assert run.best == min(scores, key=lambda step: (scores[step], step))
    assert bits_per_token(model, stage, valid, 2)["bits"] == pytest.approx(min(scores.values()), rel=0.02)
    assert not model.training


def test_the_best_is_kept_when_later_ones_are_worse(tmp_path: Path) -> None:
    stage = semantic(S)
    config = config_of(steps=60, dropout=0.0, lr=1e-2, floor=1.0, valid_every=10, weight_decay=0.0, save_every=1000)
    valid = Walks(stage, seed=1)
    model, run = train(tmp_path, stage, config, Walks(stage, only=0), valid)  # learns one batch by heart: others suffer
    scores = [line["valid_bits"] for line in run.metrics() if "valid_bits" in line]
    assert min(scores) < scores[-1]
    assert bits_per_token(model, stage, valid, 2)["bits"] == pytest.approx(min(scores), rel=1e-4)


@pytest.mark.parametrize("size", [3, 32, 50])  # narrower, as wide and wider than the network
def test_codes_begin_where_their_vectors_are(size: int) -> None:
    stage, generator = coarse(S, A, 2), Generator().manual_seed(0)
    vectors = {
        "semantic": [5 + torch.randn(12, size, generator=generator)],
        "acoustic": [torch.randn(9, size, generator=generator) for _ in range(5)],
    }
    network = language_model(stage, config_of().network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    place_codes(network, stage, vectors)
    placed = network.embedding.weight.detach()
    for first, table in ((0, vectors["semantic"][0]), (12, vectors["acoustic"][0]), (21, vectors["acoustic"][1])):
        rows = placed[first : first + len(table)]
        assert float(rows.std()) == pytest.approx(0.02, rel=0.2)  # as large as they were
        apart, should = torch.pdist(rows), torch.pdist(table)
        if size <= 32:
            torch.testing.assert_close(apart / apart.mean(), should / should.mean())
        assert float(torch.corrcoef(torch.stack([apart, should]))[0, 1]) > 0.7
    assert torch.equal(network.heads[1], placed[21:30])
    assert torch.equal(placed[stage.start :], before["embedding.weight"][stage.start :])  # what stands for no sound
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"embedding.weight", "heads"}


def test_training_begins_there(tmp_path: Path) -> None:
    stage, config = coarse(S, A, 2), config_of(steps=1, lr=1e-12, seed=4)
    vectors = {
        "semantic": [torch.eye(12)],
        "acoustic": [torch.randn(9, 3, generator=Generator().manual_seed(q)) for q in range(5)],
    }
    with Run(tmp_path, config, tracker="none") as run:
        fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
        trained = train_lm(stage, config, Walks(stage), run, fabric, vectors=vectors)
    torch.manual_seed(4)
    network = language_model(stage, config.network)
    place_codes(network, stage, vectors)
    torch.testing.assert_close(weights(trained), weights(network))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_evaluation_changes_nothing(tmp_path: Path, ema: float) -> None:
    stage = coarse(S, A, 2)
    without, _ = train(tmp_path / "without", stage, config_of(ema=ema, dropout=0.3), Walks(stage))
    config = config_of(ema=ema, dropout=0.3, valid_every=3)
    _, run = train(tmp_path / "with", stage, config, Walks(stage), Walks(stage, seed=1))
    last = train(tmp_path / "last", stage, config, Walks(stage))[0]
    assert torch.equal(weights(last), weights(without))
    state = {"average" if ema else "model": LanguageModel(config.network, stage.vocabulary, 2, 9)}
    run.load(12, state)
    assert torch.equal(weights(*state.values()), weights(without))


@pytest.mark.parametrize("killed", [5, 17, 23])
def test_killed_and_resumed_is_uninterrupted(tmp_path: Path, killed: int) -> None:
    stage = semantic(S)
    config = config_of(ema=0.9, accumulate=2, valid_every=5, dropout=0.3)
    valid = Walks(stage, seed=1)
    whole, run = train(tmp_path / "whole", stage, config, Walks(stage), valid)
    # The unigram's counting passes the batch first: it is left out of what is killed.
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stage, config.model_copy(), Counted(stage, killed), valid)
    resumed, again = train(tmp_path / "killed", stage, config, Walks(stage), valid)
    assert torch.equal(weights(whole), weights(resumed))
    timeless = [[{k: v for k, v in line.items() if k != "tokens_per_second"} for line in each.metrics()] for each in (run, again)]
    assert timeless[0] == timeless[1]
    finished, _ = train(tmp_path / "killed", stage, config, Counted(stage, 0), valid)  # nothing is left to do
    assert torch.equal(weights(whole), weights(finished))


def test_killed_at_ten_random_moments_it_comes_to_the_same(tmp_path: Path) -> None:
    """SIGKILL, the checkpoint's write included: there is one after each step, so about half of the time is spent in one."""
    stage = semantic(S)
    config = config_of(steps=120, ema=0.9, dropout=0.3, save_every=1, log_every=10, valid_every=40, unigram_batches=2)
    valid, moments = Walks(stage, seed=1), random.Random(0)
    whole, run = train(tmp_path / "whole", stage, config, Walks(stage), valid)
    for _ in range(10):
        fork = multiprocessing.get_context("fork")  # torch is loaded already
        child = fork.Process(target=train, args=(tmp_path / "killed", stage, config, Walks(stage), valid))
        aim = newest(tmp_path / "killed") + moments.randint(1, 10)
        child.start()
        while child.is_alive() and newest(tmp_path / "killed") < aim:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    resumed, again = train(tmp_path / "killed", stage, config, Walks(stage), valid)
    assert torch.equal(weights(whole), weights(resumed))
    assert [line["step"] for line in run.metrics()] == [line["step"] for line in again.metrics()]


def newest(folder: Path) -> int:
    """Step of the last checkpoint, whole or not."""
    return max((int(path.name.split("-")[1][:8]) for path in folder.glob("*step-*")), default=0)


@pytest.mark.slow
def test_compiled_learns_as_eager_does(tmp_path: Path) -> None:
    stage = semantic(S)
    losses = []
    for compiled in (False, True):
        config = config_of(steps=6, compile=compiled, dropout=0.0, log_every=1)
        _, run = train(tmp_path / str(compiled), stage, config, Walks(stage), Walks(stage, seed=1))
        losses.append([line["bits"] for line in run.metrics() if "bits" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


class Counted(Walks):
    """Walks that are killed at the n-th batch of training, after the unigram's."""

    def __init__(self, stage: Stage, kill_at: int) -> None:
        super().__init__(stage)
        self.left = LMTrainConfig().unigram_batches + kill_at

    def batch(self, step: int) -> Sequence[dict[str, Any]]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().batch(step)


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_end_equal_and_resumed_is_uninterrupted(
    tmp_path: Path, two_processes: Callable[[Callable[[int], None]], None], shard: bool
) -> None:
    """Through accumulation, validation, listening, checkpoints and a stop that one process alone was asked for."""
    stage = semantic(S)
    config = config_of(ema=0.9, accumulate=2, steps=6, valid_every=3, log_every=2, unigram_batches=2, dropout=0.3)
    valid = Walks(stage, seed=1)

    class Asked(Walks):
        def batch(self, step: int) -> Sequence[dict[str, Any]]:
            if step == 17:  # a batch of rank 1's in its fifth step
                run._signal = 15
            return super().batch(step)

    def work(rank: int) -> None:
        nonlocal run
        fabric = engine("cpu", "32-true", shard)
        heard: list[int] = []
        results = {}
        for name, batches in (("whole", Walks(stage)), ("parts", Asked(stage)), ("parts", Walks(stage))):
            with Run(tmp_path / name, config, tracker="none", listen_every=3) as run:
                try:
                    listener = lambda model: heard.append(len(model.state_dict())) or {}  # noqa: E731
                    results[name] = train_lm(stage, config, batches, run, fabric, valid, listener)
                except Stopped:
                    assert name == "parts"
                    assert run.steps()[-1] == 5
        assert len(heard) == (4 if rank == 0 else 0)
        save_tensors(tmp_path / f"{rank}.safetensors", {name: weights(model) for name, model in results.items()})

    run: Run
    two_processes(work)
    first, second = (load_tensors(tmp_path / f"{rank}.safetensors")[0] for rank in range(2))
    assert torch.equal(first["whole"], first["parts"])
    assert all(torch.equal(first[name], second[name]) for name in first)
    # What two have written, one goes on from.
    config = config_of(ema=0.9, accumulate=2, steps=6, valid_every=3, log_every=2, unigram_batches=2, dropout=0.3)
    alone, _ = train(tmp_path / "whole", stage, config, Walks(stage), valid)
    assert torch.equal(weights(alone), first["whole"])


def test_a_budget_of_minutes(tmp_path: Path) -> None:
    stage = semantic(S)
    config = config_of(minutes=1 / 60, steps=10**9, warmup=0.0, floor=0.1)
    _, run = train(tmp_path, stage, config, Walks(stage))
    lines = run.metrics()
    assert 5 < lines[-1]["step"] < 10**5
    assert lines[-1]["lr"] < 0.6 * lines[0]["lr"]
    assert run.steps()[-1] == lines[-1]["step"]  # the end is saved, wherever it falls


def test_bits_are_cross_entropies(tmp_path: Path) -> None:
    stage = fine(A, 2)
    torch.manual_seed(0)
    model = LanguageModel(TransformerConfig(layers=1, heads=2, width=16, ffn=16, dropout=0.5), stage.vocabulary, 3, 9)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    before = torch.get_rng_state()
    bits = bits_per_token(model, stage, Walks(stage), 2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert list(bits) == ["bits", "bits_3", "bits_4", "bits_5"]
    assert bits["bits_3"] == pytest.approx(math.log2(10), abs=1e-5)  # nine codes or the end
    assert bits["bits_5"] == pytest.approx(math.log2(9), abs=1e-5)
    # A unigram model of uniform codes needs about as much.
    unigram = unigram_bits(stage, Walks(stage), Walks(stage, seed=1), 60, 5)
    assert unigram["bits_5"] == pytest.approx(math.log2(9), abs=0.1)
    assert unigram["bits_3"] == pytest.approx(math.log2(9), abs=0.5)


def test_every_weight_is_trained_and_only_products_decay() -> None:
    model = LanguageModel(TransformerConfig(layers=1, heads=2, width=16, ffn=16), 30, 2, 9)
    decaying, plain = optimizer_of(model, LMTrainConfig()).param_groups
    assert len(decaying["params"]) + len(plain["params"]) == len(list(model.parameters()))
    assert plain["weight_decay"] == 0
    assert {id(model.embedding.weight), id(model.transformer.norm.weight)} < {id(each) for each in plain["params"]}
    assert {id(model.heads), id(model.get_parameter("transformer.blocks.0.attention.qkv.weight"))} < {
        id(each) for each in decaying["params"]
    }
