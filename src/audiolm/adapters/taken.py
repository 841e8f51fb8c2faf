"""A network taken from a folder in the form of transformers: config.json, model.safetensors, and README.md if it has one."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import nn

from audiolm.config import Config, digest
from audiolm.errors import InputError
from audiolm.files import file_hash

# Of transformers' config.json: what is no part of the architecture. A name may be a path on its author's machine.
_IRRELEVANT = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class LibraryMissing(InputError):
    """Nothing is wrong but that an extra is not installed."""


class Taken(Config):
    """A network of others: where it is from, and its architecture in transformers' own words."""

    source: str  # hub id, or the name of a folder
    licence: str = "not stated"
    weights: str  # hash of those that were taken
    network: dict[str, Any]
    folder: str = Field(default="", exclude=True)  # where its files lie on this machine, hence in no record


def read(folder: Path, source: str, kinds: Collection[str]) -> dict[str, Any]:
    """The values of a `Taken` from a folder. InputError if it holds no network of these kinds, or none in safetensors."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no model of transformers (its config.json is missing or damaged); check the name") from error
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind not in kinds:
        raise InputError(f"{source}: its model_type is {kind}; this takes {', '.join(sorted(kinds))}")
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        cure = f"save it anew by transformers' AutoModel.from_pretrained({source!r}).save_pretrained('FOLDER'), and name FOLDER"
        raise InputError(f"{source}: has no model.safetensors, and pickled weights are never read; {cure}")
    card = folder / "README.md"
    about = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    licence = re.search(r"^license:\s*(\S+)", about, re.MULTILINE)
    network = _configuration(found, str(path)).to_dict()
    return {
        "source": source if not Path(source).is_dir() else Path(source).resolve().name,
        "licence": licence[1].strip("\"'") if licence else "not stated",
        "weights": digest([file_hash(each) for each in files]),
        "network": {name: value for name, value in network.items() if name not in _IRRELEVANT},
        "folder": str(folder),
    }


def built(config: Taken) -> nn.Module:
    """The network without its weights, which take their places later."""
    with torch.device("meta"):  # saves initialising them
        network = _library().AutoModel.from_config(_configuration(config.network, config.source))
    network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.zero_()
    return network.eval()


def loaded(config: Taken) -> nn.Module:
    """The network with the weights of its folder, in float32. InputError if they do not fit its configuration."""
    transformers = _library()
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        network, report = transformers.AutoModel.from_pretrained(
            config.folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{config.source}: its weights cannot be read ({reason}); fetch it again") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    if missing := sorted(set(report["missing_keys"]) - {"masked_spec_embed"}):  # used in its training only
        raise InputError(f"{config.source}: {missing[0]} is not among its weights, nor {len(missing) - 1} others; fetch it again")
    return network.eval()


def _configuration(values: dict[str, Any], source: str) -> Any:
    transformers, rest = _library(), dict(values)
    try:
        return transformers.AutoConfig.for_model(rest.pop("model_type"), **rest)
    except Exception as error:  # transformers validates with errors of several libraries
        reason = str(error).splitlines()[0]
        raise InputError(f"{source}: transformers cannot read this configuration ({reason}); update transformers") from error


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise LibraryMissing("tokenizers of others need transformers; run: pip install 'audiolm[hf]'") from error
    return cast(Any, transformers)
