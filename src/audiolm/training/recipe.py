"""From a folder of audio to a model of one's own: the chain of steps, each done once.

    prepare -> codec ------------------------.-> tokens -> semantic, coarse, fine, ... -> bundle
          `--> encoder -> units (k-means) --'

What is done stays done, and what was made with something else is refused (audiolm.training.chain). Killed at any moment, the same
call goes on: training steps by their run folder, the others by their stores. With a `base` the chain begins with a model's codec,
units and stages (audiolm.training.further).
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from audiolm import bundle, stages
from audiolm.codec import Codec
from audiolm.config import Config, digest
from audiolm.conformer import Conformer
from audiolm.errors import InputError
from audiolm.files import file_hash, save_tensors
from audiolm.kmeans import KMeans
from audiolm.model import AudioLM, Sampling
from audiolm.stages import Stage
from audiolm.tokenizers import SemanticTokenizer
from audiolm.tokens import TokenSpec
from audiolm.training.card import card
from audiolm.training.data import SPLITS, AudioCrops, AudioStore, Skipped, scan
from audiolm.training.further import TAKEN, upon, weights
from audiolm.training.run import Run, progress, versions
from audiolm.training.speeds import AtSpeeds
from audiolm.training.token_store import TokenCrops, TokenStore
from audiolm.transformer import LanguageModel

try:
    from audiolm.measuring.phonetics import label_recordings, measure_units
    from audiolm.training.chain import Chain, Step, read_json, write_json
    from audiolm.training.corpus import tokenize_corpus
    from audiolm.training.engine import engine
    from audiolm.training.gates import GatesConfig, check, verdicts
    from audiolm.training.listening import stage_listener
    from audiolm.training.train_codec import CodecTrainConfig, train_codec
    from audiolm.training.train_encoder import EncoderConfig, UnitsConfig, choose_layer, fit_units, train_encoder
    from audiolm.training.train_lm import LMTrainConfig, train_lm
except ImportError as missing:
    raise InputError(f"training needs {missing.name}; run: pip install 'audiolm[train]'") from missing

StageName = Literal["semantic", "coarse", "fine", "acoustic", "piano", "parallel"]


class PrepareConfig(Config):
    """Which recordings, and their split where a manifest gives none (shares of the speakers)."""

    valid: float = Field(default=0.05, ge=0, lt=1)
    test: float = Field(default=0.05, ge=0, lt=1)
    minimum: float = Field(default=0.5, gt=0)  # seconds; shorter recordings are left out


class TokensConfig(Config):
    """What the stages are trained on: every recording, and the training ones also at other speeds (1.1: faster and higher)."""

    speeds: tuple[float, ...] = (1.0,)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if 1.0 not in self.speeds or len(set(self.speeds)) < len(self.speeds) or not all(0.5 <= s <= 2 for s in self.speeds):
            raise ValueError(f"speeds={list(self.speeds)}: different ones from 0.5 to 2, 1 among them")
        return self


class StageConfig(LMTrainConfig):
    """A stage's language model: its training, and where the stage differs from the paper's (None: it does not)."""

    levels: int | None = Field(default=None, ge=1)  # predicted levels: coarse 4; piano, acoustic and parallel all
    dedup: bool = False
    crop: float | None = Field(default=None, gt=0)  # seconds
    overlap: float | None = Field(default=None, ge=0)  # seconds
    sampling: Sampling | None = None


class RecipeConfig(Config):
    """The whole chain. `data` is a folder of audio or a manifest.csv, `out` the folder for everything that is made."""

    data: str
    out: str
    base: str | None = None  # a model to go on from: packaged, a bundle's folder, or a hub id
    name: str = "mine"
    licence: str = "not stated"
    seed: int = Field(default=0, ge=0)  # of whatever has no seed of its own below
    threads: int | None = Field(default=None, ge=1)  # processor threads; None: one per core
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "32-true"
    shard: bool = False  # under torchrun: the encoder and the stages are spread over the processes (FSDP2), not copied
    keep: int = Field(default=2, ge=1)  # checkpoints of each training, besides the best
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    listen_every: int = Field(default=1000, ge=0)  # steps between samples to listen to; 0: none
    weights: Literal["float32", "bfloat16", "int8"] = "bfloat16"  # of the bundle; int8: but not what decides the tokens
    decoder: Literal["autoregressive", "parallel"] = "autoregressive"  # the bundle's own, where it has stages for both
    prepare: PrepareConfig = PrepareConfig()
    codec: CodecTrainConfig = CodecTrainConfig.model_validate({})
    encoder: tuple[EncoderConfig, ...] = (EncoderConfig.model_validate({}),)  # passes, each may build on the one before
    units: UnitsConfig = UnitsConfig.model_validate({})
    tokens: TokensConfig = TokensConfig()
    measured: int = Field(default=60, ge=1)  # valid recordings that a layer is chosen by, where units.layer is not given
    stages: tuple[StageName, ...] = ("semantic", "coarse", "fine")
    semantic: StageConfig = StageConfig()
    coarse: StageConfig = StageConfig()
    fine: StageConfig = StageConfig()
    acoustic: StageConfig = StageConfig()
    piano: StageConfig = StageConfig()
    parallel: StageConfig = StageConfig()
    gates: GatesConfig = GatesConfig()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("base"), str):
            data = upon(data)
        if isinstance(data, dict) and "seed" in data:
            data = {**data, "encoder": data.get("encoder", [{}])}
            for name in ("codec", "units", "semantic", "coarse", "fine", "acoustic", "piano", "parallel"):
                data[name] = _seeded(data.get(name, {}), data["seed"])
            if isinstance(data["encoder"], list | tuple):
                data["encoder"] = [_seeded(each, data["seed"]) for each in data["encoder"]]
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        rate, hop = self.codec.network.sample_rate, self.codec.network.hop
        if rate != 16_000 or 640 % hop:
            raise ValueError(f"codec.network: {rate} Hz and hop {hop}; the encoder's frames are 640 samples of 16000 Hz")
        if not self.encoder or len(set(self.stages)) < len(self.stages):
            raise ValueError("at least one pass of the encoder, and each stage once")
        for name in self.stages:
            stage_of(self, name)  # levels that do not fit are found now, not after the hours before them
        return self


def _seeded(table: Any, seed: int) -> Any:
    return {"seed": seed, **table} if isinstance(table, dict) else table


def stage_of(config: RecipeConfig, name: StageName) -> Stage:
    """A stage as the recipe has it."""
    own, codec = stage_config(config, name), config.codec.network
    semantic = TokenSpec("semantic", config.units.units, 1, 25.0)
    acoustic = TokenSpec("acoustic", codec.codebook_size, codec.num_codebooks, codec.sample_rate / codec.hop)
    coarse = config.coarse.levels or min(4, codec.num_codebooks)
    # Where there is a fine stage it goes on from the acoustic baseline too.
    baseline = coarse if "fine" in config.stages else codec.num_codebooks
    stage = {
        "semantic": lambda: stages.semantic(semantic),
        "coarse": lambda: stages.coarse(semantic, acoustic, coarse),
        "fine": lambda: stages.fine(acoustic, coarse),
        "acoustic": lambda: stages.acoustic_only(acoustic, own.levels or baseline),
        "piano": lambda: stages.piano(semantic, acoustic, own.levels or codec.num_codebooks),
        "parallel": lambda: stages.parallel(semantic, acoustic, own.levels or codec.num_codebooks),
    }[name]()
    crop = own.crop or stage.crop
    # A crop shorter than the paper's keeps the paper's proportion of overlap.
    overlap = stage.overlap * crop / stage.crop if own.overlap is None else own.overlap
    return replace(stage, dedup=own.dedup, crop=crop, overlap=overlap)


def stage_config(config: RecipeConfig, name: StageName) -> StageConfig:
    """The recipe's table of a stage."""
    return getattr(config, name)


# --- The steps as data ------------------------------------------------------------------------------------------------


def steps(config: RecipeConfig) -> list[Step]:
    """The chain of a recipe, in order."""
    training = {"precision": config.precision}
    prepare = {"data": config.data, "sample_rate": config.codec.network.sample_rate, "seed": config.seed}
    of_base = weights(config.base) if config.base else {}
    made: dict[str, dict[str, Any]] = {
        "codec": training | config.codec.plain(),
        "encoder": training | {str(number): each.plain() for number, each in enumerate(config.encoder)},
        "units": config.units.plain() | {"measured": config.measured},
    }
    if of_base:
        made = {name: {"base": of_base[part]} for name, part in TAKEN.items()}
    chain = [
        Step("prepare", (), prepare | config.prepare.plain(), do_prepare),
        Step("codec", ("prepare",), made["codec"], do_codec, together=True),
        Step("encoder", ("prepare",), made["encoder"], do_encoder, together=True),
        Step("units", ("prepare", "encoder"), made["units"], do_units),
        Step("tokens", ("prepare", "codec", "units"), config.tokens.plain(), do_tokens),
    ]
    for name in config.stages:
        plain = training | trained_with(config, name) | {"stage": stage_of(config, name).to_dict()}
        if name in of_base:
            plain["base"] = of_base[name]
        chain.append(Step(name, ("tokens",), plain, partial(do_stage, name=name), together=True))
    sampling = {name: stage_config(config, name).plain()["sampling"] for name in config.stages}
    about = {
        "name": config.name,
        "licence": config.licence,
        "sampling": sampling,
        "weights": config.weights,
        "decoder": config.decoder,
    }
    chain.append(Step("bundle", ("codec", "units", *config.stages), about, do_bundle))
    return chain


def trained_with(config: RecipeConfig, name: StageName) -> dict[str, Any]:
    """A stage's table without what matters to generation only."""
    return {key: value for key, value in stage_config(config, name).plain().items() if key != "sampling"}


def run_recipe(config: RecipeConfig, only: str | None = None, force: bool = False, ignore_gates: bool = False) -> Path:
    """Do every step that is not done yet, or `only` one whose inputs are done; returns the bundle's folder.

    force: a step that was made with something else is deleted and done again; the one in `only` in any case.
    ignore_gates: go on where a result is not good enough, and record that.
    InputError where a step was made with something else, an input is not done, or there is no such step; GateFailed
    where what a step made is below a threshold of config.gates.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    shop = Workshop(config)
    gates = partial(check, shop=shop, config=config.gates, ignore=ignore_gates)
    Chain(shop.out, steps(config), shop.fabric, config.seed).run(shop, only, force, gates)
    return shop.out / "bundle"


class Workshop:
    """What the steps share: the recipe, its folder, the accelerator, and the results of the steps that are done."""

    def __init__(self, config: RecipeConfig) -> None:
        self.config, self.out = config, Path(config.out)
        self.fabric = engine(config.device, config.precision)
        self.sharding = engine(config.device, config.precision, shard=True) if config.shard else self.fabric
        self.base = bundle.load_folder(bundle.folder_of(config.base)) if config.base else None

    # Results

    def audio(self) -> AudioStore:
        return AudioStore(self.out / "prepare")

    def crops(self, config: CodecTrainConfig | EncoderConfig) -> tuple[AudioCrops, AudioCrops | None]:
        """Training crops, and those of the valid recordings if there are any."""
        store = self.audio()
        make = partial(AudioCrops, store, seconds=config.seconds, batch_size=config.batch_size)
        return make(split="train", seed=config.seed), make(split="valid", seed=config.seed + 1) if store.split("valid") else None

    def train_crops(self) -> AudioCrops:
        """Those that the encoder is trained on."""
        return self.crops(self.config.encoder[-1])[0]

    def token_crops(self, name: StageName, split: str) -> TokenCrops:
        """A stage's batches; "valid" are training ones where there are no valid recordings."""
        config, store = stage_config(self.config, name), TokenStore(self.out / "tokens")
        chosen, seed = (split, config.seed + 1) if split == "valid" and store.split("valid") else ("train", config.seed)
        return TokenCrops(store, stage_of(self.config, name), chosen, config.batch_size, seed)

    def run(self, folder: str, config: Config | dict[str, Any], source: str) -> Run:
        """The run folder of a training on what the step `source` made."""
        own, done = self.config, read_json(self.out / source / "done.json")
        return Run(self.out / folder, config, own.keep, own.tracker, own.listen_every, data=done["result"] if done else None)

    def save(self, part: nn.Module, step: str) -> str:
        """Keep a network as a bundle will, so that what is trained next hears exactly what will be shipped."""
        if self.fabric.global_rank:
            return ""  # the first process's result is the step's; no waiting here: not every step is everybody's
        path = self.out / step / f"{step}.safetensors"
        save_tensors(path, bundle.packed(part, torch.bfloat16))
        return file_hash(path)

    def codec(self) -> Codec:
        codec = Codec(self.config.codec.network)
        bundle.unpack(codec, self.out / "codec" / "codec.safetensors")
        return codec.eval().to(self.fabric.device)

    def encoder(self) -> Conformer:
        conformer = Conformer(self.config.encoder[-1].network)
        bundle.unpack(conformer, self.out / "encoder" / "encoder.safetensors")
        return conformer.eval().to(self.fabric.device)

    def semantic(self) -> SemanticTokenizer:
        conformer = Conformer(self.config.encoder[-1].network)
        layer = read_json(self.out / "units" / "units.json")["layer"]
        semantic = SemanticTokenizer(conformer, KMeans(self.config.units.units, conformer.config.width), layer)
        bundle.unpack(semantic, self.out / "units" / "units.safetensors")
        return semantic.eval().to(self.fabric.device)

    def trained(self, name: StageName) -> tuple[Stage, LanguageModel, StageConfig]:
        """A stage, its language model and how that was trained."""
        stage, config = stage_of(self.config, name), stage_config(self.config, name)
        network = bundle.language_model(stage, config.network)
        bundle.unpack(network, self.out / name / f"{name}.safetensors")
        return stage, network.eval().to(self.fabric.device), config


# --- What each step does ----------------------------------------------------------------------------------------------


def do_prepare(shop: Workshop) -> str:
    config = shop.config.prepare
    skipped: Skipped = []
    recordings = scan(shop.config.data, config.valid, config.test, shop.config.seed, config.minimum, skipped)
    if not any(recording.split == "train" for recording in recordings):
        raise InputError(f"{shop.config.data}: no recording is in the train split; correct the split column")
    rate = shop.config.codec.network.sample_rate
    with progress(len(recordings), label="prepare") as show:
        store = AudioStore.prepare(shop.out / "prepare", recordings, rate, config.minimum, skipped=skipped, show=show)
    return digest([asdict(entry) for entry in store.entries])


def do_codec(shop: Workshop) -> str:
    if shop.base:
        return shop.save(shop.base.codec, "codec")
    config = shop.config.codec
    crops, valid = shop.crops(config)
    with shop.run("codec", config, "prepare") as run:
        return shop.save(train_codec(config, crops, run, shop.fabric, valid), "codec")


def do_encoder(shop: Workshop) -> str:
    if shop.base:
        return shop.save(shop.base.semantic.encoder, "encoder")
    conformer = None
    for number, config in enumerate(shop.config.encoder, 1):
        crops, valid = shop.crops(config)
        with shop.run(f"encoder/pass-{number}", config, "prepare") as run:
            conformer = train_encoder(config, crops, run, shop.sharding, valid, conformer)
    assert conformer is not None
    return shop.save(conformer, "encoder")


def do_units(shop: Workshop) -> str:
    if shop.base:
        write_json(shop.out / "units" / "units.json", {"layer": shop.base.semantic.layer, "pnmi": {}})
        return shop.save(shop.base.semantic, "units")
    config, conformer = shop.config.units, shop.encoder()
    crops, _ = shop.crops(shop.config.encoder[-1])
    figures: dict[int, float] = {}
    if config.layer is None:
        figures, layer = choose_layer(conformer, config, crops, _phonetic_measure(shop))
        config = config.model_copy(update={"layer": layer})
    write_json(shop.out / "units" / "units.json", {"layer": config.layer, "pnmi": figures})
    units = fit_units(conformer, config, crops)
    return shop.save(SemanticTokenizer(conformer, units, config.layer or 0), "units")


def _phonetic_measure(shop: Workshop) -> Callable[[Callable[[torch.Tensor], torch.Tensor]], float]:
    store = shop.audio()
    numbers = store.split("valid")
    numbers = numbers[:: max(1, len(numbers) // shop.config.measured)]  # of all speakers
    if not numbers:
        raise InputError(f"{store.folder}: no valid recordings to choose a layer by; give units.layer=NUMBER, or more speakers")
    recordings = [(store.read(number)[None, None], store.entries[number].columns.get("transcript")) for number in numbers]
    phones = label_recordings(recordings)
    device = shop.fabric.device
    return lambda encode: measure_units(lambda audio: encode(audio.to(device)).cpu(), recordings, phones)["pnmi_corrected"]


def do_tokens(shop: Workshop) -> str:
    audio = AtSpeeds(shop.audio(), shop.config.tokens.speeds)
    with progress(len(audio), label="tokens") as show:
        store = tokenize_corpus(shop.semantic(), shop.codec(), audio, shop.out / "tokens", show)
    return digest([store.key, [entry.checksum for entry in store.entries]])


def do_stage(shop: Workshop, name: StageName) -> str:
    config, stage = stage_config(shop.config, name), stage_of(shop.config, name)
    store = TokenStore(shop.out / "tokens")
    crops = TokenCrops(store, stage, "train", config.batch_size, config.seed)
    valid = TokenCrops(store, stage, "valid", config.batch_size, config.seed + 1) if store.split("valid") else None
    listener = stage_listener(stage, shop.codec(), valid or crops)
    start = shop.base.stages[name][1] if shop.base and name in shop.base.stages else None
    with shop.run(name, trained_with(shop.config, name), "tokens") as run:
        return shop.save(train_lm(stage, config, crops, run, shop.sharding, valid, listener, start), name)


def do_bundle(shop: Workshop) -> str:
    config, store = shop.config, TokenStore(shop.out / "tokens")
    base = shop.base
    networks, sampling = (dict(base.stages), dict(base.sampling)) if base else ({}, {})
    for name in config.stages:
        stage, network, own = shop.trained(name)
        networks[name] = stage, network.cpu()
        if own.sampling:
            sampling[name] = own.sampling
    audio = shop.audio()
    about = {
        "name": config.name,
        "licence": config.licence,
        "hours": {split: round(audio.hours(split), 3) for split in SPLITS if audio.split(split)},
        "recordings": len(audio),
        "decoder": config.decoder,
        "training_seconds": {
            step.name: (read_json(shop.out / step.name / "time.json") or {}).get("seconds") for step in steps(config)[:-1]
        },
        "gates": verdicts(shop.out, [step.name for step in steps(config)]),
        "versions": versions(),
    }
    if base:
        about["base"] = {name: base.about.get(name) for name in ("name", "licence")}
    if config.semantic.dedup:
        about["mean_run"] = _mean_run(store)
    model = AudioLM(shop.semantic().cpu(), shop.codec().cpu(), networks, sampling, about)
    bundle.save(model, shop.out / "bundle", card(about, list(networks)), getattr(torch, config.weights))
    return file_hash(shop.out / "bundle" / "config.json")


def _mean_run(store: TokenStore) -> float:
    """How many frames a semantic token lasts on average: without repeats nothing else tells a generated token's length."""
    numbers = store.split("train")[:1000]
    codes = [store.read(number, "semantic") for number in numbers]
    return sum(each.shape[1] for each in codes) / max(1, sum(each[0].unique_consecutive().numel() for each in codes))
