"""Going on from a model instead of from nothing: what `base` decides of a recipe.

The codec, the encoder and the units are the base's own, since its stages understand no other tokens; its stages are where those
of the recipe begin. What the recipe does not train is carried over as it is, and what the base does not have begins from nothing.
"""

from collections.abc import Mapping
from typing import Any

from audiolm.bundle import built, folder_of, read_config
from audiolm.stages import Stage

TAKEN = {"codec": "codec", "encoder": "encoder", "units": "encoder"}  # steps and their tables, and the part of the base


def upon(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tables with the base's filled in. ValueError where they contradict it; InputError where there is no base."""
    folder = folder_of(data["base"])
    built(folder)  # says what in config.json is damaged
    base = read_config(folder)
    for name in TAKEN:
        if name in data:
            raise ValueError(f"{name}: that of base={data['base']} is taken as it is; leave {name} out")
    semantic = base["semantic"]
    tables = {
        "codec": {"network": base["codec"]},
        "encoder": [{"network": semantic["encoder"]}],
        "units": {"layer": semantic["layer"], "units": semantic["units"]},
        "decoder": base["about"].get("decoder", "autoregressive"),
        "codebooks": base["about"].get("codebooks"),
    }
    # All of the base's, also those that are not trained: what is coarse decides what is fine.
    stages = {name: _table(name, each, data.get(name, {})) for name, each in base["stages"].items()}
    return {**tables, **data, **stages}


def weights(base: str) -> dict[str, str]:
    """The hashes of a base's parts, by which one is told from another."""
    return read_config(folder_of(base))["weights"]


def _table(name: str, base: Mapping[str, Any], own: Any) -> Any:
    """A stage's table: the recipe's own, where it says nothing the base's. What is no table is left to the recipe to refuse."""
    if not isinstance(own, Mapping) or not isinstance(own.get("network", {}), Mapping):
        return own
    stage = Stage.from_dict(base["stage"])
    fixed: dict[str, Any] = {"dedup": stage.dedup} | ({} if name in ("semantic", "fine") else {"levels": stage.predict.levels})
    network = {**base["network"], **own.get("network", {})}
    for key, value in network.items():
        if key != "dropout" and value != base["network"].get(key):
            raise ValueError(f"{name}.network.{key}={value}: the base has {base['network'].get(key)}; only dropout may differ")
    for key, value in fixed.items():
        if own.get(key, value) != value:
            raise ValueError(f"{name}.{key}={own[key]}: the base has {value}, and its weights fit nothing else")
    return {"crop": stage.crop, "overlap": stage.overlap, "sampling": base["sampling"], **own, **fixed, "network": network}
