"""Generate any stage's codes window by window, for a batch or as a stream. Works on tokens only, not audio.

    complete   all codes at once, for a batch of items of any lengths
    stream     one item's codes as they are generated; the same windows, hence the same codes (contract 2)
    Tape       codes that one stage produces while the next one reads them

Streams are pull-based: asking the last stage for a frame advances the stages before it just as far as that frame needs.
Codes that no later window can need are dropped, so memory does not grow with the length.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Unpack

import torch
from torch import Generator, Tensor

from audiolm.parallel import fill
from audiolm.sampling import (
    Options,
    Progress,
    chunk_seed,
    covered,
    generator_of,
    later,
    sample,
    sample_chunks,
    sample_frames,
    sample_windows,
    window,
    within,
)
from audiolm.stages import Stage
from audiolm.transformer import LanguageModel


def complete(
    model: LanguageModel,
    stage: Stage,
    given: Sequence[Sequence[Tensor]],
    prompt: Sequence[Tensor],
    frames: Sequence[int],
    seeds: Sequence[int],
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> list[Tensor]:
    """Like `audiolm.sampling.sample`, for any length and stage: in sliding windows, or independent ones without overlap."""
    windows = sample_windows if stage.overlap else sample_chunks
    return windows(model, stage, given, prompt, frames, seeds, progress, one=fill if stage.parallel else sample, **options)


class Tape:
    """Codes (levels, F) read by frame number and taken from `parts` on demand."""

    def __init__(self, parts: Iterator[Tensor]) -> None:
        self.parts, self.first = parts, 0
        self.codes: Tensor | None = None  # frames from `first` on

    def reach(self, last: int) -> int:
        """Take frames up to `last` from `parts`. Returns `last`, or how many frames there are if `parts` ends before."""
        while self.codes is None or self.first + self.codes.shape[1] < last:
            part = next(self.parts, None)
            if part is None:
                break
            self.codes = part if self.codes is None else torch.cat((self.codes, part), 1)
        assert self.codes is not None
        return min(last, self.first + self.codes.shape[1])

    def read(self, first: int, last: int) -> Tensor:
        """Frames [first, last), or fewer if `parts` ends before."""
        last = self.reach(last)
        assert self.codes is not None
        return self.codes[:, first - self.first : last - self.first]

    def forget(self, first: int) -> None:
        """Drop the frames before `first`, which must not be read again."""
        if self.codes is not None and first > self.first:
            self.codes, self.first = self.codes[:, first - self.first :].clone(), first


def stream(
    model: LanguageModel,
    stage: Stage,
    given: Sequence[Tape],
    prompt: Tensor,
    frames: int,
    seed: int,
    **options: Unpack[Options],
) -> Iterator[Tensor]:
    """Yield codes (levels, n) of one item: first its prompt, then, in parts, the new codes that `complete` would give.

    given: one tape per given stream, with all levels of its kind; the stage takes the levels it uses. If a tape ends before
    `frames` new frames, they end with it.
    """
    recent, first, count = prompt.long(), 0, prompt.shape[1]  # `recent` holds the frames from `first` on
    yield recent
    generator, number, have, total = generator_of(stage, seed), 0, count, count + frames
    while have < total:
        start, stop = window(stage, have, total, count)
        lasts = [within(stage, own, start, stop)[1] for own in stage.given]
        ends = [covered(stage, own, tape.reach(last)) for own, tape, last in zip(stage.given, given, lasts, strict=True)]
        if min(ends, default=stop) < stop:
            total = min(ends)  # only now is it known, and the window may become another
            continue
        parts = []
        for own, tape in zip(stage.given, given, strict=True):
            begin, end = within(stage, own, start, stop)
            tape.forget(begin)
            parts.append(own.take(tape.read(begin, end)))
        recent, first = recent[:, start - first :], start
        random = generator if stage.overlap else chunk_seed(seed, number)
        for new in _window(model, stage, parts, recent, stop - have, random, **options):
            recent = torch.cat((recent, new), 1)
            yield new
        have, number = first + recent.shape[1], number + 1
        if stage.overlap:
            options = later(options)
        if have < stop:  # ended
            return


def _window(
    model: LanguageModel,
    stage: Stage,
    given: Sequence[Tensor],
    known: Tensor,
    frames: int,
    random: int | Generator,
    **options: Unpack[Options],
) -> Iterator[Tensor]:
    """New codes (levels, n) of one window: frame by frame, or all at once if the stage is parallel."""
    if stage.parallel:
        yield fill(model, stage, [given], [known], [frames], [random], **options)[0][:, known.shape[1] :]
        return
    for frame in sample_frames(model, stage, [given], [known], [frames], [random], **options):
        yield frame[0].cpu()[:, None]


def stacked(lower: Tape, upper: Iterable[Tensor]) -> Iterator[Tensor]:
    """Stack each part of the upper levels on the lower levels of the same frames."""
    first = 0
    for part in upper:
        last = first + part.shape[1]
        yield torch.cat((lower.read(first, last), part))
        first = last


def spread(parts: Iterable[Tensor], count: int, frames: int) -> Iterator[Tensor]:
    """Stretch parts (levels, n), `count` codes in total, to `frames` frames: all durations equal to within one frame."""
    done = emitted = 0
    for part in parts:
        done += part.shape[1]
        upto = -(-done * frames // count)  # frame i takes code i * count // frames: frames below `upto` have theirs
        yield part[:, torch.arange(emitted, upto) * count // frames - (done - part.shape[1])]
        emitted = upto


def of_length(parts: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """Regroup codes into parts of `length` frames; the last may be shorter."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        if sum(each.shape[1] for each in held) >= length:
            *whole, rest = torch.cat(held, 1).split(length, 1)
            if rest.shape[1] == length:
                whole, rest = [*whole, rest], rest[:, :0]
            yield from whole
            held = [rest]
    if held and sum(each.shape[1] for each in held):
        yield torch.cat(held, 1)
