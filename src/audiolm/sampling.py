"""Autoregressive sampling from a stage's language model (AudioLM §III-D). Works on tokens only, not audio.

    sample           one window, for a batch of items whose lengths may differ
    sample_windows   beyond a stage's crop: the window slides, its last seconds prompt the next one ("slide and prompt")
    sample_chunks    the fine stage: independent windows, all in one batch

Batching is exact: each item has its own random numbers and sees no padding, so it gives the same result as alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict, Unpack
from zlib import crc32

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from audiolm.errors import InputError
from audiolm.stages import Stage, Stream
from audiolm.transformer import Cache, LanguageModel

FIRST = 1.0  # seconds of new sound in the first window
Progress = Callable[[int, int], None]  # frames done, total frames


class Options(TypedDict, total=False):
    """How codes are drawn: temperature (default 1; 0: greedy), top_k, top_p (default: all codes), ends_after (new frames after
    which an item may end; default None: no item ends early), passes (parallel stages only), keep_repeats (stages of one level
    only; see `draw`'s `last`).
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    ends_after: int | None
    passes: int | None
    keep_repeats: bool


def sample(
    model: LanguageModel,
    stage: Stage,
    given: Sequence[Sequence[Tensor]],
    prompt: Sequence[Tensor],
    frames: Sequence[int],
    seeds: Sequence[int | Generator],
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> list[Tensor]:
    """Continue each item's predicted codes by `frames[i]` new frames; with `ends_after`, an item may end earlier.

    given: for each item, the codes (levels, F) of each given stream. prompt: for each item, the predicted codes so far
    (levels, F), possibly with no frames. Returns for each item (levels, F + new): the unchanged prompt, then the new codes.
    """
    steps: list[Tensor] = []
    for codes in sample_frames(model, stage, given, prompt, frames, seeds, **options):
        steps.append(codes)
        if progress is not None:
            progress(len(steps), max(frames))
    if not steps:
        return [known.long() for known in prompt]
    new = torch.stack(steps, dim=2).cpu()  # (B, levels, F), -1 after an item's end
    ends = (new[:, 0] >= 0).sum(1).tolist()
    counts = [min(count, end) for count, end in zip(frames, ends, strict=True)]
    return [torch.cat((known.long(), row[:, :count]), 1) for known, row, count in zip(prompt, new, counts, strict=True)]


@torch.inference_mode()
def sample_frames(
    model: LanguageModel,
    stage: Stage,
    given: Sequence[Sequence[Tensor]],
    prompt: Sequence[Tensor],
    frames: Sequence[int],
    seeds: Sequence[int | Generator],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    ends_after: int | None = None,
    passes: int | None = None,
    keep_repeats: bool = False,
) -> Iterator[Tensor]:
    """As `sample`, but yields each new frame (B, levels) as it is sampled: codes on the model's device, -1 after an end."""
    check(temperature, top_k, top_p)
    if passes is not None:
        raise InputError(f"stage {stage.name}: passes={passes} is for parallel stages only; omit it")
    count, levels, device = max(frames, default=0), stage.predict.levels, model.heads.device
    size = stage.predict.spec.codebook_size
    if keep_repeats and levels > 1:
        raise InputError(f"stage {stage.name}: keep_repeats is for stages that predict one level; omit it")
    if count == 0:
        return
    lines = [stage.pack(parts, known) for parts, known in zip(given, prompt, strict=True)]
    longest = max(map(len, lines))
    padding = torch.tensor([longest - len(line) for line in lines], device=device)
    newest = torch.stack([nnf.pad(line, (longest - len(line), 0), value=stage.pad) for line in lines]).to(device)
    cache = Cache(model.transformer, len(lines), longest + count * levels, padding if bool(padding.any()) else None)
    offsets = stage.offsets[-1][:, 0].tolist()
    # Draw all random numbers beforehand: an item's draws do not depend on the batch, and no step waits for them.
    uniform = torch.zeros(len(lines), count, levels)
    for row, (seed, own) in enumerate(zip(seeds, frames, strict=True)):
        uniform[row, :own] = torch.rand(own, levels, generator=generator_of(stage, seed))
    numbers = uniform.to(device).flatten(1).unbind(1)
    due = torch.tensor(frames, device=device)
    ended = torch.zeros(len(lines), dtype=torch.bool, device=device)
    training = model.training
    model.eval()
    try:
        for frame in range(count):
            codes, may_end = [], ends_after is not None and frame >= ends_after
            for level in range(levels):
                logits = model.logits(model.newest(newest, cache)[:, 0], level, may_end).float()
                if stage.dedup_predicted:  # never seen in training: the same code twice in a row
                    repeated = torch.arange(size, device=device) == newest[:, -1:] - offsets[level]
                    logits[:, :size].masked_fill_(repeated, -math.inf)
                last = newest[:, -1] - offsets[level] if keep_repeats else None
                if last is not None and may_end:  # START is no code, but would pass for the end
                    last = last.masked_fill(last == size, -1)
                code = draw(logits, numbers[frame * levels + level], temperature, top_k, top_p, last)
                if level == 0 and may_end:
                    ended |= code == size
                    code = code.masked_fill(ended, 0)
                codes.append(code)
                newest = code[:, None] + offsets[level]
            if may_end and bool((ended | (frame >= due)).all()):
                return
            yield torch.stack(codes, 1).masked_fill(ended[:, None], -1)
    finally:
        model.train(training)


def check(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """InputError if a setting of `draw` is out of range."""
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise InputError(
            f"out of range: temperature={temperature} (0 or more), top_k={top_k} (1 or more), top_p={top_p} (above 0, at most 1)"
        )


def draw(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    last: Tensor | None = None,
) -> Tensor:
    """Draw one code per row by inverse transform sampling: logits (B, N), uniform numbers in [0, 1) (B,) -> (B,).

    top_k keeps the k most likely codes, top_p the fewest that together reach that probability (after the temperature).
    last: each row's previous code (B,), outside 0 to N - 1 if there is none. Its probability stays as the model gives it, and
    the other settings apply to the choice among the other codes.
    """
    repeated = None
    if last is not None:
        repeat = torch.arange(logits.shape[-1], device=logits.device) == last[:, None]
        repeated = logits.softmax(-1) * repeat
        logits = logits.masked_fill(repeat, -math.inf)
    if temperature < 1e-5:  # effectively 0; smaller values would overflow in the division
        if repeated is None:
            return logits.argmax(-1)
        top_k = temperature = 1
    probability = (logits / temperature).softmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        least = probability.topk(top_k).values[:, -1:]
        probability = probability.masked_fill(probability < least, 0)
    if top_p is not None:
        ordered = probability.sort(descending=True).values
        before = ordered.cumsum(-1) - ordered
        least = ordered.masked_fill(before >= top_p * probability.sum(-1, keepdim=True), math.inf).amin(-1, keepdim=True)
        probability = probability.masked_fill(probability < least, 0)
    if repeated is not None:
        share = (1 - repeated.sum(-1, keepdim=True)) / probability.sum(-1, keepdim=True)
        probability = probability * share + repeated
    reached = probability.cumsum(-1)
    # Stay slightly below the total: rounding up to it would select a code of probability 0.
    code = torch.searchsorted(reached, uniform[:, None] * (1 - 1e-6) * reached[:, -1:], right=True)[:, 0]
    return code.clamp_max(logits.shape[-1] - 1)  # if a broken model gives NaN, the code still belongs to this level


def window(stage: Stage, have: int, total: int, prompt: int) -> tuple[int, int]:
    """The frames [start, stop) of the window in which frame `have` of `total` is predicted; it starts on the stage's grid.

    With given streams, a window must wait for all given codes within it. To get the first sound early, the first window
    after the `prompt` frames adds FIRST seconds, and each later one as much as has been generated, plus FIRST.
    """
    first, grid = max(1, stage.predict.frames(FIRST)), max(1, stage.predict.frames(stage.grid))
    crop = max(1, stage.predict.frames(stage.crop) // grid) * grid
    overlap = min(stage.predict.frames(stage.overlap), crop - grid)  # a very short crop may round to its overlap
    stop = min(total, (have + min(crop, max(grid, have - prompt + first))) // grid * grid) if stage.given else total
    if stage.overlap:
        # Keep everything in the window while it leaves room for at least this many new frames; otherwise slide.
        whole = min(stop, have + min(first, max(1, (crop - overlap) // 2))) <= crop
        start = 0 if whole else max(0, have - overlap) // grid * grid
    elif have > prompt:  # independent windows
        start = have
    else:  # but the first one includes as much of the prompt as fits
        start = min(-(-max(0, stop - crop) // grid), have // grid) * grid
    return start, min(start + crop, stop)


def spans(stage: Stage, prompt: int, total: int) -> Iterator[tuple[int, int, int]]:
    """All windows from the end of the prompt on: each one's start, first new frame and stop."""
    have = prompt
    while have < total:
        start, stop = window(stage, have, total, prompt)
        yield start, have, stop
        have = stop


def within(stage: Stage, stream: Stream, start: int, stop: int) -> tuple[int, int]:
    """A stream's frames [first, last) that lie within predicted frames [start, stop)."""
    rate = stream.spec.frame_rate / stage.predict.spec.frame_rate
    return round(start * rate), math.ceil(stop * rate - 1e-6)


def covered(stage: Stage, stream: Stream, last: int) -> int:
    """The predicted frames that lie within a stream's frames [0, last)."""
    return math.floor(last * stage.predict.spec.frame_rate / stream.spec.frame_rate + 1e-6)


def cut(stage: Stage, given: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    """The given streams' frames that lie within predicted frames [start, stop). InputError if a stream is too short."""
    parts = []
    for stream, codes in zip(stage.given, given, strict=True):
        first, last = within(stage, stream, start, stop)
        if codes.shape[1] < last:
            lasting, needed = codes.shape[1] / stream.spec.frame_rate, stop / stage.predict.spec.frame_rate
            raise InputError(
                f"stage {stage.name}: the given {stream.spec.name} tokens last {lasting:g} s, but {needed:g} s are needed"
            )
        parts.append(codes[:, first:last])
    return parts


def sample_windows(
    model: LanguageModel,
    stage: Stage,
    given: Sequence[Sequence[Tensor]],
    prompt: Sequence[Tensor],
    frames: Sequence[int],
    seeds: Sequence[int | Generator],
    progress: Progress | None = None,
    one: Callable[..., list[Tensor]] = sample,
    **options: Unpack[Options],
) -> list[Tensor]:
    """As `sample`, for any length, with the memory of one window. Given codes must include their repeats.

    ends_after: in the first window; later ones may end at any frame.
    one: the function that fills a window; takes the same arguments as `sample`.
    """
    known = [codes.long() for codes in prompt]
    totals = [codes.shape[1] + count for codes, count in zip(known, frames, strict=True)]
    generators = [generator_of(stage, seed) for seed in seeds]
    going = [item for item, count in enumerate(frames) if count]
    while going:
        have = [known[item].shape[1] for item in going]
        windows = [window(stage, length, totals[item], prompt[item].shape[1]) for item, length in zip(going, have, strict=True)]
        # Progress is that of the item with the most left to do, before this round and after it.
        before = max(frames) - max(totals[item] - length for item, length in zip(going, have, strict=True))
        after = max(frames) - max(totals[item] - stop for item, (_, stop) in zip(going, windows, strict=True))
        parts = one(
            model,
            stage,
            [cut(stage, given[item], start, stop) for item, (start, stop) in zip(going, windows, strict=True)],
            [known[item][:, start:] for item, (start, _) in zip(going, windows, strict=True)],
            [stop - length for (_, stop), length in zip(windows, have, strict=True)],
            [generators[item] for item in going],
            _part(progress, before, after, max(frames)),
            **options,
        )
        options = later(options)
        unfinished = []
        for item, (start, stop), part in zip(going, windows, parts, strict=True):
            known[item] = torch.cat((known[item][:, :start], part), 1)
            if known[item].shape[1] == stop < totals[item]:  # neither complete nor ended early
                unfinished.append(item)
        going = unfinished
    return known


def later(options: Options) -> Options:
    """The options of the windows after the first."""
    return options if options.get("ends_after") is None else {**options, "ends_after": 0}


def sample_chunks(
    model: LanguageModel,
    stage: Stage,
    given: Sequence[Sequence[Tensor]],
    prompt: Sequence[Tensor],
    frames: Sequence[int],
    seeds: Sequence[int],
    progress: Progress | None = None,
    rows: int = 32,
    one: Callable[..., list[Tensor]] = sample,
    **options: Unpack[Options],
) -> list[Tensor]:
    """As `sample_windows`, but in independent windows ("chunks"), up to `rows` of them, from all items, in one batch.

    Each chunk has its own seed, derived from its item's seed and its number, and its own `ends_after`.
    """
    done = [known.long() for known in prompt]
    chunks = [
        (item, number, *span)
        for item, (known, count) in enumerate(zip(prompt, frames, strict=True))
        for number, span in enumerate(spans(stage, known.shape[1], known.shape[1] + count))
    ]
    for first in range(0, len(chunks), rows):
        batch = chunks[first : first + rows]
        known = [prompt[item][:, start:have] for item, _, start, have, _ in batch]
        parts = one(
            model,
            stage,
            [cut(stage, given[item], start, stop) for item, _, start, _, stop in batch],
            known,
            [stop - have for _, _, _, have, stop in batch],
            [chunk_seed(seeds[item], number) for item, number, *_ in batch],
            _part(progress, first, first + len(batch), len(chunks), stage.predict.frames(stage.crop)),
            **options,
        )
        for (item, _, start, have, _), part in zip(batch, parts, strict=True):
            if done[item].shape[1] == have:  # the chunk before did not end early
                done[item] = torch.cat((done[item], part[:, have - start :]), 1)
    return done


def chunk_seed(seed: int, chunk: int) -> int:
    """The seed of an item's chunk."""
    return seed * 1_000_003 + chunk


def generator_of(stage: Stage, seed: int | Generator) -> Generator:
    """An item's random generator; differs per stage, so that one seed can serve all stages. Torch uses 32 bits of a seed."""
    if isinstance(seed, Generator):
        return seed
    return Generator().manual_seed((seed * 1_000_003 + crc32(stage.name.encode())) % 2**32)


def _part(progress: Progress | None, before: int, after: int, total: int, steps: int = 1) -> Progress | None:
    """Report a part's progress (`before` to `after`) as that of the whole, in units of `steps` frames."""
    return progress and (lambda done, _: progress(min(before + done // steps, after), total))
