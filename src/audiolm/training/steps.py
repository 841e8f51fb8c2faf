"""From a folder of audio to a model of your own: a chain of steps, each done once.

    prepare -> codec ------------------------.-> tokens -> semantic, coarse, fine, ... -> bundle
          `--> encoder -> units (k-means) --'

Finished steps are never repeated, and results made from other inputs or options are refused (audiolm.training.chain). Killed at
any moment, the same call resumes: training steps from their run folders, the others from their stores. With a `base`, the codec,
encoder and units are taken from it instead of trained, and the stages start from its weights (audiolm.training.further). If
`data` is a token store that these tokenizers made, nothing is prepared or tokenized.
"""

import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from audiolm import bundle
from audiolm.adapters import dac
from audiolm.adapters.hubert import Hubert
from audiolm.config import Config, completed, digest
from audiolm.errors import InputError
from audiolm.files import file_hash, read_json, write_json
from audiolm.model import AudioLM
from audiolm.tokenizers import SemanticTokenizer
from audiolm.training.audio_store import AudioStore
from audiolm.training.card import card
from audiolm.training.data import SPLITS, Skipped, held_out, listed, scan
from audiolm.training.further import TAKEN, carried, weights
from audiolm.training.recipe import (
    PrepareConfig,
    RecipeConfig,
    StageName,
    codec_network,
    encoder_network,
    stage_config,
    stage_of,
    taken,
    trained_with,
)
from audiolm.training.run import progress, versions
from audiolm.training.speeds import AtSpeeds
from audiolm.training.storage import is_remote, located, place
from audiolm.training.token_store import TokenCrops, TokenStore, is_token_store

try:
    from audiolm.measuring.phonetics import label_recordings, measure_units
    from audiolm.training.chain import Chain, Step
    from audiolm.training.corpus import tokenize_corpus, tokenizer_key
    from audiolm.training.gates import check, verdicts
    from audiolm.training.listening import stage_listener
    from audiolm.training.train_codec import train_codec
    from audiolm.training.train_encoder import choose_layer, fit_units, train_encoder
    from audiolm.training.train_lm import train_lm
    from audiolm.training.workshop import Workshop
except ImportError as missing:
    raise InputError(f"training needs {missing.name}; run: pip install 'audiolm[train]'") from missing


def steps(config: RecipeConfig) -> list[Step]:
    """A recipe's steps, in order."""
    prepare = {"data": located(config.data), "sample_rate": codec_network(config).sample_rate}
    of_base = weights(config.base) if config.base else {}
    rounded = {"weights": "int8"} if config.weights == "int8" else {}  # of the units: the tokens are made with these weights

    # Precision, like the device, belongs to the machine, not the record; older records contain it nonetheless. They do not
    # contain which weights of the base a text stage starts from.
    def record_of(part: Config, now: Mapping[str, Any] = {}) -> Callable[[dict[str, Any]], dict[str, Any]]:
        base = {"base": now["base"]} if "base" in now else {}
        return lambda record: completed({key: each for key, each in (base | record).items() if key != "precision"}, part)

    def record_of_passes(record: dict[str, Any]) -> dict[str, Any]:
        passes = {str(number): each for number, each in enumerate(config.encoder)}
        return {
            key: completed(each, passes[key]) if key in passes else each for key, each in record.items() if key != "precision"
        }

    def record_of_prepare(record: dict[str, Any]) -> dict[str, Any]:
        same = _was_here(config, record["data"])
        return record_of(config.prepare)(record | {"data": prepare["data"] if same else located(record["data"])})

    tokenized = is_token_store(config.data)
    chain = [Step("prepare", (), prepare | config.prepare.plain(), do_prepare, completed=record_of_prepare)]
    if tokenized:
        chain = []
    if config.base:
        source = () if tokenized else ("prepare",)
        for name, part in TAKEN.items():
            own = rounded if name == "units" else {}
            chain.append(Step(name, source, {"base": of_base[part]} | own, TAKING[name], completed=partial(operator.or_, own)))
    else:
        encoder = {str(number): each.plain() for number, each in enumerate(config.encoder)}
        units = config.units.plain() | {"measured": config.measured} | rounded
        own = {
            "codec": Step("codec", ("prepare",), config.codec.plain(), do_codec, True, record_of(config.codec)),
            "encoder": Step("encoder", ("prepare",), encoder, do_encoder, True, record_of_passes),
        }
        of_others = {name: Step(name, (), each.plain(), LOADING[name]) for name, each in taken(config).items()}
        chain += [
            *(own | of_others).values(),
            Step("units", ("prepare", "encoder"), units, do_units, completed=record_of(config.units)),
        ]
    if tokenized:
        chain.append(Step("tokens", ("codec", "units"), {"store": TokenStore(config.data).identity()}, take_tokens))
    else:
        inputs = ("prepare", "codec", "units")
        chain.append(Step("tokens", inputs, config.tokens.plain(), do_tokens, completed=record_of(config.tokens)))
    for name in config.stages:
        plain = trained_with(config, name) | {"stage": stage_of(config, name).to_dict()}
        starts_from = "semantic" if name == "text" and not begins_with_semantic(config, name) else name
        if starts_from in of_base:
            plain["base"] = of_base[starts_from]
        inputs = ("tokens", "semantic") if begins_with_semantic(config, name) else ("tokens",)
        record = record_of(stage_config(config, name), plain if starts_from != name else {})
        chain.append(Step(name, inputs, plain, partial(do_stage, name=name), True, record))
    if config.weights == "float32":  # a network that is saved unrounded is another result
        for number, step in enumerate(chain):
            if step.name not in ("prepare", "tokens"):
                chain[number] = replace(step, config=step.config | {"saved_as": "float32"})
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
    kept = {"carried": carried(config.base, config.stages)} if config.base else {}
    made = Step("bundle", ("codec", "units", *config.stages), about | kept, do_bundle, completed=lambda record: kept | record)
    chain.append(made)
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

    def then(step: str) -> None:
        shop.stop_if_asked()
        check(step, shop, config.gates, ignore_gates)

    Chain(shop.out, steps(config), shop.fabric, config.seed).run(shop, only, force, then)
    return shop.out / "bundle"


def _since_prepared(config: RecipeConfig) -> tuple[int, int] | None:
    """How many recordings were added to `data` and removed since `prepare` was done; None if that cannot be told."""
    done = Path(config.out) / "prepare"
    if not (done / "done.json").is_file() or is_remote(place(config.data)):
        return None
    try:
        now, prepared = listed(config.data), {entry.name for entry in AudioStore(done).entries}
    except InputError:  # the recordings or the store are gone; whichever step needs them will say so
        return None
    return len(now - prepared - {each["name"] for each in read_json(done / "skipped.json") or []}), len(prepared - now)


def _was_here(config: RecipeConfig, before: str) -> bool:
    """Whether `data` is the recordings that were at the place `before`, which is gone, and all that was prepared is here now."""
    if located(before) == located(config.data) or is_remote(place(before)) or place(before).exists():
        return False
    since = _since_prepared(config)
    return since is not None and since[1] == 0


def _say_what_is_new(config: RecipeConfig) -> None:
    """Recordings moved, added or removed since `prepare` are no error, as training may take weeks, but the user is told."""
    before = (read_json(Path(config.out) / "prepare" / "done.json") or {"config": {"data": config.data}})["config"]["data"]
    if _was_here(config, before):
        print(f"{config.data}: taken for {before}, which is gone; it has the same recordings", file=sys.stderr, flush=True)
    added, gone = _since_prepared(config) or (0, 0)
    if added or gone:
        found = f"{config.data}: {added} recordings added and {gone} removed since it was prepared"
        print(f"{found}; to use the current ones: --only prepare --force", file=sys.stderr, flush=True)


# --- What each step does ----------------------------------------------------------------------------------------------


def do_prepare(shop: Workshop) -> str:
    config = shop.config.prepare
    skipped: Skipped = []
    recordings = scan(shop.config.data, **config.plain(), skipped=skipped)
    if not any(recording.split == "train" for recording in recordings):
        raise InputError(f"{shop.config.data}: no recording is in the train split; fix the split column")
    told = [each for each in recordings if each.split == "train" and each.columns.get("transcript")]
    if "text" in shop.config.stages and not told:
        cure = "add them (docs/training.md), or leave text out of stages"
        raise InputError(f"{shop.config.data}: no train recording has a transcript for the text stage; {cure}")
    speakers = list(dict.fromkeys(each.speaker for each in recordings))
    some = ", ".join(speakers[:3]) + (", ..." if len(speakers) > 3 else "")
    splits = ", ".join(f"{sum(each.split == split for each in recordings)} {split}" for split in SPLITS)
    print(f"prepare: {len(recordings)} recordings ({splits}), {len(speakers)} speakers ({some})", file=sys.stderr, flush=True)
    if not any(recording.split == "valid" for recording in recordings):
        print("prepare: none are valid: gates will measure training ones, and no checkpoint is the best", file=sys.stderr)
    rate = codec_network(shop.config).sample_rate
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
    config, encoder, crops = shop.config.units, shop.encoder(), shop.train_crops()
    figures: dict[int, float] = {}
    if config.layer is None:
        figures, layer = choose_layer(encoder, config, crops, _phonetic_measure(shop))
        config = config.model_copy(update={"layer": layer})
    write_json(shop.out / "units" / "units.json", {"layer": config.layer, "pnmi": figures})
    units = fit_units(encoder, config, crops)
    return shop.save(SemanticTokenizer(encoder, units, config.layer or 0), "units")


def _phonetic_measure(shop: Workshop) -> Callable[[Callable[[torch.Tensor], torch.Tensor]], float]:
    store = shop.audio()
    numbers = store.split("valid")
    numbers = numbers[:: max(1, len(numbers) // shop.config.measured)]  # spread over all speakers
    if not numbers:
        raise InputError(f"{store.folder}: no valid recordings to choose a layer with; set units.layer=NUMBER, or add speakers")
    recordings = [(store.read(number)[None, None], store.entries[number].columns.get("transcript")) for number in numbers]
    phones = label_recordings(recordings, encoder_network(shop.config).hop)
    device = shop.fabric.device
    return lambda encode: measure_units(lambda audio: encode(audio.to(device)).cpu(), recordings, phones)["pnmi_corrected"]


def do_tokens(shop: Workshop) -> str:
    audio = AtSpeeds(shop.audio(), shop.config.tokens.speeds)
    with progress(len(audio), label="tokens") as show:
        store = tokenize_corpus(shop.semantic(), shop.codec(), audio, shop.out / "tokens", show)
    return store.identity()


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
    config, store = shop.config, shop.token_store()
    networks, sampling = dict(shop.carried), dict(shop.base.sampling) if shop.base else {}
    for name in config.stages:
        stage, network, own = shop.trained(name)
        networks[name] = stage, network.cpu()
        if own.sampling:
            sampling[name] = own.sampling
    # A token store is split as `audiolm tokenize` does it, whatever this recipe says.
    split = PrepareConfig(**held_out(shop.base.about)) if shop.base and shop.tokenized else config.prepare
    about = {
        "name": config.name,
        "licence": config.licence,
        "hours": {split: round(hours, 3) for split, hours in shop.hours().items()},
        "recordings": len(store) if shop.tokenized else len(shop.audio()),
        "decoder": config.decoder,
        "split": split.model_dump(include={"valid", "test", "seed"}),
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
    if of_others := taken(config):
        about["taken"] = {name: {"source": each.source, "licence": each.licence} for name, each in of_others.items()}
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


def take_tokens(shop: Workshop) -> str:
    store = shop.token_store()
    if store.key != tokenizer_key(shop.semantic(), shop.codec()):  # records of older versions do not tell of weights
        cure = "give the weights that it was made with, or redo it: --only units --force"
        raise InputError(f"{shop.out / 'units'}: not saved with weights={shop.config.weights}; {cure}")
    return store.identity()


TAKING = {"codec": take_codec, "encoder": take_encoder, "units": take_units}


# --- The same, taken from others -----------------------------------------------------------------------------------------


def load_codec(shop: Workshop) -> str:
    assert shop.config.take.codec is not None
    return shop.save(dac.load(shop.config.take.codec), "codec")


def load_encoder(shop: Workshop) -> str:
    assert shop.config.take.encoder is not None
    return shop.save(Hubert.load(shop.config.take.encoder), "encoder")


LOADING = {"codec": load_codec, "encoder": load_encoder}


def _base(shop: Workshop) -> AudioLM:
    assert shop.base is not None
    return shop.base
