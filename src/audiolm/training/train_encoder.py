"""Train the semantic encoder from audio alone, cluster one of its layers, and choose the layer by measurement.

    conformer = train_encoder(config, crops, run, fabric, valid)             # one pass of masked prediction
    conformer = train_encoder(second, crops, run, fabric, valid, conformer)  # HuBERT's second pass, on units of the first
    units = fit_units(conformer, UnitsConfig(layer=4), crops)

Batches, masks and augmentation are functions of (seed, step), so that a resumed run sees the same as an uninterrupted one.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Self

import torch
from lightning.fabric import Fabric
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from audiolm.config import Config, Seed
from audiolm.conformer import FRAME, SAMPLE_RATE, Conformer, ConformerConfig, log_mel, mfcc
from audiolm.errors import InputError
from audiolm.kmeans import KMeans
from audiolm.tokenizers import Encoder
from audiolm.training.audio_store import Crops
from audiolm.training.engine import batches_of, clip
from audiolm.training.pretraining import BestRQ, BestRQConfig, Clusters, ClustersConfig, WavToVecBert, WavToVecBertConfig, centred
from audiolm.training.run import Run, learning_rate


class AugmentConfig(Config):
    """Augmentation of the input; the targets come from the clean audio."""

    gain: float = Field(default=6.0, ge=0)  # dB, up or down
    mix: float = Field(default=0.3, ge=0, le=1)  # share of clips into which another clip of the batch is mixed
    snr: tuple[float, float] = (5.0, 20.0)  # dB, range of the signal-to-noise ratio of these
    warp: float = Field(default=0.1, ge=0, lt=0.5)  # largest relative stretch of the frequency axis: other vocal tracts


class EncoderConfig(Config):
    """One pass. `seconds` and `batch_size` define the crops; the learning rate warms up, then falls along half a cosine."""

    network: ConformerConfig = ConformerConfig()
    objective: Annotated[BestRQConfig | WavToVecBertConfig | ClustersConfig, Field(discriminator="kind")] = BestRQConfig()
    augment: AugmentConfig = AugmentConfig()
    warm_start: bool = False  # start from the weights of the earlier pass
    seconds: float = Field(default=4.0, gt=0)
    batch_size: int = Field(default=10, ge=1)
    accumulate: int = Field(default=1, ge=1)  # batches in a step
    steps: int = Field(default=20000, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    floor: float = Field(default=0.02, ge=0, le=1)  # share of lr at the end of the cosine
    warmup: int = Field(default=500, ge=0)  # steps
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    compile: bool = False
    fit_batches: int = Field(default=100, ge=1)  # batches for the mel's statistics and, with Clusters, for its k-means
    log_every: int = Field(default=50, ge=1)
    valid_every: int = Field(default=500, ge=1)
    valid_batches: int = Field(default=8, ge=1)
    save_every: int = Field(default=500, ge=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if round(self.seconds * SAMPLE_RATE) <= FRAME:
            raise ValueError(f"seconds={self.seconds:g}: a single frame, of which nothing can be hidden; give 0.08 or more")
        if isinstance(self.objective, WavToVecBertConfig):
            self.objective.check(self.network)
        return self

    def check(self, name: str, earlier: ConformerConfig | None) -> None:
        """Raise InputError, naming this pass `name`, if it does not fit the earlier pass's network (None: no earlier pass)."""
        layer, own = self.objective.layer if isinstance(self.objective, ClustersConfig) else None, self.network
        if earlier is None:
            if self.warm_start or layer is not None:
                raise InputError(f"{name}: warm_start and objective.layer need the encoder of an earlier pass; there is none")
            return
        if self.warm_start and earlier != own:
            raise InputError(f"{name}: warm_start needs the earlier pass's network; make the two `network` tables equal")
        if layer is not None and layer > earlier.layers:
            raise InputError(f"{name}: objective.layer={layer} is above the earlier pass's {earlier.layers} layers")
        if layer is not None and (earlier.bins, earlier.window) != (own.bins, own.window):
            raise InputError(f"{name}: the earlier pass uses another mel; give both the same network.bins and .window")


# ------------------------------------------------------------------------------------------------------- augmentation


def augment(audio: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Audio (B, 1, T) with a random gain, and another clip of the batch mixed into some clips as noise."""
    batch = len(audio)

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(batch, 1, 1, generator=generator)).to(audio)

    level = audio.square().mean(-1, keepdim=True).sqrt()
    other, other_level = audio.roll(1, 0), level.roll(1, 0)
    noise = other * level / (other_level + 1e-4) * 10 ** (-draw(*config.snr) / 20)
    mixed = torch.where(draw(0, 1) < config.mix, audio + noise, audio)
    return mixed * 10 ** (draw(-config.gain, config.gain) / 20)


def warp(mel: Tensor, most: float, generator: Generator) -> Tensor:
    """Mel (B, M, bins) as from a longer or shorter vocal tract: each clip's frequency axis stretched by up to `most`."""
    factor = 1 + most * (2 * torch.rand(len(mel), 1, generator=generator) - 1)
    bins, top = mel.shape[-1], 1127 * torch.log1p(torch.tensor(8000 / 700))
    hertz = 700 * torch.expm1(torch.linspace(0, 1, bins) * top / 1127)
    place = (1127 * torch.log1p(hertz * factor / 700) / top * (bins - 1)).clamp(0, bins - 1).to(mel.device)
    low = place.floor().long().clamp_max(bins - 2)
    part = (place - low)[:, None]
    index = low[:, None].expand_as(mel)
    return mel.gather(-1, index) * (1 - part) + mel.gather(-1, index + 1) * part


# -------------------------------------------------------------------------------------------------------- the training


class MfccSource(nn.Module):
    """Normalised mel -> MFCC (B, F, 39), normalised within each clip."""

    def forward(self, mel: Tensor) -> Tensor:
        return centred(mfcc(mel))


class LayerSource(nn.Module):
    """Mel normalised by `student`'s statistics -> one layer's features (B, F, D) of a trained encoder with its own ones."""

    def __init__(self, conformer: Conformer, layer: int, student: Conformer):
        super().__init__()
        self.conformer, self.layer, self.student = conformer, layer, [student]  # in a list: not a submodule

    def forward(self, mel: Tensor) -> Tensor:
        student = self.student[0]
        mel = (mel * student.mel_std + student.mel_mean - self.conformer.mel_mean) / self.conformer.mel_std
        return self.conformer(mel, layers=self.layer)[self.layer]


class Teacher(nn.Module):
    """Normalised mel (B, M, bins) -> the k-means units (B, F) of the features that `source` makes from it."""

    def __init__(self, source: nn.Module, units: int, width: int):
        super().__init__()
        self.source, self.units = source, KMeans(units, width)

    def forward(self, mel: Tensor) -> Tensor:
        return self.units.assign(self.source(mel))


class Pretraining(nn.Module):
    """Network and objective as a single module for Fabric to wrap."""

    def __init__(self, conformer: Conformer, objective: nn.Module):
        super().__init__()
        self.conformer, self.objective = conformer, objective

    def forward(self, audio: Tensor, augmentation: AugmentConfig | None, generator: Generator) -> dict[str, Tensor]:
        clean = mel = self.conformer.log_mel(audio)
        if augmentation is not None:
            mel = warp(self.conformer.log_mel(augment(audio, augmentation, generator)), augmentation.warp, generator)
        return self.objective(self.conformer, mel, clean, generator)


def build(config: EncoderConfig, previous: Conformer | None) -> Pretraining:
    """Network and objective of a pass; statistics and target clusters are not fitted yet."""
    config.check("train_encoder", None if previous is None else previous.config)
    torch.manual_seed(config.seed)
    conformer, objective = Conformer(config.network), config.objective
    if previous is not None and config.warm_start:
        conformer.load_state_dict(previous.state_dict())
    if isinstance(objective, BestRQConfig):
        return Pretraining(conformer, BestRQ(objective, config.network, config.seed))
    if isinstance(objective, WavToVecBertConfig):
        return Pretraining(conformer, WavToVecBert(objective, config.network))
    if objective.layer is None or previous is None:
        teacher = Teacher(MfccSource(), objective.units, 39)
    else:
        teacher = Teacher(LayerSource(previous, objective.layer, conformer), objective.units, previous.config.features)
    return Pretraining(conformer, Clusters(objective, config.network, teacher))


def train_encoder(
    config: EncoderConfig, crops: Crops, run: Run, fabric: Fabric, valid: Crops | None = None, previous: Conformer | None = None
) -> Conformer:
    """One pass of pretraining; `previous` is the encoder of the pass before. Returns the trained network in eval mode."""
    if not config.network.layers:  # nothing to train
        conformer = Conformer(config.network)
        fit_statistics(config, conformer, crops)
        return conformer.to(fabric.device).eval()
    pretraining = build(config, previous).to(fabric.device)
    if not run.steps():
        fit_targets(config, pretraining, crops)
    conformer, objective = pretraining.conformer, pretraining.objective
    if config.compile:
        for block in conformer.blocks:
            block.compile()
    model = fabric.setup_module(pretraining)
    parameters = [parameter for parameter in pretraining.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(parameters, config.lr, (0.9, 0.98), weight_decay=config.weight_decay)
    state = {"conformer": conformer, "objective": objective, "optimizer": optimizer}
    start = run.resume(state)
    optimizer = fabric.setup_optimizers(optimizer)
    hours_a_step = fabric.world_size * config.accumulate * config.batch_size * config.seconds / 3600
    line_began, line_from = time.monotonic(), start
    with run.progress(config.steps, start) as show:
        for step in range(start + 1, config.steps + 1):
            rate = learning_rate(step, config.lr, config.steps, config.warmup, config.floor)
            for group in optimizer.param_groups:
                group["lr"] = rate
            model.train()
            result: dict[str, Tensor] = {}
            for index, seed in batches_of(step, config.accumulate, config.seed, fabric, model):
                audio = fabric.to_device(crops.batch(index))
                result = model(audio, config.augment, Generator().manual_seed(seed))
                fabric.backward(result["loss"] / config.accumulate)
            norm = clip(fabric, model, optimizer, config.clip)
            optimizer.step()
            optimizer.zero_grad()
            if step % config.log_every == 0:
                metrics = {name: float(value.detach()) for name, value in result.items()}
                run.check(step, loss=metrics["loss"], norm=norm)
                speed = 3600 * hours_a_step * (step - line_from) / (time.monotonic() - line_began)
                line_began, line_from = time.monotonic(), step
                run.log(step, **metrics, norm=norm, lr=rate, hours=step * hours_a_step, audio_per_second=speed)
                show(step, **metrics)
            score = None
            if valid is not None and (step % config.valid_every == 0 or step == config.steps):
                figures = validate(model, valid, config.valid_batches, fabric.device)
                score = figures["valid_loss"]
                run.log(step, **figures)
            run.checkpoint(step, state, config.save_every, config.steps, score, norm=norm)
    fabric.barrier()
    trained = Conformer(config.network)  # neither sharded nor compiled
    run.load(config.steps, {"conformer": trained})
    return trained.to(fabric.device).eval()


@torch.no_grad()
def fit_targets(config: EncoderConfig, pretraining: Pretraining, crops: Crops) -> None:
    """Fit the mel's statistics (a warm start keeps its own), then the clusters of a `Clusters` objective, on the first crops."""
    conformer, objective = pretraining.conformer, pretraining.objective
    if not config.warm_start:
        fit_statistics(config, conformer, crops)
    if isinstance(objective, Clusters) and isinstance(objective.teacher, Teacher):
        teacher = objective.teacher.eval()
        heard = first(crops, config.fit_batches, conformer.mel_mean.device)
        frames = torch.cat([teacher.source(conformer.log_mel(audio)).flatten(0, 1).cpu() for audio in heard])
        teacher.units.load_state_dict(KMeans.fit(frames, objective.config.units, seed=config.seed).state_dict())


def fit_statistics(config: EncoderConfig, conformer: Conformer, crops: Crops) -> None:
    """Fit mean and standard deviation of each mel bin on the first crops."""
    heard = first(crops, config.fit_batches, conformer.mel_mean.device)
    mel = [log_mel(audio, conformer.filters, config.network.window) for audio in heard]
    conformer.fit_normalisation(torch.cat(mel))


def first(crops: Crops, batches: int, device: torch.device) -> Iterator[Tensor]:
    """The batches of steps 1 to `batches`, one at a time, on a device."""
    return (crops.batch(step).to(device) for step in range(1, batches + 1))


@torch.no_grad()
def validate(model: nn.Module, valid: Crops, batches: int, device: torch.device) -> dict[str, float]:
    """Mean figures on held-out crops, with the same masks each time; training's random state is not touched."""
    model.eval()
    results = [model(audio, None, Generator().manual_seed(0)) for audio in first(valid, batches, device)]
    return {f"valid_{name}": float(torch.stack([result[name] for result in results]).mean()) for name in results[0]}


# ----------------------------------------------------------------------------------------------------- units of a layer


class UnitsConfig(Config):
    """Which layer becomes tokens, and how many units. `layer` None: the layer that measures best in `choose_layer`."""

    layer: int | None = Field(default=None, ge=0)
    units: int = Field(default=512, ge=2, le=1 << 16)  # token stores keep 16 bits of a code
    batches: int = Field(default=200, ge=1)  # batches of training crops to fit the centroids on
    epochs: int = Field(default=10, ge=1)
    seed: Seed = 0


@torch.no_grad()
def layer_frames(encoder: Encoder, layers: Iterable[int], crops: Crops, batches: int) -> dict[int, Tensor]:
    """Features (N, D) of each of `layers` over the first crops, in one pass."""
    layers = list(layers)
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    encoder.eval()
    for audio in first(crops, batches, _device(encoder)):
        outputs = encoder.extract(audio, max(layers))
        for layer in layers:
            kept[layer].append(outputs[layer].flatten(0, 1).float().cpu())
    return {layer: torch.cat(frames) for layer, frames in kept.items()}


def fit_units(encoder: Encoder, config: UnitsConfig, crops: Crops) -> KMeans:
    """Fit k-means to one layer's features (`config.layer` must be given) on training crops."""
    if config.layer is None or not 0 <= config.layer <= encoder.config.layers:
        raise InputError(f"fit_units: layer {config.layer} is not in 0 to {encoder.config.layers}; choose one by choose_layer")
    frames = layer_frames(encoder, [config.layer], crops, config.batches)[config.layer]
    return KMeans.fit(frames, config.units, config.epochs, seed=config.seed).to(_device(encoder))


def choose_layer(
    encoder: Encoder, config: UnitsConfig, crops: Crops, measure: Callable[[Callable[[Tensor], Tensor]], float]
) -> tuple[dict[int, float], int]:
    """Fit units to each of layers 1 to the last on training crops, `measure` them, and return {layer: figure} and the best layer.

    measure: takes a function audio (1, 1, T) -> units (F) and returns a figure, the higher the better, on speakers that the
    encoder was not trained on (audiolm.measuring.phonetics.measure_units over the valid split).
    """
    table = {}
    for layer, frames in layer_frames(encoder, range(1, encoder.config.layers + 1), crops, config.batches).items():
        units = KMeans.fit(frames, config.units, config.epochs, seed=config.seed).to(_device(encoder))
        table[layer] = measure(unit_function(encoder, units, layer))
    return table, max(table, key=lambda layer: table[layer])


def unit_function(encoder: Encoder, units: KMeans, layer: int) -> Callable[[Tensor], Tensor]:
    """Audio (1, 1, T) at 16 kHz -> units (F), F = ceil(T / hop)."""

    @torch.no_grad()
    def encode(audio: Tensor) -> Tensor:
        return units.assign(encoder.extract(audio, layer)[layer])[0]

    return encode


def _device(encoder: Encoder) -> torch.device:
    """Of its parameters or buffers: one without layers has no parameters, one of others may have no buffers."""
    return next(iter(encoder.state_dict().values())).device
