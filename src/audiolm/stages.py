"""The stages as data (AudioLM §III-B, §III-C): which tokens are given, which predicted, and how they form one id sequence.

    semantic   nothing -> S            coarse   S -> A[:4]          fine    A[:4] -> A[4:]
    acoustic   nothing -> A            piano    S -> A[:3]          (§IV-I: no fine stage)
    text       text -> S               (SPEAR-TTS, 2302.03540: reads aloud; audiolm.text)
    parallel   S -> A                  (SoundStorm, 2305.09636: one position per frame instead of per id; audiolm.parallel)

A coarse stage of few levels, each of whose codes is one more step, can leave the rest to a parallel one (`Stage.above`).

A sequence ("line") is    given ids, START, predicted ids, EOS    with EOS only where the recording really ends. Codes are
flattened time-major: all levels of a frame, then the next frame. Every level of every stream has its own range of ids, and
the three special ids lie outside them all, so an id is never ambiguous.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from audiolm.errors import InputError
from audiolm.text import SPEC as TEXT
from audiolm.tokens import TokenSpec


@dataclass(frozen=True)
class Stream:
    """Codebooks [first, last) of one kind of tokens."""

    spec: TokenSpec
    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= self.spec.num_codebooks:
            raise InputError(
                f"{self.spec.name} has {self.spec.num_codebooks} codebooks, not the range [{self.first}, {self.last})"
            )

    @property
    def levels(self) -> int:
        return self.last - self.first

    @property
    def size(self) -> int:
        """Number of ids the stream uses."""
        return self.levels * self.spec.codebook_size

    def take(self, codes: Tensor) -> Tensor:
        """Select the stream's levels from codes with all levels: (..., Q, F) -> (..., levels, F)."""
        return codes[..., self.first : self.last, :]

    def frames(self, seconds: float) -> int:
        """Number of frames in `seconds`, rounded."""
        return round(seconds * self.spec.frame_rate)


@dataclass(frozen=True)
class Stage:
    """One language-modelling task. The paper's stages, and any others, are instances of this class.

    dedup: remove consecutive repeats from the given single-codebook streams, and from the predicted one if nothing is given
    (otherwise its frames must stay aligned with the given ones). crop: seconds of a training example, and of the window in
    which longer sounds are generated. overlap: seconds of a window that prompt the next one. parallel: all codes of a frame
    share one position, and many frames are filled at once.
    """

    name: str
    given: tuple[Stream, ...]
    predict: Stream
    dedup: bool = False
    crop: float = 10.0
    overlap: float = 0.0
    parallel: bool = False

    def __post_init__(self) -> None:
        if self.parallel and self.dedup:
            raise InputError(f"stage {self.name}: a parallel stage needs the given codes in their own time; omit dedup")
        if not 0 <= self.overlap <= self.crop - self.grid:
            raise InputError(
                f"stage {self.name}: overlap={self.overlap} must be from 0 s to {self.grid} s less than crop={self.crop}"
            )

    def kept(self, codes: Tensor) -> Tensor:
        """The codes (1, F) that this stage models of those of a recording: if deduplicated, without repeats."""
        return without_repeats(codes) if self.dedup else codes

    # Ids: the streams' ranges in order, then the special ids.

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (*self.given, self.predict)

    @property
    def start(self) -> int:
        """The id that separates given from predicted ids."""
        return sum(stream.size for stream in self.streams)

    @property
    def eos(self) -> int:
        return self.start + 1

    @property
    def pad(self) -> int:
        return self.start + 2

    @property
    def vocabulary(self) -> int:
        """Number of ids, special ids included."""
        return self.start + (self.below + self.predict.levels if self.parallel else 3)

    @property
    def below(self) -> int:
        """Number of given levels of the kind that is predicted."""
        return sum(stream.levels for stream in self.given if stream.spec == self.predict.spec)

    @property
    def masks(self) -> Tensor:
        """Parallel stages have other special ids: one MASK per level, for codes not known yet. Those predicted, (levels)."""
        return self.start + self.below + torch.arange(self.predict.levels)

    def above(self, level: int) -> "Stage":
        """A parallel stage when its levels below `level` are given. All ids stay the same, so the same network serves both."""
        lower, upper = replace(self.predict, last=level), replace(self.predict, first=level)
        return replace(self, given=(*self.given, lower), predict=upper)

    @cached_property
    def offsets(self) -> tuple[Tensor, ...]:
        """For each stream, the first id of each of its levels, (levels, 1)."""
        first, found = 0, []
        for stream in self.streams:
            found.append(first + stream.spec.codebook_size * torch.arange(stream.levels)[:, None])
            first += stream.size
        return tuple(found)

    @property
    def dedup_predicted(self) -> bool:
        return self.dedup and not self.given and self.predict.spec.num_codebooks == 1

    # Time

    @property
    def grid(self) -> float:
        """Seconds between the instants at which frames of all streams start together; crops and windows start only there."""
        rates = [Fraction(stream.spec.frame_rate).limit_denominator(10_000) for stream in self.streams]
        # The least common multiple of the periods 1 / rate.
        return math.lcm(*(rate.denominator for rate in rates)) / math.gcd(*(rate.numerator for rate in rates))

    def places(self, ids: Tensor) -> Tensor:
        """Ids (B, L) of lines, padded on either side -> positions (B, L) in time, in units of one predicted id.

        From START on, the position of an id is its index. A given id is placed at the middle of the predicted ids that it
        covers: the line "s0 s1 START a0 .. a7", with four a's per s, has positions 4, 8, 2, 3 .. 10. Deduplicated codes
        have lost their timing and keep their indices.
        """
        index = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        if not self.given or self.dedup:
            return index
        positions, start = index.float(), (ids == self.start).long().argmax(1, keepdim=True)
        for stream, offsets in zip(self.given, self.offsets, strict=False):
            own = (ids >= offsets[0, 0]) & (ids < offsets[0, 0] + stream.size)
            each = self.predict.levels * self.predict.spec.frame_rate / (stream.levels * stream.spec.frame_rate)
            positions = torch.where(own, start + (own.cumsum(1) - 0.5) * each, positions)
        return positions

    # Codes <-> ids

    def pack(self, given: Sequence[Tensor], predicted: Tensor, ends: bool = False) -> Tensor:
        """Codes (levels, F) of each given stream and of the predicted one -> ids (L,). `ends`: append EOS."""
        parts = [ids.T.flatten() for ids in self._ids([*given, predicted])]
        parts.insert(-1, torch.tensor([self.start]))
        return torch.cat(parts + [torch.tensor([self.eos])] * ends)

    def stack(self, given: Sequence[Tensor], predicted: Tensor) -> Tensor:
        """Codes as for `pack` -> ids (F, levels of all streams): each predicted frame next to what is given at that time."""
        rows, frames = [], torch.arange(predicted.shape[-1])
        for stream, ids in zip(self.streams, self._ids([*given, predicted]), strict=True):
            ratio = Fraction(stream.spec.frame_rate / self.predict.spec.frame_rate).limit_denominator(10_000)
            if len(frames) and ids.shape[1] <= int(frames[-1]) * ratio:
                raise InputError(
                    f"stage {self.name}: {ids.shape[1]} {stream.spec.name} frames are too few for {len(frames)} predicted ones"
                )
            rows.append(ids[:, frames * ratio.numerator // ratio.denominator])
        return torch.cat(rows).T

    def unpack(self, ids: Tensor) -> tuple[list[Tensor], Tensor, bool]:
        """Ids (L,) -> (given, predicted, ends), the inverse of `pack` except for repeats that dedup removed. Ignores PAD."""
        codes = []
        for stream, offsets in zip(self.streams, self.offsets, strict=True):
            own = ids[(ids >= offsets[0]) & (ids < offsets[0] + stream.size)]
            if len(own) % stream.levels:
                raise InputError(
                    f"stage {self.name}: {len(own)} {stream.spec.name} ids do not make whole frames of {stream.levels} levels"
                )
            frames = own.view(-1, stream.levels).T - offsets
            if bool(((frames < 0) | (frames >= stream.spec.codebook_size)).any()):
                raise InputError(f"stage {self.name}: {stream.spec.name} ids are not in the order of their levels")
            codes.append(frames.contiguous())
        return codes[:-1], codes[-1], bool((ids == self.eos).any())

    def _ids(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """Check the codes and convert them to ids, (levels, F) per stream, without the repeats that dedup removes."""
        if len(streams) != len(self.streams):
            raise InputError(f"stage {self.name}: needs {len(self.given)} given streams, got {len(streams) - 1}")
        return [self._ids_of(index, codes) for index, codes in enumerate(streams)]

    def _ids_of(self, index: int, codes: Tensor) -> Tensor:
        stream = self.streams[index]
        if codes.ndim != 2 or codes.shape[0] != stream.levels:
            raise InputError(
                f"stage {self.name}: {stream.spec.name} codes must be ({stream.levels}, frames), got {tuple(codes.shape)}"
            )
        codes = codes.long()
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < stream.spec.codebook_size:
            raise InputError(f"stage {self.name}: {stream.spec.name} codes must lie in [0, {stream.spec.codebook_size})")
        if self.dedup_predicted or (self.dedup and index < len(self.given) and stream.spec.num_codebooks == 1):
            codes = without_repeats(codes)
        return codes + self.offsets[index]

    # config.json

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. `parallel` is included only if true: older versions write and read stages without it."""
        values = asdict(self) | {"given": [asdict(stream) for stream in self.given]}
        return values if self.parallel else {name: value for name, value in values.items() if name != "parallel"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Stage":
        """The inverse of `to_dict`. InputError if a key is missing or unknown."""
        try:
            streams = [Stream(**{**each, "spec": TokenSpec(**each["spec"])}) for each in [*values["given"], values["predict"]]]
            return cls(**{**values, "given": tuple(streams[:-1]), "predict": streams[-1]})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"not a stage that this version can read ({str(error).splitlines()[0]}); update audiolm or save it again"
            ) from error


def without_repeats(codes: Tensor) -> Tensor:
    """Codes (1, F) with each run of equal codes reduced to one."""
    return codes[0].unique_consecutive()[None]


# The paper's stages (§III-B, §IV-B). Repeats are kept by default: SoundStorm (Table 1) measures fewer word errors with them.


def semantic(spec: TokenSpec, dedup: bool = False) -> Stage:
    """Nothing -> S."""
    return Stage("semantic", (), Stream(spec, 0, spec.num_codebooks), dedup, crop=30.0, overlap=10.0)


def coarse(semantic: TokenSpec, acoustic: TokenSpec, levels: int = 4, dedup: bool = False) -> Stage:
    """S -> A[:levels]."""
    return Stage("coarse", (Stream(semantic, 0, semantic.num_codebooks),), Stream(acoustic, 0, levels), dedup, 10.0, 3.0)


def fine(acoustic: TokenSpec, levels: int = 4) -> Stage:
    """A[:levels] -> A[levels:], in independent windows."""
    return Stage("fine", (Stream(acoustic, 0, levels),), Stream(acoustic, levels, acoustic.num_codebooks), crop=3.0)


def acoustic_only(acoustic: TokenSpec, levels: int | None = None) -> Stage:
    """Nothing -> A: the paper's ablation, which keeps the voice but babbles."""
    return Stage("acoustic", (), Stream(acoustic, 0, levels or acoustic.num_codebooks), crop=10.0, overlap=3.0)


def piano(semantic: TokenSpec, acoustic: TokenSpec, levels: int = 3) -> Stage:
    """S -> A[:levels], all levels of a codec with few, large codebooks (§IV-I: 3 of 2^14 codes); no fine stage."""
    return replace(coarse(semantic, acoustic, levels), name="piano")


def text(semantic: TokenSpec) -> Stage:
    """Text -> S: what a text sounds like when it is read, in no voice yet (SPEAR-TTS §3)."""
    return Stage("text", (Stream(TEXT, 0, 1),), Stream(semantic, 0, semantic.num_codebooks), crop=10.0, overlap=3.0)


def parallel(semantic: TokenSpec, acoustic: TokenSpec, levels: int | None = None) -> Stage:
    """S -> A in a few passes over all frames (SoundStorm §3), replacing coarse and fine."""
    stage = coarse(semantic, acoustic, levels or acoustic.num_codebooks)
    return replace(stage, name="parallel", parallel=True)
