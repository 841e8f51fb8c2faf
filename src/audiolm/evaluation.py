"""The paper's evidence, for any bundle and any recordings: pure measures live in audiolm.metrics, here they are applied.

    report = evaluate(model, recordings)          flat and JSON-ready: "codec.12.pesq": 1.9, "codec.12.pesq.low": 1.8, ...
    print(markdown(report))                       the tables of a model card
    evaluate_folder("speech", "recordings", "report")     both, as report.json and report.md

Parts: `codec` (AudioLM Table I), `units` (section III-B, Fig. 3), `stages` (bits per token of every language model) and
`continuation` (sections III-B and IV-D): prompts continued by the whole chain, beside what it should beat and what bounds it.
"""

import json
import math
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolm.audio import Waveform, blocks
from audiolm.bundle import load
from audiolm.continuations import PROMPT, SHORTEST, continuation_figures, continuations
from audiolm.data import Recording, Skipped, scan
from audiolm.errors import InputError
from audiolm.files import whole_file
from audiolm.metrics import Measure, bootstrap, entropy, histogram, mean, mel_distance, needed, pesq_wb, ratio, si_sdr, stoi
from audiolm.model import AudioLM, AudioTokens
from audiolm.phonetics import label_recordings, mfcc_units, unit_phone_measures
from audiolm.report import markdown
from audiolm.scoring import crop_nats
from audiolm.tokens import Tokens

# Parts, and the packages of the `eval` extra that each needs: better missed now than after an hour.
PARTS = {"codec": ("pesq", "pystoi"), "units": ("pocketsphinx", "sklearn"), "stages": (), "continuation": ("jiwer",)}
LONGEST = 30.0  # seconds of a recording that are measured
FITTED_ON = 200  # recordings at most from which the MFCC baseline learns its units

Progress = Callable[[str, int, int], None]  # what, done, in all
Figures = dict[str, Measure | float | str]


@dataclass(frozen=True, eq=False)
class Clip:
    """A recording with its tokens; the sound is read when it is wanted."""

    recording: Recording
    sample_rate: int
    tokens: AudioTokens

    @property
    def sound(self) -> Waveform:
        """Mono, at the model's rate."""
        return read_clip(self.recording, self.sample_rate)


def read_clip(recording: Recording, sample_rate: int) -> Waveform:
    """The first 30 s of a recording, mono."""
    return next(blocks(recording.path, LONGEST, sample_rate, mono=True))


def evaluate(
    model: AudioLM,
    recordings: Sequence[Recording],
    *,
    train: Sequence[Recording] = (),
    parts: Collection[str] = tuple(PARTS),
    levels: Sequence[int] = (3, 4, 12),
    limit: int = 24,
    seconds: float = 7.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All measures of a model on recordings it has not heard, flat: NAME, and NAME.low, NAME.high (95 %), NAME.clips.

    levels: codec levels to be measured. limit: how many recordings are continued, by `seconds` each at most; everything else is
    measured on all. train: other recordings, from which the MFCC baseline of the units is fitted; without any, from the measured
    ones. The same seed gives the same report.
    """
    tell = progress or (lambda what, done, total: None)
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not recordings or limit < 1 or not seconds >= SHORTEST:
        raise InputError(
            f"evaluation: parts={list(parts)} (of {', '.join(PARTS)}), {len(recordings)} recordings, limit={limit}, "
            f"seconds={seconds}: give at least one recording, limit=1 and seconds={SHORTEST:g}"
        )
    for package in {package for part in parts for package in PARTS[part]}:
        needed(package)
    clips, left_out = tokenized(model, recordings, tell)
    figures: Figures = {}
    if "codec" in parts:
        figures |= codec_figures(model, clips, levels, tell)
    if "units" in parts:
        figures |= unit_figures(model, clips, train, seed, tell)
    if "stages" in parts:
        figures |= stage_figures(model, clips, tell)
    if "continuation" in parts:
        chosen = [(clip.recording.speaker, clip.sound) for clip in by_speaker(clips, seed)[:limit]]
        figures |= continuation_figures(model, continuations(model, chosen, seconds, seed, tell))
    return {
        "recordings.clips": len(clips),
        "recordings.speakers": len({clip.recording.speaker for clip in clips}),
        "recordings.seconds": round(sum(clip.tokens.seconds for clip in clips), 2),
        "recordings.left_out": [f"{name}: {reason}" for name, reason in left_out],
        "seed": seed,
        "limit": limit,
        "seconds": seconds,
    } | _flat(figures)


def evaluate_folder(
    model: str | Path,
    data: str | Path,
    report_dir: str | Path,
    limit: int = 24,
    seconds: float = 7.0,
    seed: int = 0,
    split: str | None = None,
    parts: Collection[str] = tuple(PARTS),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a model by name or folder on a folder or manifest; writes report.json and report.md into `report_dir`.

    split: train, valid, test or all; by default test, where there is one. A folder without a manifest is split as training
    splits it, so that a model's own training folder is measured on voices that it has not heard.
    """
    left_out: Skipped = []
    found = scan(data, skipped=left_out)
    chosen = f" --split {split}" if split else ""
    split = split or ("test" if any(recording.split == "test" for recording in found) else "all")
    recordings = [recording for recording in found if split in ("all", recording.split)]
    if not recordings:
        raise InputError(f"{data}: no recording of the split {split!r}; give split='all', or a manifest with that split")
    folder = Path(report_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    bundle = load(model)
    train = [] if split in ("all", "train") else [recording for recording in found if recording.split == "train"]
    measured = evaluate(bundle, recordings, train=train, parts=parts, limit=limit, seconds=seconds, seed=seed, progress=progress)
    measured["recordings.left_out"] += [f"{name}: {reason}" for name, reason in left_out]
    # Names, not paths: a report is for others' eyes and machines.
    names = [Path(each).resolve().name for each in (model, data, folder)]
    command = "audiolm evaluate {} --data {} --report {}".format(*names) + f" --limit {limit} --seconds {seconds:g} --seed {seed}"
    report = {
        "command": command + chosen,
        "model": names[0],
        "data": names[1],
        "split": split,
        "versions": f"audiolm {version('audiolm')}, torch {torch.__version__}, Python {platform.python_version()}",
    } | measured
    for name, text in (("report.json", json.dumps(report, indent=1, allow_nan=False) + "\n"), ("report.md", markdown(report))):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return report


def tokenized(model: AudioLM, recordings: Sequence[Recording], tell: Progress) -> tuple[list[Clip], Skipped]:
    """Clips of all recordings that can be read, and which can't be and why. InputError where none can."""
    clips: list[Clip] = []
    left_out: Skipped = []
    for number, recording in enumerate(recordings, 1):
        try:
            tokens = model.tokenize(read_clip(recording, model.sample_rate))
            clips.append(Clip(recording, model.sample_rate, tokens))
        except InputError as error:
            left_out.append((recording.name, str(error)))
        tell("tokens", number, len(recordings))
    if not clips:
        raise InputError(f"evaluation: none of {len(recordings)} recordings can be used: {left_out[0][1]}")
    return clips, left_out


# Codec (Table I)


def codec_figures(model: AudioLM, clips: Sequence[Clip], levels: Sequence[int], tell: Progress) -> Figures:
    """Sound of the codec at each number of levels, and the health of each level's codebook."""
    spec, figures = model.codec.spec, Figures()
    measured = sorted({min(level, spec.num_codebooks) for level in levels})
    scores: dict[str, list[float]] = {}
    energy, counts = [], torch.zeros(spec.num_codebooks, spec.codebook_size)
    for number, clip in enumerate(clips, 1):
        sound, codes = clip.sound.samples[0], clip.tokens.acoustic.codes
        for level in measured:
            decoded = model.decode(Tokens(codes[:level], spec)).samples[0, : len(sound)]
            for name, score in sound_figures(sound, decoded, model.sample_rate).items():
                scores.setdefault(f"codec.{level}.{name}", []).append(score)
        with torch.inference_mode():
            latents = model.codec.latents(sound[None, None].to(model.device))
            energy.append(model.codec.quantizer.residual_energy(latents))
        counts += histogram(codes, spec.codebook_size)
        tell("codec", number, len(clips))
    for level in measured:
        figures[f"codec.{level}.bitrate"] = spec.bitrate * level / spec.num_codebooks
    figures |= {name: mean(values) for name, values in scores.items()}
    for level, bits in enumerate(entropy(counts).tolist()):
        name = f"codebook.{level + 1}"
        figures[f"{name}.used"] = float((counts[level] > 0).sum()) / spec.codebook_size
        figures[f"{name}.perplexity"] = 2**bits
        figures[f"{name}.residual_energy"] = mean([each[level] for each in energy])
    return figures


def sound_figures(reference: Tensor, sound: Tensor, rate: int) -> dict[str, float]:
    """What became of a sound: both (T) at `rate` Hz."""
    at_16k = (Waveform(each[None], rate).resample(16_000).samples[0] for each in (reference, sound))
    return {
        "pesq": pesq_wb(*at_16k),
        "stoi": stoi(reference, sound, rate),
        "mel": mel_distance(reference, sound, rate),
        "si_sdr": si_sdr(reference, sound),
    }


# Units (section III-B)


def unit_figures(model: AudioLM, clips: Sequence[Clip], train: Sequence[Recording], seed: int, tell: Progress) -> Figures:
    """What the units tell about phones, beside as many k-means units of MFCC on the same frames."""
    recordings = [(clip.sound.resample(16_000).samples[None], clip.recording.columns.get("transcript")) for clip in clips]
    tell("phones", 0, 1)
    phones = label_recordings(recordings)
    tell("phones", 1, 1)
    units = {"units": [clip.tokens.semantic.codes[0] for clip in clips]}
    size = model.semantic.spec.codebook_size
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:FITTED_ON].tolist()
    fit = [read_clip(train[number], 16_000).samples[None] for number in order] or [audio for audio, _ in recordings]
    figures: Figures = {"mfcc.fitted_on": float(len(fit)), "mfcc.fitted_elsewhere": float(bool(train))}
    if sum(audio.shape[-1] for audio in fit) // 640 >= size:  # else there is less to learn from than there are units to learn
        baseline = mfcc_units(fit, size, seed)
        units["mfcc"] = [baseline(audio) for audio, _ in recordings]
    keys = ("pnmi", "pnmi_corrected", "phone_purity", "unit_purity", "units_used")
    for name, each in units.items():

        def measured(draws: Tensor, each: list[Tensor] = each) -> Tensor:
            found = []
            for index in draws.tolist():
                ours, theirs = (torch.cat([labels[number] for number in index]) for labels in (each, phones))
                found.append(unit_phone_measures(ours, theirs))
            return torch.tensor([[every[key] for key in keys] for every in found])

        figures |= {f"{name}.{key}": found for key, found in zip(keys, bootstrap(measured, len(clips), draws=200), strict=True)}
    return figures


# Stages: bits per token


def stage_figures(model: AudioLM, clips: Sequence[Clip], tell: Progress) -> Figures:
    """Bits per token of every stage and level, teacher-forced in the stage's crops.

    The unigram baseline knows the frequencies of the very codes that are measured, which no model could know.
    """
    figures: Figures = {}
    for name, (stage, network) in model.stages.items():
        if not {stream.spec.name for stream in stage.streams} <= {"semantic", "acoustic"}:
            continue  # text, or another tongue: not in a recording
        if stage.parallel:
            continue  # it foretells masked codes from their neighbours: no bits that could stand beside the others'
        scores = []
        for number, clip in enumerate(clips, 1):
            codes = {"semantic": clip.tokens.semantic.codes, "acoustic": clip.tokens.acoustic.codes}
            scores.append(crop_nats(network, stage, codes))
            tell(name, number, len(clips))
        nats, counts, codes = (torch.stack(each) for each in zip(*scores, strict=True))  # (R, Q), (R, Q), (R, Q, N)
        shares = codes.sum(0) / codes.sum((0, 2))[:, None]
        unigram = -torch.special.xlogy(codes, shares).sum(2)
        numbered = [(f".{stage.predict.first + q + 1}", slice(q, q + 1)) for q in range(len(shares))]
        for suffix, levels in [("", slice(None)), *(numbered if len(numbered) > 1 else ())]:
            for kind, total in (("bits", nats), ("unigram", unigram)):
                figures[f"stage.{name}{suffix}.{kind}"] = ratio(total[:, levels].sum(1) / math.log(2), counts[:, levels].sum(1))
    return figures


# Which recordings are continued, and how figures are written


def by_speaker(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """Clips that are long enough to be continued, one of each speaker, then a second of each, and so on; order by the seed."""
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    rounds: dict[str, int] = {}
    ranked = []
    for place, number in enumerate(order):
        clip = clips[number]
        if clip.tokens.seconds >= PROMPT + SHORTEST + 0.04:  # tokens may end a frame after the sound
            rank = rounds[clip.recording.speaker] = rounds.get(clip.recording.speaker, -1) + 1
            ranked.append((rank, place, clip))
    return [clip for _, _, clip in sorted(ranked, key=lambda each: each[:2])]


def _flat(figures: Mapping[str, Measure | float | str]) -> dict[str, Any]:
    """NAME, NAME.low, NAME.high and NAME.clips; what could not be measured is None, which JSON knows and NaN is not."""
    flat: dict[str, Any] = {}
    for name, figure in figures.items():
        if isinstance(figure, Measure):
            flat |= {name: figure.value, f"{name}.low": figure.low, f"{name}.high": figure.high, f"{name}.clips": figure.clips}
        else:
            flat[name] = figure
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in flat.items()}
