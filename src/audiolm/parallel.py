"""All acoustic levels in a few passes (SoundStorm, Borsos et al. 2023, 2305.09636): ids -> ids. Knows no audio.

    network    a position is a frame, the sum of the embeddings of its ids: the given codes at that time, and of each predicted
               level its code or that level's MASK; all see all, and each level has a head (section 3.1)
    training   a prompt of any length; after it one level is masked in part and those above it wholly; the network finds the
               masked codes of the one (section 3.2)
    decoding   level by level; within the first, 16 passes each keep what they are surest of; one pass fills each other (3.3)

A stage with `parallel` is such a task, and serves wherever a stage does. R: the levels of all streams of a stage.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from audiolm.errors import InputError
from audiolm.sampling import Progress, check, draw, generator_of
from audiolm.stages import Stage
from audiolm.transformer import IGNORED, LanguageModel, TransformerConfig

PASSES = 16  # for the first level; one for each of the others (section 4.3: more of either gains nothing)
NOISE = 4.5  # of the confidences, in units of the temperature, falling to 0 (MaskGIT, 2202.04200)


class ParallelModel(LanguageModel):
    """The language model of a parallel stage: positions are frames, and none of them can be the end."""

    def __init__(self, config: TransformerConfig, vocabulary: int, levels: int, codebook_size: int) -> None:
        super().__init__(config, vocabulary, levels, codebook_size, causal=False)
        del self.end

    def frames(self, ids: Tensor, absent: Tensor | None = None) -> Tensor:
        """Ids (B, F, R) -> (B, F, D), which `logits` turns into predictions; absent: (B, F), see `absent_of`."""
        return self.transformer(self.embedding(ids).sum(2), absent=absent)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Tensor, lengths: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Ids (B, F, R), rows' lengths (B,), and the codes to be found (B, F, Q), IGNORED elsewhere.

        Returns for each level the sum of the cross entropies in nats, and how many they are: (Q,) and (Q,).
        """
        hidden = self.frames(ids, absent_of(lengths, ids.shape[1]))
        nats = []
        for level, codes in enumerate(targets.unbind(2)):
            due = codes != IGNORED
            nats.append(nnf.cross_entropy(self.logits(hidden[due], level).float(), codes[due], reduction="sum"))
        return torch.stack(nats), (targets != IGNORED).sum((0, 1))


def absent_of(lengths: Tensor, longest: int) -> Tensor | None:
    """True behind each row's own length, (B, longest); None where all rows are as long."""
    absent = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return absent if bool(absent.any()) else None


class Masked(NamedTuple):
    """Items as the network takes them: ids (B, F, R), how many frames each row has (B,), codes to be found (B, F, Q)."""

    ids: Tensor
    lengths: Tensor
    targets: Tensor


def mask(stage: Stage, items: Sequence[Mapping[str, Any]], seed: int) -> Masked:
    """Training examples of items with `given` and `predicted` codes (section 3.2); the seed alone decides what is masked."""
    generator, levels = Generator().manual_seed(seed % 2**32), stage.predict.levels
    lines, goals = [], []
    for item in items:
        ids, codes = stage.stack(item["given"], item["predicted"]), item["predicted"].T.long()
        frames = len(codes)
        start = int(torch.randint(frames, (), generator=generator))
        level = int(torch.randint(levels, (), generator=generator))
        share = torch.cos(torch.rand((), generator=generator) * math.pi / 2)
        chance = torch.rand(frames - start, generator=generator)
        masked = torch.zeros(frames, levels, dtype=torch.bool)
        masked[start:, level] = chance <= torch.maximum(share, chance.min())  # one at least
        target = torch.full_like(codes, IGNORED)
        target[:, level] = torch.where(masked[:, level], codes[:, level], IGNORED)
        masked[start:, level + 1 :] = True
        ids[:, -levels:] = torch.where(masked, stage.masks, ids[:, -levels:])
        lines.append(ids)
        goals.append(target)
    lengths = torch.tensor([len(ids) for ids in lines])
    return Masked(pad_sequence(lines, True), lengths, pad_sequence(goals, True, IGNORED))


@torch.inference_mode()
def fill(
    model: LanguageModel,
    stage: Stage,
    given: Sequence[Sequence[Tensor]],
    prompt: Sequence[Tensor],
    frames: Sequence[int],
    seeds: Sequence[int | Generator],
    progress: Progress | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    allow_eos: bool = False,
    passes: int | None = None,
    noise: float = NOISE,
) -> list[Tensor]:
    """One window, in place of `audiolm.sampling.sample`: each item's codes go on by `frames[i]` frames, its prompt as it came.

    prompt: of the first levels only, if no others are wanted: those above them stay masked everywhere and cost no passes.
    passes: how many fill the first level (PASSES). The last one that an item needs for a level takes the likeliest codes.
    """
    assert isinstance(model, ParallelModel)
    check(temperature, top_k, top_p)
    if allow_eos:
        raise InputError(f"stage {stage.name}: no frame of a parallel stage can be the end; leave allow_eos out")
    if not max(frames, default=0):
        return [known.long() for known in prompt]
    levels, made, device = stage.predict.levels, len(prompt[0]), model.heads.device
    lines = [
        stage.stack(parts, nnf.pad(known, (0, count, 0, levels - made)))
        for parts, known, count in zip(given, prompt, frames, strict=True)
    ]
    lengths, first = torch.tensor([len(line) for line in lines]), min(known.shape[1] for known in prompt)
    ids = pad_sequence(lines, True)
    place, known = torch.arange(ids.shape[1]), torch.tensor([codes.shape[1] for codes in prompt])
    new = (place >= known[:, None]) & (place < lengths[:, None])
    unknown = new[..., None] | (torch.arange(levels) >= made)
    ids[..., -levels:] = torch.where(unknown, stage.masks, ids[..., -levels:])
    each = [PASSES if passes is None else passes] + [1] * (made - 1)
    random = torch.zeros(len(lines), sum(each), 2, ids.shape[1])
    for row, (seed, own) in enumerate(zip(seeds, frames, strict=True)):
        random[row, ..., known[row] : lengths[row]] = torch.rand(sum(each), 2, own, generator=generator_of(stage, seed))
    absent = absent_of(lengths, ids.shape[1])
    # Frames before the shortest prompt's end are heard, but nothing is asked of them.
    ids, new, random = ids.to(device), new[:, first:].to(device), random[..., first:].to(device)
    absent = None if absent is None else absent.to(device)
    uniform, gumbel = random[:, :, 0], -(-random[:, :, 1].clamp(1e-20, 1 - 1e-7).log()).log()
    training, done = model.training, 0
    model.eval()
    try:
        for level, count in enumerate(each):
            column = ids[:, first:, level - levels]
            schedules = torch.tensor([masked_after(own, count) for own in frames], device=device)
            still = new
            for step in range(count):
                logits = model.logits(model.frames(ids, absent)[:, first:], level).float()
                left = schedules[:, step, None]  # of each item; where none is, this is its last pass
                codes = logits.argmax(-1)
                settled = still
                if step + 1 < count:
                    drawn = draw(logits.flatten(0, 1), uniform[:, done].flatten(), temperature, top_k, top_p)
                    codes = torch.where(left > 0, drawn.view_as(codes), codes)
                    sure = logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
                    sure = sure + noise * temperature * (1 - (step + 1) / count) * gumbel[:, done]
                    rank = sure.masked_fill(~still, math.inf).argsort(1).argsort(1)  # 0: the least sure
                    settled = still & (rank >= left)
                column.copy_(torch.where(settled, codes + stage.offsets[-1][level].item(), column))
                still = still & ~settled
                done += 1
                if progress is not None:
                    progress(max(frames) * done // sum(each), max(frames))
    finally:
        model.train(training)
    filled = (ids[..., -levels:].cpu() - stage.offsets[-1].T).mT[:, :made]
    return [
        torch.cat((codes.long(), row[:, codes.shape[1] : codes.shape[1] + own]), 1)
        for codes, row, own in zip(prompt, filled, frames, strict=True)
    ]


def masked_after(frames: int, passes: int) -> list[int]:
    """How many of so many frames are still masked after each pass: a quarter of a cosine, and at least one fewer each time."""
    left = []
    for step in range(1, passes + 1):
        left.append(max(0, min(int(frames * math.cos(math.pi / 2 * step / passes)), (left or [frames])[-1] - 1)))
    return left
