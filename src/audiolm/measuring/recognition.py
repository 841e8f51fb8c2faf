"""What words are heard? An offline recogniser, and its errors (AudioLM section IV-C, Table II).

pocketsphinx, with the American English model of its wheel, is far weaker than the paper's Conformer-Transducer: its
figures mean something only beside those of the recording itself, which bounds them from below.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from audiolm.measuring.metrics import needed


class Recogniser:
    """Holds the recogniser's models, which take a second to load. Mono audio (..., T) at 16 kHz -> words, normalised."""

    def __init__(self) -> None:
        # A tenth of the usual paths a frame: no more errors in real speech, a third of the time for what is not understood.
        self._decoder: Any = needed("pocketsphinx").Decoder(loglevel="FATAL", maxhmmpf=3000, maxwpf=10)

    def __call__(self, audio: Tensor) -> str:
        sound = (audio.flatten().clamp(-1, 1) * 32767).to(torch.int16).numpy().tobytes()
        self._decoder.reinit_feat()  # each recording is heard as if it were the first
        self._decoder.start_utt()
        try:
            self._decoder.process_raw(sound, full_utt=True)
        finally:
            self._decoder.end_utt()
        found = self._decoder.hyp()
        return normalised(found.hypstr if found else "")


def normalised(text: str) -> str:
    """Lower case; letters, digits and apostrophes inside words; single spaces."""
    kept = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.lower().replace("\u2019", "'"))
    return " ".join(word for word in (part.strip("'") for part in kept.split()) if word)


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Edits that turn the words said into those heard, and how many were said. Both normalised."""
    return _errors(needed("jiwer").process_words, said, heard, len(said.split()))


def character_errors(said: str, heard: str) -> tuple[int, int]:
    """The same of characters, spaces among them."""
    return _errors(needed("jiwer").process_characters, said, heard, len(said))


def _errors(process: Any, said: str, heard: str, length: int) -> tuple[int, int]:
    if not said:  # jiwer wants a reference
        return len(heard.split()) if process.__name__ == "process_words" else len(heard), 0
    found = process(said, heard)
    return found.substitutions + found.deletions + found.insertions, length


def rates(pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of pairs (said, heard): word errors, words, character errors, characters, each (R)."""
    counts = [(*word_errors(*pair), *character_errors(*pair)) for pair in pairs]
    words, said, characters, letters = torch.tensor(counts, dtype=torch.float64).T
    return words, said, characters, letters
