"""Text as one more stream of tokens, for a stage that reads aloud: text -> S (SPEAR-TTS, 2302.03540, section 3).

A token is a byte of UTF-8, 25 a second: each frame says which letter is being said in it. In training, a transcript is aligned
with the units of its recording (audiolm.training.alignment); in generation, each letter lasts as long as it did there on
average. So text has a time like all other tokens, and crops, windows and positions in time work as for them. A pause is a run
of spaces; punctuation makes one.
"""

import unicodedata
from collections.abc import Mapping

import torch
from torch import Tensor

from audiolm.errors import InputError
from audiolm.tokens import TokenSpec

SPEC = TokenSpec("text", 256, 1, 25.0)
SPACE = ord(" ")
LETTER = 0.06  # seconds, for letters that the model was not trained on; English has 17 a second
PAUSES = {",": 0.2, ";": 0.3, ":": 0.3, ".": 0.5, "!": 0.5, "?": 0.5, "\n": 0.5}  # seconds; all other marks: none
LEAD = 0.2  # seconds of silence at the beginning
SLOWEST, FASTEST = 0.25, 2.0  # pace


def normalised(text: str) -> str:
    """Letters, digits and apostrophes in lower case, with single spaces between words."""
    kept = [each if each.isalnum() or each == "'" or unicodedata.category(each)[0] == "M" else " " for each in _plain(text)]
    return " ".join(word for word in "".join(kept).split() if any(map(str.isalnum, word)))


def timed(text: str, seconds: Mapping[int, float], pace: float = 1.0) -> Tensor:
    """Codes (1, F) of a text being read, with its letters' durations (by byte) divided by `pace`, and with its pauses.

    InputError if the text has no words, or the pace is out of range.
    """
    if not normalised(text):
        raise InputError("there is nothing to read in the text; give words")
    if not SLOWEST <= pace <= FASTEST:
        raise InputError(f"pace={pace:g}: give {SLOWEST:g} (slow) to {FASTEST:g} (fast)")
    parts, words = [_pause(LEAD)], ""
    for each in _plain(text) + "\n":
        words += each
        if each in PAUSES:
            if said := normalised(words):
                codes = torch.tensor(list(said.encode()))
                ends = torch.tensor([seconds.get(byte, LETTER) for byte in codes.tolist()]).cumsum(0) / pace
                middles = (torch.arange(max(1, round(float(ends[-1]) * SPEC.frame_rate))) + 0.5) / SPEC.frame_rate
                parts += [codes[torch.searchsorted(ends, middles).clamp_max(len(codes) - 1)], _pause(PAUSES[each] / pace)]
            words = ""
    return torch.cat(parts)[None]


def _pause(seconds: float) -> Tensor:
    return torch.full((round(seconds * SPEC.frame_rate),), SPACE)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
