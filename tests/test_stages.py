"""Codes and ids are the same thing said twice (contract 5), and EOS stands at true ends only (contract 7)."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiolm.errors import InputError
from audiolm.stages import Stage, Stream, acoustic_only, coarse, fine, piano, semantic, without_repeats
from audiolm.tokens import TokenSpec

S = TokenSpec("semantic", 50, 1, 25.0)
A = TokenSpec("acoustic", 16, 6, 50.0)
STAGES = [
    semantic(S),
    semantic(S, dedup=True),
    coarse(S, A, 2),
    coarse(S, A, 2, dedup=True),
    fine(A, 2),
    acoustic_only(A),
    piano(S, TokenSpec("piano", 40, 3, 50.0)),
    Stage("everything", (Stream(S, 0, 1), Stream(A, 4, 6)), Stream(A, 1, 4)),
]


def codes_of(stream: Stream, frames: int, seed: int) -> Tensor:
    return torch.randint(stream.spec.codebook_size, (stream.levels, frames), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STAGES), st.lists(st.integers(0, 9), min_size=3, max_size=3), st.booleans(), st.integers(0, 2**32))
def test_unpack_gives_back_what_was_packed(stage: Stage, frames: list[int], ends: bool, seed: int) -> None:
    before = [codes_of(stream, count, seed + i) for i, (stream, count) in enumerate(zip(stage.streams, frames, strict=False))]
    ids = stage.pack(before[:-1], before[-1], ends)
    padded = torch.cat([ids.new_full((2,), stage.pad), ids, ids.new_full((3,), stage.pad)])
    after, predicted, ended = stage.unpack(padded)
    deduped = [stage.dedup and stream.spec.num_codebooks == 1 for stream in stage.streams]
    for got, sent, once in zip([*after, predicted], before, deduped, strict=True):
        assert torch.equal(got, without_repeats(sent) if once else sent)
    assert ended is ends
    assert all(0 <= identity < stage.vocabulary for identity in ids.tolist())
    assert int((ids == stage.eos).sum()) == ends
    assert int((ids == stage.start).sum()) == 1


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_level_has_ids_to_itself(stage: Stage) -> None:
    taken = [stage.start, stage.eos, stage.pad]
    for stream, offsets in zip(stage.streams, stage.offsets, strict=True):
        taken += (torch.arange(stream.spec.codebook_size) + offsets).flatten().tolist()
    assert sorted(taken) == list(range(stage.vocabulary))


def test_layout_is_the_papers() -> None:
    ids = coarse(S, A, 2).pack([torch.tensor([[7, 7]])], torch.tensor([[1, 2], [3, 4]]), ends=True)
    #      given   START  (level 0, level 1) of each frame in turn            EOS
    assert ids.tolist() == [7, 7, 50 + 32, 50 + 1, 66 + 3, 50 + 2, 66 + 4, 50 + 33]


def test_dedup_touches_single_codebooks_only() -> None:
    repeated = torch.tensor([[5, 5, 5, 2, 2, 5]])
    assert without_repeats(repeated).tolist() == [[5, 2, 5]]
    assert without_repeats(repeated[:, :0]).shape == (1, 0)
    stage = coarse(S, A, 2, dedup=True)
    (given_back,), predicted, _ = stage.unpack(stage.pack([repeated], torch.zeros(2, 4)))
    assert given_back.tolist() == [[5, 2, 5]]
    assert predicted.shape == (2, 4)
    # A codec with one codebook keeps its frames: the semantic stream it follows says when, not only what.
    timed = coarse(S, TokenSpec("single", 16, 1, 50.0), 1, dedup=True)
    assert timed.unpack(timed.pack([repeated], torch.zeros(1, 4)))[1].shape == (1, 4)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_config_json_round_trip(stage: Stage) -> None:
    assert Stage.from_dict(json.loads(json.dumps(stage.to_dict()))) == stage


def test_grid_is_where_all_frames_begin() -> None:
    assert coarse(S, A).grid == pytest.approx(0.04)
    assert fine(A).grid == pytest.approx(0.02)
    odd = Stage("odd", (Stream(TokenSpec("a", 4, 1, 12.5), 0, 1),), Stream(TokenSpec("b", 4, 1, 31.25), 0, 1))
    assert odd.grid == pytest.approx(0.16)  # 2 frames of 80 ms, 5 of 32 ms


def test_mistakes_are_one_clear_line() -> None:
    stage = coarse(S, A, 2)
    wrong = [
        lambda: stage.pack([], torch.zeros(2, 4)),
        lambda: stage.pack([torch.zeros(1, 4)], torch.zeros(3, 4)),
        lambda: stage.pack([torch.full((1, 4), 50)], torch.zeros(2, 4)),
        lambda: stage.unpack(torch.tensor([stage.start, 50])),
        lambda: stage.unpack(torch.tensor([stage.start, 66, 50])),
        lambda: Stream(A, 2, 7),
        lambda: Stage("s", (), Stream(S, 0, 1), crop=3.0, overlap=3.0),
        lambda: Stage.from_dict(stage.to_dict() | {"dedupe": True}),
        lambda: Stage.from_dict({"name": "coarse"}),
    ]
    for mistake in wrong:
        with pytest.raises(InputError) as raised:
            mistake()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_places_are_times(stage: Stage) -> None:
    """However the line is padded, a given code stands as far from the predicted codes of its time as every other does."""
    parts = [codes_of(stream, stream.frames(0.4), 0) for stream in stage.streams]
    line = stage.pack(parts[:-1], parts[-1])
    ids = torch.stack([torch.nn.functional.pad(line, pad, value=stage.pad) for pad in ((0, 5), (5, 0), (2, 3))])
    places = stage.places(ids)
    own = places[ids != stage.pad].view(3, -1)
    assert torch.equal(own[1] - 5, own[0])
    assert torch.equal(own[2] - 2, own[0])
    start, per_second = int((line == stage.start).nonzero()), stage.predict.levels * stage.predict.spec.frame_rate
    after = own[0, start:]
    assert torch.equal(after, start + torch.arange(len(after)))
    if stage.dedup:
        assert torch.equal(own[0], torch.arange(len(line)))
        return
    before = 0
    for stream in stage.given:
        count = stream.frames(0.4)
        found = (own[0, before : before + count * stream.levels].view(count, stream.levels) - start) / per_second
        middle = (torch.arange(count) + 0.5) / stream.spec.frame_rate
        torch.testing.assert_close(found.mean(1), middle, atol=1e-5, rtol=0)
        assert bool((found.diff(dim=1) > 0).all())
        before += count * stream.levels
