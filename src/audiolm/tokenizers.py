"""The two protocols between audio and tokens, and the semantic tokenizer.

A codec is a tokenizer that can also decode. No inheritance: any class with these members will do, and a single contract
test covers them all (tests/test_model.py).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm.adapters.hubert import Hubert, HubertConfig
from audiolm.conformer import Conformer, ConformerConfig
from audiolm.errors import InputError
from audiolm.kmeans import KMeans
from audiolm.tokens import TokenSpec

WINDOW, CONTEXT = 20.0, 2.0  # seconds: long recordings are encoded in windows of 20 s, with 2 s of context on either side


@runtime_checkable
class Tokenizer(Protocol):
    """Audio (B, 1, T) at `sample_rate` -> codes (B, Q, F) int64; deterministic and independent of batching."""

    spec: TokenSpec
    sample_rate: int

    def encode(self, audio: Tensor) -> Tensor: ...


@runtime_checkable
class Decoder(Tokenizer, Protocol):
    """A tokenizer that can decode codes of any prefix of the levels (B, q, F) to audio (B, 1, T)."""

    def decode(self, codes: Tensor) -> Tensor: ...


Encoder = Conformer | Hubert  # `extract`: audio (B, 1, T) -> features (B, ceil(T / config.hop), D) of every layer


def semantic_spec(encoder: ConformerConfig | HubertConfig, units: int) -> TokenSpec:
    """What the tokens are that `units` centroids make of an encoder's features: one for each of its frames."""
    return TokenSpec("semantic", units, 1, encoder.sample_rate / encoder.hop)


class SemanticTokenizer(nn.Module):
    """Semantic tokens (AudioLM section III-B): the k-means centroid nearest to an encoder layer's features, at 25 Hz for ours.

    audio (B, 1, T) -> codes (B, 1, ceil(T / hop)). The encoder is bidirectional, so cut a prompt before encoding it.
    """

    def __init__(self, encoder: Encoder, units: KMeans, layer: int) -> None:
        super().__init__()
        self.encoder, self.units, self.layer = encoder, units, layer
        self.sample_rate, self.hop = encoder.config.sample_rate, encoder.config.hop
        self.spec = semantic_spec(encoder.config, len(units.centroids))

    @torch.no_grad()
    def encode(self, audio: Tensor, show: Callable[[int, int], object] = lambda done, total: None) -> Tensor:
        """Codes (B, 1, ceil(T / hop)) of audio (B, 1, T); memory is constant in T. show(done, total): of the frames."""
        if audio.shape[-1] == 0:
            raise InputError("the audio is empty: nothing to encode")
        window, context = (round(seconds * self.spec.frame_rate) for seconds in (WINDOW, CONTEXT))
        frames = -(-audio.shape[-1] // self.hop)
        found = []
        for first in range(0, frames, window):
            begin = max(0, first - context)
            last = min(frames, first + window)
            part = audio[..., begin * self.hop : (last + context) * self.hop]
            found.append(self._encode(part)[..., first - begin : last - begin])
            show(last, frames)
        return torch.cat(found, -1)

    def _encode(self, audio: Tensor) -> Tensor:
        audio = F.pad(audio, (0, -audio.shape[-1] % self.hop))
        return self.units.assign(self.encoder.extract(audio, self.layer)[self.layer])[:, None]
