"""All acoustic levels in a few passes (SoundStorm, Borsos et al. 2023, 2305.09636). Works on ids only, not audio.

    network    a position is a frame, the sum of the embeddings of its ids: the given codes at that time, and for each
               predicted level its code or that level's MASK; attention is bidirectional, each level has a head (section 3.1)
    training   after a prompt of random length, one level is masked in part and all levels above it completely; the network
               predicts the masked codes of that level (section 3.2)
    decoding   level by level; the first takes 16 passes, each of which keeps the most confident codes, the others one (3.3);
               if another stage has made the first levels (`Stage.above`), one pass for each of the others

A stage with `parallel` is trained and decoded this way, and can be used like any other. R: the levels of all streams of a stage.
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

PASSES = 16  # for the first level; the others take one each (section 4.3: more of either gains nothing)
NOISE = 4.5  # Gumbel noise on the confidences, in units of the temperature, falling to 0 (MaskGIT, 2202.04200)


class ParallelModel(LanguageModel):
    """The language model of a parallel stage: positions are frames, and there is no EOS."""

    def __init__(self, config: TransformerConfig, vocabulary: int, levels: int, codebook_size: int) -> None:
        super().__init__(config, vocabulary, levels, codebook_size, causal=False)
        del self.end

    def frames(self, ids: Tensor, absent: Tensor | None = None) -> Tensor:
        """Ids (B, F, R) -> hidden states (B, F, D) for `logits`; absent: (B, F), see `absent_of`."""
        return self.transformer(self.embedding(ids).sum(2), absent=absent)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Tensor, lengths: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Ids (B, F, R), rows' lengths (B,), and the codes to predict (B, F, Q), IGNORED elsewhere.

        Returns for each level the sum of the cross entropies in nats, and their number: (Q,) and (Q,).
        """
        hidden = self.frames(ids, absent_of(lengths, ids.shape[1]))
        nats = []
        for level, codes in enumerate(targets.unbind(2)):
            due = codes != IGNORED
            nats.append(nnf.cross_entropy(self.logits(hidden[due], level).float(), codes[due], reduction="sum"))
        return torch.stack(nats), (targets != IGNORED).sum((0, 1))


def absent_of(lengths: Tensor, longest: int) -> Tensor | None:
    """(B, longest), True beyond each row's length; None if all rows have the same length."""
    absent = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return absent if bool(absent.any()) else None


class Masked(NamedTuple):
    """Input of the network: ids (B, F, R), the number of frames of each row (B,), codes to predict (B, F, Q)."""

    ids: Tensor
    lengths: Tensor
    targets: Tensor


def mask(stage: Stage, items: Sequence[Mapping[str, Any]], seed: int) -> Masked:
    """Training examples from items with `given` and `predicted` codes (section 3.2); the seed alone decides what is masked."""
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
        masked[start:, level] = chance <= torch.maximum(share, chance.min())  # at least one
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
    ends_after: int | None = None,
    passes: int | None = None,
    keep_repeats: bool = False,
    noise: float = NOISE,
) -> list[Tensor]:
    """Generate one window, like `audiolm.sampling.sample`: each item's prompt, unchanged, and `frames[i]` new frames.

    prompt: may hold the first levels only; then only these are generated, and those above stay masked and cost no passes.
    passes: number of passes for the first level (default PASSES), unless it is given. An item's last pass for a level takes the
    likeliest codes.
    """
    assert isinstance(model, ParallelModel)
    check(temperature, top_k, top_p)
    if ends_after is not None:
        raise InputError(f"stage {stage.name}: a parallel stage cannot generate an end; leave ends_after out")
    if keep_repeats:
        raise InputError(f"stage {stage.name}: a parallel stage does not draw frame after frame; leave keep_repeats out")
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
    each = [1 if stage.below else PASSES if passes is None else passes] + [1] * (made - 1)
    random = torch.zeros(len(lines), sum(each), 2, ids.shape[1])
    for row, (seed, own) in enumerate(zip(seeds, frames, strict=True)):
        random[row, ..., known[row] : lengths[row]] = torch.rand(sum(each), 2, own, generator=generator_of(stage, seed))
    absent = absent_of(lengths, ids.shape[1])
    # Frames before the end of the shortest prompt are context only; nothing is predicted there.
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
                # Counted from the last one, the heads are the same whether lower levels are given or predicted.
                logits = model.logits(model.frames(ids, absent)[:, first:], level - levels).float()
                left = schedules[:, step, None]  # masked frames left for each item; with 0 this is its last pass
                codes = logits.argmax(-1)
                settled = still
                if step + 1 < count:
                    drawn = draw(logits.flatten(0, 1), uniform[:, done].flatten(), temperature, top_k, top_p)
                    codes = torch.where(left > 0, drawn.view_as(codes), codes)
                    sure = logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
                    sure = sure + noise * temperature * (1 - (step + 1) / count) * gumbel[:, done]
                    rank = sure.masked_fill(~still, math.inf).argsort(1).argsort(1)  # 0: the least confident
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
    """How many of `frames` are still masked after each pass: a quarter of a cosine, and at least one fewer each time."""
    left = []
    for step in range(1, passes + 1):
        left.append(max(0, min(int(frames * math.cos(math.pi / 2 * step / passes)), (left or [frames])[-1] - 1)))
    return left
