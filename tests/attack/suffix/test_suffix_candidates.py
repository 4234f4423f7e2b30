import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.attack.suffix.candidates import best_ids, distinct, draw, generator, merged

SHAPES = st.tuples(st.integers(1, 8), st.integers(2, 30), st.integers(1, 12), st.integers(1, 40), st.integers(0, 10**6))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, replace=st.integers(1, 9))
def test_what_is_drawn(shape: tuple[int, int, int, int, int], replace: int) -> None:
    """Allowed ids alone, of the best at their position, at most `replace` changes, no duplicates, the same by seed."""
    length, vocabulary, topk, width, seed = shape
    random = torch.Generator().manual_seed(seed)
    slope = torch.randn(length, vocabulary, generator=random)
    allowed = torch.rand(vocabulary, generator=random) < 0.6
    allowed[seed % vocabulary] = True
    best = best_ids(slope, allowed, topk)
    assert best.shape == (length, min(topk, int(allowed.sum())))
    for place, row in enumerate(best.tolist()):
        expected = sorted((i for i in range(vocabulary) if allowed[i]), key=lambda i: float(slope[place, i]))
        assert sorted(row) == sorted(expected[: len(row)])
    suffix = torch.randint(vocabulary, (length,), generator=random).tolist()
    drawn = draw(suffix, best, width, replace, generator(seed, 3))
    assert torch.equal(drawn, draw(suffix, best, width, replace, generator(seed, 3)))
    rows = [tuple(row) for row in drawn.tolist()]
    assert 1 <= len(rows) == len(set(rows)) <= width
    for row in rows:
        changed = [i for i in range(length) if row[i] != suffix[i]]
        assert len(changed) <= replace
        assert all(row[i] in best[i].tolist() for i in changed)


def test_positions_and_ids_are_drawn_evenly() -> None:
    """4000 draws over 5 positions of 4 ids each, none of them the suffix's own: 200 each, within five deviations."""
    best = torch.arange(20).view(5, 4) + 100
    places = torch.rand(1)  # the global generator must not matter
    del places
    counts = torch.zeros(200)
    for step in range(100):
        for row in draw((1, 2, 3, 4, 5), best, 1, 1, generator(0, step)).tolist():
            for id_ in row:
                counts[id_] += id_ >= 100
    assert int(counts.sum()) == 100
    many = torch.zeros(200)
    for step in range(4000):
        many[max(draw((1, 2, 3, 4, 5), best, 1, 1, generator(1, step))[0].tolist())] += 1
    assert ((many[100:120] - 200).abs() < 5 * 200**0.5).all()


def test_steps_and_seeds_draw_differently() -> None:
    best = torch.arange(400).view(8, 50)
    draws = [draw(range(8), best, 16, 1, generator(seed, step)) for seed in range(3) for step in range(3)]
    assert len({str(one.tolist()) for one in draws}) == 9


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=12))
def test_distinct_keeps_the_first_of_each(rows: list[list[int]]) -> None:
    expected = [row for i, row in enumerate(rows) if row not in rows[:i]]
    assert distinct(torch.tensor(rows)).tolist() == expected


def test_merging_adds_exchanges_one_by_one() -> None:
    ranked = torch.tensor([[9, 2, 3, 4], [1, 8, 3, 4], [7, 2, 3, 4], [1, 2, 3, 6]])
    assert merged((1, 2, 3, 4), ranked, 4).tolist() == [[9, 8, 3, 4], [9, 8, 3, 6]]
    assert merged((1, 2, 3, 4), ranked, 2).tolist() == [[9, 8, 3, 4]]
    assert merged((1, 2, 3, 4), ranked[:1], 4).tolist() == []
