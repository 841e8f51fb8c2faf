"""Which stages make a sound, and how: the options of generation (`audiolm.asking.How`), resolved for a particular model.

Acoustic levels are made from the lowest up, by one of

    coarse, fine              the paper's chain (AudioLM §III-C); piano: the paper's one stage for all levels (§IV-I)
    coarse, parallel, fine    where fine does not begin at coarse's end, a parallel stage makes the levels in between, or the rest
    parallel, fine            the parallel decoder
    acoustic, fine            the paper's baseline without semantic tokens

and only as far as levels are asked for.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from audiolm.asking import TEMPERATURES, AcousticDecoder, Chain, Request, Sampling
from audiolm.errors import InputError
from audiolm.sampling import Options
from audiolm.stages import Stage

EARLIEST = 1.0  # seconds of new sound before an end: a prompt's last units tell that its file ends, wherever it was cut
AUTOREGRESSIVE = ("coarse", "piano")  # stages that make the first acoustic levels code by code; a model has one of them


@dataclass(frozen=True)
class Route:
    """Resolved options. stages: the acoustic ones by name, in order; codebooks: how many of their levels are heard."""

    stages: Mapping[str, Stage]
    codebooks: int
    settings: Mapping[str, Sampling]
    speaks: bool  # semantic tokens come first
    only_new: bool
    watermark: bool
    pace: float
    until_end: bool

    def options(self, name: str, stage: Stage) -> Options:
        """How a stage draws its codes. Only the first one may end a sound; the others are as long as what they are given."""
        first = "semantic" if self.speaks else next(iter(self.stages))
        options = self.settings[name].options
        return options | ending(stage) if self.until_end and name == first else options

    @property
    def decoder(self) -> AcousticDecoder:
        """How the first acoustic levels are made."""
        return "parallel" if next(iter(self.stages)) == "parallel" else "autoregressive"

    def known(self, stage: Stage, prompt: Tensor) -> Tensor:
        """The levels of a prompt's codes (Q, F) that a stage continues. A parallel stage skips levels that are not output."""
        codes = stage.predict.take(prompt)
        return codes[: self.codebooks - stage.predict.first] if stage.parallel else codes


def route(
    stages: Mapping[str, Stage],
    sampling: Mapping[str, Sampling],
    about: Mapping[str, Any],
    requests: Sequence[Request],
    *,
    chain: Chain = "full",
    decoder: AcousticDecoder | None = None,
    codebooks: int | None = None,
    settings: Mapping[str, Sampling] | None = None,
    only_new: bool = False,
    watermark: bool = True,
    pace: float = 1.0,
    until_end: bool = False,
) -> Route:
    """The route for a model with these stages, sampling and defaults (`about`). InputError if it has none; see `How`."""
    if chain not in get_args(Chain) or (decoder is not None and decoder not in get_args(AcousticDecoder)):
        names = " or ".join(get_args(Chain)), " or ".join(get_args(AcousticDecoder))
        raise InputError(f"chain={chain!r}, decoder={decoder!r}: chain must be {names[0]}, decoder {names[1]}")
    for name, given in (settings or {}).items():
        if name not in {*stages, *TEMPERATURES} or not isinstance(given, Sampling):
            raise InputError(f"sampling[{name!r}]: map the name of a stage ({', '.join(stages)}) to a Sampling")
    if chain == "acoustic":
        if decoder == "parallel":
            raise InputError("chain='acoustic' has no semantic tokens to decode in parallel; omit decoder")
        if any(request.semantic is not None or request.text is not None for request in requests):
            raise InputError("chain='acoustic' has no semantic tokens; use the full chain to say given words")
    elif any(request.semantic is None and request.text is None for request in requests):
        existing(stages, "semantic")
    if any(request.semantic is not None and request.text is not None for request in requests):
        raise InputError("semantic and text: both say which words to say; give one of them")
    if until_end and any(request.semantic is not None or request.text is not None for request in requests):
        raise InputError("until_end: the words of semantic or text already say where the sound ends; omit it")
    if decoder is None:
        ways = decoders(stages)
        parallel = ways == ["parallel"] or ("parallel" in ways and about.get("decoder") == "parallel")
        decoder = "parallel" if parallel else "autoregressive"
    first = ["acoustic"] if chain == "acoustic" else ["parallel"] if decoder == "parallel" else AUTOREGRESSIVE
    begin = next((name for name in first if name in stages), " or ".join(first))
    total = existing(stages, begin).predict.spec.num_codebooks
    codebooks = about.get("codebooks") if codebooks is None else codebooks
    found = dict(_acoustic(stages, begin, min(codebooks or total, total)))
    levels = list(found.values())[-1].predict.last
    if codebooks is not None and not 1 <= codebooks <= levels:
        raise InputError(f"codebooks={codebooks}: give 1 to {levels} for this model")
    settings = {**sampling, **(settings or {})}
    return Route(found, codebooks or levels, settings, chain == "full", only_new, watermark, pace, until_end)


def ending(stage: Stage) -> Options:
    """The options with which a stage may end a sound."""
    return {"ends_after": stage.predict.frames(EARLIEST)}


def decoders(stages: Collection[str]) -> list[AcousticDecoder]:
    """The ways from semantic to acoustic tokens for a model with these stages."""
    first: dict[AcousticDecoder, tuple[str, ...]] = {"autoregressive": AUTOREGRESSIVE, "parallel": ("parallel",)}
    return [way for way, names in first.items() if any(name in stages for name in names)]


def existing(stages: Mapping[str, Any], name: str) -> Any:
    """The stage of this name, or whatever `stages` has for it. InputError if the model has none."""
    if name not in stages:
        raise InputError(f"this model has no {name} stage; its stages: {', '.join(stages) or 'none'}")
    return stages[name]


def _acoustic(stages: Mapping[str, Stage], begin: str, wanted: int) -> Iterator[tuple[str, Stage]]:
    """The stages from `begin` on that make `wanted` levels, or as many as there are."""
    stage, fine, parallel = stages[begin], stages.get("fine"), stages.get("parallel")
    yield begin, _checked(begin, stage, 0)
    levels = stage.predict.last
    gap = fine is None or fine.predict.first != levels
    if begin in AUTOREGRESSIVE and gap and parallel is not None and levels < min(wanted, parallel.predict.last):
        yield "parallel", parallel.above(levels)
        levels = parallel.predict.last
    if fine is not None and levels < wanted:
        yield "fine", _checked("fine", fine, levels)


def _checked(name: str, stage: Stage, levels: int) -> Stage:
    if stage.predict.first != levels:
        raise InputError(
            f"stage {name} starts at level {stage.predict.first + 1}, not {levels + 1}: the stages do not fit together"
        )
    return stage
