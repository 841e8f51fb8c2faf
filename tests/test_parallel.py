"""SoundStorm's decoding: a batch gives what its items give alone, prompts come back, one loop trains it and resumes exactly."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Generator, Tensor

from audiolm.bundle import language_model
from audiolm.errors import InputError
from audiolm.parallel import ParallelModel, fill, mask, masked_after
from audiolm.sampling import Options, sample, sample_windows
from audiolm.stages import Stage, coarse, parallel
from audiolm.tokens import TokenSpec
from audiolm.training.run import Run
from audiolm.training.train_lm import LMTrainConfig, bits_per_token, train_lm
from audiolm.transformer import IGNORED, TransformerConfig

S = TokenSpec("semantic", 12, 1, 25.0)
A = TokenSpec("acoustic", 9, 4, 50.0)
STAGE = parallel(S, A)
OPTIONS: Options = {"temperature": 0.9, "top_k": 7, "top_p": 0.95}


def config_of(positions: str = "rotary") -> TransformerConfig:
    return TransformerConfig(layers=2, heads=2, width=16, ffn=24, positions=positions)  # type: ignore[arg-type]


def model_of(stage: Stage, positions: str = "rotary") -> ParallelModel:
    torch.manual_seed(0)
    model = language_model(stage, config_of(positions))
    assert isinstance(model, ParallelModel)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def codes_of(spec: TokenSpec, frames: int, seed: int) -> Tensor:
    return torch.randint(spec.codebook_size, (spec.num_codebooks, frames), generator=Generator().manual_seed(seed))


def items_of(prompts: Sequence[int], frames: Sequence[int]) -> tuple[list[list[Tensor]], list[Tensor]]:
    totals = [known + own for known, own in zip(prompts, frames, strict=True)]
    return [[codes_of(S, -(-total // 2), row)] for row, total in enumerate(totals)], [
        codes_of(A, known, 50 + row) for row, known in enumerate(prompts)
    ]


# The stage


def test_a_frame_holds_what_is_given_at_its_time() -> None:
    words, sound = codes_of(S, 4, 0), codes_of(A, 7, 1)
    ids = STAGE.stack([words], sound)
    assert ids.shape == (7, 5)
    assert ids[:, 0].tolist() == [int(words[0, frame // 2]) for frame in range(7)]
    assert torch.equal(ids[:, 1:] - STAGE.offsets[-1].T, sound.T)
    assert int(ids.max()) < int(STAGE.masks.min())
    assert int(STAGE.masks.max()) + 1 == STAGE.vocabulary
    with pytest.raises(InputError, match="3 semantic frames are too few for 7"):
        STAGE.stack([words[:, :3]], sound)
    with pytest.raises(InputError, match="dedup"):
        replace(STAGE, dedup=True)


def test_a_stage_whose_first_levels_are_given_has_the_same_ids() -> None:
    words, sound = codes_of(S, 4, 0), codes_of(A, 7, 1)
    for level in (1, 2, 3):
        above = STAGE.above(level)
        assert above.vocabulary == STAGE.vocabulary
        assert above.predict.levels == 4 - level
        assert torch.equal(above.stack([words, sound[:level]], sound[level:]), STAGE.stack([words], sound))
        assert torch.equal(above.masks, STAGE.masks[level:])
    with pytest.raises(InputError, match="not the range"):
        STAGE.above(4)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_given_levels_are_continued_as_own_ones(level: int) -> None:
    """The levels above are what the whole stage makes of the same lower ones; a pass for each, whatever `passes` says."""
    model, prompts, frames, counts = model_of(STAGE), [10, 0, 6], [30, 41, 0], []
    given, known = items_of(prompts, frames)
    whole = fill(model, STAGE, given, known, frames, [1, 2, 3], passes=1)
    hook = model.transformer.register_forward_hook(lambda *_: counts.append(1))
    parts = [[*parts, codes[:level]] for parts, codes in zip(given, whole, strict=True)]
    upper = fill(model, STAGE.above(level), parts, [codes[level:] for codes in known], frames, [1, 2, 3], passes=7)
    hook.remove()
    assert len(counts) == 4 - level
    for codes, more in zip(whole, upper, strict=True):
        assert torch.equal(codes[level:], more)


def test_only_a_parallel_stage_says_so() -> None:
    """Bundles and runs from before there were two kinds are read as they are, and stay as they were."""
    assert STAGE.to_dict()["parallel"] is True
    assert "parallel" not in coarse(S, A, 2).to_dict()
    for stage in (STAGE, coarse(S, A, 2)):
        assert Stage.from_dict(stage.to_dict()) == stage


# Decoding


@pytest.mark.parametrize("positions", ["rotary", "t5"])
def test_a_batch_is_its_items(positions: str) -> None:
    model, prompts, frames = model_of(STAGE, positions), [10, 0, 6, 3, 4], [30, 41, 0, 1, 7]
    given, known = items_of(prompts, frames)
    together = fill(model, STAGE, given, known, frames, [5, 6, 7, 8, 9], **OPTIONS)
    for row, codes in enumerate(together):
        assert codes.shape == (4, prompts[row] + frames[row])
        assert torch.equal(codes[:, : prompts[row]], known[row])
        assert 0 <= int(codes.min()) <= int(codes.max()) < 9
        alone = fill(model, STAGE, [given[row]], [known[row]], [frames[row]], [5 + row], **OPTIONS)
        assert torch.equal(codes, alone[0])
    again = fill(model, STAGE, given, known, frames, [1, 6, 7, 8, 9], **OPTIONS)
    assert not torch.equal(again[0], together[0])
    assert torch.equal(again[1], together[1])


def test_levels_after_the_first_are_the_likeliest_codes_of_one_pass() -> None:
    model, prompts, frames = model_of(STAGE), [4], [12]
    given, known = items_of(prompts, frames)
    codes = fill(model, STAGE, given, known, frames, [1], **OPTIONS)[0]
    for level in range(1, 4):
        ids = STAGE.stack(given[0], codes)
        ids[4:, level - 4 :] = STAGE.masks[level:]
        logits = model.logits(model.frames(ids[None]), level)
        assert torch.equal(logits[0, 4:].argmax(-1), codes[level, 4:])


def test_the_coldest_needs_no_seed_and_the_surest_codes_come_first() -> None:
    model, prompts, frames = model_of(STAGE), [4], [20]
    given, known = items_of(prompts, frames)
    one, other = (fill(model, STAGE, given, known, frames, [seed], temperature=0)[0] for seed in (1, 2))
    assert torch.equal(one, other)
    ids = STAGE.stack(given[0], torch.nn.functional.pad(known[0], (0, 20)))
    ids[4:, -4:] = STAGE.masks
    sure, codes = model.logits(model.frames(ids[None]), 0)[0, 4:].softmax(-1).max(-1)
    first = sure.topk(20 - masked_after(20, 16)[0]).indices
    assert torch.equal(one[0, 4:][first], codes[first])


@pytest.mark.parametrize(("frames", "passes"), [(0, 16), (1, 16), (5, 16), (500, 16), (500, 1)])
def test_every_pass_fills_something_and_the_last_all(frames: int, passes: int) -> None:
    left = [frames, *masked_after(frames, passes)]
    assert left[-1] == 0
    assert all(after < before or before == 0 for before, after in itertools.pairwise(left))


def test_passes_do_not_grow_with_the_length() -> None:
    model, counts = model_of(STAGE), []
    model.transformer.register_forward_hook(lambda *_: counts.append(1))
    for frames in (20, 80):
        given, known = items_of([0], [frames])
        fill(model, STAGE, given, known, [frames], [0])
        fill(model, STAGE, given, known, [frames], [0], passes=5)
    assert len(counts) == 2 * (16 + 3) + 2 * (5 + 3)


def test_only_a_parallel_stage_makes_passes() -> None:
    other = replace(STAGE, name="coarse", parallel=False)
    with pytest.raises(InputError, match="stage coarse: passes=5 is for parallel stages only"):
        sample(language_model(other, config_of()), other, *items_of([4], [6]), [6], [0], passes=5)


def test_levels_that_are_not_wanted_cost_no_passes_and_stay_masked() -> None:
    model, prompts, frames, counts = model_of(STAGE), [10, 0, 6], [30, 41, 0], []
    given, known = items_of(prompts, frames)
    few = [codes[:2] for codes in known]
    hook = model.transformer.register_forward_hook(lambda *_: counts.append(1))
    together = fill(model, STAGE, given, few, frames, [5, 6, 7], **OPTIONS)
    assert len(counts) == 16 + 1
    hook.remove()
    for row, codes in enumerate(together):
        assert codes.shape == (2, prompts[row] + frames[row])
        assert torch.equal(codes[:, : prompts[row]], few[row])
        assert torch.equal(codes, fill(model, STAGE, [given[row]], [few[row]], [frames[row]], [5 + row], **OPTIONS)[0])
    ids = STAGE.stack(given[0], torch.nn.functional.pad(together[0], (0, 0, 0, 2)))
    ids[10:, -3] = STAGE.masks[1]
    ids[:, -2:] = STAGE.masks[2:]  # of the prompt too: nobody will hear them
    assert torch.equal(model.logits(model.frames(ids[None]), 1)[0, 10:].argmax(-1), together[0][1, 10:])


def test_windows_keep_prompts_lengths_and_neighbours_apart() -> None:
    stage = replace(STAGE, crop=0.4, overlap=0.12)
    model, prompts, frames = model_of(stage), [10, 40, 0], [50, 20, 10]
    given, known = items_of(prompts, frames)
    longest: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: longest.append(inputs[0].shape[1]))
    told: list[tuple[int, int]] = []
    together = sample_windows(model, stage, given, known, frames, [1, 2, 3], lambda *now: told.append(now), fill, **OPTIONS)
    assert max(longest) <= 20  # memory is one window's
    assert told == sorted(told)
    assert told[-1] == (50, 50)
    for row, codes in enumerate(together):
        assert codes.shape[1] == prompts[row] + frames[row]
        assert torch.equal(codes[:, : prompts[row]], known[row])
        alone = sample_windows(model, stage, [given[row]], [known[row]], [frames[row]], [1 + row], one=fill, **OPTIONS)
        assert torch.equal(codes, alone[0])


def test_training_mode_and_randomness_are_left_alone() -> None:
    model = model_of(STAGE).train()
    before = torch.get_rng_state()
    fill(model, STAGE, *items_of([4], [6]), [6], [0])
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(InputError, match="out of range"):
        fill(model, STAGE, *items_of([4], [6]), [6], [0], temperature=-1)


# Training


class Walks:
    """Codes that go up by one or stay; the sound's levels follow the words, so that they can be known."""

    def __init__(self, seed: int = 0, kill_at: int = -1) -> None:
        self.seed, self.kill_at, self.calls = seed, kill_at, 0

    def batch(self, step: int) -> Sequence[dict[str, Any]]:
        self.calls += 1
        if self.calls == self.kill_at:
            raise KeyboardInterrupt
        generator = Generator().manual_seed(self.seed * 1_000 + step)
        return [self._item(generator) for _ in range(4)]

    def _item(self, generator: Generator) -> dict[str, Any]:
        frames = 2 * int(torch.randint(4, 9, (1,), generator=generator))
        words = torch.randint(12, (1, frames // 2), generator=generator)
        sound = (words.repeat_interleave(2, 1) + torch.arange(4)[:, None]) % 9
        return {"given": [words], "predicted": sound, "ends": False}


def test_what_is_hidden_and_what_is_asked() -> None:
    items = [item for step in range(60) for item in Walks().batch(step)]
    ids, lengths, targets = mask(STAGE, items, 7)
    masked = ids[..., 1:] >= STAGE.start
    starts = []
    for row, item in enumerate(items):
        frames, codes = int(lengths[row]), item["predicted"].T
        asked = targets[row] != IGNORED
        (level,) = asked.any(0).nonzero()[:, 0].tolist()  # of one level, one code at least
        assert torch.equal(masked[row, :frames, level], asked[:frames, level])
        assert torch.equal(targets[row][asked], codes[asked[:frames]])
        assert not bool(masked[row, :frames, :level].any())
        above = masked[row, :frames, level + 1 :]
        start = int(asked[:, level].nonzero()[0])
        if level < 3:
            start = int(above[:, 0].nonzero()[0])
            assert bool(above[start:].all())
            assert not bool(above[:start].any())
            assert not bool(asked[:start].any())
        starts.append(start / frames)
        seen = ~masked[row, :frames]
        assert torch.equal((ids[row, :frames, 1:] - STAGE.offsets[-1].T)[seen], codes[seen])
    assert min(starts) == 0
    assert max(starts) > 0.8
    again, other = mask(STAGE, items, 7), mask(STAGE, items, 8)
    assert torch.equal(again.ids, ids)
    assert not torch.equal(other.ids, ids)


def test_padding_changes_no_score() -> None:
    model, items = model_of(STAGE), Walks().batch(0)
    ids, lengths, targets = mask(STAGE, items, 0)
    nats, counts = model(ids, lengths, targets)
    rows = [
        model(ids[row : row + 1, :own], lengths[row : row + 1], targets[row : row + 1, :own]) for row, own in enumerate(lengths)
    ]
    torch.testing.assert_close(sum(each for each, _ in rows), nats)
    assert torch.equal(torch.stack([each for _, each in rows]).sum(0), counts)


def train(folder: Path, batches: Walks, valid: Walks | None = None, **changes: Any):
    network = TransformerConfig(layers=1, heads=2, width=32, ffn=48, dropout=0.1)
    settings = {"steps": 8, "lr": 1e-2, "log_every": 2, "valid_every": 100, "save_every": 3, "valid_batches": 2}
    config = LMTrainConfig(network=network, unigram_batches=4, **{**settings, **changes})
    with Run(folder, config, tracker="none") as run:
        return train_lm(STAGE, config, batches, run, Fabric(accelerator="cpu", devices=1), valid), run


def test_the_one_loop_teaches_it(tmp_path: Path) -> None:
    model, run = train(tmp_path, Walks(), Walks(seed=1), steps=100, valid_every=50, save_every=1000)
    assert isinstance(model, ParallelModel)
    unigram = next(line["unigram_bits"] for line in run.metrics() if "unigram_bits" in line)
    assert unigram == pytest.approx(math.log2(9), abs=0.4)
    assert bits_per_token(model, STAGE, Walks(seed=2), 4)["bits"] < 0.5 * unigram
    item = Walks(seed=3).batch(0)[0]
    codes = fill(model, STAGE, [item["given"]], [item["predicted"][:, :2]], [item["predicted"].shape[1] - 2], [0])[0]
    assert float((codes == item["predicted"]).float().mean()) > 0.7


@pytest.mark.parametrize("killed", [2, 6])
def test_killed_and_resumed_is_uninterrupted(tmp_path: Path, killed: int) -> None:
    whole, _ = train(tmp_path / "whole", Walks())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", Walks(kill_at=killed))
    resumed, _ = train(tmp_path / "killed", Walks())
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
