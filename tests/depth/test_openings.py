from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fathom.depth.openings import Refusal, opening_rows
from fathom.tally import wilson


def refusal(ids, behavior: str) -> Refusal:
    """Token i reads as the letter i, so that ends are lengths."""
    return Refusal(behavior, tuple(ids), "".join(chr(97 + i) for i in ids), tuple(range(1, len(ids) + 1)))


def refusals(rows) -> list[Refusal]:
    """Each of a request of its own."""
    return [refusal(row, f"b{i}") for i, row in enumerate(rows)]


sequences = st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=20)


@given(sequences)
def test_rows_count_what_begins_so(ids):
    filled = [tuple(row) for row in ids if row]
    rows = opening_rows(refusals(ids), seed=0, most=100)
    for row in rows:
        assert row.n == sum(refusal(one, "b").text.startswith(row.opening) for one in filled)
        assert row.of == len(filled)
        assert row.share == row.n / row.of
        assert (row.low, row.high) == wilson(row.n, row.of)
        assert len(row.opening) == row.tokens
    assert len(rows) == sum(len({one[:length] for one in filled if len(one) >= length}) for length in (1, 2, 3))


@given(sequences)
def test_the_frequent_come_first_whatever_the_order(ids):
    rows = opening_rows(refusals(ids), seed=0, most=2)
    assert rows == opening_rows(list(reversed(refusals(ids))), seed=0, most=2)
    for length in (1, 2, 3):
        counts = Counter(tuple(row[:length]) for row in ids if len(row) >= length)
        assert [row.n for row in rows if row.tokens == length] == [n for _, n in counts.most_common(2)]


def test_ids_that_share_a_text_stay_apart():
    rows = opening_rows([Refusal("a", (1,), "I", (1,)), Refusal("b", (2,), "I", (1,))], seed=0)
    assert [(row.opening, row.n, row.of) for row in rows] == [("I", 1, 2), ("I", 1, 2)]


def test_refusals_of_one_request_cling_together():
    drawn = [refusal([behavior % 2, 2], f"b{behavior}") for behavior in range(6) for _ in range(8)]
    rows = opening_rows(drawn, seed=0)
    assert rows == opening_rows(list(reversed(drawn)), seed=0)
    for row in rows[:2]:
        assert (row.n, row.of) == (24, 48)
        assert row.low < wilson(24, 48).low
        assert row.high > wilson(24, 48).high
