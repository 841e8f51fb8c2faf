"""Figures of the language models: bits per token, their use of semantic tokens, and sWUGGY and sBLIMP."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audiolm.audio import read
from audiolm.measuring.figures.bench import Bench, Clip, Figures, Missing, readable
from audiolm.measuring.metrics import mean, ratio, shuffled
from audiolm.measuring.scoring import crop_nats, nats_of
from audiolm.measuring.zerospeech import TASKS, WANTED, Pair, read_pairs, score
from audiolm.stages import Stage
from audiolm.text import normalised
from audiolm.training.alignment import Reading

MOST = 400  # pairs of a task, drawn at random
ALIGNED = 200  # training recordings that help to align transcripts


def stage_figures(bench: Bench) -> Figures:
    """Bits per token of every stage and level, teacher-forced in crops of the stage's length.

    The unigram baseline uses the frequencies of the measured codes themselves, which no model could know beforehand.
    """
    figures: Figures = {}
    for name, (stage, network) in bench.model.stages.items():
        if not _heard(stage):
            continue
        scores = []
        for number, clip in enumerate(bench.clips, 1):
            codes = {"semantic": clip.tokens.semantic.codes, "acoustic": clip.tokens.acoustic.codes}
            scores.append(crop_nats(network, stage, codes))
            bench.tell(name, number, len(bench.clips))
        nats, counts, codes = (torch.stack(each) for each in zip(*scores, strict=True))  # (R, Q), (R, Q), (R, Q, N)
        shares = codes.sum(0) / codes.sum((0, 2))[:, None]
        unigram = -torch.special.xlogy(codes, shares).sum(2)
        numbered = [(f".{stage.predict.first + q + 1}", slice(q, q + 1)) for q in range(len(shares))]
        for suffix, levels in [("", slice(None)), *(numbered if len(numbered) > 1 else ())]:
            for kind, total in (("bits", nats), ("unigram", unigram)):
                figures[f"stage.{name}{suffix}.{kind}"] = ratio(total[:, levels].sum(1) / math.log(2), counts[:, levels].sum(1))
    return figures


def oracle_figures(bench: Bench) -> Figures:
    """Does a stage use its semantic tokens, or its text? Bits per token given the true ones, shuffled, and another recording's.

    Tokens are shuffled over the whole recording, not within crops; in whole runs if the stage has dedup. The gain is what the
    true tokens save, paired by recording: a stage with a gain of 0 ignores them.
    """
    figures: Figures = {}
    found = [name for name, (stage, _) in bench.model.stages.items() if _given(stage) & {"semantic", "text"}]
    if not found:
        raise Missing("no stage of this model is given semantic tokens or text")
    random = torch.Generator().manual_seed(bench.seed)
    for name in found:
        stage, network = bench.model.stages[name]
        kind = "text" if "text" in _given(stage) else "semantic"
        clips = [clip for clip in bench.clips if kind == "semantic" or clip.transcript]
        given = _read(bench, clips) if kind == "text" else [clip.tokens.semantic.codes for clip in clips]
        bits: dict[str, list[Tensor]] = {}
        for number, (clip, true) in enumerate(zip(clips, given, strict=True)):
            told = {"true": true, "shuffled": shuffled(true, random, stage.dedup)}
            if len(clips) > 1:
                other = given[(number + 1) % len(clips)]
                told["other"] = other.repeat(1, -(-true.shape[1] // other.shape[1]))[:, : true.shape[1]]
            heard = {"semantic": clip.tokens.semantic.codes, "acoustic": clip.tokens.acoustic.codes}
            for way, codes in told.items():
                each = crop_nats(network, stage, heard | {kind: codes})
                bits.setdefault(way, []).append(torch.stack([each.nats.sum() / math.log(2), each.counts.sum()]))
            bench.tell(f"oracle {name}", number + 1, len(clips))
        sums = {way: torch.stack(each) for way, each in bits.items()}  # (R, 2)
        for way, each in sums.items():
            figures[f"oracle.{name}.{way}"] = ratio(*each.T)
            if way != "true":
                figures[f"oracle.{name}.{way}_gain"] = ratio(each[:, 0] - sums["true"][:, 0], each[:, 1])
    return figures


def pair_figures(bench: Bench) -> Figures:
    """Table IV: sWUGGY and sBLIMP, by the semantic stage's log-likelihood per token, and by the total (footnote 3)."""
    if bench.pairs is None:
        raise Missing(f"sWUGGY and sBLIMP (Table IV) need --pairs FOLDER: {WANTED}")
    if "semantic" not in bench.model.stages:
        raise Missing("sWUGGY and sBLIMP (Table IV) need a semantic stage, which this model lacks")
    figures: Figures = {}
    for task, title in TASKS.items():
        pairs = read_pairs(bench.pairs, task)
        if not pairs:
            continue
        random = torch.Generator().manual_seed(bench.seed)
        pairs = [pairs[number] for number in torch.randperm(len(pairs), generator=random)[:MOST].tolist()]
        nats = _nats(bench, [path for pair in pairs for path in (pair.right, pair.wrong)], title)
        figures[f"pairs.{task}.pairs"] = float(len(pairs))
        figures[f"pairs.{task}.score"] = _score(pairs, {path: -total / count for path, (total, count) in nats.items()})
        figures[f"pairs.{task}.whole"] = _score(pairs, {path: -total for path, (total, _) in nats.items()})
        if known := [pair for pair in pairs if pair.known]:
            figures[f"pairs.{task}.known"] = _score(known, {path: -total / count for path, (total, count) in nats.items()})
    if not figures:
        raise Missing(f"{bench.pairs} has neither lexical/dev/gold.csv nor syntactic/dev/gold.csv: give {WANTED}")
    return figures


def _score(pairs: Sequence[Pair], likelihood: dict[Path, float]):
    """The mean over ids, as in the paper; the interval is over ids too."""
    return mean(list(score(pairs, likelihood).values()))


def _nats(bench: Bench, paths: Sequence[Path], title: str) -> dict[Path, tuple[float, float]]:
    """The semantic stage's nats for each recording, and its number of tokens. One at a time, so padding cannot matter."""
    stage, network = bench.model.stages["semantic"]
    most, found = stage.predict.frames(stage.crop), {}
    for number, path in enumerate(paths, 1):
        codes = bench.model.tokenize(read(path)).semantic.codes
        codes = stage.kept(codes[:, :most])
        each = nats_of(network, stage, [((), codes)])
        found[path] = (float(each.nats.sum()), float(each.counts.sum()))
        bench.tell(title, number, len(paths))
    return found


def _heard(stage: Stage) -> bool:
    """Whether all of the stage's tokens can be made from recordings (unlike, for example, text)."""
    return {stream.spec.name for stream in stage.streams} <= {"semantic", "acoustic"}


def _given(stage: Stage) -> set[str]:
    return {stream.spec.name for stream in stage.given}


def _read(bench: Bench, clips: Sequence[Clip]) -> list[Tensor]:
    """Each clip's transcript as codes (1, F), aligned with its units by what these clips and some training recordings tell."""
    lines = [(normalised(clip.transcript or "").encode(), clip.tokens.semantic.codes[0].numpy()) for clip in clips]
    told = [each for each in bench.others if each.split == "train" and each.columns.get("transcript")][:ALIGNED]
    more = []
    for number, each in enumerate(told, 1):
        for sound in readable([each], bench.model.sample_rate):
            said = normalised(each.columns["transcript"]).encode()
            more.append((said, bench.model.tokenize(sound).semantic.codes[0].numpy()))
        bench.tell("letters", number, len(told))
    reading = Reading.fit([*lines, *more], bench.model.semantic.spec.codebook_size)
    return [torch.from_numpy(reading.align(*line).astype(np.int64))[None] for line in lines]
