"""The codec's figures (AudioLM Table I): sound quality at each number of levels, and the use of each codebook."""

import torch
from torch import Tensor

from audiolm.audio import Waveform
from audiolm.measuring.figures.bench import Bench, Figures, at_16k
from audiolm.measuring.metrics import entropy, histogram, mean, mel_distance, pesq_wb, si_sdr, stoi, visqol
from audiolm.quantizer import residual_energy
from audiolm.tokens import Tokens

VISQOL_SECONDS = 8.0  # compared by ViSQOL per recording; its authors recommend 5 to 10


def codec_figures(bench: Bench) -> Figures:
    """The codec's sound quality at each number of levels, and how well each level's codebook is used."""
    model, spec, figures = bench.model, bench.model.codec.spec, Figures()
    measured = sorted({min(level, spec.num_codebooks) for level in bench.levels})
    scores: dict[str, list[float]] = {}
    energy, counts = [], torch.zeros(spec.num_codebooks, spec.codebook_size)
    for number, clip in enumerate(bench.clips, 1):
        sound, codes = clip.sound.samples[0], clip.tokens.acoustic.codes
        for level in measured:
            decoded = model.decode(Tokens(codes[:level], spec)).samples[0, : len(sound)]
            for name, score in sound_figures(sound, decoded, model.sample_rate).items():
                scores.setdefault(f"codec.{level}.{name}", []).append(score)
        with torch.inference_mode():
            latents = model.codec.latents(sound[None, None].to(model.device))
            energy.append(residual_energy(model.codec.quantizer, latents))
        counts += histogram(codes, spec.codebook_size)
        bench.tell("codec", number, len(bench.clips))
    per_level = spec.bitrate / spec.num_codebooks
    for level in measured:
        figures[f"codec.{level}.bitrate"] = per_level * level
    figures |= {name: mean(values) for name, values in scores.items()}
    for level, bits in enumerate(entropy(counts).tolist()):
        name = f"codebook.{level + 1}"
        figures[f"{name}.bitrate"] = per_level
        figures[f"{name}.entropy_bitrate"] = spec.frame_rate * bits  # with an ideal entropy code for these frequencies
        figures[f"{name}.used"] = float((counts[level] > 0).sum()) / spec.codebook_size
        figures[f"{name}.perplexity"] = 2**bits
        figures[f"{name}.residual_energy"] = mean([each[level] for each in energy])
    return figures


def sound_figures(reference: Tensor, sound: Tensor, rate: int) -> dict[str, float]:
    """PESQ, STOI, mel distance and SI-SDR of a decoded sound against its reference, both (T) at `rate` Hz."""
    return {
        "pesq": pesq_wb(*(at_16k(Waveform(each[None], rate)) for each in (reference, sound))),
        "stoi": stoi(reference, sound, rate),
        "mel": mel_distance(reference, sound, rate),
        "si_sdr": si_sdr(reference, sound),
    }


def visqol_figures(bench: Bench) -> Figures:
    """ViSQOL at each number of levels for the first 8 s of `limit` clips, and of the recording against itself, the ceiling."""
    model, spec = bench.model, bench.model.codec.spec
    clips, scores = bench.clips[: bench.limit], dict[str, list[float]]()
    for number, clip in enumerate(clips, 1):
        sound, codes = clip.sound, clip.tokens.acoustic.codes
        sounds = {"real": sound}
        for level in sorted({min(level, spec.num_codebooks) for level in bench.levels}):
            sounds[str(level)] = model.decode(Tokens(codes[:level], spec)).trim(sound.seconds)
        reference = at_16k(sound.trim(VISQOL_SECONDS))
        for level, made in sounds.items():
            found = visqol(reference, at_16k(made.trim(VISQOL_SECONDS))[: len(reference)])
            for name, score in zip(("similarity", "fit", "lattice"), found, strict=True):
                scores.setdefault(f"visqol.{level}.{name}", []).append(score)
        bench.tell("visqol", number, len(clips))
    return {name: mean(values) for name, values in scores.items()}
