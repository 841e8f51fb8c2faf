"""The recipe of a model as data: which recordings, which networks, how each is trained, what each must reach.

Every table of a recipe's file is a class here; what the steps do with them is in audiolm.training.steps.
"""

from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from audiolm import stages
from audiolm.asking import Sampling
from audiolm.config import Config, Seed
from audiolm.conformer import frame_count
from audiolm.errors import InputError
from audiolm.stages import Stage
from audiolm.tokens import TokenSpec
from audiolm.training.further import upon

try:
    from audiolm.training.gates import GatesConfig
    from audiolm.training.train_codec import CodecTrainConfig
    from audiolm.training.train_encoder import EncoderConfig, UnitsConfig
    from audiolm.training.train_lm import LMTrainConfig
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

    data: str = Field(min_length=1)
    out: str = Field(min_length=1)
    base: str | None = None  # a model to go on from: packaged, a bundle's folder, or a hub id
    name: str = "mine"
    licence: str = "not stated"
    seed: Seed = 0  # of whatever has no seed of its own below
    threads: int | None = Field(default=None, ge=1)  # processor threads; None: one per core
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "32-true"
    shard: bool = False  # under torchrun: the encoder and the stages are spread over the processes (FSDP2), not copied
    keep: int = Field(default=2, ge=1)  # checkpoints of each training, besides the best
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    listen_every: int = Field(default=1000, ge=0)  # steps between samples to listen to; 0: none
    weights: Literal["float32", "bfloat16", "int8"] = "bfloat16"  # of the bundle; int8: but not codebooks and centroids
    decoder: Literal["autoregressive", "parallel"] = "autoregressive"  # the bundle's own, where it has stages for both
    codebooks: int | None = Field(default=None, ge=1)  # levels of what the bundle makes if nothing is said; None: all
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

    @field_validator("data")
    @classmethod
    def _without_slash(cls, data: str) -> str:
        """A shell completes "corpus" to "corpus/"; what is recorded of a run must not tell them apart."""
        return data.rstrip("/") or "/"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        rate, hop = self.codec.network.sample_rate, self.codec.network.hop
        if rate != 16_000 or 640 % hop:
            raise ValueError(f"codec.network: {rate} Hz and hop {hop}; the encoder's frames are 640 samples of 16000 Hz")
        if not self.encoder or len(set(self.stages)) < len(self.stages):
            raise ValueError("at least one pass of the encoder, and each stage once")
        # What does not fit is found now, not after the hours before it.
        if self.decoder == "parallel" and "parallel" not in self.stages:
            raise ValueError("decoder=parallel: the stages are without parallel; list it among them, or leave decoder out")
        for name in ("semantic", "fine"):
            if stage_config(self, name).levels is not None:
                raise ValueError(f"{name}.levels: how many there are follows from the other stages; leave it out")
        if self.codebooks and self.codebooks > self.codec.network.num_codebooks:
            raise ValueError(f"codebooks={self.codebooks}: the codec has {self.codec.network.num_codebooks}")
        earlier = None
        for number, each in enumerate(self.encoder):
            each.check(f"encoder.{number}", earlier)
            earlier = each.network
        frames = self.units.batches * self.encoder[-1].batch_size * frame_count(round(16_000 * self.encoder[-1].seconds))
        if frames < self.units.units:
            raise ValueError(
                f"units.batches={self.units.batches}: {frames} frames cannot make {self.units.units} units; give more"
            )
        layer, layers = self.units.layer, self.encoder[-1].network.layers
        if layer is None and not layers:
            raise ValueError("units.layer: there are none to choose from in an encoder without layers; give units.layer=0")
        if layer is not None and layer > layers:
            raise ValueError(f"units.layer={layer}: the encoder has {layers} layers")
        for name in self.stages:
            stage, sampling = stage_of(self, name), stage_config(self, name).sampling
            if sampling is not None and sampling.passes is not None and not stage.parallel:
                raise ValueError(f"{name}.sampling.passes: only a parallel stage makes passes; leave it out")
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


def trained_with(config: RecipeConfig, name: StageName) -> dict[str, Any]:
    """A stage's table without what matters to generation only."""
    return {key: value for key, value in stage_config(config, name).plain().items() if key != "sampling"}
