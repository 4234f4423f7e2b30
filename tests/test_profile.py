"""A profile is a monoid: shards may be merged in any order and grouping."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.profile import DepthProfile
from fathom.tally import Z95

# Multiples of 1/8 add up exactly, so that equality means equality.
values = st.integers(-800, 800).map(lambda number: number / 8)
rows = st.lists(st.lists(values, max_size=6), max_size=8)


@given(rows, rows, rows)
def test_merging_is_associative_and_has_a_neutral_element(a: list, b: list, c: list) -> None:
    x, y, z = map(DepthProfile.of, (a, b, c))
    assert (x + y) + z == x + (y + z)
    assert x + y == y + x
    assert x + DepthProfile() == x
    assert x + y == DepthProfile.of([*a, *b])


@given(rows)
def test_each_position_has_the_rows_that_reach_it(found: list[list[float]]) -> None:
    profile = DepthProfile.of(found)
    assert len(profile) == max((len(row) for row in found), default=0)
    for position, (n, mean) in enumerate(zip(profile.n, profile.means, strict=True)):
        column = [row[position] for row in found if len(row) > position]
        assert n == len(column)
        assert math.isclose(mean, statistics.fmean(column), abs_tol=1e-12)


@given(st.lists(values, min_size=2, max_size=12))
def test_the_interval_is_the_normal_one_of_the_mean(column: list[float]) -> None:
    low, high = DepthProfile.of([value] for value in column).interval(1)
    half = Z95 * statistics.stdev(column) / math.sqrt(len(column))
    assert math.isclose((low + high) / 2, statistics.fmean(column), abs_tol=1e-9)
    assert math.isclose((high - low) / 2, half, abs_tol=1e-6)


def test_one_row_tells_nothing_about_the_mean() -> None:
    assert DepthProfile.of([[3.0]]).interval(1) == (-math.inf, math.inf)
    with pytest.raises(IndexError):
        DepthProfile.of([[3.0]]).interval(2)
