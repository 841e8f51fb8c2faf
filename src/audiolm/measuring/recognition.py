"""Word and character error rates by an offline speech recogniser (AudioLM section IV-C, Table II).

pocketsphinx, with the American English model in its wheel, is far weaker than the paper's Conformer-Transducer: its figures
mean something only relative to those of the original recording, which are their lower bound.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from audiolm.measuring.metrics import needed


class Recogniser:
    """Mono audio (..., T) at 16 kHz -> normalised words. Holds the recogniser's models, which take a second to load."""

    def __init__(self) -> None:
        # A tenth of the default number of paths per frame: no more errors on real speech, and a third of the time on babble.
        self._decoder: Any = needed("pocketsphinx").Decoder(loglevel="FATAL", maxhmmpf=3000, maxwpf=10)

    def __call__(self, audio: Tensor) -> str:
        sound = (audio.flatten().clamp(-1, 1) * 32767).to(torch.int16).numpy().tobytes()
        self._decoder.reinit_feat()  # so that a result does not depend on earlier recordings
        self._decoder.start_utt()
        try:
            self._decoder.process_raw(sound, full_utt=True)
        finally:
            self._decoder.end_utt()
        found = self._decoder.hyp()
        return normalised(found.hypstr if found else "")


def normalised(text: str) -> str:
    """The text in lower case with letters, digits, apostrophes inside words and single spaces only."""
    kept = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.lower().replace("\u2019", "'"))
    return " ".join(word for word in (part.strip("'") for part in kept.split()) if word)


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Edit distance in words between what was said and heard, and the number of words said. Both texts normalised."""
    return _errors(needed("jiwer").process_words, said, heard, len(said.split()))


def character_errors(said: str, heard: str) -> tuple[int, int]:
    """As `word_errors`, for characters, including spaces."""
    return _errors(needed("jiwer").process_characters, said, heard, len(said))


def _errors(process: Any, said: str, heard: str, length: int) -> tuple[int, int]:
    if not said:  # jiwer needs a non-empty reference
        return len(heard.split()) if process.__name__ == "process_words" else len(heard), 0
    found = process(said, heard)
    return found.substitutions + found.deletions + found.insertions, length


def rates(pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For pairs (said, heard): word errors, words, character errors, characters, each (R)."""
    counts = [(*word_errors(*pair), *character_errors(*pair)) for pair in pairs]
    words, said, characters, letters = torch.tensor(counts, dtype=torch.float64).T
    return words, said, characters, letters
