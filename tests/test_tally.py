"""Counts travel: they add up over any grouping, and intervals hold what they should."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.records import Label
from fathom.tally import Z95, Tally, bootstrap, clustered, clustered_share, percent, quantile_index, wilson

labels = st.lists(st.sampled_from(Label), max_size=60)
shares = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(labels, st.lists(st.integers(0, 60), max_size=6))
def test_any_grouping_adds_up_to_the_same(found: list[Label], cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(found)) for cut in cuts), len(found)]
    groups = [Tally.of(found[start:stop]) for start, stop in pairwise(places)]
    whole = Tally.of(found)
    assert sum(groups, Tally()) == whole
    assert sum(reversed(groups), Tally()) == whole
    assert whole.n == len(found)


@given(labels.filter(bool))
def test_undecided_stays_in_the_denominator(found: list[Label]) -> None:
    assert Tally.of(found).asr == found.count(Label.HARMFUL) / len(found)


def test_a_rate_of_nothing_raises() -> None:
    with pytest.raises(ZeroDivisionError, match="not the same as safe"):
        _ = Tally().asr
    with pytest.raises(ZeroDivisionError):
        Tally().interval()


@given(shares)
def test_wilson_holds_the_share_and_stays_within_0_and_1(share: tuple[int, int]) -> None:
    count, n = share
    low, high = wilson(count, n)
    assert 0 <= low <= count / n <= high <= 1
    assert low < high
    assert (low == 0) == (count == 0)
    assert (high == 1) == (count == n)
    other = wilson(n - count, n)  # the same statement of the other outcome
    assert math.isclose(other.low, 1 - high, abs_tol=1e-12)


@given(shares)
def test_wilson_ends_are_where_the_score_test_just_rejects(share: tuple[int, int]) -> None:
    """The definition: both ends p satisfy |share - p| = z · sqrt(p (1 - p) / n)."""
    count, n = share
    for end in wilson(count, n):
        if 0 < end < 1:
            assert math.isclose(abs(count / n - end), Z95 * math.sqrt(end * (1 - end) / n), rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize(("count", "n"), [(0, 0), (-1, 3), (4, 3), (0, -1)])
def test_what_is_no_share_is_refused(count: int, n: int) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        wilson(count, n)
    with pytest.raises(ValueError, match="is not a share"):
        percent(count, n)


@given(shares)
def test_0_and_100_percent_are_printed_only_where_they_are_true(share: tuple[int, int]) -> None:
    count, n = share
    assert (percent(count, n) == "0 %") == (count == 0)
    assert (percent(count, n) == "100 %") == (count == n)


def test_a_bootstrap_is_its_seed_and_holds_the_mean() -> None:
    values = np.random.default_rng(1).normal(size=200)
    first, again, other = (bootstrap(200, lambda drawn: float(values[drawn].mean()), seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert first.low < values.mean() < first.high
    standard = 2 * Z95 * values.std() / math.sqrt(200)
    assert math.isclose(first.high - first.low, standard, rel_tol=0.15)


def test_a_bootstrap_keeps_open_ends_open() -> None:
    """A statistic that is infinite in some draws makes that end infinite, and no other."""
    reached = np.array([1.0] * 5 + [math.inf] * 5)
    interval = bootstrap(10, lambda drawn: float(np.median(reached[drawn])), seed=0)
    assert interval.low == 1.0
    assert interval.high == math.inf
    with pytest.raises(ValueError, match="no clusters"):
        bootstrap(0, lambda drawn: 0.0, seed=0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12), st.integers(0, 3))
def test_answers_that_cling_together_never_tell_more_than_as_many_independent_ones(
    counts: list[tuple[int, int]], seed: int
) -> None:
    by_behavior = [Tally(harmful=harmful, safe=safe) for harmful, safe in counts if harmful + safe]
    if not by_behavior:
        return
    total = sum(by_behavior, Tally())
    interval = clustered(by_behavior, seed=seed)
    alone = total.interval()
    assert interval.low <= alone.low
    assert alone.high <= interval.high
    assert interval == clustered_share([one.harmful for one in by_behavior], [one.n for one in by_behavior], seed=seed)
    if total.n == len(by_behavior):
        assert interval == alone


def test_what_clings_together_is_less_sure_and_a_rare_event_no_surer() -> None:
    rare = clustered([Tally(harmful=1, safe=7)] + [Tally(safe=8)] * 7, seed=0)
    assert rare.high == wilson(1, 64).high  # a bootstrap alone would end at 3 of 64
    halves = clustered([Tally(harmful=8)] * 4 + [Tally(safe=8)] * 4, seed=0)
    assert halves.low < wilson(32, 64).low
    assert halves.high > wilson(32, 64).high
    with pytest.raises(ZeroDivisionError, match="nothing was judged"):
        clustered([], seed=0)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0.01, 1))
def test_the_quantile_is_the_first_place_that_holds_so_much(values: Sequence[float], share: float) -> None:
    total = math.fsum(values)
    if total <= 1e-6:
        return
    found = quantile_index(values, share)
    assert math.fsum(values[: found + 1]) >= share * total * (1 - 1e-9)
    assert found == 0 or math.fsum(values[:found]) <= share * total * (1 + 1e-9)


def test_a_quantile_of_no_mass_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        quantile_index([0.0, 0.0], 0.9)
