"""Gates: what must be true of a step's result before the next step may spend time on it.

A gate is data: after which steps it stands, what it measures, and what its failure most likely means. Every figure is made so
that more is better and that 0 is what a step gets which has learned nothing. The thresholds stand in a recipe's [gates]; a
figure below its threshold stops the recipe with one line, unless it is told to go on (--ignore-gates), and then that is recorded.

    OUT/<step>/gates.json     the figures, their thresholds and the verdicts

A figure is measured once for each result and judged whenever the recipe comes by, so that another threshold costs nothing.
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
from audiolm.stages import Stage
from audiolm.tokenizers import SemanticTokenizer
from audiolm.training.adversarial import mel_filters, stft
from audiolm.training.audio_store import AudioStore, Crops
from audiolm.training.run import random_untouched
from audiolm.training.token_store import TokenCrops
from audiolm.training.train_lm import Batches, LMTrainConfig, bits_per_token, collate_items, optimizer_of, unigram_bits
from audiolm.transformer import LanguageModel

Threshold = float | Literal["off"]


class GatesConfig(Config):
    """The least that is asked of each gate's figure; "off": it is not asked for."""

    reconstructs: Threshold = 0.3  # the codec: share of what changes in the spectrum that it keeps
    beats_mfcc: Threshold = 1.0  # the units: times what units of MFCC tell about phones
    beats_unigram: Threshold = 0.02  # each language model: share saved of the bits that frequencies alone need
    hears: Threshold = 0.01  # each that is given tokens: bits per token that it loses when they come at the wrong time
    overfits: Threshold = "off"  # each: share of the bits gone when a fresh copy learns one batch by heart; takes its time
    split: Literal["valid", "train"] = "valid"  # what is measured on; "train" where the data are too few to generalise from
    recordings: int = Field(default=24, ge=1)  # at most, for codec and units
    batches: int = Field(default=8, ge=1)  # for the language models
    overfit_steps: int = Field(default=60, ge=1)


class GateFailed(SystemExit):
    """A result is not good enough to go on with. Uncaught: one line, exit code 1."""


class Shop(Protocol):
    """What gates look at: the results of the steps that are done."""

    out: Path
    fabric: Fabric

    def audio(self) -> AudioStore: ...
    def train_crops(self) -> Crops: ...  # of the encoder
    def codec(self) -> Codec: ...
    def semantic(self) -> SemanticTokenizer: ...
    def trained(self, name: Any) -> tuple[Stage, LanguageModel, LMTrainConfig]: ...
    def token_crops(self, name: Any, split: str) -> TokenCrops: ...  # where there are no "valid" ones: "train"


class Figure(NamedTuple):
    """What was measured, None where it could not be; how, or why not."""

    value: float | None
    note: str


@dataclass(frozen=True)
class Gate:
    """`name` is its key in [gates]; `says` puts the figure into words."""

    name: str
    steps: tuple[str, ...]
    measure: Callable[[Shop, str, GatesConfig], Figure]
    says: str
    cause: str
    cure: str


# --- What is measured -------------------------------------------------------------------------------------------------


def reconstruction(shop: Shop, _: str, config: GatesConfig) -> Figure:
    """1 less the log-mel distance of recordings and what the codec makes of them, as a share of the distance to their means.

    A codec that knows but a recording's average spectrum gets 0, silence and noise less than that, a perfect one 1. It needs no
    package, means the same for a piano as for speech, and does not punish a codec of critics for its phases, as SI-SDR does.
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
    """What the units tell about phones (PNMI, corrected for chance), over what as many units of MFCC tell.

    Where there are no transcripts, or no pocketsphinx, there are no phones to be trusted. Then: how many bits of a unit survive
    another voice in the background (`surviving`), again over those of MFCC units. It stands in for PNMI well: on LibriSpeech
    it puts MFCC, three layers of the packaged encoder and two of an untrained one in the same order (docs/training-log.md).
    """
    semantic, device = shop.semantic(), shop.fabric.device
    size, crops = semantic.spec.codebook_size, shop.train_crops()
    enough = max(20, -(-20 * size // (crops.batch(0).shape[-1] // 640 * len(crops.batch(0)))))
    baseline = mfcc_units([crops.batch(index) for index in range(min(200, enough))], size)
    store, numbers = shop.audio(), _numbers(shop.audio(), config)
    sounds = [store.read(number)[None, None] for number in numbers]

    def ours(audio: Tensor) -> Tensor:
        return semantic.encode(audio.to(device))[0, 0].cpu()

    texts = [store.entries[number].columns.get("transcript") for number in numbers]
    if all(texts) and find_spec("pocketsphinx"):
        pairs = list(zip(sounds, texts, strict=True))
        phones = label_recordings(pairs)
        told, least = (measure_units(encode, pairs, phones)["pnmi_corrected"] for encode in (ours, baseline))
        return _ratio(told, least, f"PNMI {told:.3f}, of MFCC {least:.3f}")
    kept, least = (surviving(encode, sounds, size) for encode in (ours, baseline))
    return _ratio(kept, least, f"no transcripts; bits that survive a second voice: {kept:.2f}, of MFCC {least:.2f}")


def surviving(encode: Callable[[Tensor], Tensor], sounds: Sequence[Tensor], size: int) -> float:
    """Bits of a unit that stay when another recording is heard 10 dB below (the same one backwards, where it is alone).

    The entropy of the units times the share that stays the same, less what stays by chance (Cohen's kappa): units of noise and
    units that never change get 0 both, and few units are worth less than many.
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
    """The share of a unigram model's bits per token that the language model saves."""
    stage, network, training = shop.trained(step)
    train, valid = shop.token_crops(step, "train"), shop.token_crops(step, config.split)
    needs = bits_per_token(network, stage, valid, config.batches)["bits"]
    unigram = unigram_bits(stage, train, valid, training.unigram_batches, config.batches)["bits"]
    return _ratio(unigram - needs, unigram, f"{needs:.3f} bits per token, a unigram {unigram:.3f}")


def heard_bits(shop: Shop, step: str, config: GatesConfig) -> Figure:
    """Bits per token that it costs when the given tokens come half a crop too late: are they heard at all, and in their place?

    They are as frequent as before and stand in the order of real ones: nothing but the right time is missing.
    """
    stage, network, _ = shop.trained(step)
    valid = shop.token_crops(step, config.split)
    true, late = (bits_per_token(network, stage, each, config.batches)["bits"] for each in (valid, Late(valid)))
    return Figure(late - true, f"{true:.3f} bits per token, {late:.3f} with the given tokens at the wrong time")


class Late:
    """Batches whose given tokens are half a crop too late."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def batch(self, step: int) -> list[Mapping[str, Any]]:
        items = self.batches.batch(step)
        return [{**item, "given": [codes.roll(codes.shape[-1] // 2, -1) for codes in item["given"]]} for item in items]


def overfitted(shop: Shop, step: str, config: GatesConfig) -> Figure:
    """The share of the bits of two crops that are gone after a fresh network of this stage has seen nothing else."""
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
        losses[0] - losses[-1], losses[0], f"{losses[0]:.2f} bits per token, after {len(losses)} steps {losses[-1]:.2f}"
    )


def _ratio(of: float, to: float, note: str) -> Figure:
    return Figure(of / to, note) if to > 0 else Figure(None, f"nothing to compare with: {note}")


def _numbers(store: AudioStore, config: GatesConfig) -> list[int]:
    """Of all speakers."""
    numbers = store.split(config.split) or store.split("train")
    return numbers[:: -(-len(numbers) // config.recordings)]


def _recordings(shop: Shop, config: GatesConfig, seconds: float = 4.0) -> list[Tensor]:
    """Audio (1, 1, T) from the middles of recordings."""
    store = shop.audio()
    length = round(seconds * store.sample_rate)
    starts = {number: max(0, store.entries[number].length - length) // 2 for number in _numbers(store, config)}
    return [store.read(number, start, length)[None, None] for number, start in starts.items()]


# --- The gates as data ------------------------------------------------------------------------------------------------

WITH_GIVEN = ("coarse", "fine", "piano", "parallel")
LANGUAGE_MODELS = ("semantic", "acoustic", *WITH_GIVEN)

GATES = (
    Gate(
        "reconstructs",
        ("codec",),
        reconstruction,
        "{:.2f} of what changes in the spectrum is kept",
        "too few steps, or a loss that ran away (codec/metrics.jsonl)",
        "raise codec.steps, or lower codec.lr",
    ),
    Gate(
        "beats_mfcc",
        ("units",),
        against_mfcc,
        "the units tell {:.2f} times what units of MFCC tell",
        "an encoder that was trained too little, or a layer too near to one end",
        "raise the steps of the last [[encoder]], or give another units.layer",
    ),
    Gate(
        "beats_unigram",
        LANGUAGE_MODELS,
        saved_bits,
        "{:.3f} of a unigram's bits are saved",
        "too few steps, a learning rate that is off, or valid recordings unlike those it was trained on",
        "look at {step}/metrics.jsonl; raise {step}.steps, or change {step}.lr",
    ),
    Gate(
        "hears",
        WITH_GIVEN,
        heard_bits,
        "{:.3f} bits per token are lost when the given tokens come at the wrong time",
        "the stage does not hear its given tokens, and the chain would speak without words",
        "raise {step}.steps, or set {step}.network.positions to time",
    ),
    Gate(
        "overfits",
        LANGUAGE_MODELS,
        overfitted,
        "{:.2f} of the bits of one batch are gone when nothing else is learned",
        "a learning rate that is off, or a network that cannot learn",
        "change {step}.lr, or raise gates.overfit_steps",
    ),
)


# --- Measured once, judged each time ----------------------------------------------------------------------------------


def check(step: str, shop: Shop, config: GatesConfig, ignore: bool = False) -> None:
    """Measure the gates of a step that is done, where they have not been yet, and judge them. GateFailed at the first that fails.

    ignore: say so and go on; gates.json then records the verdict "ignored".
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
                with random_untouched():
                    figure = gate.measure(shop, step, config)
            verdict = _verdict(figure, threshold, ignore)
            now[gate.name] = {"figure": figure.value, "threshold": threshold, "verdict": verdict, "note": figure.note}
            if gate.name not in before or before[gate.name]["verdict"] != verdict:
                print(f"{step}: gate {gate.name} {_told(now[gate.name])}", file=sys.stderr, flush=True)
        if {"made": how, "gates": now} != kept:
            write_json(path, {"made": how, "gates": now})
    shop.fabric.barrier()
    found = read_json(path)["gates"]  # by every process, so that all stop, or none
    for gate, threshold in asked.items():
        if found[gate.name]["verdict"] == "failed":
            says, cure = gate.says.format(found[gate.name]["figure"]), gate.cure.format(step=step)
            raise GateFailed(
                f"{step}: gate {gate.name} failed: {says}, at least {threshold:g} is asked for; likely cause: {gate.cause}; "
                f"{cure}; or go on by --ignore-gates"
            )


def _verdict(figure: Figure, threshold: float, ignore: bool) -> str:
    if figure.value is None:
        return "not measured"
    if figure.value >= threshold:  # which NaN is not
        return "passed"
    return "ignored" if ignore else "failed"


def _told(entry: Mapping[str, Any]) -> str:
    figure = "" if entry["figure"] is None else f" {entry['figure']:.3f} (at least {entry['threshold']:g})"
    return f"{entry['verdict']}{figure}: {entry['note']}"


def verdicts(out: Path, steps: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What gates.json of each step says, for a model's card."""
    found = {step: read_json(out / step / "gates.json") for step in steps}
    return {step: each["gates"] for step, each in found.items() if each}
