"""AudioLM: learn to speak and play music from raw audio alone (Borsos et al. 2022).

import audiolm
model = audiolm.load()
prompt = audiolm.read("prompt.wav").trim(seconds=3)
model.generate(prompt, seconds=7, seed=0).write("out.wav")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiolm.audio import Waveform, read
    from audiolm.bundle import load
    from audiolm.errors import InputError
    from audiolm.model import AudioLM, AudioTokens

_HOMES = {
    "AudioLM": "model", "AudioTokens": "model", "load": "bundle",
    "Waveform": "audio", "read": "audio", "InputError": "errors",
}  # fmt: skip

__all__ = ["AudioLM", "AudioTokens", "InputError", "Waveform", "load", "read"]


def __getattr__(name: str) -> Any:
    """Import lazily: torch takes seconds to import, and `import audiolm` alone should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'audiolm' has no attribute {name!r}")
    return getattr(import_module(f"audiolm.{_HOMES[name]}"), name)
