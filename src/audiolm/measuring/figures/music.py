"""How well a model with a piano stage continues music (AudioLM section IV-I).

The paper asked raters which of two continuations they prefer. These figures show what a listener would complain of first:
another key, a wash instead of distinct tones, too many or too few onsets, or silence.
"""

import math

import torch
from torch import Tensor

from audiolm.measuring.continuations import WAYS
from audiolm.measuring.figures.bench import Bench, Figures, at_16k
from audiolm.measuring.metrics import Measure, mean, ratio
from audiolm.measuring.music import chroma, key_likeness, onsets, told, tone_entropy, tone_likeness
from audiolm.measuring.phonetics import mfcc_units
from audiolm.tokens import Tokens


def music_figures(bench: Bench) -> Figures:
    """How well the tones are kept at each number of levels; for each way to continue: key, entropy, onsets and level."""
    model, spec = bench.model, bench.model.codec.spec
    if "piano" not in model.stages:
        return {}
    figures: Figures = {}
    for level in sorted({min(level, spec.num_codebooks) for level in bench.levels}):
        kept = []
        for clip in bench.clips:
            sound = clip.sound
            decoded = model.decode(Tokens(clip.tokens.acoustic.codes[:level], spec)).trim(sound.seconds)
            kept.append(tone_likeness(at_16k(sound), at_16k(decoded)))
        figures[f"music.codec.{level}.tones"] = mean(kept)
        bench.tell("tones", level, spec.num_codebooks)
    figures |= _units(bench)
    made = bench.continued
    prompts = [at_16k(each.prompt) for each in made]
    for way in [way for way in WAYS if made and way in made[0].sounds]:
        sounds = [at_16k(each.sounds[way]) for each in made]
        figures[f"music.{way}.key"] = _mean([key_likeness(p, s) for p, s in zip(prompts, sounds, strict=True)])
        if len(made) > 1:
            others = [*prompts[1:], prompts[0]]
            figures[f"music.{way}.other_key"] = _mean([key_likeness(p, s) for p, s in zip(others, sounds, strict=True)])
        figures[f"music.{way}.entropy"] = _mean([tone_entropy(sound) for sound in sounds])
        figures[f"music.{way}.onsets"] = _mean([onsets(sound) for sound in sounds])
        figures[f"music.{way}.level"] = _mean([_level(s) - _level(p) for p, s in zip(prompts, sounds, strict=True)])
    return figures


def _units(bench: Bench) -> Figures:
    """How much of the chroma the units explain, next to as many k-means units of MFCC fitted on the same recordings."""
    if len(bench.clips) < 2:
        return {}
    tokenizer, sounds = bench.model.semantic, [at_16k(clip.sound) for clip in bench.clips]
    units = {"units": [clip.tokens.semantic.codes[0] for clip in bench.clips]}
    if sum(map(len, units["units"])) >= tokenizer.spec.codebook_size:
        baseline = mfcc_units([sound[None, None] for sound in sounds], tokenizer.spec.codebook_size, bench.seed)
        units["mfcc"] = [baseline(sound[None, None]) for sound in sounds]
    rate = tokenizer.spec.frame_rate
    chromas = [chroma(sound, len(each), rate) for sound, each in zip(sounds, units["units"], strict=True)]
    return {f"music.{name}.chroma": ratio(*told(each, chromas)) for name, each in units.items()}


def _mean(values: list[float]) -> Measure:
    return mean(torch.tensor(values, dtype=torch.float64))


def _level(sound: Tensor) -> float:
    """Level in dB, at least -80."""
    return max(-80.0, 10 * math.log10(float(sound.square().mean()) + 1e-12))
