"""Training further from an existing model instead of from scratch: what `base` sets in a recipe.

The codec, the encoder and the units are the base's, since its stages understand no other tokens; the recipe's stages start
from the weights of the base's, or from part of them if they are to predict other levels. Stages that the recipe does not train
are carried over unchanged; stages that the base does not have start from scratch. Speakers are split as the base's recipe split
them, so that those held out then stay held out, unless the recipe's `prepare` says otherwise.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from audiolm.bundle import built, folder_of, from_hub, is_hub_id, read_config
from audiolm.errors import InputError
from audiolm.stages import Stage
from audiolm.training.data import held_out

TAKEN = {"codec": "codec", "encoder": "encoder", "units": "encoder"}  # step (and its table) -> the part of the base


def upon(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tables completed with the base's. ValueError if they contradict the base; InputError if there is no base."""
    folder = folder_of(data["base"])
    built(folder)  # raises an error naming what is damaged in config.json
    base = read_config(folder)
    for name in ("take", *TAKEN):
        if name in data:
            raise ValueError(f"{name}: base={data['base']} provides it and it cannot be changed; leave {name} out")
    semantic = base["semantic"]
    tables = {
        **_tokenizers({"codec": base["codec"], "encoder": semantic["encoder"]}),
        "units": {"layer": semantic["layer"], "units": semantic["units"]},
        "decoder": base["about"].get("decoder", "autoregressive"),
        "codebooks": base["about"].get("codebooks"),
    }
    if isinstance(prepare := data.get("prepare", {}), Mapping) and (split := held_out(base["about"])):
        data = {**data, "prepare": {**split, **prepare}}
    # All of the base's stages, including those that are not trained: the coarse levels determine the fine ones.
    stages = {name: _table(name, each, data.get(name, {})) for name, each in base["stages"].items()}
    own = data.get("text", {})
    if "text" not in stages and "semantic" in stages and isinstance(own, Mapping) and isinstance(own.get("network", {}), Mapping):
        # A text stage starts from the semantic stage, as far as their networks are alike.
        like = {name: each for name, each in base["stages"]["semantic"]["network"].items() if name != "positions"}
        stages["text"] = {**own, "network": {**like, **own.get("network", {})}}
    return {**tables, **data, **stages}


def _tokenizers(networks: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tables for a base's codec and encoder: those of others are `take`'s."""
    take = {name: each for name, each in networks.items() if "adapter" in each}
    own = {name: {"network": each} for name, each in networks.items() if name not in take}
    return {name: [each] if name == "encoder" else each for name, each in own.items()} | {"take": take}


def found(name: str) -> Path:
    """The folder of a tokenizer of others: the one of that name, or what the hub id names. InputError if there is neither."""
    if Path(name).is_dir():
        return Path(name)
    if is_hub_id(name):
        return from_hub(name)
    raise InputError(f"{name}: no such folder; give one in the form of transformers, or a hub id owner/name")


def carried(base: str, names: Collection[str]) -> dict[str, Any]:
    """What a bundle takes from its base besides the stages `names`, which are its own: for the record."""
    config = read_config(folder_of(base))
    stages = {name: each["sampling"] for name, each in config["stages"].items() if name not in names}
    letters = {"letter_seconds": config["about"].get("letter_seconds")} if "text" in stages else {}
    return {name: {"weights": config["weights"][name], "sampling": each} for name, each in stages.items()} | letters


def weights(base: str) -> dict[str, str]:
    """The weight hashes of a base's parts, which identify it."""
    return read_config(folder_of(base))["weights"]


def _table(name: str, base: Mapping[str, Any], own: Any) -> Any:
    """A stage's table: the recipe's values, else the base's. Anything that is not a table is left for the recipe to reject."""
    if not isinstance(own, Mapping) or not isinstance(own.get("network", {}), Mapping):
        return own
    stage = Stage.from_dict(base["stage"])
    fixed: dict[str, Any] = {"dedup": stage.dedup}
    kept: dict[str, Any] = {"crop": stage.crop, "sampling": base["sampling"]}
    if name not in ("semantic", "fine", "text"):
        kept["levels"] = stage.predict.levels
    if own.get("crop", stage.crop) == stage.crop:  # another crop has its own overlap
        kept["overlap"] = stage.overlap
    network = {**base["network"], **own.get("network", {})}
    for key, value in network.items():
        if key != "dropout" and value != base["network"].get(key):
            raise ValueError(f"{name}.network.{key}={value}: the base has {base['network'].get(key)}; only dropout may differ")
    for key, value in fixed.items():
        if own.get(key, value) != value:
            raise ValueError(f"{name}.{key}={own[key]}: the base has {value}, and its weights fit no other value")
    return {**kept, **own, **fixed, "network": network}
