"""Text as one more stream of tokens, for a stage that reads aloud: text -> S (SPEAR-TTS, 2302.03540, section 3).

A token is a byte of UTF-8, 25 a second: each frame says which byte is being read while it sounds. In training, a transcript is
spread evenly over the frames of its recording in which somebody speaks; in generation, over as many as reading it takes. Text
thus has a time like all other tokens, and crops, windows and positions in time work as for them. Real speech runs ahead of even
spacing or behind it by a few letters, which the stage learns. Silence is read as spaces, so a run of them is a pause.
"""

import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from audiolm.errors import InputError
from audiolm.tokens import TokenSpec

SPEC = TokenSpec("text", 256, 1, 25.0)
RATE = 17.8  # bytes per second of speech, pauses aside: LibriSpeech's mean
UNKNOWN, SPACE = 0, ord(" ")
PAUSES = {",": 0.2, ";": 0.3, ":": 0.3, ".": 0.5, "!": 0.5, "?": 0.5, "\n": 0.5}  # seconds; all other marks: none
QUIET, SHORTEST_PAUSE = 30.0, 0.2  # dB below a recording's loud frames; seconds, more than a plosive's closure


def normalised(text: str) -> str:
    """Letters, digits and apostrophes in lower case, with single spaces between words."""
    kept = [each if each.isalnum() or each == "'" or unicodedata.category(each)[0] == "M" else " " for each in _plain(text)]
    return " ".join(word for word in "".join(kept).split() if any(map(str.isalnum, word)))


def timed(text: str, rate: float = RATE) -> Tensor:
    """Codes (1, F) of a text read at `rate` bytes per second, with a pause at punctuation. InputError if it has no words."""
    if not normalised(text):
        raise InputError("there is nothing to read in the text; give words")
    if not 1 <= rate <= SPEC.frame_rate:
        raise InputError(f"pace: {rate:.3g} letters a second were asked for; from 1 to {SPEC.frame_rate:g} can be read")
    parts, words = [], ""
    for each in _plain(text) + "\n":
        words += each
        if each in PAUSES:
            if said := normalised(words):
                codes = _bytes(said)
                frames = max(1, round(len(codes) / rate * SPEC.frame_rate))
                parts += [_stretched(codes, frames), torch.full((round(PAUSES[each] * SPEC.frame_rate),), SPACE)]
            words = ""
    return torch.cat(parts)[None]


def spread(text: str, audio: Tensor, frames: int) -> Tensor:
    """Codes (1, frames) of a recording (T,) and its transcript; UNKNOWN everywhere if the text is empty."""
    said = _bytes(normalised(text))
    if not len(said):
        return torch.full((1, frames), UNKNOWN)
    speaking = ~pauses(audio, frames)
    codes = torch.full((frames,), SPACE)
    codes[speaking] = _stretched(said, int(speaking.sum()))
    return codes[None]


def pauses(audio: Tensor, frames: int) -> Tensor:
    """Which of the `frames` frames of audio (T,) belong to a pause, (frames,) bool."""
    size = max(1, -(-len(audio) // frames))
    padded = torch.nn.functional.pad(audio, (0, frames * size - len(audio)))
    level = 10 * padded.view(frames, size).square().mean(1).clamp_min(1e-10).log10()
    return _long_runs(level < level.quantile(0.95) - QUIET)


def reading_rate(texts: Sequence[str], codes: Sequence[Tensor]) -> float:
    """Bytes per second of speech, pauses aside, over recordings with these transcripts and these codes (1, F) of `spread`."""
    read = sum(len(normalised(each).encode()) for each in texts)
    frames = sum(each.shape[1] - int(_long_runs(each[0] == SPACE).sum()) for each in codes)
    return min(SPEC.frame_rate, read / max(1, frames) * SPEC.frame_rate)


def _long_runs(flags: Tensor) -> Tensor:
    """Only those runs of True that last as long as a pause."""
    values, counts = flags.unique_consecutive(return_counts=True)
    return (values & (counts >= SHORTEST_PAUSE * SPEC.frame_rate)).repeat_interleave(counts)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.int64)


def _stretched(codes: Tensor, frames: int) -> Tensor:
    """Codes (n) over `frames` frames, evenly; some are left out if there are more codes than frames."""
    return codes[torch.arange(frames) * len(codes) // max(1, frames)]
