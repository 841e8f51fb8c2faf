"""What this machine offers and what is missing: the first thing to check when something does not work."""

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from audiolm.bundle import packaged
from audiolm.kernels import available

# What each extra is for.
USES = {
    "plot": "plots",
    "m4a": "reading m4a, aac, mp4",
    "play": "continue --play, generate --play",
    "train": "train, plan, tokenize",
    "hf": "tokenizers of others: HuBERT, DAC",
    "eval": "metrics of evaluate; phones for choosing units",
    "serve": "serve",
    "ray": "tokenize on many machines",
    "wandb": "tracking training on Weights & Biases",
}
CONTAINER = Path("/sys/fs/cgroup")  # limits of the container that this runs in, if any


def examine() -> dict[str, Any]:
    """Versions, processor and speed, memory, accelerators, disk, models and extras, ready for JSON. Takes about a second."""
    total, free = memory()
    bf16 = f"{products('cpu', torch.bfloat16):.0f}" if "bf16" in available(torch.device("cpu")) else "almost none"
    return {
        "audiolm": importlib.metadata.version("audiolm"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use, {_bf16()}",
        "products": f"{products('cpu', torch.float32):.0f} GFLOP/s in float32, {bf16} in bfloat16",
        "memory": f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB of it free" if total else "unknown",
        "accelerator": _accelerator(),
        "compiler": _compiler(),
        "disk": f"{shutil.disk_usage('.').free / 1e9:.1f} GB free here{'' if os.access('.', os.W_OK) else ', but read only'}",
        "models": ", ".join(packaged()) or "none packaged",
        "extras": {name: _extra(name, packages) for name, packages in extras().items()},
    }


def memory() -> tuple[int, int]:
    """Bytes of memory that this process may use in all, and that are free now; 0 and 0 if the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
        total, free = table["MemTotal"], table["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):  # not Linux
        try:
            total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            return 0, 0
    try:  # a container may have less than its machine
        limit, used = (int((CONTAINER / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        # The page cache counts as used, but is released when memory is needed.
        files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        return min(total, limit), max(0, min(free, limit - used + files))
    except (OSError, ValueError):  # no limit, or "max"
        return total, free


def extras() -> dict[str, list[str]]:
    """The package's extras and the packages that each requires, from its metadata."""
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("audiolm") or []:
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name and extra and extra[1] != "dev":
            found.setdefault(extra[1], []).append(name[0])
    return found


def products(device: str, dtype: torch.dtype, size: int = 1024) -> float:
    """GFLOP/s of a matrix product."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    times: list[float] = []
    while len(times) < 2 or (len(times) < 4 and sum(times) < 1):  # the first is a warm-up; without bfloat16 each takes seconds
        began = time.perf_counter()
        torch.mm(a, a)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times) / 1e9


def _extra(name: str, packages: list[str]) -> str:
    missing = [package for package in packages if not _installed(package)]
    if name == "play" and not missing and not _portaudio():
        return f"missing PortAudio: apt install libportaudio2 ({USES[name]})"
    use = f" ({USES[name]})" if name in USES else ""
    return f"missing {', '.join(missing)}: pip install 'audiolm[{name}]'{use}" if missing else f"installed{use}"


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def _portaudio() -> bool:
    try:
        importlib.import_module("sounddevice")
    except OSError:  # its Linux wheels do not include PortAudio
        return False
    return True


def _accelerator() -> str:
    if torch.cuda.is_available():
        found = []
        for index in range(torch.cuda.device_count()):
            about, speed = torch.cuda.get_device_properties(index), products(f"cuda:{index}", torch.bfloat16) / 1e3
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
            found.append(f"cuda:{index} {about.name}, {about.total_memory / 1e9:.0f} GB, {bf16}, {speed:.0f} TFLOP/s")
        return "; ".join(found)
    if torch.backends.mps.is_available():
        return "mps"
    if torch.version.cuda is None:
        return "none (this torch is a CPU build); everything runs on the CPU"
    return "none; everything runs on the CPU"


def _bf16() -> str:
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "fast bf16" if fast else "no fast bf16"


def _compiler() -> str:
    found = next((name for name in ("c++", "g++", "clang++", "cl") if shutil.which(name)), None)
    return f"{found}: recipes may set compile=true" if found else "none: leave compile=true out of recipes"
