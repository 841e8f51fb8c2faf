"""From a folder of audio to a model of your own: a chain of steps, each done once.

    prepare -> codec ------------------------.-> tokens -> semantic, coarse, fine, ... -> bundle
          `--> encoder -> units (k-means) --'

Finished steps are never repeated, and results made from other inputs or options are refused (audiolm.training.chain). Killed at
any moment, the same call resumes: training steps from their run folders, the others from their stores. With a `base`, the codec,
encoder and units are taken from it instead of trained, and the stages start from its weights (audiolm.training.further).
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audiolm import bundle, kernels
from audiolm.codec import Codec
from audiolm.config import Config, completed, digest
from audiolm.conformer import Conformer
from audiolm.errors import InputError
from audiolm.files import file_hash, read_json, save_tensors, write_json
from audiolm.kmeans import KMeans
from audiolm.model import AudioLM
from audiolm.route import route
from audiolm.stages import Stage
from audiolm.tokenizers import SemanticTokenizer
from audiolm.training.audio_store import AudioCrops, AudioStore
from audiolm.training.card import card
from audiolm.training.data import SPLITS, Skipped, listed, scan
from audiolm.training.further import TAKEN, weights
from audiolm.training.recipe import RecipeConfig, StageConfig, StageName, stage_config, stage_of, trained_with
from audiolm.training.run import Run, progress, versions
from audiolm.training.speeds import AtSpeeds
from audiolm.training.storage import is_remote, place
from audiolm.training.token_store import TokenCrops, Tokenized, TokenStore
from audiolm.transformer import LanguageModel

try:
    from audiolm.measuring.phonetics import label_recordings, measure_units
    from audiolm.training.alignment import ROUNDS, ReadStore
    from audiolm.training.chain import Chain, Step
    from audiolm.training.corpus import tokenize_corpus
    from audiolm.training.engine import engine
    from audiolm.training.gates import check, verdicts
    from audiolm.training.listening import stage_listener
    from audiolm.training.train_codec import CodecTrainConfig, train_codec
    from audiolm.training.train_encoder import EncoderConfig, choose_layer, fit_units, train_encoder
    from audiolm.training.train_lm import Vectors, train_lm
except ImportError as missing:
    raise InputError(f"training needs {missing.name}; run: pip install 'audiolm[train]'") from missing


def steps(config: RecipeConfig) -> list[Step]:
    """A recipe's steps, in order."""
    prepare = {"data": config.data, "sample_rate": config.codec.network.sample_rate, "seed": config.seed}
    of_base = weights(config.base) if config.base else {}

    # Precision, like the device, belongs to the machine, not the record; older records contain it nonetheless.
    def record_of(part: Config) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda record: completed({key: each for key, each in record.items() if key != "precision"}, part)

    def record_of_passes(record: dict[str, Any]) -> dict[str, Any]:
        passes = {str(number): each for number, each in enumerate(config.encoder)}
        return {
            key: completed(each, passes[key]) if key in passes else each for key, each in record.items() if key != "precision"
        }

    chain = [Step("prepare", (), prepare | config.prepare.plain(), do_prepare, completed=record_of(config.prepare))]
    if config.base:
        chain += [Step(name, ("prepare",), {"base": of_base[part]}, TAKING[name]) for name, part in TAKEN.items()]
    else:
        encoder = {str(number): each.plain() for number, each in enumerate(config.encoder)}
        units = config.units.plain() | {"measured": config.measured}
        if config.weights == "int8":
            units |= {"weights": "int8"}  # the tokens are made with these weights
        chain += [
            Step("codec", ("prepare",), config.codec.plain(), do_codec, True, record_of(config.codec)),
            Step("encoder", ("prepare",), encoder, do_encoder, True, record_of_passes),
            Step("units", ("prepare", "encoder"), units, do_units, completed=record_of(config.units)),
        ]
    chain.append(
        Step("tokens", ("prepare", "codec", "units"), config.tokens.plain(), do_tokens, completed=record_of(config.tokens))
    )
    for name in config.stages:
        plain = trained_with(config, name) | {"stage": stage_of(config, name).to_dict()}
        if name in of_base:
            plain["base"] = of_base[name]
        inputs = ("tokens", "semantic") if begins_with_semantic(config, name) else ("tokens",)
        chain.append(Step(name, inputs, plain, partial(do_stage, name=name), True, record_of(stage_config(config, name))))
    sampling = {name: stage_config(config, name).plain()["sampling"] for name in config.stages}
    about = {
        "name": config.name,
        "licence": config.licence,
        "sampling": sampling,
        "weights": config.weights,
        "decoder": config.decoder,
    }
    if config.codebooks:
        about["codebooks"] = config.codebooks
    chain.append(Step("bundle", ("codec", "units", *config.stages), about, do_bundle))
    return chain


def run_recipe(config: RecipeConfig, only: str | None = None, force: bool = False, ignore_gates: bool = False) -> Path:
    """Run every unfinished step, or just the step `only`, whose inputs must be done; returns the bundle's folder.

    force: delete and redo a step made from other inputs or options; the step in `only` is redone in any case.
    ignore_gates: continue past results that are not good enough, and record that.
    InputError if a step was made from other inputs or options, an input is not done, or there is no such step; GateFailed
    if a result is below a threshold of config.gates.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    shop = Workshop(config)
    if shop.fabric.global_rank == 0 and not force:
        _say_what_is_new(config)
    gates = partial(check, shop=shop, config=config.gates, ignore=ignore_gates)
    Chain(shop.out, steps(config), shop.fabric, config.seed).run(shop, only, force, gates)
    return shop.out / "bundle"


def _say_what_is_new(config: RecipeConfig) -> None:
    """Recordings added or removed since `prepare` are no error, as training may take weeks, but the user is told."""
    done = Path(config.out) / "prepare"
    if not (done / "done.json").is_file() or is_remote(place(config.data)):
        return
    try:
        now, prepared = listed(config.data), {entry.name for entry in AudioStore(done).entries}
    except InputError:  # the recordings or the store are gone; whichever step needs them will say so
        return
    added, gone = len(now - prepared - {each["name"] for each in read_json(done / "skipped.json") or []}), len(prepared - now)
    if added or gone:
        found = f"{config.data}: {added} recordings added and {gone} removed since it was prepared"
        print(f"{found}; to use the current ones: --only prepare --force", file=sys.stderr, flush=True)


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
        own = {name: stage_of(config, name) for name in config.stages}
        bundled = {name: stage for name, (stage, _) in self.carried.items()} | own
        if bundled.keys() & {"coarse", "piano", "parallel"}:
            route(bundled, {}, {}, [])  # an error now, rather than once everything is trained

    # Results

    def audio(self) -> AudioStore:
        return AudioStore(self.out / "prepare")

    def crops(self, config: CodecTrainConfig | EncoderConfig) -> tuple[AudioCrops, AudioCrops | None]:
        """Crops for training and for validation; None for the latter if there are no valid recordings."""
        store = self.audio()
        make = partial(AudioCrops, store, seconds=config.seconds, batch_size=config.batch_size)
        return make(split="train", seed=config.seed), make(split="valid", seed=config.seed + 1) if store.split("valid") else None

    def train_crops(self) -> AudioCrops:
        """The training crops of the encoder's last pass."""
        return self.crops(self.config.encoder[-1])[0]

    def tokens(self, name: StageName) -> Tokenized:
        """The tokens that a stage is trained on."""
        store = TokenStore(self.out / "tokens")
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
        own, done = self.config, read_json(self.out / source / "done.json")
        return Run(self.out / folder, config, own.keep, own.tracker, own.listen_every, data=done["result"] if done else None)

    def save(self, part: nn.Module, step: str) -> str:
        """Save a network as the bundle will, so that whatever trains on it sees exactly what is shipped; returns its hash."""
        if self.fabric.global_rank:
            return ""  # only the first process's result counts; no barrier here, as not every process runs every step
        path = self.out / step / f"{step}.safetensors"
        kept = torch.int8 if step == "units" and self.config.weights == "int8" else torch.bfloat16
        save_tensors(path, bundle.packed(part, kept, bundle.deciding(step, part)))
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
        semantic = SemanticTokenizer(conformer, KMeans(self.config.units.units, conformer.config.features), layer)
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


# --- What each step does ----------------------------------------------------------------------------------------------


def do_prepare(shop: Workshop) -> str:
    config = shop.config.prepare
    skipped: Skipped = []
    recordings = scan(shop.config.data, config.valid, config.test, shop.config.seed, config.minimum, skipped)
    if not any(recording.split == "train" for recording in recordings):
        raise InputError(f"{shop.config.data}: no recording is in the train split; fix the split column")
    told = [each for each in recordings if each.split == "train" and each.columns.get("transcript")]
    if "text" in shop.config.stages and not told:
        cure = "add the column, or leave text out of stages"
        raise InputError(f"{shop.config.data}: no train recording has a transcript for the text stage; {cure}")
    rate = shop.config.codec.network.sample_rate
    with progress(len(recordings), label="prepare") as show:
        store = AudioStore.prepare(shop.out / "prepare", recordings, rate, config.minimum, skipped=skipped, show=show)
    return digest([asdict(entry) for entry in store.entries])


def do_codec(shop: Workshop) -> str:
    config = shop.config.codec
    crops, valid = shop.crops(config)
    with shop.run("codec", config, "prepare") as run:
        return shop.save(train_codec(config, crops, run, shop.fabric, valid), "codec")


def do_encoder(shop: Workshop) -> str:
    conformer = None
    for number, config in enumerate(shop.config.encoder, 1):
        crops, valid = shop.crops(config)
        with shop.run(f"encoder/pass-{number}", config, "prepare") as run:
            conformer = train_encoder(config, crops, run, shop.sharding, valid, conformer)
    assert conformer is not None
    return shop.save(conformer, "encoder")


def do_units(shop: Workshop) -> str:
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
    numbers = numbers[:: max(1, len(numbers) // shop.config.measured)]  # spread over all speakers
    if not numbers:
        raise InputError(f"{store.folder}: no valid recordings to choose a layer with; set units.layer=NUMBER, or add speakers")
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
    store = shop.tokens(name)
    crops = TokenCrops(store, stage, "train", config.batch_size, config.seed, config.any_speed)
    valid = TokenCrops(store, stage, "valid", config.batch_size, config.seed + 1) if store.split("valid") else None
    listener = stage_listener(stage, shop.codec(), valid or crops)
    start, kin = shop.carried[name][1] if name in shop.carried else None, None
    if start is not None and shop.carried[name][0].predict != stage.predict:  # other levels than the base's
        start, kin = None, shop.carried[name]
    if name == "text":  # it predicts what the semantic stage does
        kin = shop.trained("semantic")[:2] if begins_with_semantic(shop.config, name) else shop.carried.get("semantic")
        if shop.read and shop.fabric.global_rank == 0:
            letters = {str(byte): round(each, 4) for byte, each in shop.read.reading.seconds.items()}
            write_json(shop.out / name / "letters.json", letters)
    with shop.run(name, trained_with(shop.config, name), "tokens") as run:
        trained = train_lm(stage, config, crops, run, shop.sharding, valid, listener, start, shop.vectors(), kin)
        return shop.save(trained, name)


def begins_with_semantic(config: RecipeConfig, name: StageName) -> bool:
    """Whether a stage starts from what this recipe's semantic stage has learned before."""
    return name == "text" and "semantic" in config.stages[: config.stages.index(name)]


def do_bundle(shop: Workshop) -> str:
    config, store = shop.config, TokenStore(shop.out / "tokens")
    networks, sampling = dict(shop.carried), dict(shop.base.sampling) if shop.base else {}
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
    if config.codebooks:
        about["codebooks"] = config.codebooks
    if shop.base:
        about["base"] = {name: shop.base.about.get(name) for name in ("name", "licence")}
    if config.semantic.dedup:
        about["mean_run"] = _mean_run(store)
    if "text" in config.stages:
        about["letter_seconds"] = read_json(shop.out / "text" / "letters.json")
    elif shop.base and "letter_seconds" in shop.base.about:
        about["letter_seconds"] = shop.base.about["letter_seconds"]
    model = AudioLM(shop.semantic().cpu(), shop.codec().cpu(), networks, sampling, about)
    bundle.save(model, shop.out / "bundle", card(about, list(networks)), getattr(torch, config.weights))
    return file_hash(shop.out / "bundle" / "config.json")


def _mean_run(store: TokenStore) -> float:
    """A semantic token's mean length in frames: with repeats removed, nothing else says how long one lasts."""
    numbers = store.split("train")[:1000]
    codes = [store.read(number, "semantic") for number in numbers]
    return sum(each.shape[1] for each in codes) / max(1, sum(each[0].unique_consecutive().numel() for each in codes))


# --- The same, taken from a base -----------------------------------------------------------------------------------------


def take_codec(shop: Workshop) -> str:
    return shop.save(_base(shop).codec, "codec")


def take_encoder(shop: Workshop) -> str:
    return shop.save(_base(shop).semantic.encoder, "encoder")


def take_units(shop: Workshop) -> str:
    write_json(shop.out / "units" / "units.json", {"layer": _base(shop).semantic.layer, "pnmi": {}})
    return shop.save(_base(shop).semantic, "units")


TAKING = {"codec": take_codec, "encoder": take_encoder, "units": take_units}


def _base(shop: Workshop) -> AudioLM:
    assert shop.base is not None
    return shop.base
