"""A quantity per response position, as sums that merge over shards."""

import math
from collections.abc import Iterable, Sequence

import msgspec

from fathom.tally import Z95, Interval

__all__ = ["DepthProfile"]


class DepthProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Per response position (1-based, the paper's t): n, sum and sum of squares. A monoid under `+`.

    Rows may have different lengths: position t has the n of the rows that reach it.
    """

    n: tuple[int, ...] = ()
    total: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]]) -> "DepthProfile":
        """Sum rows, each a sequence over positions. `fsum` makes the result independent of the order of the rows."""
        rows = [list(row) for row in rows]
        width = max((len(row) for row in rows), default=0)
        columns = [[row[t] for row in rows if len(row) > t] for t in range(width)]
        return cls(
            n=tuple(len(column) for column in columns),
            total=tuple(math.fsum(column) for column in columns),
            squares=tuple(math.fsum(x * x for x in column) for column in columns),
        )

    def __add__(self, other: "DepthProfile") -> "DepthProfile":
        width = max(len(self.n), len(other.n))

        def add(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
            return tuple((a[t] if t < len(a) else 0) + (b[t] if t < len(b) else 0) for t in range(width))

        counts = tuple(int(x) for x in add(self.n, other.n))
        return DepthProfile(n=counts, total=add(self.total, other.total), squares=add(self.squares, other.squares))

    def __len__(self) -> int:
        return len(self.n)

    @property
    def means(self) -> tuple[float, ...]:
        return tuple(total / n for total, n in zip(self.total, self.n, strict=True))

    def interval(self, position: int) -> Interval:
        """Normal 95 % interval of the mean at a 1-based position; with n = 1 nothing is known and it is infinite."""
        n, total, squares = (column[position - 1] for column in (self.n, self.total, self.squares))
        mean = total / n
        if n < 2:
            return Interval(-math.inf, math.inf)
        half = Z95 * math.sqrt(max(0.0, squares / n - mean * mean) / (n - 1))
        return Interval(mean - half, mean + half)
