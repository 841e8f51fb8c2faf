"""Speaker similarity: the cosine between speaker embeddings (256).

The network is the GE2E voice encoder (Wan et al. 2018, 1710.10467) from the package resemblyzer (Apache-2.0). Only the weights
in its wheel are used, because its code needs pkg_resources, which setuptools no longer has; the embeddings equal the package's
to 1e-6. Its silence removal is left out: over 60 clips it widened the gap between same and different speakers by less than
0.01.
"""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from audiolm.errors import InputError

SAMPLE_RATE = 16_000
WINDOW, HOP, BANDS = 400, 160, 40  # mel spectra: 25 ms every 10 ms
PART, STEP = 160, 77  # length and hop, in frames, of the parts that are embedded
LEVEL = 10 ** (-30 / 20)  # quieter recordings are amplified to this root mean square


class VoiceEncoder(nn.Module):
    """Three LSTM layers over mel spectra; the last state, projected, rectified and normalised, is the speaker embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.filters = nn.Buffer(mel_filters(), persistent=False)

    def forward(self, mel: Tensor) -> Tensor:
        """Mel energies (B, M, 40) -> embeddings (B, 256) of unit length."""
        _, (state, _) = self.lstm(mel)
        return nnf.normalize(nnf.relu(self.linear(state[-1])), dim=1)

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Tensor:
        """The embedding (256) of mono audio (..., T) at 16 kHz: the mean over parts of 1.6 s, normalised to unit length."""
        return nnf.normalize(self.parts(audio).mean(0), dim=0)

    @torch.inference_mode()
    def parts(self, audio: Tensor) -> Tensor:
        """The embeddings (P, 256) of parts 1.6 s long, starting 0.77 s apart."""
        samples = audio.flatten().float()
        samples = samples * (LEVEL / samples.square().mean().sqrt().clamp_min(1e-5)).clamp_min(1)
        frames = len(samples) // HOP + 1
        starts = list(range(0, max(1, frames - PART + STEP + 1), STEP))
        if len(starts) > 1 and len(samples) - starts[-1] * HOP < 0.75 * PART * HOP:
            starts.pop()  # too much of it would be padding
        samples = nnf.pad(samples, (0, max(0, (starts[-1] + PART) * HOP - len(samples))))
        spectrum = torch.stft(
            samples, WINDOW, HOP, window=torch.hann_window(WINDOW), pad_mode="constant", return_complex=True
        ).abs()
        mel = (self.filters @ spectrum.square()).T
        return self(torch.stack([mel[start : start + PART] for start in starts]))


@lru_cache(maxsize=1)
def voice_encoder() -> VoiceEncoder:
    """The encoder with the weights of the installed package resemblyzer. InputError if it is not installed."""
    found = importlib.util.find_spec("resemblyzer")  # locates it without importing it
    path = Path(((found and found.submodule_search_locations) or [""])[0]) / "pretrained.pt"
    if not path.is_file():
        raise InputError("speaker similarity needs the weights in resemblyzer's wheel; pip install --no-deps resemblyzer")
    encoder = VoiceEncoder()
    weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    encoder.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("similarity")})
    return encoder.eval().requires_grad_(False)


def similarities(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Cosines (N, M) between embeddings (256): about 0.9 for the same speaker, 0.5 to 0.7 for different ones, never below 0."""
    return torch.stack(list(ours)) @ torch.stack(list(theirs)).T


def mel_filters() -> Tensor:
    """The encoder's mel filters (40, 201): triangles of unit area on Slaney's scale, linear to 1 kHz, then logarithmic."""
    ratio = 6.4 ** (1 / 27)  # above 1 kHz, 27 steps multiply the frequency by 6.4
    top = 15 + torch.log(torch.tensor(8.0, dtype=torch.float64)) / torch.log(torch.tensor(ratio, dtype=torch.float64))
    mel = torch.linspace(0, 1, BANDS + 2, dtype=torch.float64) * top
    edges = torch.where(mel < 15, mel * 200 / 3, 1000 * ratio ** (mel - 15))
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    rise = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return (torch.minimum(rise, fall).clamp_min(0) * (2 / (edges[2:] - edges[:-2]))[:, None]).float()
