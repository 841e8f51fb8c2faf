"""HuBERT (Hsu et al. 2021), WavLM and wav2vec 2.0 as encoders of semantic tokens: 16 kHz audio -> features of every layer.

A frame is 20 ms; neighbouring frames can be averaged, to 25 Hz as in AudioLM. w2v-BERT of transformers is not among them: it
does not take sound, but mel features of its own.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal, cast

import torch.nn.functional as nnf
from pydantic import Field
from torch import Tensor, nn

from audiolm.adapters import taken
from audiolm.errors import InputError

KINDS = ("hubert", "wav2vec2", "wavlm")


class HubertConfig(taken.Taken):
    """An encoder of others. normalize: whether its input has zero mean and unit variance; pool: frames averaged into one."""

    adapter: Literal["hubert"] = "hubert"
    normalize: bool = True
    pool: int = Field(default=1, ge=1, le=2)

    @property
    def sample_rate(self) -> int:
        """In Hz; none of these networks has another."""
        return 16_000

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.pool * math.prod(self.network["conv_stride"])

    @property
    def layers(self) -> int:
        return self.network["num_hidden_layers"]

    @property
    def features(self) -> int:
        """D, the width of all features."""
        return self.network["hidden_size"]


def read(folder: Path, source: str, frame_rate: float | None = None) -> HubertConfig:
    """The encoder in a folder; at `frame_rate` Hz, if given. InputError if it is none, or cannot have that rate."""
    values = taken.read(folder, source, KINDS)
    config = HubertConfig(**values, normalize=_normalizes(folder))
    own = config.sample_rate / config.hop
    pool = round(own / frame_rate) if frame_rate else 1
    if frame_rate and (pool not in (1, 2) or pool * frame_rate != own):
        raise InputError(f"frame_rate={frame_rate:g}: {source} makes {own:g} frames per second; give {own:g} or {own / 2:g}")
    return config.model_copy(update={"pool": pool})


def _normalizes(folder: Path) -> bool:
    """As transformers' feature extractor does it, whose own default is to normalise."""
    path = folder / "preprocessor_config.json"
    return bool(json.loads(path.read_text(encoding="utf-8")).get("do_normalize", True)) if path.is_file() else True


class Hubert(nn.Module):
    """Audio -> features of every layer, like `Conformer`. Each item is normalised by itself, so a batch changes nothing."""

    def __init__(self, config: HubertConfig, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.network = taken.built(config) if network is None else network
        reach = 1  # samples that a frame is made of
        for kernel, stride in reversed(list(zip(config.network["conv_kernel"], config.network["conv_stride"], strict=True))):
            reach = (reach - 1) * stride + kernel
        self.beyond = reach - config.hop // config.pool

    @classmethod
    def load(cls, config: HubertConfig) -> "Hubert":
        """The encoder with the weights of the folder it was read from."""
        return cls(config, taken.loaded(config))

    def extract(self, audio: Tensor, layers: int | None = None) -> list[Tensor]:
        """Audio (B, 1, T) -> layers + 1 features (B, ceil(T / hop), D): of the input, then of each layer (default: all)."""
        sound = nnf.pad(audio[:, 0].float(), (0, -audio.shape[-1] % self.config.hop))
        if self.config.normalize:
            sound = (sound - sound.mean(-1, keepdim=True)) / (sound.var(-1, keepdim=True, correction=0) + 1e-7).sqrt()
        # Silence on both sides: otherwise the windows of the last frames would lie beyond the end, and be left out.
        sound = nnf.pad(sound, (self.beyond // 2, self.beyond - self.beyond // 2))
        found = cast(Any, self.network)(sound, output_hidden_states=True).hidden_states
        return [self._pooled(each) for each in found[: None if layers is None else layers + 1]]

    def _pooled(self, features: Tensor) -> Tensor:
        return features.unflatten(1, (-1, self.config.pool)).mean(2) if self.config.pool > 1 else features
