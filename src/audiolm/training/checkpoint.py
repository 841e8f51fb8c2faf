"""A checkpoint on disk: a folder that is complete or absent, and the same however many processes wrote it.

    step-00000123/NAME.safetensors   one per module
    step-00000123/state.pt           optimisers, plain values, random states; read with weights_only, so no code in it can run
    step-00000123/files.json         the step, its score, and every file's size, which make the folder complete

What FSDP2 shards over processes is gathered before writing and sharded again after reading, so that training can resume with
any number of processes.
"""

import os
import shutil
from collections.abc import Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from audiolm.errors import InputError
from audiolm.files import load_tensors, read_json, save_tensors, whole_file, write_json

State = MutableMapping[str, Any]


def write(path: Path, state: State, about: Mapping[str, Any], random: Any, keep: bool = True) -> None:
    """Write `state` (modules, anything with a state_dict, plain values) next to `path`, then rename; `about` goes to files.json.

    Every process must call it, as gathering needs all of them; the one with `keep` writes. InputError if the disk is full,
    leaving nothing behind.
    """
    modules = {name: whole(value.state_dict(), keep, copy=True) for name, value in state.items() if isinstance(value, nn.Module)}
    plain = {
        name: whole(value.state_dict(), keep) if hasattr(value, "state_dict") else value
        for name, value in state.items()
        if name not in modules
    }
    if not keep or is_whole(path):
        return
    beside = path.with_name(f".{path.name}.new")
    for leftover in (path, beside):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        beside.mkdir()
        for name, tensors in modules.items():
            save_tensors(beside / f"{name}.safetensors", tensors)
        with whole_file(beside / "state.pt") as temporary:
            torch.save({"state": plain, "random": random}, temporary)
        sizes = {file.name: file.stat().st_size for file in sorted(beside.iterdir())}
        write_json(beside / "files.json", {**about, "sizes": sizes})
        os.rename(beside, path)
        _sync_folder(path.parent)
    except (InputError, OSError, RuntimeError) as error:  # torch.save and safetensors wrap the operating system's error
        shutil.rmtree(beside, ignore_errors=True)
        reason = str(error.__cause__ or error).splitlines()[0].strip()
        cure = "free disk space and rerun the same command: it resumes from the last complete checkpoint"
        raise InputError(f"{path}: cannot be written ({reason}); {cure}") from error


def read(path: Path, state: State) -> Any:
    """Load a checkpoint into `state`: modules and optimisers in place, plain values replaced. Returns the random states."""
    saved = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    for name, value in state.items():
        if isinstance(value, nn.Module):
            own = value.state_dict()
            tensors = load_tensors(path / f"{name}.safetensors")[0]
            value.load_state_dict({key: _spread(tensor, own.get(key)) for key, tensor in tensors.items()})
        elif hasattr(value, "load_state_dict"):
            value.load_state_dict(_spread_optimizer(saved["state"][name], value))
        else:
            state[name] = saved["state"].get(name, value)  # an entry the checkpoint predates keeps its value
    return saved["random"]


def is_whole(path: Path) -> bool:
    """Whether every file is there at its full length, files.json included."""
    try:
        files = read_json(path / "files.json")
    except InputError:  # files.json itself is damaged
        return False
    return files is not None and all((path / n).is_file() and (path / n).stat().st_size == s for n, s in files["sizes"].items())


def whole(tree: Any, keep: bool = True, copy: bool = False) -> Any:
    """A state_dict with its tensors gathered from all processes, on the CPU; None in their place without `keep`."""
    return tree_map(partial(_gathered, keep=keep, copy=copy), tree)


def _gathered(value: Any, keep: bool, copy: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    value = value.full_tensor() if hasattr(value, "full_tensor") else value  # pyright: ignore[reportCallIssue]
    # Copied: safetensors refuses tensors that share memory, as tied embeddings do.
    return value.to("cpu", copy=copy) if keep else None


def _spread(value: Any, like: Any) -> Any:
    """Shard a full tensor over the processes like `like`; anything else is returned as it is."""
    if not hasattr(like, "device_mesh") or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device_mesh.device_type)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # every process read the same file


def _spread_optimizer(saved: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    if not hasattr(optimizer, "param_groups"):
        return saved
    names = [name for group in saved["param_groups"] for name in group["params"]]
    parameter = dict(zip(names, (each for group in optimizer.param_groups for each in group["params"]), strict=True))
    spread = {name: {k: _spread(v, parameter[name]) for k, v in values.items()} for name, values in saved["state"].items()}
    return {**saved, "state": spread}


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
