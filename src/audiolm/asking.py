"""Requests to a model: what to generate, how, and how far it is. Data only; audiolm.model does the work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, cast

from pydantic import Field
from torch import Tensor

from audiolm.audio import Waveform, resampled_length
from audiolm.config import Config, parse_config
from audiolm.errors import InputError
from audiolm.sampling import Options
from audiolm.tokens import Tokens

SHORTEST, LONGEST = 0.1, 24 * 3600.0  # seconds: minimum length of a prompt, maximum length that one call generates
LENGTH, UNTIL_END = 7.0, 30.0  # seconds to generate if not told; with `until_end`, the most
TEMPERATURES = {"text": 0.6, "semantic": 0.6, "coarse": 0.8, "fine": 0.6, "acoustic": 0.8}  # AudioLM section IV-B

Chain = Literal["full", "acoustic"]
AcousticDecoder = Literal["autoregressive", "parallel"]  # level after level from coarse or piano on; or all in a few passes
Progress = Callable[[str, int, int], None]  # stage, frames done, total frames


@dataclass(frozen=True, eq=False)
class Request:
    """One thing to generate: the words of `text` or `semantic`, which set its length, or `seconds` of sound after the prompt."""

    prompt: Waveform | None = None
    seconds: float | None = None
    semantic: Tokens | None = None
    seed: int = 0
    text: str | None = None

    def length(self, sample_rate: int, only_new: bool = False) -> int:
        """Samples of prompt and `seconds`; with `How.until_end`, the most: a shorter sound has ended by itself.

        InputError if the seconds are out of range.
        """
        if self.seconds is None or not 0 < self.seconds <= LONGEST:
            raise InputError(f"seconds={self.seconds}: give the length to generate, above 0 and at most {LONGEST:.0f} s")
        new, prompt = max(1, round(self.seconds * sample_rate)), None if only_new else self.prompt
        return new if prompt is None else new + resampled_length(prompt.samples.shape[1], prompt.sample_rate, sample_rate)


@dataclass(eq=False)
class Job:
    """A request in progress: prompt (1, T) at the model's rate, numbers of new samples and semantic frames, tokens so far.

    Both numbers are the most there may be until the first stage is done.
    """

    request: Request
    prompt: Tensor | None
    samples: int
    frames: int
    semantic: Tensor = field(init=False)  # (1, F)
    acoustic: Tensor = field(init=False)  # (Q, F)

    @property
    def followed(self) -> Tensor | None:
        """The prompt, if the new sound goes on from it and does not just take its voice."""
        return self.prompt if self.request.semantic is None else None


class Sampling(Config):
    """How one stage is sampled. Temperature 0 is greedy; top_k and top_p exclude unlikely codes.

    passes: decoding passes over the first level, for parallel stages only; None: the paper's 16. Run time grows with them.
    keep_repeats: a code repeats as often as the model says, whatever the temperature, top_k and top_p: they choose which code
    comes next once it changes. For stages of one level only, such as the semantic one: a low temperature alone would make units
    last ever longer (docs/training-log.md).
    """

    temperature: float = Field(default=1.0, ge=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    passes: int | None = Field(default=None, ge=1)
    keep_repeats: bool = False

    @property
    def options(self) -> Options:
        """The settings as keyword arguments for `audiolm.sampling`."""
        return cast(Options, self.model_dump())


class How(TypedDict, total=False):
    """Options shared by all ways of generating.

    only_new: leave the prompt out of the result (implied by `semantic` and `text`, whose words are not the prompt's). chain:
    "acoustic" is the paper's baseline without semantic tokens. decoder: how semantic tokens become acoustic ones, if the model
    can do both; codebooks: number of RVQ levels; both default to the model's own choice. The fine stage is skipped if the stage
    before it already makes that many levels. sampling: replaces the model's settings for the stages named. watermark: mark new
    sound inaudibly as made by this model; the prompt is never marked (audiolm.provenance). pace: how fast texts are read; 1 is
    the pace of the recordings that the model was trained on. until_end: a sound ends where the model says that a recording would,
    a second after the prompt at the earliest; `seconds` is then the most.
    """

    only_new: bool
    chain: Chain
    decoder: AcousticDecoder | None
    codebooks: int | None
    sampling: Mapping[str, Sampling] | None
    watermark: bool
    pace: float
    until_end: bool


def changed(
    sampling: Mapping[str, Sampling], temperatures: Sequence[float] = (), top_k: int | None = None, top_p: float | None = None
) -> dict[str, Sampling]:
    """The settings with one temperature for all stages, or three (semantic, everything in between, fine), top_k and top_p.

    What is not given stays. InputError if a value is out of range.
    """
    common = {name: value for name, value in (("top_k", top_k), ("top_p", top_p)) if value is not None}
    semantic, coarse, fine = [*temperatures] * (3 if len(temperatures) == 1 else 1) or [None] * 3
    own = {"text": semantic, "semantic": semantic, "fine": fine}
    made = {}
    for name, each in sampling.items():
        temperature = own.get(name, coarse)
        changes = common if temperature is None else common | {"temperature": temperature}
        made[name] = parse_config(Sampling, each.plain() | changes, "sampling")
    return made
