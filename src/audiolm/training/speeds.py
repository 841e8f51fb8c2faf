"""Speed perturbation (Ko et al., Interspeech 2015): training recordings played faster or slower, as if by other speakers.

Speed changes pitch too, so the copies count as further voices. It is done before tokenising, so that a recording keeps one
voice from beginning to end, which is what the coarse stage is to learn. Valid and test recordings are never changed.
"""

import re
from collections.abc import Container, Sequence
from dataclasses import replace

from torch import Tensor

from audiolm.audio import Waveform
from audiolm.training.audio_store import AudioStore


class AtSpeeds:
    """The recordings of a store at each of `speeds` (1: unchanged; 1.1: 10 % faster and higher).

    The copies are named "name@speed" and their speakers "speaker@speed", since they sound like other people.
    """

    def __init__(self, store: AudioStore, speeds: Sequence[float]) -> None:
        self.store, self.sample_rate = store, store.sample_rate
        self.sources = [
            (number, speed)
            for speed in speeds
            for number, entry in enumerate(store.entries)
            if speed == 1 or entry.split == "train"
        ]
        originals = [store.entries[number] for number, _ in self.sources]
        self.entries = [
            entry
            if speed == 1
            else replace(
                entry,
                name=f"{entry.name}@{speed:g}",  # see `original`
                speaker=f"{entry.speaker}@{speed:g}",
                length=round(entry.length / speed),
            )
            for entry, (_, speed) in zip(originals, self.sources, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, number: int) -> Tensor:
        """Samples (T,) float32 of a recording at its speed."""
        source, speed = self.sources[number]
        samples = self.store.read(source)
        return (
            samples
            if speed == 1
            else Waveform(samples[None], round(self.sample_rate * speed)).resample(self.sample_rate).samples[0]
        )


def original(name: str, known: Container[str]) -> str:
    """The one of the `known` recordings that `name` is a copy of at another speed, or the name itself if there is none."""
    base = re.sub(r"@[0-9]+(\.[0-9]+)?$", "", name)
    return base if base in known else name
