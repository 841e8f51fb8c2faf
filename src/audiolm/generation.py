"""A stage's codes by windows, whatever the stage: for many items at once, or for one as they come. Knows no audio.

    complete   all of it, for a batch of items of any lengths
    stream     one item's codes as soon as they are there; the same windows, hence the same codes (contract 2)
    Tape       codes that one stage makes while the next one reads them

Streams pull: asking the last stage for a frame makes those before it go just as far as that frame needs. What no window can
ask for again is forgotten, so that memory does not grow with the length.
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
    generator_of,
    sample,
    sample_chunks,
    sample_frames,
    sample_windows,
    spans,
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
    """As `audiolm.sampling.sample`, for any length and any stage: windows slide, or stand side by side where none overlap."""
    windows = sample_windows if stage.overlap else sample_chunks
    return windows(model, stage, given, prompt, frames, seeds, progress, one=fill if stage.parallel else sample, **options)


class Tape:
    """Codes (levels, F) that are read by frame numbers and come out of `parts` when they are asked for."""

    def __init__(self, parts: Iterator[Tensor]) -> None:
        self.parts, self.first = parts, 0
        self.codes: Tensor | None = None  # frames from `first` on

    def read(self, first: int, last: int) -> Tensor:
        """Frames [first, last), or as many as there will ever be."""
        while self.codes is None or self.first + self.codes.shape[1] < last:
            part = next(self.parts, None)
            if part is None:
                break
            self.codes = part if self.codes is None else torch.cat((self.codes, part), 1)
        assert self.codes is not None
        return self.codes[:, first - self.first : last - self.first]

    def forget(self, first: int) -> None:
        """Nothing before this frame will be read again."""
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
    """Codes (levels, n) of one item: first its prompt, then in parts what `complete` makes of it.

    given: for each given stream all levels of its kind from the first on, of which the stage takes its own.
    """
    recent, first, count = prompt.long(), 0, prompt.shape[1]  # `recent` are the frames from `first` on
    yield recent
    generator = generator_of(stage, seed)
    for number, (start, have, stop) in enumerate(spans(stage, count, count + frames)):
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


def _window(
    model: LanguageModel,
    stage: Stage,
    given: Sequence[Tensor],
    known: Tensor,
    frames: int,
    random: int | Generator,
    **options: Unpack[Options],
) -> Iterator[Tensor]:
    """New codes (levels, n) of one window: frame by frame, or all of them where the stage is parallel."""
    if stage.parallel:
        yield fill(model, stage, [given], [known], [frames], [random], **options)[0][:, known.shape[1] :]
        return
    for frame in sample_frames(model, stage, [given], [known], [frames], [random], **options):
        yield frame[0].cpu()[:, None]


def stacked(lower: Tape, upper: Iterable[Tensor]) -> Iterator[Tensor]:
    """Parts of the upper levels on the lower ones of the same frames."""
    first = 0
    for part in upper:
        last = first + part.shape[1]
        yield torch.cat((lower.read(first, last), part))
        first = last


def spread(parts: Iterable[Tensor], count: int, frames: int) -> Iterator[Tensor]:
    """Parts of `count` codes (levels, n) in all -> of `frames`: each code lasts as long as any other, to a frame."""
    done = told = 0
    for part in parts:
        done += part.shape[1]
        upto = -(-done * frames // count)  # frames whose code, number frame * count // frames, is there
        yield part[:, torch.arange(told, upto) * count // frames - (done - part.shape[1])]
        told = upto


def of_length(parts: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """The same codes in parts of `length` frames, the last of what is left over."""
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
