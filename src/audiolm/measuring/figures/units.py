"""How phonetic the semantic tokens are (AudioLM section III-B, Table I and Fig. 3)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from audiolm.conformer import FRAME, SAMPLE_RATE, log_mel, mel_filters, mfcc
from audiolm.kmeans import KMeans
from audiolm.measuring.abx import abx_error, confusions, read_items, triphones, triplets
from audiolm.measuring.figures.bench import Bench, Figures, Missing, random_part, readable
from audiolm.measuring.metrics import Measure, bootstrap
from audiolm.measuring.phonetics import frame_phones, mfcc_units, unit_phone_measures

FITTED_ON = 200  # recordings at most to fit the MFCC baseline on
REFITTED_ON = 60  # recordings at most to refit units on, for each layer and number of units
DRAWS = 200  # bootstrap draws, each of which computes all measures again
KEYS = ("pnmi", "pnmi_corrected", "phone_purity", "unit_purity", "units_used")

# By name: a function that makes the features (F, D) of each clip, and their frame rate.
Kinds = dict[str, tuple[Callable[[], list[Tensor]], float]]


def unit_figures(bench: Bench) -> Figures:
    """How much the units tell about phones, next to as many k-means units of MFCC on the same frames."""
    sounds, phones = bench.sounds, _phones(bench)
    units = {"units": [clip.tokens.semantic.codes[0] for clip in bench.clips]}
    size = bench.model.semantic.spec.codebook_size
    learnt = _learnt(bench, FITTED_ON)
    fit = learnt or sounds
    figures: Figures = {"mfcc.fitted_on": float(len(fit)), "mfcc.fitted_elsewhere": float(bool(learnt))}
    hop = bench.model.semantic.hop
    if sum(audio.shape[-1] for audio in fit) // hop >= size:  # otherwise fewer frames than units
        baseline = mfcc_units(fit, size, bench.seed, hop)
        units["mfcc"] = [baseline(audio) for audio in sounds]
    for name, each in units.items():
        found = _told(each, phones)
        figures |= {f"{name}.{key}": measure for key, measure in zip(KEYS, found, strict=True)}
    return figures


def layer_figures(bench: Bench) -> Figures:
    """Fig. 3: for every layer of the encoder, ABX and PNMI of units fitted on it; for the layer in use, other unit counts too."""
    tokenizer, phones, sounds = bench.model.semantic, _phones(bench), bench.sounds
    encoder, own, size = tokenizer.encoder, tokenizer.layer, tokenizer.spec.codebook_size
    layers = encoder.config.layers
    learnt = _learnt(bench, REFITTED_ON)
    measured = [_layers(bench, audio) for audio in sounds]
    fitted = [_layers(bench, audio) for audio in learnt] or measured
    frames = sum(len(each[0]) for each in fitted)
    sizes = sorted({size // 4, size // 2, size, 2 * size} - {0, 1})
    tasks = [("layer", n, n, size) for n in range(1, layers + 1)] + [("size", k, own, k) for k in sizes if k != size or not own]
    figures: Figures = {
        "layers.own": float(own),
        "layers.fitted_on": float(len(fitted)),
        "layers.elsewhere": float(bool(learnt)),
    }
    for number, (kind, name, layer, count) in enumerate(tasks, 1):
        if frames >= count:
            units = KMeans.fit(torch.cat([each[layer] for each in fitted]), count, seed=bench.seed)
            told = _told([units.assign(each[layer]) for each in measured], phones)
            figures |= {f"{kind}.{name}.{key}": measure for key, measure in zip(KEYS[:2], told, strict=False)}
        bench.tell("layers", number, len(tasks))
    # The figures for the model's own number of units are those of its own layer; layer 0 has no row.
    figures |= {
        name.replace(f"layer.{own}", f"size.{size}"): measure
        for name, measure in figures.items()
        if size in sizes and name.startswith(f"layer.{own}.")
    }
    rate = tokenizer.spec.frame_rate
    names: Kinds = {f"layer.{n}": (lambda n=n: [each[n] for each in measured], rate) for n in range(1, layers + 1)}
    try:
        found = _abx(bench, names, f"layer.{own}")
        return figures | {name: value for name, value in found.items() if not name.startswith("abx.")}
    except Missing as missing:
        return figures | {"missing.layers.abx": str(missing)}


def abx_figures(bench: Bench) -> Figures:
    """Table I: ABX of both kinds of tokens, by the vectors they stand for, of the features behind the units, and of MFCC."""
    tokenizer, codec = bench.model.semantic, bench.model.codec
    rate, filters = tokenizer.spec.frame_rate, mel_filters(80)
    kinds: Kinds = {
        "abx.units": (lambda: [tokenizer.units.centroids.cpu()[clip.tokens.semantic.codes[0]] for clip in bench.clips], rate),
        "abx.features": (lambda: [_layers(bench, audio)[tokenizer.layer] for audio in bench.sounds], rate),
        "abx.mfcc": (lambda: [mfcc(log_mel(audio, filters))[0] for audio in bench.sounds], SAMPLE_RATE / FRAME),
    }
    for level in sorted({min(level, codec.spec.num_codebooks) for level in bench.levels}):
        kinds[f"abx.codec{level}"] = (
            lambda level=level: [_latents(bench, clip.tokens.acoustic.codes[:level]) for clip in bench.clips],
            codec.spec.frame_rate,
        )
    return _abx(bench, kinds, "abx.features")


def _abx(bench: Bench, kinds: Kinds, own: str) -> Figures:
    """ABX within and across speakers. own: the kind that is the layer in use, which is measured once for all tables."""
    if bench.items:
        items = read_items(bench.items, [clip.recording.path.stem for clip in bench.clips])
    else:
        spoken = zip(bench.phones, bench.clips, strict=True)
        items = [
            item for number, (phones, clip) in enumerate(spoken) for item in triphones(phones, number, clip.recording.speaker)
        ]
    chosen = {"within": triplets(items, "within", bench.seed), "across": triplets(items, "across", bench.seed)}
    if not any(len(each) for each in chosen.values()):
        raise Missing("ABX needs triphones of one speaker that differ in the middle phone only; give more recordings per speaker")
    figures: Figures = {"abx.from_items": float(bool(bench.items))}
    done = 0
    for name, (make, rate) in kinds.items():
        known = bench.own_abx if name == own else {}
        features = [] if known else make()
        for mode, each in chosen.items():
            figures[f"abx.{mode}_triplets"] = float(len(each))
            if len(each):
                if mode not in known:
                    wrong = confusions(features, rate, items, each)
                    known[mode] = bootstrap(abx_error(each, wrong), len(bench.clips), draws=DRAWS)[0]
                figures[f"{name}.{mode}"] = known[mode]
            bench.tell("ABX", done := done + 1, 2 * len(kinds))
    return figures


def _told(units: Sequence[Tensor], phones: Sequence[Tensor]) -> list[Measure]:
    def measured(draws: Tensor) -> Tensor:
        found = []
        for index in draws.tolist():
            ours, theirs = (torch.cat([labels[number] for number in index]) for labels in (units, phones))
            found.append(unit_phone_measures(ours, theirs))
        return torch.tensor([[every[key] for key in KEYS] for every in found])

    return bootstrap(measured, len(units), draws=DRAWS)


def _learnt(bench: Bench, most: int) -> list[Tensor]:
    return [sound.samples[None] for sound in readable(random_part(bench.train, most, bench.seed), 16_000)]


def _phones(bench: Bench) -> list[Tensor]:
    """Phone labels, one per semantic frame."""
    hop = bench.model.semantic.hop
    return [frame_phones(phones, samples.shape[-1], hop) for phones, samples in zip(bench.phones, bench.sounds, strict=True)]


@torch.inference_mode()
def _layers(bench: Bench, audio: Tensor) -> list[Tensor]:
    """Features (F, D) of each layer; layer 0 is the subsampled input."""
    encoder = bench.model.semantic.encoder
    return [each[0].float().cpu() for each in encoder.extract(audio.to(bench.model.device))]


@torch.inference_mode()
def _latents(bench: Bench, codes: Tensor) -> Tensor:
    """The decoder's input (F, D) for codes (levels, F)."""
    return bench.model.codec.quantizer.decode(codes[None].to(bench.model.device))[0].T.cpu()
