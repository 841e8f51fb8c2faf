"""Train a detector of a model's own output (AudioLM section IV-H) for any bundle, from any recordings, with one command.

    OUT/sounds/        for each clip: the real sound, its codec reconstruction, and a generated sound (not for extra
                       negatives); none is watermarked
    OUT/sounds.json    which model and plans they were made from
    OUT/run/           the training's run folder
    OUT/detector.safetensors, detector.json, detector.md       what goes into a bundle, its figures, its model card section

Positives are of five kinds, as far as the model has the stages: continuations by the autoregressive and by the parallel
decoder and by acoustic tokens alone (all without their prompts), revoiced sounds, and sounds without a prompt. Negatives are
codec reconstructions of real clips, and a few untouched real clips, such as users have. Recordings of train, valid and test
are disjoint, and speakers as far as the corpus's splits separate them. A killed run is resumed by the same command.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from audiolm import bundle, detector
from audiolm.attacks import ATTACKS, random_attack
from audiolm.audio import Waveform
from audiolm.classifier import CROP, CropClassifier, crop_logits
from audiolm.config import digest
from audiolm.detector import Detector, calibrated, equal_error_rate, file_score
from audiolm.errors import InputError
from audiolm.files import make_folder, one_at_a_time, read_json, whole_file, write_json
from audiolm.measuring.metrics import Measure, bootstrap
from audiolm.training.data import held_out, scan
from audiolm.training.detector_sounds import OTHER, Clip, SoundsConfig, levels_of, load_clips, make_sounds, plan, plan_others
from audiolm.training.engine import best_precision
from audiolm.training.run import Run, learning_rate, progress

VARIANTS = 4  # attacked versions of each training clip
CALIBRATED_UNDER = ("none", "MP3 64 kbit/s", "Opus 24 kbit/s", "white noise 20 dB")
KIND_NAMES = {
    "continued": "continuation",
    "parallel": "continuation by the parallel decoder",
    "revoiced": "revoiced",
    "unconditional": "without a prompt",
    "acoustic": "acoustic tokens alone",
}


class DetectorTrainConfig(SoundsConfig):
    """Which sounds are generated, and how the detector is trained."""

    channels: tuple[int, ...] = detector.SMALL
    batch_size: int = Field(default=32, ge=4)
    steps: int = Field(default=400, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: int = Field(default=30, ge=0)
    further: bool = False  # start from the model's own detector, including its channels
    untouched: float = Field(default=0.1, ge=0, lt=1)  # share of the negatives that are untouched real clips
    log_every: int = Field(default=25, ge=1)
    save_every: int = Field(default=100, ge=1)


def train_detector(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    config: DetectorTrainConfig | None = None,
    workers: int = 0,
    others: str | Path | None = None,
) -> dict[str, Any]:
    """Make sounds, train, measure, and write a detector into `out`; returns its figures. workers: processes that generate.

    others: recordings of other kinds than the model's (music, noise), as negatives. A detector takes what it never heard for
    generated as readily as for real.

    Raises InputError if the recordings are too few or too short, the model cannot generate, or `further` finds no detector.
    """
    config, out = config or DetectorTrainConfig(), Path(out)
    folder = bundle.folder_of(model)
    about = bundle.read_config(folder)
    identity = detector.identity(about)
    if config.further and not (folder / detector.FILE).is_file():
        raise InputError(f"{model} has no detector to train further; leave --further out")
    torch.manual_seed(config.seed)
    begin = detector.load(folder / detector.FILE).network if config.further else CropClassifier(1, config.channels)
    levels = levels_of(about["stages"])
    plans = plan(scan(data, **held_out(about["about"])), config, tuple(about["stages"]), levels)
    if others is not None:
        plans += plan_others(scan(others), config, levels)
    make_folder(out / "sounds")
    with one_at_a_time(out):
        settings = {"model": identity, "data": Path(data).name, **config.plain()}
        if others is not None:
            settings["others"] = Path(others).name
        run = Run(out / "run", settings)
        made_of = {"model": identity, "seconds": config.seconds, "plans": digest([each.plain() for each in plans])}
        recorded = read_json(out / "sounds.json")
        if recorded is not None and recorded != made_of:
            changed = ", ".join(name for name, value in made_of.items() if recorded.get(name) != value)
            raise InputError(
                f"{out / 'sounds'}: made from other inputs or settings ({changed}); restore them or give another folder"
            )
        write_json(out / "sounds.json", made_of)
        make_sounds(folder, plans, out / "sounds", config.seconds, workers)
        clips = {split: load_clips(plans, split, out / "sounds") for split in ("train", "valid", "test")}
        with run:
            network = fit(config, clips["train"], run, begin)
        run.stop_if_asked()
        named = {"model": about["about"].get("name"), "weights": identity}
        network.load_state_dict(detector.packed(network))  # measure the rounded weights that will be saved
        slope, offset = calibrate(network, clips["valid"])
        made, same = Detector(network, slope, offset, named), {split: _of_kind(each) for split, each in clips.items()}
        figures = measure(made, same["test"])
        if others is not None:
            figures["others"] = alarms(made, [clip for clip in clips["test"] if clip.plan.kind == OTHER])
        figures["clips"] = {split: len(each) for split, each in same.items()}
        figures["positives"] = sum(clip.generated is not None for clip in clips["train"])
        speakers = {split: {clip.plan.recording.speaker for clip in each} for split, each in same.items()}
        figures["speakers"] = {split: len(each) for split, each in speakers.items()}
        figures["unseen_speakers"] = len(speakers["test"] - speakers["train"] - speakers["valid"])
        reached = {"balanced_accuracy": figures["attacks"]["none"]["balanced_accuracy"], "eer": figures["attacks"]["none"]["eer"]}
        Detector(network, slope, offset, {**named, **reached}).save(out / detector.FILE)
        for name, text in (("detector.json", json.dumps(figures, indent=1) + "\n"), ("detector.md", card(figures))):
            with whole_file(out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return figures


def _of_kind(clips: Sequence[Clip]) -> list[Clip]:
    """The clips of recordings such as the model's."""
    return [clip for clip in clips if clip.plan.kind != OTHER]


def pack(out: Path, folder: Path) -> None:
    """Put a trained detector into a bundle's folder and its figures into the model card there, replacing older ones."""
    with whole_file(folder / detector.FILE) as temporary:
        temporary.write_bytes((out / detector.FILE).read_bytes())
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, _, after = text.partition("## Detector\n")
    rest = after.partition("\n## ")
    section = (out / "detector.md").read_text(encoding="utf-8")
    with whole_file(readme) as temporary:
        temporary.write_text(f"{before.rstrip()}\n\n{section}" + (f"\n## {rest[2]}" if rest[1] else ""), encoding="utf-8")


# Training


class CropBatches:
    """Batches of attacked crops, half generated, half real. A batch depends only on (seed, step)."""

    def __init__(self, clips: Sequence[Clip], config: DetectorTrainConfig) -> None:
        self.clips, self.config = clips, config
        self.positives = [number for number, clip in enumerate(clips) if clip.generated is not None]
        self.others = [number for number, clip in enumerate(clips) if clip.plan.kind == OTHER]
        self.same = [number for number, clip in enumerate(clips) if clip.plan.kind != OTHER]
        self.attacked = lru_cache(maxsize=None)(self._attacked)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Crops (B, 16000), and 1 for generated, 0 for real (B,)."""
        generator = Generator().manual_seed(self.config.seed * 1_000_003 + step)
        rows, labels = [], torch.arange(self.config.batch_size) % 2
        for number, label in enumerate(labels.tolist()):
            # Of the negatives, every third is of another kind, and half of those did not go through the codec.
            other = bool(self.others) and number % 6 == 0
            among = self.others if other else self.positives if label else self.same
            clip, variant = (int(torch.randint(limit, (), generator=generator)) for limit in (len(among), VARIANTS))
            untouched, place, gain = torch.rand(3, generator=generator).tolist()
            kind = "generated" if label else "real" if untouched < (0.5 if other else self.config.untouched) else "codec"
            samples = self.attacked(among[clip], kind, variant)
            start = int(place * max(1, len(samples) - CROP + 1))
            crop = samples[start : start + CROP].float() / 32768
            crop = nn.functional.pad(crop, (0, CROP - len(crop)))
            rows.append((crop * 10 ** (gain * 1.5 - 1.0)).clamp(-1, 1))  # -20 to 10 dB: some crops are clipped
        return torch.stack(rows), labels.float()

    def _attacked(self, clip: int, kind: str, variant: int) -> Tensor:
        """Attacked samples (T,) as 16-bit integers, which take half the memory."""
        generator = Generator().manual_seed((clip * VARIANTS + variant) * 3 + ("generated", "codec", "real").index(kind))
        sound = random_attack(getattr(self.clips[clip], kind), generator)
        return (sound.samples[0] * 32768).round().clamp(-32768, 32767).to(torch.int16)


def fit(config: DetectorTrainConfig, clips: Sequence[Clip], run: Run, network: CropClassifier) -> CropClassifier:
    """Train the network on crops of one second."""
    network.requires_grad_(True).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay)
    state = {"network": network, "optimizer": optimizer}
    start, batches, fast = run.resume(state), CropBatches(clips, config), best_precision("cpu") == "bf16-mixed"
    with run.progress(config.steps, start, label="detector") as show:
        for step in range(start + 1, config.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config.lr, config.steps, config.warmup)
            audio, labels = batches.batch(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):  # together with channels_last: less than half the time
                logits = network.train()(audio)[:, 0].float()
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if step % config.log_every == 0:
                right = ((logits > 0) == (labels > 0)).float().mean()
                run.check(step, loss=loss.detach())
                run.log(step, loss=loss.detach(), accuracy=right)
                show(step, loss=loss.detach(), accuracy=right)
            run.checkpoint(step, state, every=config.save_every, total=config.steps)
    settle(network, batches)
    return network.eval()


def settle(network: CropClassifier, batches: CropBatches, count: int = 50) -> None:
    """Set batch normalisation's statistics over many batches with the final weights: in training they span about ten."""
    layers = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over batches
    with torch.no_grad(), progress(count, label="normalisation") as show:
        for step in range(1, count + 1):
            network.train()(batches.batch(step)[0])
            show(step)


# Calibration and figures


def calibrate(network: CropClassifier, clips: Sequence[Clip]) -> tuple[float, float]:
    """Calibrate on the valid clips: shift the logits so that 0 separates crops, and return slope and offset for whole sounds.

    The shift uses generated and codec-reconstructed sounds only: untouched ones are easy to tell by the codec alone, and would
    bias it. Slope and offset use untouched ones as well.
    """
    real, codec, generated = valid_logits(network, clips)
    slope, offset = calibrated(torch.cat(codec).tolist(), torch.cat(generated).tolist())
    old = network.head.bias.clone()
    with torch.no_grad():
        network.head.bias.copy_((old + offset / slope).bfloat16())  # rounded as it will be saved
    moved = float(network.head.bias.detach() - old.detach())
    return calibrated(*([file_score(logits + moved) for logits in each] for each in ([*real, *codec], generated)))


def valid_logits(network: CropClassifier, clips: Sequence[Clip]) -> Iterator[list[Tensor]]:
    """Logits of each sound, clean and under some attacks: of real clips, then codec reconstructions, then generated ones."""
    with progress(3 * len(CALIBRATED_UNDER) * len(clips), label="calibration") as show:
        for done, kind in enumerate(("real", "codec", "generated")):
            found, sounds = [], [sound for clip in clips if (sound := getattr(clip, kind)) is not None]
            for name in CALIBRATED_UNDER:
                found += [crop_logits(network, ATTACKS[name](sound))[:, 0] for sound in sounds]
                show(done * len(CALIBRATED_UNDER) * len(clips) + len(found))
            yield found


def measure(made: Detector, clips: Sequence[Clip]) -> dict[str, Any]:
    """The figures on the test clips, generated against codec-reconstructed.

    attacks: under each attack, accuracy, balanced accuracy with its 95 % interval and EER of one-second crops that do not
    overlap; balanced accuracy of whole clips at a probability of one half. levels: the same for each number of levels, without
    attack. untouched: the same against untouched originals. kinds: share of crops detected, per kind of generated sound.
    """
    same: dict[str, list[Clip]] = {}
    kinds: dict[str, list[Tensor]] = {}
    for clip in clips:
        same.setdefault(str(clip.plan.codebooks or "all"), []).append(clip)
        assert clip.generated is not None
        kinds.setdefault(clip.plan.kind, []).append(crop_logits(made.network, clip.generated)[::4, 0] > 0)
    attacks = {}
    with progress(len(ATTACKS), label="attacks") as show:
        for number, (name, attack) in enumerate(ATTACKS.items()):
            attacks[name] = _measured(made, clips, attack, "codec")
            show(number + 1)
    levels = {name: _measured(made, some, ATTACKS["none"], "codec") for name, some in same.items()}
    untouched = _measured(made, clips, ATTACKS["none"], "real")
    found = {kind: float(torch.cat(each).float().mean()) for kind, each in kinds.items()}
    return {"attacks": attacks, "levels": levels, "untouched": untouched, "kinds": found, **made.about}


def alarms(made: Detector, clips: Sequence[Clip]) -> dict[str, int]:
    """How many recordings of other kinds are taken for generated, as they are and through the codec, of how many."""
    found = {kind: [made(getattr(clip, kind)) for clip in clips] for kind in ("real", "codec")}
    return {"clips": len(clips)} | {
        kind: sum(each is not None and each.probability > 0.5 for each in verdicts) for kind, verdicts in found.items()
    }


def _measured(made: Detector, clips: Sequence[Clip], attack: Callable[[Waveform], Waveform], negative: str) -> dict[str, Any]:
    crops: dict[str, list[Tensor]] = {}
    files: dict[str, list[bool]] = {}
    for kind in (negative, "generated"):
        sounds = [attack(getattr(clip, kind)) for clip in clips]
        logits = [crop_logits(made.network, sound)[:, 0] for sound in sounds]
        crops[kind] = [each[::4] for each in logits]  # crops that do not overlap
        files[kind] = [made.slope * file_score(each) + made.offset > 0 for each in logits]
    real, generated = crops[negative], crops["generated"]
    alarms = torch.tensor([[int((each > 0).sum()), len(each)] for each in real]).double()
    hits = torch.tensor([[int((each > 0).sum()), len(each)] for each in generated]).double()

    def balanced(index: Tensor) -> Tensor:
        rates = [(counts[index, 0].sum(1) / counts[index, 1].sum(1)) for counts in (hits, alarms)]
        return ((rates[0] + 1 - rates[1]) / 2)[:, None]

    measured: Measure = bootstrap(balanced, len(clips))[0]
    right = hits[:, 0].sum() + (alarms[:, 1] - alarms[:, 0]).sum()
    return {
        "accuracy": float(right / (hits[:, 1].sum() + alarms[:, 1].sum())),
        "balanced_accuracy": measured.value,
        "low": measured.low if math.isfinite(measured.low) else None,
        "high": measured.high if math.isfinite(measured.high) else None,
        "eer": equal_error_rate(torch.cat(real), torch.cat(generated)),
        "files": (sum(files["generated"]) / len(clips) + 1 - sum(files[negative]) / len(clips)) / 2,
        "crops": int(alarms[:, 1].sum()),
    }


def card(figures: Mapping[str, Any]) -> str:
    """The model card's section on the detector."""
    clips, speakers, unseen = figures["clips"], figures["speakers"], figures["unseen_speakers"]
    apart = unseen == speakers["test"]
    crops = "1 s crops of unseen speakers" if apart else "1 s crops"
    head = [crops, "balanced accuracy, %", "accuracy, %", "EER, %", "whole clips, %"]
    rows = [head, ["---"] * len(head), *([name, *_cells(each)] for name, each in figures["attacks"].items())]
    if len(figures["levels"]) > 1:
        rows[3:3] = ([f"none, {name} levels", *_cells(each)] for name, each in figures["levels"].items())
    untouched = _cells(figures["untouched"])
    return "\n".join(
        [
            "## Detector",
            "",
            "`audiolm detect` tells sound that this model generated from real sound that went through its codec, watermarked or "
            f"not. Trained on {clips['train']} clips of {speakers['train']} speakers ({figures['positives']} of them with a "
            f"generated sound), calibrated on {clips['valid']} of {speakers['valid']}, measured on {clips['test']} real and as "
            f"many generated clips of {speakers['test']} speakers{', all unseen' if apart else f', {unseen} of them unseen'} "
            f"({figures['attacks']['none']['crops']} crops of each kind). If the model can do without its fine stage, half of "
            "both kinds have only the levels before it. In brackets: 95 % intervals by bootstrap over clips. "
            "AudioLM's own detector: 98.6 % (section IV-H).",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            "Share of generated crops detected, without attack: "
            + ", ".join(f"{KIND_NAMES[kind]} {100 * share:.1f} %" for kind, share in figures["kinds"].items())
            + ".",
            "",
            f"Against recordings that did not go through the codec (easier, since the codec alone gives generated sound away): "
            f"balanced accuracy, %: {untouched[0]} of crops, {untouched[3]} of clips. It detects this model's output only, no "
            "other program's.",
            "",
            *_other_sounds(figures),
        ]
    )


def _other_sounds(figures: Mapping[str, Any]) -> list[str]:
    if not (others := figures.get("others")):
        return []
    return [
        f"Of {others['clips']} held-out recordings of other kinds than the model's (the detector has learned from such), "
        f"{others['real']} are taken for generated, and {others['codec']} once they went through the codec.",
        "",
    ]


def _cells(each: Mapping[str, Any]) -> list[str]:
    interval = "" if each["low"] is None else f" ({100 * each['low']:.1f} to {100 * each['high']:.1f})"
    return [
        f"{100 * each['balanced_accuracy']:.1f}{interval}",
        *(f"{100 * each[name]:.1f}" for name in ("accuracy", "eer", "files")),
    ]
