"""Where a recovery begins: how much of a harmful answer is given before the refusal that is learned.

    the paper        k = 0 with probability p₀, else uniform in 1 … C
    every position   each position of the answer equally often (DeRTa)
    insertion        in the middle of a refusal: some of it, a span of the answer, and the refusal again
    mined            the depths where the current model refuses least

A sampler is frozen and draws from a generator that it is handed; what it draws is written into the rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import NamedTuple, Protocol

from fathom.errors import UserError

__all__ = ["EveryPosition", "Insertion", "Lengths", "Mined", "PaperStarts", "Start", "StartSampler"]


class Start(NamedTuple):
    """What is given of a triplet: tokens of the refusal, then `answer` tokens of the harmful answer from `skip` on."""

    refusal: int = 0
    skip: int = 0
    answer: int = 0


class Lengths(NamedTuple):
    """Tokens of a triplet's harmful answer and of its refusal."""

    answer: int
    refusal: int


class StartSampler(Protocol):
    """Draws a start for a triplet; `visit` counts how often the triplet has been used before."""

    @property
    def name(self) -> str: ...
    def __call__(self, lengths: Lengths, visit: int, random: Random) -> Start: ...


@dataclass(frozen=True)
class PaperStarts:
    """k = 0 with probability `p0`, else uniform in 1 … `longest`; `longest` None is each answer's own length.

    An answer shorter than `longest` is given up to its own end: its k is uniform in 1 … its length.

    Source: the paper's section 3 (p₀ = 0.5, C = 100).
    """

    p0: float = 0.5
    longest: int | None = 100

    def __post_init__(self) -> None:
        if not 0 <= self.p0 <= 1:
            raise UserError(f"the probability of k = 0 is {self.p0}: give a number from 0 to 1")
        if self.longest is not None and self.longest < 1:
            raise UserError(f"the longest start C is {self.longest}: give at least 1 token")

    @property
    def name(self) -> str:
        return f"paper (p0 = {self.p0:g}, C = {'full' if self.longest is None else self.longest})"

    def __call__(self, lengths: Lengths, visit: int, random: Random) -> Start:
        del visit
        if random.random() < self.p0:
            return Start()
        longest = lengths.answer if self.longest is None else min(self.longest, lengths.answer)
        return Start(answer=random.randint(1, longest))


@dataclass(frozen=True)
class EveryPosition:
    """k takes every value from 0 to the answer's length once before any comes again, in an order of its own.

    Source: DeRTa (arXiv 2407.09121), whose loss is at every position; here as a sampler of rows.
    """

    @property
    def name(self) -> str:
        return "every position"

    def __call__(self, lengths: Lengths, visit: int, random: Random) -> Start:
        del random
        count = lengths.answer + 1
        # Steps by the golden ratio, made coprime to the count: early visits are already spread over the answer.
        step = max(1, round(count * 0.618))
        while _common(step, count) != 1:
            step += 1
        return Start(answer=visit * step % count)


def _common(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


@dataclass(frozen=True)
class Insertion:
    """With probability `share`, some of the refusal and then a span of the answer are given; else the paper's start.

    The span begins anywhere in the answer and is uniform in 1 … `longest`.

    Source: after the insertion attack (arXiv 2606.04168).
    """

    share: float = 0.25
    longest: int = 40
    otherwise: PaperStarts = PaperStarts()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.longest < 1:
            raise UserError("insertion needs a share in (0, 1] and a longest span of at least 1 token")

    @property
    def name(self) -> str:
        return f"insertion ({self.share:g}, spans to {self.longest}) over {self.otherwise.name}"

    def __call__(self, lengths: Lengths, visit: int, random: Random) -> Start:
        if random.random() >= self.share:
            return self.otherwise(lengths, visit, random)
        skip = random.randrange(lengths.answer)
        span = random.randint(1, min(self.longest, lengths.answer - skip))
        return Start(refusal=random.randint(1, lengths.refusal), skip=skip, answer=span)


@dataclass(frozen=True)
class Mined:
    """k = 0 with probability `p0`, else one of the measured depths, in proportion to the refusal mass missing there.

    `missing` maps depths (tokens, at least 1) to weights of at least 0; depths beyond an answer's end are left out.
    """

    missing: Mapping[int, float]
    p0: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p0 < 1:
            raise UserError(f"the probability of k = 0 is {self.p0}: give a number in [0, 1)")
        if not self.missing or min(self.missing) < 1 or min(self.missing.values()) < 0:
            raise UserError("mined depths need at least one depth of 1 token or more, and weights of at least 0")

    @property
    def name(self) -> str:
        return f"mined at {len(self.missing)} depths (p0 = {self.p0:g})"

    def __call__(self, lengths: Lengths, visit: int, random: Random) -> Start:
        del visit
        if random.random() < self.p0:
            return Start()
        depths = sorted(depth for depth in self.missing if depth <= lengths.answer)
        if not depths:
            raise UserError(
                f"a harmful answer has {lengths.answer} tokens, and the shallowest mined depth is {min(self.missing)}: "
                "leave the triplet out, or mine shallower depths"
            )
        weights = [self.missing[depth] for depth in depths]
        if not sum(weights) > 0:
            weights = [1.0] * len(depths)
        # From one depth to the next is one stratum: the cut lies anywhere in it, not always at its end.
        (chosen,) = random.choices(range(len(depths)), cum_weights=list(accumulate(weights)))
        before = depths[chosen - 1] if chosen else 0
        return Start(answer=random.randint(before + 1, depths[chosen]))
