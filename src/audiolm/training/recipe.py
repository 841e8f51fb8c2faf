"""A model's recipe as data: which recordings and networks to use, how to train each network, and what each must reach.

Every table of a recipe file is a class here; audiolm.training.steps acts on them.
"""

from dataclasses import replace
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from audiolm import stages
from audiolm.adapters import dac, hubert
from audiolm.adapters.dac import DacConfig
from audiolm.adapters.hubert import HubertConfig
from audiolm.asking import Sampling
from audiolm.codec import CodecConfig
from audiolm.config import Config, Seed
from audiolm.conformer import ConformerConfig
from audiolm.errors import InputError
from audiolm.stages import Stage
from audiolm.text import SPEC as TEXT
from audiolm.tokenizers import semantic_spec
from audiolm.training.further import found, upon

try:
    from audiolm.training.engine import Precision
    from audiolm.training.gates import GatesConfig
    from audiolm.training.train_codec import CodecTrainConfig
    from audiolm.training.train_encoder import EncoderConfig, UnitsConfig
    from audiolm.training.train_lm import LMTrainConfig
except ImportError as missing:
    raise InputError(f"training needs {missing.name}; run: pip install 'audiolm[train]'") from missing

StageName = Literal["semantic", "coarse", "fine", "acoustic", "piano", "parallel", "text"]
Weights = Literal["bfloat16", "int8", "float32"]


class PrepareConfig(Config):
    """Which recordings to use, and how to split them where no manifest does (as shares of the speakers)."""

    valid: float = Field(default=0.05, ge=0, lt=1)
    test: float = Field(default=0.05, ge=0, lt=1)
    seed: Seed = 0
    minimum: float = Field(default=0.5, gt=0)  # seconds; shorter recordings are skipped


class TakeConfig(Config):
    """Tokenizers of others to use in place of a [codec] or an [[encoder]] of our own: a hub id or a folder of transformers'.

    They are not trained. The units are k-means on the encoder's features as on ours: at `frame_rate` Hz, by default its own.
    """

    codec: DacConfig | None = None
    encoder: HubertConfig | None = None
    frame_rate: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(name := data.get("codec"), str):
            data["codec"] = dac.read(found(name), name)
        if isinstance(name := data.get("encoder"), str):
            rate = data.get("frame_rate")
            data["encoder"] = hubert.read(found(name), name, rate if isinstance(rate, int | float) else None)
        elif "frame_rate" in data and "encoder" not in data:
            raise ValueError("frame_rate: of an encoder that is taken; give take.encoder as well, or leave frame_rate out")
        return data


class TokensConfig(Config):
    """What the stages train on: every recording, plus the training ones at other speeds (1.1: faster, higher-pitched)."""

    speeds: tuple[float, ...] = (1.0,)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if 1.0 not in self.speeds or len(set(self.speeds)) < len(self.speeds) or not all(0.5 <= s <= 2 for s in self.speeds):
            raise ValueError(f"speeds={list(self.speeds)}: give distinct values from 0.5 to 2, including 1")
        return self


class StageConfig(LMTrainConfig):
    """How to train a stage's language model, and where the stage departs from the paper (None: nowhere)."""

    levels: int | None = Field(default=None, ge=1)  # predicted levels; None: see `stage_of`
    dedup: bool = False
    crop: float | None = Field(default=None, gt=0)  # seconds
    overlap: float | None = Field(default=None, ge=0)  # seconds
    any_speed: bool = False  # the units given are those of the recording at any of tokens.speeds: see TokenCrops
    sampling: Sampling | None = None


class RecipeConfig(Config):
    """The whole chain; everything is written to `out`.

    data: a folder of audio, a manifest.csv, or, with a base, a token store that the base's tokenizers made.
    """

    data: str = Field(min_length=1)
    out: str = Field(min_length=1)
    base: str | None = None  # model to start from: a packaged name, a bundle folder or a hub id
    name: str = "mine"
    licence: str = "not stated"
    seed: Seed = 0  # for every table below that sets no seed of its own
    threads: int | None = Field(default=None, ge=1)  # CPU threads; None: one per core
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Precision = "32-true"
    shard: bool = False  # under torchrun: shard encoder and stages (FSDP2), not replicate them
    keep: int = Field(default=2, ge=1)  # checkpoints per training run, besides the best
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    listen_every: int = Field(default=1000, ge=0)  # steps between audio samples; 0: none
    weights: Weights = "bfloat16"  # of the bundle; int8 leaves codebooks and centroids as they are
    decoder: Literal["autoregressive", "parallel"] = "autoregressive"  # the bundle's default, where it has stages for both
    codebooks: int | None = Field(default=None, ge=1)  # levels the bundle generates by default; None: all
    prepare: PrepareConfig = PrepareConfig()
    take: TakeConfig = TakeConfig()
    codec: CodecTrainConfig = CodecTrainConfig.model_validate({})
    encoder: tuple[EncoderConfig, ...] = (EncoderConfig.model_validate({}),)  # passes; each may build on the previous one
    units: UnitsConfig = UnitsConfig.model_validate({})
    tokens: TokensConfig = TokensConfig()
    measured: int = Field(default=60, ge=1)  # valid recordings used to choose a layer if units.layer is not given
    stages: tuple[StageName, ...] = ("semantic", "coarse", "fine")
    semantic: StageConfig = StageConfig()
    coarse: StageConfig = StageConfig()
    fine: StageConfig = StageConfig()
    acoustic: StageConfig = StageConfig()
    piano: StageConfig = StageConfig()
    parallel: StageConfig = StageConfig()
    text: StageConfig = StageConfig()
    gates: GatesConfig = GatesConfig()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("base"), str):
            data = upon(data)
        elif isinstance(data, dict) and isinstance(take := data.get("take"), dict):
            for name in sorted({"codec", "encoder"} & take.keys() & data.keys()):
                raise ValueError(f"{name}: take.{name} stands in its place; leave one of them out")
        if isinstance(data, dict) and "seed" in data:
            data = {**data, "encoder": data.get("encoder", [{}])}
            for name in ("prepare", "codec", "units", *get_args(StageName)):
                data[name] = _seeded(data.get(name, {}), data["seed"])
            if isinstance(data["encoder"], list | tuple):
                data["encoder"] = [_seeded(each, data["seed"]) for each in data["encoder"]]
        return data

    @field_validator("data")
    @classmethod
    def _without_slash(cls, data: str) -> str:
        """Shells complete "corpus" to "corpus/"; the two must not look like different data in a run's records."""
        return data.rstrip("/") or "/"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.encoder or len(set(self.stages)) < len(self.stages):
            raise ValueError("give at least one [[encoder]] pass, and name each stage once")
        codec, encoder = codec_network(self), encoder_network(self)
        if codec.sample_rate != encoder.sample_rate or encoder.hop % codec.hop:
            raise ValueError(
                f"{'take.codec' if self.take.codec else 'codec.network'}: {codec.sample_rate} Hz, hop {codec.hop}; "
                f"use {encoder.sample_rate} Hz and a hop that divides the encoder's {encoder.hop}"
            )
        # Check here that everything fits together, rather than hours into training.
        if self.decoder == "parallel" and "parallel" not in self.stages and not self.base:
            raise ValueError("decoder=parallel: stages does not list parallel; add it, or leave decoder out")
        for name in ("semantic", "fine", "text"):
            if stage_config(self, name).levels is not None:
                raise ValueError(f"{name}.levels: determined by the other stages; leave it out")
        if self.codebooks and self.codebooks > codec.num_codebooks:
            raise ValueError(f"codebooks={self.codebooks}: the codec has {codec.num_codebooks}")
        earlier = None
        for number, each in enumerate(self.encoder):
            each.check(f"encoder.{number}", earlier)
            earlier = each.network
        samples = round(encoder.sample_rate * self.encoder[-1].seconds)
        frames = self.units.batches * self.encoder[-1].batch_size * -(-samples // encoder.hop)
        if frames < self.units.units:
            raise ValueError(
                f"units.batches={self.units.batches}: {frames} frames are too few for {self.units.units} units; give more"
            )
        layer, layers = self.units.layer, encoder.layers
        if layer is None and not layers:
            raise ValueError("units.layer: an encoder without layers leaves none to choose from; give units.layer=0")
        if layer is not None and layer > layers:
            raise ValueError(f"units.layer={layer}: the encoder has {layers} layers")
        for name in self.stages:
            stage, sampling = stage_of(self, name), stage_config(self, name).sampling
            if sampling is not None and sampling.passes is not None and not stage.parallel:
                raise ValueError(f"{name}.sampling.passes: only parallel stages have passes; leave it out")
            if sampling is not None and sampling.keep_repeats and (stage.parallel or stage.predict.levels > 1):
                raise ValueError(f"{name}.sampling.keep_repeats: only for stages that predict one level; leave it out")
            if stage_config(self, name).any_speed and not any(stream.spec.name == "semantic" for stream in stage.given):
                raise ValueError(f"{name}.any_speed: only for stages that are given semantic tokens; leave it out")
            if stage_config(self, name).any_speed and len(self.tokens.speeds) < 2:
                raise ValueError(f"{name}.any_speed: tokens.speeds has only one; give more, or leave any_speed out")
        return self


def _seeded(table: Any, seed: int) -> Any:
    return {"seed": seed, **table} if isinstance(table, dict) else table


def codec_network(config: RecipeConfig) -> CodecConfig | DacConfig:
    """The recipe's codec, whether it is trained or taken."""
    return config.take.codec or config.codec.network


def encoder_network(config: RecipeConfig) -> ConformerConfig | HubertConfig:
    """The recipe's semantic encoder, whether it is trained or taken."""
    return config.take.encoder or config.encoder[-1].network


def taken(config: RecipeConfig) -> dict[str, DacConfig | HubertConfig]:
    """The tokenizers of others that the recipe uses, by the step that would train them."""
    return {name: each for name, each in (("codec", config.take.codec), ("encoder", config.take.encoder)) if each}


def stage_of(config: RecipeConfig, name: StageName) -> Stage:
    """The stage as this recipe configures it. By default coarse predicts 4 levels, piano and parallel all."""
    own, acoustic = stage_config(config, name), codec_network(config).spec
    semantic = semantic_spec(encoder_network(config), config.units.units)
    match name:
        case "semantic":
            stage = stages.semantic(semantic)
        case "text":
            if semantic.frame_rate != TEXT.frame_rate:
                cure = f"give take.frame_rate={TEXT.frame_rate:g}, or leave text out of stages"
                raise ValueError(f"text: needs as many units a second as letters, {TEXT.frame_rate:g}; {cure}")
            stage = stages.text(semantic)
        case "coarse":
            stage = stages.coarse(semantic, acoustic, _levels(config, name))
        case "fine":
            before = levels_before_fine(config)
            if before == acoustic.num_codebooks:
                raise ValueError(f"fine: the other stages make all of the codec's {before} levels; leave fine out of stages")
            stage = stages.fine(acoustic, before)
        case "acoustic":
            baseline = levels_before_fine(config) if "fine" in config.stages else acoustic.num_codebooks
            stage = stages.acoustic_only(acoustic, own.levels or baseline)
        case "piano":
            stage = stages.piano(semantic, acoustic, _levels(config, name))
        case "parallel":
            stage = stages.parallel(semantic, acoustic, _levels(config, name))
    crop = own.crop or stage.crop
    # A crop shorter than the paper's keeps the paper's proportion of overlap.
    overlap = stage.overlap * crop / stage.crop if own.overlap is None else own.overlap
    return replace(stage, dedup=own.dedup, crop=crop, overlap=overlap)


def levels_before_fine(config: RecipeConfig) -> int:
    """Where fine begins: after coarse (or piano), or after parallel if that makes more than coarse but not all, or alone."""

    def made(name: StageName) -> int:
        there = name in config.stages or (config.base is not None and stage_config(config, name).levels is not None)
        return _levels(config, name) if there else 0

    first, more = made("coarse") or made("piano"), made("parallel")
    if first < more and (not first or more < codec_network(config).num_codebooks):
        return more
    return first or config.acoustic.levels or _levels(config, "coarse")


def _levels(config: RecipeConfig, name: StageName) -> int:
    """How many levels coarse, piano or parallel predicts."""
    every = codec_network(config).num_codebooks
    return stage_config(config, name).levels or (min(4, every) if name == "coarse" else every)


def stage_config(config: RecipeConfig, name: StageName) -> StageConfig:
    """The recipe's table for a stage."""
    return getattr(config, name)


def trained_with(config: RecipeConfig, name: StageName) -> dict[str, Any]:
    """A stage's table without what only affects generation."""
    return {key: value for key, value in stage_config(config, name).plain().items() if key != "sampling"}
