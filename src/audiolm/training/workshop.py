"""What the steps of a recipe share: its folder, the accelerator, and the results of the steps that are done."""

import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from torch import Tensor, nn

from audiolm import bundle, kernels
from audiolm.codec import Codec
from audiolm.config import Config, difference
from audiolm.errors import InputError
from audiolm.files import file_hash, read_json, save_tensors
from audiolm.kmeans import KMeans
from audiolm.model import AudioLM
from audiolm.route import decoders, route
from audiolm.stages import Stage
from audiolm.tokenizers import Encoder, SemanticTokenizer
from audiolm.training.alignment import ROUNDS, ReadStore
from audiolm.training.audio_store import AudioCrops, AudioStore
from audiolm.training.corpus import tokenizer_key
from audiolm.training.data import SPLITS
from audiolm.training.engine import engine
from audiolm.training.recipe import (
    RecipeConfig,
    StageConfig,
    StageName,
    Weights,
    codec_network,
    encoder_network,
    stage_config,
    stage_of,
)
from audiolm.training.run import Run, progress
from audiolm.training.token_store import Key, TokenCrops, Tokenized, TokenStore, is_token_store
from audiolm.training.train_codec import CodecTrainConfig
from audiolm.training.train_encoder import EncoderConfig
from audiolm.training.train_lm import Vectors
from audiolm.transformer import LanguageModel


class Workshop:
    """What the steps share: the recipe, its folder, the accelerator, and the results of finished steps."""

    def __init__(self, config: RecipeConfig) -> None:
        self.config, self.out = config, Path(config.out)
        self.fabric = engine(config.device, config.precision)
        self.sharding = engine(config.device, config.precision, shard=True) if config.shard else self.fabric
        device = self.fabric.device
        if "bf16" in config.precision and device.type == "cpu" and "bf16" not in kernels.available(device):
            missing = f"precision={config.precision}: this processor has no bfloat16 and emulates it, many times slower"
            print(f"{missing}; precision=auto picks what it supports", file=sys.stderr, flush=True)
        self.base = bundle.load_folder(bundle.folder_of(config.base)) if config.base else None
        self.carried = self.base.stages if self.base else {}  # stages to continue training, or to keep as they are
        self.read: ReadStore | None = None  # aligning transcripts takes a minute
        self.latest: Run | None = None  # of the runs that this process began
        self.tokenized = is_token_store(config.data)  # there is no audio, only tokens
        if self.tokenized and self.base is None:
            raise InputError(f"data={config.data}: a token store; give base=MODEL as well, whose tokenizers made it")
        if self.tokenized and config.tokens.speeds != (1.0,):
            raise InputError(f"data={config.data}: a token store, which has its own speeds; give tokens.speeds=[1]")
        if self.tokenized and self.base is not None:
            self._check_store(self.base)
        self._check_route()

    def _check_store(self, base: AudioLM) -> None:
        """Raise InputError now if other tokenizers made the store than the base's as they will be saved."""
        store, chosen = self.token_store(), self.config.weights

        def key(weights: Weights) -> Key:
            parts = {"units": deepcopy(base.semantic), "codec": deepcopy(base.codec)}
            with TemporaryDirectory() as folder:
                for step, part in parts.items():
                    save_tensors(path := Path(folder) / step, _as_saved(part, step, weights))
                    bundle.unpack(part, path)
            return tokenizer_key(parts["units"], parts["codec"])

        if changed := difference(store.key, key(chosen)):
            fitting = next((each for each in get_args(Weights) if each != chosen and key(each) == store.key), None)
            if fitting:
                raise InputError(f"weights={chosen}: would round the tokenizers that made {store.folder}; give weights={fitting}")
            raise InputError(f"{store.folder}: not made by the tokenizers of base={self.config.base} ({changed})")
        if not store.split("train"):
            raise InputError(f"{store.folder}: no recording is in the train split; tokenize them with a split column")

    def _check_route(self) -> None:
        """Raise InputError now if the bundle could not generate, rather than once everything is trained."""
        config = self.config
        own = {name: stage_of(config, name) for name in config.stages}
        bundled = {name: stage for name, (stage, _) in self.carried.items()} | own
        ways: list[dict[str, Any]] = [{"decoder": each} for each in decoders(bundled)]
        if "acoustic" in bundled:
            ways.append({"chain": "acoustic"})
        for way in ways:
            for codebooks in (None, config.codebooks):  # all levels, and those that it makes by default
                route(bundled, {}, {"codebooks": codebooks}, [], **way)

    # Results

    def audio(self) -> AudioStore:
        return AudioStore(self.out / "prepare")

    def crops(self, config: CodecTrainConfig | EncoderConfig) -> tuple[AudioCrops, AudioCrops | None]:
        """Crops for training and for validation; None for the latter if there are no valid recordings."""
        store = self.audio()
        hop = encoder_network(self.config).hop  # a crop starts where a unit does
        make = partial(AudioCrops, store, seconds=config.seconds, batch_size=config.batch_size, align=hop)
        return make(split="train", seed=config.seed), make(split="valid", seed=config.seed + 1) if store.split("valid") else None

    def train_crops(self) -> AudioCrops:
        """The training crops of the encoder's last pass."""
        return self.crops(self.config.encoder[-1])[0]

    def token_store(self) -> TokenStore:
        return TokenStore(self.config.data if self.tokenized else self.out / "tokens")

    def hours(self) -> dict[str, float]:
        """Hours of the recordings in each split that has any."""
        if self.tokenized:
            return {split: each["hours"] for split, each in self.token_store().summary()["splits"].items()}
        return {split: self.audio().hours(split) for split in SPLITS if self.audio().split(split)}

    def tokens(self, name: StageName) -> Tokenized:
        """The tokens that a stage is trained on."""
        store = self.token_store()
        if name != "text":
            return store
        if self.read is None:
            with progress(ROUNDS, label="letters") as show:
                self.read = ReadStore(store, show)
        return self.read

    def token_crops(self, name: StageName, split: str) -> TokenCrops:
        """A stage's batches; "valid" falls back to training ones if there are no valid recordings."""
        config, store = stage_config(self.config, name), self.tokens(name)
        chosen, seed = (split, config.seed + 1) if split == "valid" and store.split("valid") else ("train", config.seed)
        return TokenCrops(store, stage_of(self.config, name), chosen, config.batch_size, seed)

    def run(self, folder: str, config: Config | dict[str, Any], source: str) -> Run:
        """The run folder of a training that reads the result of step `source`."""
        self.stop_if_asked()  # the encoder's passes are runs of one step
        own, done = self.config, read_json(self.out / source / "done.json")
        data = done["result"] if done else None
        self.latest = Run(self.out / folder, config, own.keep, own.tracker, own.listen_every, data)
        return self.latest

    def stop_if_asked(self) -> None:
        """Raise Stopped if a signal asked for it when the latest training was at its end."""
        if self.latest is not None:
            self.latest.stop_if_asked()

    def save(self, part: nn.Module, step: str) -> str:
        """Save a network as the bundle will, so that whatever trains on it sees exactly what is shipped; returns its hash."""
        if self.fabric.global_rank:
            return ""  # only the first process's result counts; no barrier here, as not every process runs every step
        path = self.out / step / f"{step}.safetensors"
        save_tensors(path, _as_saved(part, step, self.config.weights))
        return file_hash(path)

    def codec(self) -> Codec:
        codec = bundle.codec_of(codec_network(self.config))
        bundle.unpack(codec, self.out / "codec" / "codec.safetensors")
        return codec.eval().to(self.fabric.device)

    def encoder(self) -> Encoder:
        encoder = bundle.encoder_of(encoder_network(self.config))
        bundle.unpack(encoder, self.out / "encoder" / "encoder.safetensors")
        return encoder.eval().to(self.fabric.device)

    def semantic(self) -> SemanticTokenizer:
        encoder = bundle.encoder_of(encoder_network(self.config))
        layer = read_json(self.out / "units" / "units.json")["layer"]
        semantic = SemanticTokenizer(encoder, KMeans(self.config.units.units, encoder.config.features), layer)
        bundle.unpack(semantic, self.out / "units" / "units.safetensors")
        return semantic.eval().to(self.fabric.device)

    def vectors(self) -> Vectors:
        """The vectors the codes stand for."""
        return {"semantic": [self.semantic().units.centroids], "acoustic": self.codec().quantizer.vectors()}

    def trained(self, name: StageName) -> tuple[Stage, LanguageModel, StageConfig]:
        """A stage, its trained language model, and the configuration it was trained with."""
        stage, config = stage_of(self.config, name), stage_config(self.config, name)
        network = bundle.language_model(stage, config.network)
        bundle.unpack(network, self.out / name / f"{name}.safetensors")
        return stage, network.eval().to(self.fabric.device), config


def _as_saved(part: nn.Module, step: str, weights: Weights) -> dict[str, Tensor]:
    kept = torch.bfloat16 if weights == "int8" and step != "units" else getattr(torch, weights)
    return bundle.packed(part, kept, bundle.deciding(step, part))
