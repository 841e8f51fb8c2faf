"""How well a stage's language model predicts given codes: cross entropy per level. Q levels, N codes in a codebook.

EOS is not scored: it is rare, and a unigram model cannot predict its position.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from audiolm.measuring.metrics import histogram
from audiolm.sampling import cut
from audiolm.stages import Stage
from audiolm.transformer import IGNORED, LanguageModel

BATCH = 8  # crops


class Score(NamedTuple):
    """Sums over the codes of a recording."""

    nats: Tensor  # (Q), cross entropy
    counts: Tensor  # (Q), codes scored
    frequencies: Tensor  # (Q, N), occurrences of each code


def crop_nats(network: LanguageModel, stage: Stage, codes: Mapping[str, Tensor]) -> Score:
    """Score one recording, crop by crop. codes: (Q, F) by the names of their specifications."""
    given = [stream.take(codes[stream.spec.name]) for stream in stage.given]
    predicted = stage.predict.take(codes[stage.predict.spec.name])
    grid = max(1, stage.predict.frames(stage.grid))
    crop = stage.predict.frames(stage.crop) // grid * grid
    spans = [(start, min(start + crop, predicted.shape[1])) for start in range(0, predicted.shape[1], crop)]
    items = [(cut(stage, given, *span), predicted[:, slice(*span)]) for span in spans]
    score = masked_nats if stage.parallel else nats_of
    parts = [score(network, stage, items[first : first + BATCH]) for first in range(0, len(items), BATCH)]
    return Score(*(torch.stack(each).sum(0) for each in zip(*parts, strict=True)))


@torch.inference_mode()
def nats_of(network: LanguageModel, stage: Stage, items: Sequence[tuple[Sequence[Tensor], Tensor]], heard: int = 0) -> Score:
    """Score a batch of items: codes (levels, F) of the given streams, and the predicted ones. Skips the first `heard` frames."""
    device = network.heads.device
    lines = [stage.pack(*item) for item in items]
    codes = [stage.unpack(line)[1] for line in lines]  # without repeats if the stage removes them
    targets = pad_sequence([each.T for each in codes], batch_first=True, padding_value=IGNORED)
    targets[:, :heard] = IGNORED
    starts = torch.tensor([len(line) - each.numel() - 1 for line, each in zip(lines, codes, strict=True)])
    ids = pad_sequence(lines, batch_first=True, padding_value=stage.pad)
    nats, counts = network(ids.to(device), starts.to(device), targets.to(device))
    frequencies = histogram(torch.cat([each[:, heard:] for each in codes], 1), stage.predict.spec.codebook_size)
    return Score(nats.double().cpu(), counts.cpu(), frequencies)


@torch.inference_mode()
def masked_nats(network: LanguageModel, stage: Stage, items: Sequence[tuple[Sequence[Tensor], Tensor]]) -> Score:
    """As `nats_of`, for a parallel stage: each level is predicted in one pass from the given codes and all lower levels.

    No code of a level is known while it is predicted, neither earlier ones nor those of earlier passes. So these are more bits
    than decoding in several passes needs, and they do not compare with those of an autoregressive stage.
    """
    levels, device = stage.predict.levels, network.heads.device
    lines = [stage.stack(*item) for item in items]
    lengths = torch.tensor([len(line) for line in lines])
    ids = pad_sequence(lines, batch_first=True)
    codes = pad_sequence([each.T for _, each in items], batch_first=True, padding_value=IGNORED)
    sums = torch.zeros(2, levels, dtype=torch.float64)
    for level in range(levels):
        hidden, due = ids.clone(), torch.full_like(codes, IGNORED)
        hidden[..., -levels + level :] = stage.masks[level:]
        due[..., level] = codes[..., level]
        sums += torch.stack(network(hidden.to(device), lengths.to(device), due.to(device))).double().cpu()
    frequencies = histogram(torch.cat([each for _, each in items], 1), stage.predict.spec.codebook_size)
    return Score(sums[0], sums[1].long(), frequencies)
