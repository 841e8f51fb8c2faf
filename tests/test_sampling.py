"""Contracts 3, 5 and 7 of sampling: a batch gives what its items give alone, prompts come back, levels are never mixed."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from audiolm.bundle import language_model
from audiolm.errors import InputError
from audiolm.sampling import Options, draw, sample, sample_chunks, sample_windows, spans, window
from audiolm.stages import Stage, Stream, acoustic_only, coarse, fine, semantic, without_repeats
from audiolm.tokens import TokenSpec
from audiolm.transformer import LanguageModel, TransformerConfig

S = TokenSpec("semantic", 12, 1, 25.0)
A = TokenSpec("acoustic", 9, 5, 50.0)
STAGES = [semantic(S), semantic(S, dedup=True), coarse(S, A, 2), coarse(S, A, 2, dedup=True), fine(A, 2), acoustic_only(A, 3)]
NAMES = ["semantic", "semantic deduped", "coarse", "coarse deduped", "fine", "acoustic"]
OPTIONS: Options = {"temperature": 0.9, "top_k": 7, "top_p": 0.95}


def model_of(stage: Stage, positions: str = "time") -> LanguageModel:
    torch.manual_seed(0)
    config = TransformerConfig(layers=2, heads=2, width=16, ffn=24, positions=positions)  # type: ignore[arg-type]
    model = language_model(stage, config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def codes_of(stream: Stream, seconds: float, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randint(stream.spec.codebook_size, (stream.levels, stream.frames(seconds)), generator=generator)


def items_of(stage: Stage, seconds: list[float], prompts: list[float]) -> tuple[list[list[Tensor]], list[Tensor]]:
    parts = [[codes_of(stream, length, row) for stream in stage.given] for row, length in enumerate(seconds)]
    return parts, [codes_of(stage.predict, length, 7 + row) for row, length in enumerate(prompts)]


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
@pytest.mark.parametrize("positions", ["time", "rotary", "t5"])
def test_a_batch_is_its_items(stage: Stage, positions: str) -> None:
    model, frames = model_of(stage, positions), [8, 3, 0, 11]
    parts, prompts = items_of(stage, [0.4, 0.72, 0.4, 0.2], [0.2, 0.0, 0.4, 0.08])
    for ends_after in (None, 0, 2):
        options: Options = {**OPTIONS, "ends_after": ends_after, "keep_repeats": stage.predict.levels == 1}
        together = sample(model, stage, parts, prompts, frames, [5, 6, 7, 8], **options)
        for row, codes in enumerate(together):
            alone = sample(model, stage, [parts[row]], [prompts[row]], [frames[row]], [5 + row], **options)
            assert torch.equal(codes, alone[0])
            assert torch.equal(codes[:, : prompts[row].shape[1]], prompts[row])
            least = frames[row] if ends_after is None else min(ends_after, frames[row])
            assert prompts[row].shape[1] + least <= codes.shape[1] <= prompts[row].shape[1] + frames[row]
    again = sample(model, stage, parts, prompts, frames, [9, 6, 7, 8], **OPTIONS)
    assert not torch.equal(again[0], sample(model, stage, parts, prompts, frames, [5, 6, 7, 8], **OPTIONS)[0])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(STAGES), st.integers(0, 10**6), st.one_of(st.floats(0, 20), st.floats(0.5, 2)), st.booleans())
def test_no_level_ever_takes_anothers_ids(stage: Stage, seed: int, temperature: float, ends: bool) -> None:
    """Whatever the weights say: here they are random and huge, and the temperature flattens them."""
    model = model_of(stage)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    parts, prompts = items_of(stage, [0.4, 0.2], [0.08, 0.2])
    after = 0 if ends else None
    for codes, known in zip(
        sample(model, stage, parts, prompts, [6, 9], [seed, 0], temperature=temperature, ends_after=after), prompts, strict=True
    ):
        new = codes[:, known.shape[1] :]
        assert bool(((new >= 0) & (new < stage.predict.spec.codebook_size)).all())
        stage.pack(parts[0], codes)  # which refuses what is none of the stage's
        if stage.dedup_predicted:
            assert torch.equal(without_repeats(codes[:, known.shape[1] - 1 :]), codes[:, known.shape[1] - 1 :])


def test_the_end_comes_only_before_a_frame_and_only_where_allowed() -> None:
    stage = coarse(S, A, 2)
    model = model_of(stage)
    with torch.no_grad():
        model.end.mul_(4)  # the end becomes likely
    parts, prompts = items_of(stage, [0.4] * 8, [0.08] * 8)
    whole = sample(model, stage, parts, prompts, [30] * 8, list(range(8)), temperature=1.0)
    ended = sample(model, stage, parts, prompts, [30] * 8, list(range(8)), temperature=1.0, ends_after=0)
    assert [codes.shape[1] for codes in whole] == [34] * 8
    lengths = [codes.shape[1] for codes in ended]
    assert len(set(lengths)) > 1
    assert min(lengths) >= 4


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_greedy_is_argmax_of_the_whole_line(stage: Stage) -> None:
    model = model_of(stage)
    parts, prompts = items_of(stage, [0.4], [0.08])
    (codes,) = sample(model, stage, parts, prompts, [6], [0], temperature=0)
    ids, levels = stage.pack(parts[0], codes), stage.predict.levels
    hidden = model.hidden(ids[None])[0, -6 * levels - 1 : -1]
    expected = torch.stack([model.logits(hidden[k], k % levels) for k in range(6 * levels)])
    if stage.dedup_predicted:
        expected.scatter_(1, ids[-7:-1, None], -torch.inf)
    assert torch.equal(codes[:, -6:].T.flatten(), expected.argmax(-1))


def test_draws_follow_the_distribution() -> None:
    probability = torch.tensor([0.5, 0.25, 0.0, 0.125, 0.125])
    logits, uniform = (probability.log() * 0.5).expand(80_000, 5), torch.rand(80_000, generator=Generator().manual_seed(0))
    for options, kept in [
        ((), [0, 1, 3, 4]),
        ((2,), [0, 1]),
        ((None, 0.7), [0, 1]),
        ((None, 0.5), [0]),
        ((9, 1.0), [0, 1, 3, 4]),
    ]:
        counts = draw(logits, uniform, 0.5, *options).bincount(minlength=5) / 80_000
        expected = torch.zeros(5)
        expected[kept] = probability[kept] / probability[kept].sum()
        assert (counts - expected).abs().max() < 0.006
        assert not counts[expected == 0].any()
    assert draw(logits[:9] * torch.nan, uniform[:9], 1.0).max() < 5
    edge = torch.tensor([1 - 2**-24])  # the largest number below 1
    assert draw(torch.tensor([[0.0, 0.0, -torch.inf]]), edge, 1.0).tolist() == [1]


def test_repeats_keep_their_probability_at_any_temperature() -> None:
    probability = torch.tensor([0.4, 0.3, 0.2, 0.1])
    logits, uniform = probability.log().expand(80_000, 4), torch.rand(80_000, generator=Generator().manual_seed(0))

    def shares(last: int, temperature: float, top_k: int | None = None) -> Tensor:
        before = torch.full((80_000,), last)
        return draw(logits, uniform, temperature, top_k, last=before).bincount(minlength=4) / 80_000

    others = torch.tensor([0.4, 0.0, 0.2, 0.1]) ** 2  # the distribution at a temperature of 0.5
    cooled = 0.7 * others / others.sum() + torch.tensor([0.0, 0.3, 0.0, 0.0])
    assert (shares(1, 0.5) - cooled).abs().max() < 0.006
    assert (shares(1, 0) - torch.tensor([0.7, 0.3, 0.0, 0.0])).abs().max() < 0.006
    assert (shares(1, 1.0, 1) - torch.tensor([0.7, 0.3, 0.0, 0.0])).abs().max() < 0.006
    assert (shares(1, 1.0) - probability).abs().max() < 0.006
    for none in (-1, 4):  # nothing before, or an id of another stream
        assert torch.equal(shares(none, 0.5), draw(logits, uniform, 0.5).bincount(minlength=4) / 80_000)


def test_repeats_are_kept_for_one_level_only() -> None:
    stage = semantic(S)
    model, prompt = model_of(stage), [codes_of(stage.predict, 0.2)]
    (warm,) = sample(model, stage, [[]], prompt, [40], [0], temperature=1.0)
    (same,) = sample(model, stage, [[]], prompt, [40], [0], temperature=1.0, keep_repeats=True)
    assert (warm == same).all(0).float().mean() > 0.5  # the same distribution, in another order of summation
    several = coarse(S, A)
    given, prompt = items_of(several, [0.4], [0.2])
    with pytest.raises(InputError, match="predict one level"):
        sample(model_of(several), several, given, prompt, [4], [0], keep_repeats=True)


def test_training_mode_and_randomness_are_left_alone() -> None:
    stage = semantic(S)
    model = model_of(stage).train()
    before = torch.get_rng_state()
    sample(model, stage, [[]], [codes_of(stage.predict, 0.2)], [4], [0])
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=300, deadline=None)
@given(st.floats(0.2, 4), st.floats(0, 0.9), st.integers(0, 100), st.integers(1, 300), st.booleans())
def test_windows_are_no_longer_than_the_crop_and_start_on_the_grid(
    crop: float, overlap: float, prompt: int, new: int, chunks: bool
) -> None:
    stage = replace(coarse(S, A, 2), crop=crop, overlap=0.0 if chunks else overlap * (crop - 0.1))
    have, made = prompt, []
    for start, first, stop in spans(stage, prompt, prompt + new):
        assert start % 2 == 0
        assert 0 <= start <= first == have < stop <= prompt + new
        assert stop - start <= stage.predict.frames(crop)
        if chunks and made:
            assert start == have  # nothing of what other windows made
        made.append(stop - have)
        have = stop
    assert have == prompt + new
    assert made[0] <= 50  # a second: the first sound does not wait for more


@pytest.mark.parametrize("crop", [0.5, 1.0, 4.0])
def test_an_overlap_of_all_but_a_frame_still_goes_on(crop: float) -> None:
    stage = replace(semantic(S), crop=crop, overlap=crop - 1 / S.frame_rate)
    made = list(itertools.islice(spans(stage, 25, 200), 1000))
    assert made[-1][2] == 200
    assert all(first < stop for _, first, stop in made)


@given(st.sampled_from([50.0, 75.0, 100.0]), st.floats(0.1, 3), st.floats(0, 1))
def test_every_window_has_new_frames(rate: float, crop: float, overlap: float) -> None:
    """Whatever crop and overlap are to the grid; otherwise generation would not end."""
    plain = coarse(S, TokenSpec("acoustic", 9, 5, rate), 2)
    stage = replace(plain, crop=crop, overlap=overlap * (crop - plain.grid))
    assert all(have < stop for _, have, stop in itertools.islice(spans(stage, 100, 400), 1000))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dedup", [False, True])
def test_a_line_may_end_before_it_begins(monkeypatch: pytest.MonkeyPatch, dedup: bool, keep: bool) -> None:
    """START is no code: at the first frame, the end is neither a repeat nor what must not be repeated."""
    stage = semantic(S, dedup=dedup)
    model = model_of(stage)

    def likely_end(hidden: Tensor, level: int, end: bool = False) -> Tensor:
        return torch.cat((torch.zeros(len(hidden), 12), torch.full((len(hidden), 1), 2.0)), 1)

    monkeypatch.setattr(model, "logits", likely_end)
    (codes,) = sample(model, stage, [[]], [torch.zeros(1, 0)], [5], [0], temperature=0, ends_after=0, keep_repeats=keep)
    assert codes.shape[1] == 0


def test_windows_grow_from_a_second_to_the_crop() -> None:
    sliding = replace(coarse(S, A, 2), crop=6.0, overlap=3.0)
    assert list(spans(sliding, 150, 850)) == [
        (0, 150, 200), (0, 200, 300), (150, 300, 450), (300, 450, 600), (450, 600, 750), (600, 750, 850)
    ]  # fmt: skip
    assert list(spans(fine(A, 2), 150, 650)) == [
        (50, 150, 200),
        (200, 200, 300),
        (300, 300, 450),
        (450, 450, 600),
        (600, 600, 650),
    ]
    # Where the rest of the crop is less than a second, sliding gains more.
    assert next(spans(sliding, 298, 850)) == (148, 298, 348)
    # Nothing is given, nothing is waited for.
    assert list(spans(replace(semantic(S), crop=20.0, overlap=5.0), 75, 600)) == [(0, 75, 500), (375, 500, 600)]


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_windows_keep_prompts_lengths_and_neighbours_apart(stage: Stage) -> None:
    stage = replace(stage, crop=0.4, overlap=0.12)
    model, rate = model_of(stage), stage.predict.spec.frame_rate
    seconds, asked = [0.2, 0.8, 0.0], [1.0, 0.4, 0.2]
    parts, prompts = items_of(stage, [1.2] * 3, seconds)
    frames = [round(length * rate) for length in asked]
    told: list[tuple[int, int]] = []
    together = sample_windows(model, stage, parts, prompts, frames, [1, 2, 3], lambda *now: told.append(now), **OPTIONS)
    for row, codes in enumerate(together):
        assert codes.shape[1] == prompts[row].shape[1] + frames[row]
        assert torch.equal(codes[:, : prompts[row].shape[1]], prompts[row])
        alone = sample_windows(model, stage, [parts[row]], [prompts[row]], [frames[row]], [1 + row], **OPTIONS)
        assert torch.equal(codes, alone[0])
    assert told == sorted(told)
    assert told[-1] == (max(frames), max(frames))
    # Where one window is enough it is `sample`.
    short = [stage.predict.frames(0.4) - stage.predict.frames(0.2)]
    one = sample(model, stage, [[p[:, : stage.given[i].frames(0.4)] for i, p in enumerate(parts[0])]], prompts[:1], short, [1])
    assert torch.equal(sample_windows(model, stage, parts[:1], prompts[:1], short, [1])[0], one[0])


def test_a_window_sees_its_own_time_of_the_given() -> None:
    stage = replace(coarse(S, A, 2), crop=0.4, overlap=0.12)
    model, (parts, prompts) = model_of(stage), items_of(stage, [1.2], [0.2])
    before = sample_windows(model, stage, parts, prompts, [50], [1], temperature=0)[0]
    changed = parts[0][0].clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 12  # from 0.4 s on: the first window must not notice, later ones must
    after = sample_windows(model, stage, [[changed]], prompts, [50], [1], temperature=0)[0]
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])
    with pytest.raises(InputError, match="last"):
        sample_windows(model, stage, parts, prompts, [80], [1])


@pytest.mark.parametrize("rate", [10.0, 12.5, 25.0])
def test_a_window_does_not_depend_on_what_follows_it(rate: float) -> None:
    """Who streams knows the end only when what is given has come to it, and must have made the right windows until then."""
    for stage in (coarse(TokenSpec("semantic", 12, 1, rate), A, 2), fine(A, 2)):
        stage, grid = replace(stage, crop=2.4, overlap=stage.overlap and 0.4), stage.predict.frames(stage.grid)
        for have in range(0, 60 * grid, grid):
            for prompt in (0, have):
                start, stop = window(stage, have, 400 * grid, prompt)
                assert all(window(stage, have, total, prompt) == (start, stop) for total in range(stop, stop + 40 * grid))


def test_the_cache_does_not_move_the_end() -> None:
    """Contract 1: greedily, the end comes where it is the likeliest of all after the whole line."""
    stage = semantic(S)
    for seed in range(20):
        model = model_of(stage)
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.end, std=0.4)
        (codes,) = sample(model, stage, [[]], [torch.zeros(1, 0)], [12], [0], temperature=0, ends_after=0)
        likeliest = model.logits(model.hidden(stage.pack([], codes)[None])[0], 0, end=True).argmax(-1)
        assert likeliest[:12].tolist() == [*codes[0].tolist(), 12][:12]


def test_windows_stop_at_an_end() -> None:
    stage = replace(semantic(S), crop=0.4, overlap=0.12)
    model = model_of(stage)
    with torch.no_grad():
        model.end.mul_(1.5)
    _, prompts = items_of(stage, [0] * 20, [0.2] * 20)
    codes = sample_windows(model, stage, [[]] * 20, prompts, [60] * 20, list(range(20)), ends_after=0)
    lengths = [row.shape[1] for row in codes]
    assert any(length < 10 for length in lengths)  # in the first window of ten frames
    assert any(10 < length < 65 for length in lengths)  # in a later one
    codes = sample_windows(model, stage, [[]] * 20, prompts, [60] * 20, list(range(20)), ends_after=4)
    assert min(row.shape[1] for row in codes) == 9
    assert any(10 <= row.shape[1] < 14 for row in codes)  # only the first window has to wait


@pytest.mark.parametrize("rows", [2, 32])
def test_chunks_are_independent(rows: int) -> None:
    stage = replace(fine(A, 2), crop=0.2)
    model = model_of(stage)
    parts, prompts = items_of(stage, [0.9, 0.5, 0.2], [0.3, 0.0, 0.2])
    frames = [30, 25, 0]
    codes = sample_chunks(model, stage, parts, prompts, frames, [1, 2, 3], rows=rows, **OPTIONS)
    for row in range(3):
        assert codes[row].shape[1] == prompts[row].shape[1] + frames[row]
        assert torch.equal(codes[row][:, : prompts[row].shape[1]], prompts[row])
        alone = sample_chunks(model, stage, [parts[row]], [prompts[row]], [frames[row]], [1 + row], **OPTIONS)
        assert torch.equal(codes[row], alone[0])
    changed = [parts[1][0].clone()]
    changed[0][:, 12] = (changed[0][:, 12] + 1) % 9
    other = sample_chunks(model, stage, [changed], [prompts[1]], [25], [2], **OPTIONS)[0]
    same = (other == codes[1]).all(0)
    assert bool(same[:10].all())
    assert bool(same[20:].all())
    assert not bool(same[10:20].all())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": math.nan},
    ],
)
def test_options_out_of_range_are_the_callers_mistake(options: Options) -> None:
    stage = semantic(S)
    with pytest.raises(InputError, match="out of range"):
        sample(model_of(stage), stage, [[]], [codes_of(stage.predict, 0.2)], [4], [0], **options)
