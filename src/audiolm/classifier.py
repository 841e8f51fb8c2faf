"""The paper's classifier of one-second crops (AudioLM sections IV-D and IV-H): by speaker, or real against generated.

Log-mel spectrum (25 ms every 10 ms, 64 bands) -> six blocks of a convolution along time and one along frequency, each with
ReLU, then batch normalisation; max pooling halves both axes wherever the channels grow -> mean -> one logit per class.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from audiolm.audio import Waveform
from audiolm.spectra import mel_filters

SAMPLE_RATE = 16_000
WINDOW, HOP, BANDS = 400, 160, 64
CROP, STEP = 16_000, 4_000  # samples in a crop, and between the starts of a sound's crops
BATCH = 16  # crops classified at once; with 64, a layer's output is too large to be reused and costs half as much again
CHANNELS = (64, 128, 256, 256, 512, 512)  # the paper's
FLOOR = 1e-8  # share of the largest energy: anything 80 dB below it counts as silence


class CropClassifier(nn.Module):
    """Crops (B, T) at 16 kHz -> logits (B, classes), independent of a crop's level."""

    def __init__(self, classes: int, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((1, *channels)):
            layers += [nn.Conv2d(narrow, wide, (3, 1), padding=(1, 0)), nn.ReLU()]
            layers += [nn.Conv2d(wide, wide, (1, 3), padding=(0, 1)), nn.ReLU(), nn.BatchNorm2d(wide)]
            if wide > narrow:
                layers.append(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1], classes)
        self.filters = nn.Buffer(mel_filters(SAMPLE_RATE, WINDOW, BANDS), persistent=False)
        self.window = nn.Buffer(torch.hann_window(WINDOW), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        return self.head(self.blocks(self.log_mel(audio)[:, None]).mean((2, 3)))

    def log_mel(self, audio: Tensor) -> Tensor:
        """(B, T) -> (B, frames, bands), mean 0 in each crop."""
        spectrum = torch.stft(audio.float(), WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True)
        energy = (self.filters @ (spectrum.real.square() + spectrum.imag.square())).mT
        level = (energy + FLOOR * energy.amax((1, 2), keepdim=True) + 1e-12).log()
        return level - level.mean((1, 2), keepdim=True)


def crops_of(sound: Waveform) -> Tensor:
    """(crops, 16000): one second every quarter of a second, mono at 16 kHz. A shorter sound is one crop padded with silence."""
    samples = sound.mono().resample(SAMPLE_RATE).samples[0]
    return nn.functional.pad(samples, (0, max(0, CROP - len(samples)))).unfold(0, CROP, STEP)


@torch.inference_mode()
def crop_logits(network: CropClassifier, sound: Waveform, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Logits (crops, classes) of a whole sound. progress: crops done, total crops."""
    crops, device, found = crops_of(sound), network.head.weight.device, []
    for part in crops.split(BATCH):
        found.append(network(part.to(device)).float().cpu())
        if progress is not None:
            progress(min(len(found) * BATCH, len(crops)), len(crops))
    return torch.cat(found)
