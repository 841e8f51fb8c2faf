"""Gates: checks that a step's result must pass before the next step spends time on it.

A gate is data: the steps it follows, what it measures, and what its failure most likely means. For every figure, higher is
better and 0 means that nothing was learned. Thresholds are set in a recipe's [gates]; a figure below its threshold stops the
recipe with a one-line message, or is recorded and ignored with --ignore-gates.

    OUT/<step>/gates.json     the figures, their thresholds and the verdicts

A figure is measured once per result and judged again on every run, so that changing a threshold costs nothing.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from lightning.fabric import Fabric
from pydantic import Field
from torch import Tensor

from audiolm.bundle import language_model
from audiolm.codec import Codec
from audiolm.config import Config
from audiolm.files import read_json, write_json
from audiolm.measuring.metrics import entropy
from audiolm.measuring.phonetics import label_recordings, measure_units, mfcc_units
from audiolm.spectra import mel_filters, stft
from audiolm.stages import Stage
from audiolm.tokenizers import SemanticTokenizer
from audiolm.training.audio_store import AudioStore, Crops
from audiolm.training.run import random_untouched
from audiolm.training.token_store import TokenCrops
from audiolm.training.train_lm import Batches, LMTrainConfig, bits_per_token, collate_items, optimizer_of, unigram_bits
from audiolm.transformer import LanguageModel

Threshold = float | Literal["off"]


class GatesConfig(Config):
    """The minimum each gate's figure must reach; "off" skips the gate."""

    reconstructs: Threshold = 0.3  # codec: share of the spectrum's variation that it preserves
    beats_mfcc: Threshold = 1.0  # units: how many times as much as MFCC units they tell about phones
    beats_unigram: Threshold = 0.02  # language models: share of a unigram's bits that is saved
    hears: Threshold = 0.01  # conditioned language models: bits per token lost when the condition is shifted in time
    overfits: Threshold = "off"  # language models: share of bits a fresh copy sheds overfitting one batch; slow
    split: Literal["valid", "train"] = "valid"  # what to measure on; "train" if there is too little data to generalise
    recordings: int = Field(default=24, ge=1)  # at most; for codec and units
    batches: int = Field(default=8, ge=1)  # for the language models
    overfit_steps: int = Field(default=60, ge=1)


class GateFailed(SystemExit):
    """A result is not good enough to continue. Uncaught: one line, exit code 1."""


class Shop(Protocol):
    """What gates look at: the results of finished steps."""

    out: Path
    fabric: Fabric
    tokenized: bool  # there is no audio, only tokens

    def audio(self) -> AudioStore: ...
    def train_crops(self) -> Crops: ...  # of the encoder
    def codec(self) -> Codec: ...
    def semantic(self) -> SemanticTokenizer: ...
    def trained(self, name: Any) -> tuple[Stage, LanguageModel, LMTrainConfig]: ...
    def token_crops(self, name: Any, split: str) -> TokenCrops: ...  # "train" if there are no "valid" ones
    def hours(self) -> Mapping[str, float]: ...  # of each split that has recordings


class Figure(NamedTuple):
    """A measured value (None if it could not be measured), and how it was measured or why not."""

    value: float | None
    note: str


@dataclass(frozen=True)
class Gate:
    """`name` is its key in [gates]; `says` is a sentence to format the figure into."""

    name: str
    steps: tuple[str, ...]
    measure: Callable[[Shop, str, GatesConfig], Figure]
    says: str
    cause: str
    cure: str


# --- What is measured -------------------------------------------------------------------------------------------------


def reconstruction(shop: Shop, _: str, config: GatesConfig) -> Figure:
    """1 minus the log-mel distance of recordings to their reconstructions, relative to the distance to their mean spectra.

    A codec that outputs a recording's average spectrum scores 0, silence and noise score less, a perfect codec 1. The measure
    needs no extra package, means the same for piano and speech, and unlike SI-SDR does not penalise the phases that an
    adversarially trained codec invents.
    """
    codec, lost, spread, sounds = shop.codec(), 0.0, 0.0, _recordings(shop, config)
    filters = mel_filters(codec.sample_rate, 1024, 80)
    for sound in sounds:
        with torch.inference_mode():
            made = codec.decode(codec.encode(sound.to(shop.fabric.device)))[..., : sound.shape[-1]].cpu()
        theirs, ours = ((filters @ stft(each, 1024, 256).abs()).clamp_min(1e-4).log10() for each in (sound, made))
        lost += float((ours - theirs).abs().sum())
        spread += float((theirs - theirs.mean(-1, keepdim=True)).abs().sum())
    return Figure(1 - lost / max(spread, 1e-9), f"{len(sounds)} recordings")


def against_mfcc(shop: Shop, _: str, config: GatesConfig) -> Figure:
    """What the units tell about phones (chance-corrected PNMI), relative to equally many MFCC units.

    Without transcripts, or without pocketsphinx, there are no reliable phones. The figure is then how many bits of a unit
    survive another voice in the background (`surviving`), again relative to MFCC units. It is a good stand-in for PNMI: on
    LibriSpeech both rank MFCC, three layers of the packaged encoder and two of an untrained one alike (docs/training-log.md).
    """
    semantic, device = shop.semantic(), shop.fabric.device
    size, crops = semantic.spec.codebook_size, shop.train_crops()
    enough = max(20, -(-20 * size // (crops.batch(0).shape[-1] // semantic.hop * len(crops.batch(0)))))
    baseline = mfcc_units([crops.batch(index) for index in range(min(200, enough))], size, hop=semantic.hop)
    store, numbers = shop.audio(), _numbers(shop.audio(), config)
    sounds = [store.read(number)[None, None] for number in numbers]

    def ours(audio: Tensor) -> Tensor:
        return semantic.encode(audio.to(device))[0, 0].cpu()

    texts = [store.entries[number].columns.get("transcript") for number in numbers]
    if all(texts) and find_spec("pocketsphinx"):
        pairs = list(zip(sounds, texts, strict=True))
        phones = label_recordings(pairs, semantic.hop)
        told, least = (measure_units(encode, pairs, phones)["pnmi_corrected"] for encode in (ours, baseline))
        return _ratio(told, least, f"PNMI {told:.3f}, MFCC {least:.3f}")
    kept, least = (surviving(encode, sounds, size) for encode in (ours, baseline))
    return _ratio(kept, least, f"no transcripts; bits that survive a second voice: {kept:.2f}, MFCC {least:.2f}")


def surviving(encode: Callable[[Tensor], Tensor], sounds: Sequence[Tensor], size: int) -> float:
    """Bits of a unit that survive mixing in another recording 10 dB quieter (the same one reversed if there is only one).

    The units' entropy times the share that stays the same, corrected for chance (Cohen's kappa): random units and constant
    units both score 0, and a small inventory is worth less than a large one.
    """
    before, after = [], []
    for sound, other in zip(sounds, [*sounds[1:], sounds[0].flip(-1)], strict=True):
        noise = other[..., torch.arange(sound.shape[-1]) % other.shape[-1]]
        level = 10**-0.5 * sound.square().mean().sqrt() / noise.square().mean().sqrt().clamp_min(1e-5)
        before.append(encode(sound))
        after.append(encode(0.5 * (sound + level * noise)))
    units, others = torch.cat(before), torch.cat(after)
    shares = [each.bincount(minlength=size) / len(units) for each in (units, others)]
    chance, same = float((shares[0] * shares[1]).sum()), float((units == others).float().mean())
    return 0.0 if chance >= 1 else max(0.0, (same - chance) / (1 - chance)) * float(entropy(shares[0]))


def saved_bits(shop: Shop, step: str, config: GatesConfig) -> Figure:
    """Share of a unigram model's bits per token that the language model saves."""
    stage, network, training = shop.trained(step)
    train, valid = shop.token_crops(step, "train"), shop.token_crops(step, config.split)
    needs = bits_per_token(network, stage, valid, config.batches)["bits"]
    unigram = unigram_bits(stage, train, valid, training.unigram_batches, config.batches)["bits"]
    return _ratio(unigram - needs, unigram, f"{needs:.3f} bits per token, unigram {unigram:.3f}")


def heard_bits(shop: Shop, step: str, config: GatesConfig) -> Figure:
    """Extra bits per token when the given tokens are shifted by half a crop: are they used at all, and at the right time?

    Their frequencies and order stay those of real tokens: only the alignment is lost.
    """
    stage, network, _ = shop.trained(step)
    valid = shop.token_crops(step, config.split)
    true, late = (bits_per_token(network, stage, each, config.batches)["bits"] for each in (valid, Late(valid)))
    return Figure(late - true, f"{true:.3f} bits per token, {late:.3f} with the given tokens shifted in time")


class Late:
    """Batches whose given tokens are rotated by half a crop."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def batch(self, step: int) -> list[Mapping[str, Any]]:
        items = self.batches.batch(step)
        return [{**item, "given": [codes.roll(codes.shape[-1] // 2, -1) for codes in item["given"]]} for item in items]


def overfitted(shop: Shop, step: str, config: GatesConfig) -> Figure:
    """Share of the bits of two crops that a fresh network of this stage sheds when trained on nothing else."""
    stage, _, training = shop.trained(step)
    items, device = shop.token_crops(step, "train").batch(0)[:2], shop.fabric.device
    batch = [each.to(device) for each in collate_items(stage, items, 0)]
    torch.manual_seed(training.seed)
    network = language_model(stage, training.network).to(device).eval()  # without dropout
    optimizer, losses = optimizer_of(network, training), []
    for number in range(1, config.overfit_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = training.lr * min(1.0, number / 10)
        nats, counts = network(*batch)
        loss = nats.sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
        optimizer.step()
        losses.append(float(loss.detach()) / math.log(2))
    return _ratio(
        losses[0] - losses[-1], losses[0], f"{losses[0]:.2f} bits per token, {losses[-1]:.2f} after {len(losses)} steps"
    )


def _ratio(of: float, to: float, note: str) -> Figure:
    return Figure(of / to, note) if to > 0 else Figure(None, f"nothing to compare with: {note}")


def _numbers(store: AudioStore, config: GatesConfig) -> list[int]:
    """Recordings to measure, spread over all speakers."""
    numbers = store.split(config.split) or store.split("train")
    return numbers[:: -(-len(numbers) // config.recordings)]


def _recordings(shop: Shop, config: GatesConfig, seconds: float = 4.0) -> list[Tensor]:
    """Audio (1, 1, T) from the middles of recordings."""
    store = shop.audio()
    length = round(seconds * store.sample_rate)
    starts = {number: max(0, store.entries[number].length - length) // 2 for number in _numbers(store, config)}
    return [store.read(number, start, length)[None, None] for number, start in starts.items()]


# --- The gates as data ------------------------------------------------------------------------------------------------

WITH_GIVEN = ("coarse", "fine", "piano", "parallel", "text")
LANGUAGE_MODELS = ("semantic", "acoustic", *WITH_GIVEN)

GATES = (
    Gate(
        "reconstructs",
        ("codec",),
        reconstruction,
        "{:.3f} of the spectrum's variation is preserved",
        "too few steps, or a diverging loss (see codec/metrics.jsonl)",
        "raise codec.steps, or lower codec.lr",
    ),
    Gate(
        "beats_mfcc",
        ("units",),
        against_mfcc,
        "the units tell {:.2f} times as much as MFCC units",
        "an undertrained encoder, or a layer too close to either end",
        "raise the steps of the last [[encoder]], or choose another units.layer",
    ),
    Gate(
        "beats_unigram",
        LANGUAGE_MODELS,
        saved_bits,
        "{:.3f} of a unigram's bits are saved",
        "too few steps, a badly chosen learning rate, or valid recordings unlike the training ones",
        "check {step}/metrics.jsonl; raise {step}.steps, or change {step}.lr",
    ),
    Gate(
        "hears",
        WITH_GIVEN,
        heard_bits,
        "{:.3f} bits per token are lost when the given tokens are shifted in time",
        "the stage ignores its given tokens, so the chain would speak without words",
        "raise {step}.steps, or set {step}.network.positions to time",
    ),
    Gate(
        "overfits",
        LANGUAGE_MODELS,
        overfitted,
        "{:.2f} of the bits are gone after training on one batch alone",
        "a badly chosen learning rate, or a network that cannot learn",
        "change {step}.lr, or raise gates.overfit_steps",
    ),
)


# --- Measured once, judged each time ----------------------------------------------------------------------------------


def check(step: str, shop: Shop, config: GatesConfig, ignore: bool = False) -> None:
    """Measure a finished step's gates, unless already measured, and judge them. GateFailed at the first that fails.

    ignore: report failures and continue; gates.json then records the verdict "ignored".
    """
    asked = {gate: threshold for gate in GATES if step in gate.steps and (threshold := getattr(config, gate.name)) != "off"}
    if not asked:
        return
    path = shop.out / step / "gates.json"
    how = {"result": read_json(shop.out / step / "done.json")["result"]}
    how |= {key: getattr(config, key) for key in ("split", "recordings", "batches", "overfit_steps")}
    kept = read_json(path) or {}
    before = kept["gates"] if kept.get("made") == how else {}
    if shop.fabric.global_rank == 0:
        now = {}
        for gate, threshold in asked.items():
            if gate.name in before:
                figure = Figure(before[gate.name]["figure"], before[gate.name]["note"])
            else:
                figure = _measured(gate, shop, step, config)
            verdict = _verdict(figure, threshold, ignore)
            now[gate.name] = {"figure": figure.value, "threshold": threshold, "verdict": verdict, "note": figure.note}
            if gate.name not in before or before[gate.name]["verdict"] != verdict:
                print(f"{step}: gate {gate.name} {_told(now[gate.name])}", file=sys.stderr, flush=True)
        if {"made": how, "gates": now} != kept:
            write_json(path, {"made": how, "gates": now})
    shop.fabric.barrier()
    found = read_json(path)["gates"]  # read by every process, so that all stop or none
    for gate, threshold in asked.items():
        if found[gate.name]["verdict"] == "failed":
            says, cure = gate.says.format(found[gate.name]["figure"]), gate.cure.format(step=step)
            raise GateFailed(
                f"{step}: gate {gate.name} failed: {says}, at least {threshold:g} is required; likely cause: {gate.cause}; "
                f"{cure}; or continue with --ignore-gates"
            )


def _measured(gate: Gate, shop: Shop, step: str, config: GatesConfig) -> Figure:
    if shop.tokenized and step in ("codec", "units"):
        return Figure(None, "the data are tokens, without their recordings")
    with random_untouched():
        value, note = gate.measure(shop, step, config)
    heard = config.split == "valid" and "valid" not in shop.hours()
    return Figure(value, note + ("; on training recordings, as none are valid" if heard else ""))


def _verdict(figure: Figure, threshold: float, ignore: bool) -> str:
    if figure.value is None:
        return "not measured"
    if figure.value >= threshold:  # false for NaN
        return "passed"
    return "ignored" if ignore else "failed"


def _told(entry: Mapping[str, Any]) -> str:
    figure = "" if entry["figure"] is None else f" {entry['figure']:.3f} (at least {entry['threshold']:g})"
    return f"{entry['verdict']}{figure}: {entry['note']}"


def verdicts(out: Path, steps: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The contents of each step's gates.json, for the model card."""
    found = {step: read_json(out / step / "gates.json") for step in steps}
    return {step: each["gates"] for step, each in found.items() if each}
