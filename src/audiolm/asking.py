"""What can be asked of a model: what to generate, and how. Data only; audiolm.model does it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from pydantic import Field

from audiolm.audio import Waveform
from audiolm.config import Config
from audiolm.sampling import Options
from audiolm.tokens import Tokens

SHORTEST, LONGEST = 0.1, 24 * 3600.0  # seconds of a prompt, and of what one call generates
TEMPERATURES = {"semantic": 0.6, "coarse": 0.8, "fine": 0.6, "acoustic": 0.8}  # AudioLM section IV-B

Chain = Literal["full", "acoustic"]
AcousticDecoder = Literal["autoregressive", "parallel"]  # coarse and fine (or piano); all levels in a few passes
Progress = Callable[[str, int, int], None]  # stage, frames done, frames in all


@dataclass(frozen=True, eq=False)
class Request:
    """One thing to generate. With `semantic`, its words and its length; else `seconds` of new sound after the prompt."""

    prompt: Waveform | None = None
    seconds: float | None = None
    semantic: Tokens | None = None
    seed: int = 0


class Sampling(Config):
    """How one stage is sampled: temperature 0 takes the likeliest code; top_k and top_p cut the unlikely ones off.

    passes: of a parallel stage, over its first level; None: the paper's 16. The time it takes goes with them.
    """

    temperature: float = Field(default=1.0, ge=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    passes: int | None = Field(default=None, ge=1)

    @property
    def options(self) -> Options:
        """As arguments of `audiolm.sampling`."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "passes": self.passes}


class How(TypedDict, total=False):
    """What every way of generating takes besides what is to be generated.

    only_new: leave the prompt out of the result; so do given words, which are not the prompt's. chain: "acoustic" is the paper's
    baseline without semantic tokens. decoder: how semantic tokens become acoustic ones, where the model can do both, and
    codebooks: levels of the sound, both the model's own choice if nothing is said; where the stage before the fine one makes as
    many levels, the fine one is left out. sampling: of the stages named, in place of the model's. watermark: mark what is new,
    inaudibly, as made by this model; the prompt never is (audiolm.provenance).
    """

    only_new: bool
    chain: Chain
    decoder: AcousticDecoder | None
    codebooks: int | None
    sampling: Mapping[str, Sampling] | None
    watermark: bool


def at_temperatures(sampling: Mapping[str, Sampling], values: Sequence[float]) -> dict[str, Sampling]:
    """The same settings at one temperature, or at three: the semantic stage's, the fine one's, and between them all others'."""
    semantic, coarse, fine = [*values] * (3 if len(values) == 1 else 1)
    own = {"semantic": semantic, "fine": fine}
    return {name: each.model_copy(update={"temperature": own.get(name, coarse)}) for name, each in sampling.items()}
