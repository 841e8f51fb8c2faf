"""What this machine can do, and what is missing: the first thing to look at when something does not work."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

import torch

from audiolm.bundle import packaged

# What each extra is for, and the module that tells whether it is installed.
EXTRAS = {
    "plot": ("matplotlib", "pictures"),
    "m4a": ("av", "reading m4a, aac, mp4"),
    "train": ("lightning", "training and token stores"),
    "eval": ("pesq", "the metrics of `audiolm evaluate`"),
}


def examine() -> dict[str, Any]:
    """Versions, processors, memory, accelerators, extras and packaged models, JSON-ready."""
    return {
        "audiolm": importlib.metadata.version("audiolm"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use, {_bf16()}",
        "memory": _memory(),
        "accelerator": _accelerator(),
        "disk": f"{shutil.disk_usage('.').free / 1e9:.1f} GB free in this folder",
        "models": ", ".join(packaged()) or "none packaged",
        "extras": {
            name: f"installed ({use})" if importlib.util.find_spec(module) else f"missing: pip install 'audiolm[{name}]' ({use})"
            for name, (module, use) in EXTRAS.items()
        },
    }


def _accelerator() -> str:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return "; ".join(f"cuda:{index} {each.name}, {each.total_memory / 1e9:.0f} GB" for index, each in enumerate(names))
    if torch.backends.mps.is_available():
        return "mps"
    return "none; everything runs on the processor"


def _bf16() -> str:
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "fast bf16" if fast else "no fast bf16"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not a system that tells
        return "unknown"
    return f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB of it free"
