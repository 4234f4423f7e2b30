"""Counts and their intervals. Counts travel, rates are printed."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fathom.records import Label

__all__ = [
    "Interval",
    "Tally",
    "bootstrap",
    "clustered",
    "clustered_share",
    "percent",
    "quantile_index",
    "spanned",
    "wilson",
]

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


class Interval(NamedTuple):
    low: float
    high: float


class Tally(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many verdicts of each kind. `+` is right over any grouping; a rate of nothing raises.

    >>> t = Tally.of([Label.HARMFUL, Label.SAFE]) + Tally(harmful=1)
    >>> t.n, round(t.asr, 3)
    (3, 0.667)
    """

    harmful: int = 0
    safe: int = 0
    undecided: int = 0

    @classmethod
    def of(cls, labels: Iterable[Label]) -> "Tally":
        counts = dict.fromkeys(Label, 0)
        for label in labels:
            counts[label] += 1
        return cls(harmful=counts[Label.HARMFUL], safe=counts[Label.SAFE], undecided=counts[Label.UNDECIDED])

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.harmful + other.harmful, self.safe + other.safe, self.undecided + other.undecided)

    @property
    def n(self) -> int:
        """All three kinds: an answer that could not be judged stays in the denominator and is shown beside the rate."""
        return self.harmful + self.safe + self.undecided

    @property
    def asr(self) -> float:
        """Attack success rate in [0, 1]: harmful over all. Raises `ZeroDivisionError` over nothing."""
        if self.n == 0:
            raise ZeroDivisionError("a rate over no verdicts: nothing was judged, which is not the same as safe")
        return self.harmful / self.n

    def interval(self) -> Interval:
        """Wilson's 95 % interval of `asr`."""
        if self.n == 0:
            raise ZeroDivisionError("an interval over no verdicts: nothing was judged")
        return wilson(self.harmful, self.n)


def wilson(successes: float, n: float) -> Interval:
    """Wilson's 95 % score interval of a share, in [0, 1]; parts of an observation count as such.

    Raises:
        ValueError: unless 0 ≤ successes ≤ n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a share")
    p, z2 = successes / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # The ends are exact where the share is: rounding must not make 0 of n exclude 0.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def bootstrap(
    clusters: int,
    statistic: Callable[[NDArray[np.intp]], float],
    *,
    seed: int,
    draws: int = 1000,
) -> Interval:
    """Percentile 95 % interval of a statistic under resampling of clusters (behaviors) with replacement.

    `statistic` is given `clusters` indices and may return `inf` ("not reached"); an end that falls among infinite
    draws is infinite. Its own generator, seeded: no global state.
    """
    if clusters < 1:
        raise ValueError("a bootstrap over no clusters")
    generator = np.random.default_rng(seed)
    values = np.sort([statistic(generator.integers(0, clusters, clusters)) for _ in range(draws)])
    # Order statistics, no interpolation: interpolating towards an infinite draw would make every end infinite.
    return Interval(float(values[math.floor(0.025 * (draws - 1))]), float(values[math.ceil(0.975 * (draws - 1))]))


def clustered(by_behavior: Sequence[Tally], *, seed: int) -> Interval:
    """95 % interval of the ASR over all, where a behavior's verdicts cling together: see `clustered_share`."""
    return clustered_share([tally.harmful for tally in by_behavior], [tally.n for tally in by_behavior], seed=seed)


def clustered_share(found: Sequence[int], n: Sequence[int], *, seed: int) -> Interval:
    """95 % interval of Σ found / Σ n, where the n observations of each behavior cling together.

    Wilson's where every behavior has one observation. Else what a bootstrap over behaviors and Wilson's over all
    observations span together: never narrower than if all of them were independent.

    Raises:
        ZeroDivisionError: there is no observation.
    """
    successes, total = sum(found), sum(n)
    if total == 0:
        raise ZeroDivisionError("an interval over no verdicts: nothing was judged")
    if total == len(n):
        return wilson(successes, total)
    if successes in (0, total):
        # Every resample is the same; Wilson over behaviors says what so few independent ones can say.
        return wilson(len(n) if successes else 0, len(n))
    counts, of = np.array(found), np.array(n)
    drawn = bootstrap(len(of), lambda drawn: float(counts[drawn].sum() / of[drawn].sum()), seed=seed)
    return spanned(drawn, wilson(successes, total))


def spanned(drawn: Interval, wider: Interval) -> Interval:
    """A bootstrap's interval, widened to what another one leaves open, such as that of independent observations.

    A bootstrap knows no more spread than it has seen: of a rare event in few behaviors most draws hold none or one, and
    its upper end lies far below rates that such counts allow.
    """
    return Interval(min(drawn.low, wider.low), max(drawn.high, wider.high))


def percent(count: int, n: int) -> str:
    """A share for people: 0 % and 100 % are printed only where they are true.

    >>> percent(0, 1000), percent(1, 1000), percent(999, 1000), percent(1000, 1000), percent(1, 3)
    ('0 %', '0.1 %', '99.9 %', '100 %', '33 %')
    """
    if n <= 0 or not 0 <= count <= n:
        raise ValueError(f"{count} of {n} is not a share")
    share = 100 * count / n
    if count in (0, n):
        return f"{share:.0f} %"
    if share < 0.1 or share > 99.9:
        return "< 0.1 %" if share < 50 else "> 99.9 %"
    if share < 1 or share > 99:
        return f"{share:.1f} %"
    return f"{share:.0f} %"


def quantile_index(values: Sequence[float], share: float) -> int:
    """The first index at which the running sum of non-negative `values` reaches `share` of their total."""
    total = math.fsum(values)
    if total <= 0:
        raise ZeroDivisionError("a quantile of no mass")
    running = np.cumsum(np.asarray(values, dtype=np.float64))
    return int(np.searchsorted(running, share * total * (1 - 1e-12)))
