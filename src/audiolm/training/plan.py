"""What a recipe will need on this machine: hours of sound, tokens, parameters, steps, memory, disk and time.

    plan = make_plan(config)
    print(plan.table())
    plan.check()       # InputError if something cannot fit

Every training run is first built from fake tensors, which have shapes but no memory, so that its memory needs are known before
anything is allocated. What fits is then timed: the real loop runs a few steps on its real shapes (audiolm.training.rehearsal).
"""

import datetime
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from audiolm import audio, bundle
from audiolm.doctor import memory, products
from audiolm.errors import InputError
from audiolm.files import read_json
from audiolm.kmeans import KMeans
from audiolm.tokenizers import SemanticTokenizer
from audiolm.training.audio_store import AudioStore
from audiolm.training.chain import Step
from audiolm.training.data import scan
from audiolm.training.further import TAKEN
from audiolm.training.recipe import RecipeConfig, codec_network, encoder_network, taken
from audiolm.training.rehearsal import Loop, loops
from audiolm.training.run import progress, random_untouched
from audiolm.training.steps import steps
from audiolm.training.storage import fetched
from audiolm.training.workshop import Workshop

BASE = 0.5e9  # bytes for Python and its libraries
PATIENCE = 6.0  # seconds a step may take at the speed of large matrix products; slower ones are estimated, not run
SPEED = 100.0  # seconds of sound decoded per second, if none could be timed


@dataclass
class Row:
    """One step; None where a figure does not apply or is unknown (`note` says why). memory (peak) and disk in bytes."""

    step: str
    hours: float | None = None  # of sound: in the corpus, or trained on, repeats included
    passes: float | None = None  # over the training split
    tokens: int | None = None  # in the corpus, or seen in training
    parameters: int | None = None
    steps: int | None = None
    memory: float | None = None
    disk: float = 0.0
    seconds: float | None = None
    note: str = ""


@dataclass
class Plan:
    """The rows, the bytes free here, and what does not fit: one line each, with a remedy."""

    rows: list[Row]
    free: dict[str, float]
    refused: list[str]

    def total(self) -> Row:
        """All steps together; the time is None if that of any step is."""
        times = [row.seconds for row in self.rows]
        seconds = None if None in times else math.fsum(each or 0.0 for each in times)
        return Row(
            "all", memory=max(row.memory or 0.0 for row in self.rows), disk=sum(r.disk for r in self.rows), seconds=seconds
        )

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "steps": [asdict(row) for row in self.rows],
            "total": asdict(self.total()),
            "free": self.free,
            "refused": self.refused,
        }

    def table(self) -> str:
        """As text, for people."""
        head = ("step", "hours", "passes", "tokens", "parameters", "steps", "memory", "disk", "time", "")
        lines = [head, *(_cells(row) for row in (*self.rows, self.total()))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:-1]), line[-1]]).rstrip() for line in lines
        ]
        text.append(f"Free here: {_bytes(self.free['memory'])} of memory, {_bytes(self.free['disk'])} of disk space.")
        if (seconds := self.total().seconds) is not None:
            done = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
            text.append(f"If started now, it will be done on {done:%A, %d %B, at %H:%M}.")
        return "\n".join(text)

    def check(self) -> None:
        """Raise InputError, naming the step and the option, if something cannot fit."""
        if self.refused:
            raise InputError("; also ".join(self.refused))


def make_plan(config: RecipeConfig) -> Plan:
    """Measure and estimate every step; writes nothing to config.out. InputError if the recordings cannot be found."""
    if config.threads:
        torch.set_num_threads(config.threads)
    here = config.device not in ("cuda", "mps") or getattr(torch, config.device).is_available()
    shop = Workshop(config if here else config.model_copy(update={"device": "cpu"}))
    on_gpu = shop.fabric.device.type == "cuda"
    there = next(place for place in (shop.out, *shop.out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{shop.out}: cannot be created ({there} is not a folder); choose another out=")
    free = torch.cuda.mem_get_info()[0] if on_gpu else memory()[1] or math.inf
    plan = Plan([], {"memory": float(free), "disk": float(shutil.disk_usage(there).free)}, [])
    if not here:
        plan.refused.append(
            f"device={config.device}: not on this machine, so no step was timed; plan where it is to run, or add device=cpu"
        )
    chain, corpus = steps(config), _Corpus(shop)
    with random_untouched(), progress(len(chain), label="plan") as show:
        for number, step in enumerate(chain, 1):
            if _done(shop, step):
                plan.rows.append(Row(step.name, seconds=0.0, note="already done"))
            elif config.base and step.name in TAKEN:
                plan.rows.append(Row(step.name, seconds=1.0, note=f"from {config.base}"))
            elif source := taken(config).get(step.name):
                plan.rows.append(Row(step.name, seconds=1.0, note=f"from {source.source}"))
            elif shop.tokenized and step.name == "tokens":
                plan.rows.append(Row(step.name, corpus.seconds / 3600, seconds=1.0, note=f"from {config.data}"))
            elif trained := loops(step.name, shop):
                plan.rows.append(_training(step.name, trained, shop, corpus, plan, here))
            else:
                plan.rows.append(_other(step.name, shop, corpus, plan, here))
            show(number)
    if (disk := plan.total().disk) > plan.free["disk"]:
        most = max(plan.rows, key=lambda row: row.disk)
        cure = "choose an out= on a larger disk" + ("" if most.step in ("prepare", "tokens", "bundle") else ", or keep=1")
        plan.refused.append(
            f"{most.step}: all steps together write {_bytes(disk)}, most of it in this step ({_bytes(most.disk)}), but "
            f"{_bytes(plan.free['disk'])} are free; {cure}"
        )
    return plan


class _Corpus:
    """Seconds of sound, in total and for training, and how many are decoded per second."""

    def __init__(self, shop: Workshop) -> None:
        config = shop.config
        if shop.tokenized:
            hours = shop.hours()
            self.seconds, self.train, self.speed = sum(hours.values()) * 3600, hours.get("train", 0.0) * 3600, SPEED
            return
        if (shop.out / "prepare" / "done.json").is_file():
            store = AudioStore(shop.out / "prepare")
            self.seconds, self.train, self.speed = store.hours() * 3600, store.hours("train") * 3600, SPEED
            return
        found = scan(config.data, **config.prepare.plain(), skipped=[])
        self.seconds = sum(each.seconds for each in found)
        self.train = sum(each.seconds for each in found if each.split == "train")
        decoded, began = 0.0, time.monotonic()
        for recording in found[:: -(-len(found) // 5)]:
            with suppress(InputError), fetched(recording.path) as path:  # prepare skips and reports damaged files
                decoded += next(audio.blocks(path, 30.0, codec_network(config).sample_rate, mono=True)).seconds
        self.speed = decoded / max(1e-6, time.monotonic() - began) if decoded else SPEED

    def at(self, speeds: Sequence[float]) -> float:
        """Total seconds of sound with the training recordings at each of these speeds, which include 1."""
        return self.seconds + self.train * sum(1 / speed for speed in speeds if speed != 1)


def _done(shop: Workshop, step: Step) -> bool:
    done = read_json(shop.out / step.name / "done.json")
    return done is not None and step.differs(done["config"]) is None


# --- The steps ----------------------------------------------------------------------------------------------------------


def _training(name: str, loops: Sequence[Loop], shop: Workshop, corpus: _Corpus, plan: Plan, here: bool) -> Row:
    device, precision = str(shop.fabric.device), str(shop.fabric._precision.precision)
    speed = products(device, torch.bfloat16 if "bf16" in precision else torch.float32) if here else 1.0
    bounds, peaks, times, notes = [], [], [], []
    hours, tokens, taken = 0.0, 0, 0
    for loop in loops:
        own, count = loop.config, loop.config.steps * loop.share
        throughout, activations, work = loop.needs(precision)
        bounds.append(throughout)
        needed = BASE + throughout + activations
        fits = needed <= plan.free["memory"]
        if here and fits and (least := work * own.accumulate / 1e9 / speed) > PATIENCE:
            times.append(count * least)
            notes.append("at least: too slow here to time")
        elif here and fits:
            timing = loop.rehearse(shop.fabric.device)
            needed = timing.peak or needed
            if getattr(own, "minutes", None) is not None:
                count = 60 * own.minutes / timing.step
            validation = own.valid_batches / own.valid_every / own.accumulate / 3  # a forward pass is a third of a step
            times.append(timing.before + count * timing.step * (1 + validation))
        elif here:
            notes.append("does not fit")
            rows = int(own.batch_size * (plan.free["memory"] - BASE - throughout) / max(1, activations))
            cure = f"give {loop.table}.network fewer layers or a smaller width"
            if rows >= 1:
                more = math.ceil(own.batch_size / rows) * own.accumulate
                cure = f"{loop.table}.batch_size={rows} {loop.table}.accumulate={more} would fit"
            free = _bytes(plan.free["memory"])
            plan.refused.append(f"{name}: training needs about {_bytes(needed)} of memory but {free} are free; {cure}")
        peaks.append(needed)
        crops = count * own.accumulate * own.batch_size
        hours, tokens, taken = hours + crops * loop.seconds / 3600, tokens + round(crops * loop.tokens), taken + round(count)
    parameters = loops[-1].parameters()
    # A checkpoint has no gradients. On top of those kept come the best one and one being written.
    disk = max(bounds) * (1 - 1 / loops[-1].copies) * (shop.config.keep + 2) + 2 * parameters
    seconds = math.fsum(times) if len(times) == len(loops) else None
    passes = hours * 3600 / max(corpus.train, 1e-9)
    return Row(name, hours, passes, tokens or None, parameters, taken, max(peaks), disk, seconds, "".join(notes[:1]))


def _other(name: str, shop: Workshop, corpus: _Corpus, plan: Plan, here: bool) -> Row:
    config, hours = shop.config, corpus.seconds / 3600
    codec, network, device = codec_network(config), encoder_network(config), shop.fabric.device
    own, rate = config.encoder[-1], network.sample_rate / network.hop
    if name == "prepare":
        return Row(name, hours, memory=BASE, disk=corpus.seconds * codec.sample_rate * 2, seconds=corpus.seconds / corpus.speed)
    if name == "bundle":
        parameters = sum(row.parameters or 0 for row in plan.rows)
        return Row(name, memory=BASE + 4 * parameters, disk=(4 if config.weights == "float32" else 2) * parameters, seconds=1.0)
    if name == "encoder":  # without layers: only statistics are fitted
        return Row(name, own.fit_batches * own.batch_size * own.seconds / 3600, memory=BASE)
    fits = here and BASE + 4 * sum(loop.parameters() for loop in loops("encoder", shop)[-1:]) < plan.free["memory"]
    encoder = bundle.encoder_of(network).eval().to(device) if fits else None
    if name == "units":
        frames = round(config.units.batches * own.batch_size * own.seconds * rate)
        layers = 1 if config.units.layer is not None else network.layers
        row = Row(name, config.units.batches * own.batch_size * own.seconds / 3600)
        row.memory = BASE + 4.0 * frames * network.features * (layers + 2)
        if encoder is not None:
            sample = torch.zeros(1, 1, 2 * network.sample_rate, device=device)
            few = torch.randn(2 * config.units.units, network.features)
            units = KMeans(config.units.units, network.features)
            each, look = _seconds(lambda: encoder.extract(sample)), _seconds(lambda: units.assign(few))
            starts = _seconds(lambda: KMeans.fit(few, config.units.units, epochs=1))  # its first call loads scikit-learn
            # Initial centroids are chosen from three batches; updating centroids takes about twice as long as assignment.
            fit = starts * min(frames, 12_288) / len(few) + 3 * look * config.units.epochs * frames / len(few)
            row.seconds = 1800 * (row.hours or 0) * each + (layers + (layers > 1)) * fit
        if row.memory > plan.free["memory"]:
            most = int(config.units.batches * (plan.free["memory"] - BASE) / (row.memory - BASE))
            needed, free = _bytes(row.memory), _bytes(plan.free["memory"])
            plan.refused.append(f"units: needs about {needed} of memory but {free} are free; units.batches={most} would fit")
        return row
    heard = corpus.at(config.tokens.speeds)
    codes = round(heard * (rate + codec.num_codebooks * codec.spec.frame_rate))
    row = Row(name, heard / 3600, tokens=codes, memory=BASE, disk=2.0 * codes)
    if encoder is not None:
        layer = network.layers if config.units.layer is None else config.units.layer
        semantic = SemanticTokenizer(encoder, KMeans(config.units.units, network.features), layer).eval().to(device)
        acoustic, sample = bundle.codec_of(codec).eval().to(device), torch.zeros(1, 1, 4 * codec.sample_rate, device=device)
        row.seconds = heard / 4 * _seconds(lambda: (semantic.encode(sample), acoustic.encode(sample)))
    return row


@torch.no_grad()
def _seconds(do: Callable[[], object]) -> float:
    """How long `do` takes when called a second time."""
    do()
    began = time.monotonic()
    do()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - began


# --- In words -----------------------------------------------------------------------------------------------------------


def _cells(row: Row) -> tuple[str, ...]:
    clock = "-" if row.seconds is None else str(datetime.timedelta(seconds=math.ceil(row.seconds)))
    return (
        row.step,
        "" if row.hours is None else f"{row.hours:.3g}" if row.hours < 100 else f"{row.hours:,.0f}",
        "" if row.passes is None else f"{row.passes:.2g}" if row.passes < 10 else f"{row.passes:,.0f}",
        _count(row.tokens),
        _count(row.parameters),
        "" if row.steps is None else f"{row.steps:,}",
        "" if row.memory is None else _bytes(row.memory),
        _bytes(row.disk) if row.disk else "",
        clock,
        row.note,
    )


def _count(number: float | None) -> str:
    if number is None:
        return ""
    size, name = next(((size, name) for size, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if number >= size), (1, ""))
    return f"{number / size:.3g}{name}"


def _bytes(number: float) -> str:
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:,.{0 if number >= 1e10 else 1}f} GB"
