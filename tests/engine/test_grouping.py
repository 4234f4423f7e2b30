"""Every attempt is in one row, every row in one group, and a group's trunk continues all of its rows."""

import itertools

from attempts import attempt
from hypothesis import given
from hypothesis import strategies as st

from fathom.engine.plain import equal_lengths
from fathom.engine.rows import MOST_OWN, Group, Row, group_rows, make_rows, split_groups
from fathom.records import Attempt, Finish, Sampling

ids = st.lists(st.integers(1, 3), min_size=1, max_size=6).map(tuple)  # few ids, so that prefixes and repeats are common
attempts = st.lists(
    st.builds(
        lambda prompt, prefill, sample, new, temperature: attempt(
            prompt, prefill, sample=sample, max_new_tokens=new, temperature=temperature
        ),
        ids,
        st.one_of(st.just(()), ids),
        st.integers(0, 2),
        st.integers(1, 4),
        st.sampled_from([0.0, 1.0]),
    ),
    max_size=25,
    unique_by=lambda each: each.id,
)


def rows_of(groups: list[Group]) -> list[Row]:
    return [row for group in groups for row in group.rows]


def follows(group: Group, row: Row) -> bool:
    """To its end, or leaving the trunk close to it, behind at least as much as it has of its own."""
    shared = group.branch(row)
    assert group.trunk[:shared] == row.ids[:shared]
    return len(row.ids) - shared <= MOST_OWN and (shared == len(row.ids) or len(row.ids) - shared <= shared)


@given(attempts)
def test_every_attempt_is_in_one_row_that_asks_the_same(given_: list[Attempt]) -> None:
    rows = make_rows(given_)
    assert sorted(each.id for row in rows for each in row.attempts) == sorted(each.id for each in given_)
    for row in rows:
        assert {each.prompt_ids + each.prefill_ids for each in row.attempts} == {row.ids}
        assert {each.sampling for each in row.attempts} == {row.sampling}
        assert len(row.attempts) == 1 or row.sampling.greedy
    greedy = [(row.ids, row.sampling) for row in rows if row.sampling.greedy]
    assert len(set(greedy)) == len(greedy), "what cannot differ is computed once"


@given(attempts)
def test_noise_belongs_to_the_attempt(given_: list[Attempt]) -> None:
    alone = {each.id: make_rows([each])[0].noise for each in given_ if not each.sampling.greedy}
    for row in make_rows(given_[::-1]):
        if row.sampling.greedy:
            assert row.noise is None
        else:
            assert row.noise is not None
            assert len(row.noise) == row.sampling.max_new_tokens
            assert row.noise.tolist() == alone[row.attempts[0].id].tolist()  # type: ignore[union-attr]
            assert all(0 <= value < 1 for value in row.noise)


@given(attempts)
def test_a_longer_budget_only_appends_noise(given_: list[Attempt]) -> None:
    for each in given_:
        if not each.sampling.greedy:
            longer = make_rows([_with_budget(each, each.sampling.max_new_tokens + 5)])[0].noise
            short = make_rows([each])[0].noise
            assert longer is not None
            assert short is not None
            assert longer[: len(short)].tolist() == short.tolist()


@given(attempts)
def test_every_row_is_in_one_group_whose_trunk_continues_it(given_: list[Attempt]) -> None:
    rows = make_rows(given_)
    groups = group_rows(rows)
    assert sorted(map(id, rows_of(groups))) == sorted(map(id, rows))
    for group in groups:
        assert all(follows(group, row) for row in group.rows)
        assert group.trunk in {row.ids for row in group.rows}, "nothing is computed that no row needs"
    assert [len(group.trunk) for group in groups] == sorted((len(group.trunk) for group in groups), reverse=True)


@given(attempts)
def test_no_trunk_is_the_beginning_of_another(given_: list[Attempt]) -> None:
    """As few trunks as there can be: an input that another one continues never gets a trunk of its own."""
    trunks = [group.trunk for group in group_rows(make_rows(given_))]
    for one, two in itertools.permutations(trunks, 2):
        assert two[: len(one)] != one


@given(attempts, st.integers(1, 60), st.integers(1, 8))
def test_waves_hold_every_row_once_and_keep_within_their_limits(
    given_: list[Attempt], budget: int, max_rows: int
) -> None:
    rows = make_rows(given_)
    waves = split_groups(group_rows(rows), budget, max_rows)
    assert sorted(id(row) for wave in waves for row in rows_of(wave)) == sorted(map(id, rows))
    for wave in waves:
        inside = rows_of(wave)
        assert 1 <= len(inside) <= max_rows
        spent = sum(len(group.trunk) for group in wave) + sum(row.sampling.max_new_tokens for row in inside)
        assert spent <= budget or len(inside) == 1
        for group in wave:
            assert all(follows(group, row) for row in group.rows)
            assert group.trunk in {row.ids for row in group.rows}


def test_inputs_that_leave_an_answer_at_each_of_its_places_share_it() -> None:
    answer, span, prompt = tuple(range(10, 30)), (1, 2, 3), (5, 6, 7)
    inserted = [attempt(prompt, (*answer[:place], *span)) for place in range(len(answer) + 1)]
    other = attempt((5, 6), (*answer, *span))
    groups = group_rows(make_rows([*inserted, other]))
    assert [len(group.rows) for group in groups] == [len(inserted), 1]
    assert groups[0].trunk == (*prompt, *answer, *span)


@given(st.integers(1, 200), st.integers(1, 50))
def test_waves_are_of_equal_width_where_rows_are_alike(count: int, max_rows: int) -> None:
    rows = make_rows(attempt((1 + i // 9, 1 + i % 9), max_new_tokens=1) for i in range(min(count, 81)))
    widths = [len(rows_of(wave)) for wave in split_groups(group_rows(rows), 10**6, max_rows)]
    assert len(widths) == -(-len(rows) // max_rows), "no more waves than the limits ask for"
    assert max(widths) - min(widths) < len(widths)


@given(attempts, st.integers(1, 8))
def test_batches_of_the_slow_way_hold_equal_lengths(given_: list[Attempt], max_rows: int) -> None:
    rows = make_rows(given_)
    batches = list(equal_lengths(rows, max_rows))
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len({len(row.ids) for row in batch}) == 1


def test_a_row_ends_at_a_stop_token_or_with_its_budget() -> None:
    row = Row([], (1, 2), Sampling(max_new_tokens=2), None)
    row.accept(7, frozenset({9}))
    assert (row.finish, row.output) == (None, [7])
    row.accept(9, frozenset({9}))
    assert (row.finish, row.output) == (Finish.STOP, [7])
    row.restart()
    for token in (7, 8):
        row.accept(token, frozenset({9}))
    assert (row.finish, row.output) == (Finish.LENGTH, [7, 8])


def _with_budget(each: Attempt, new: int) -> Attempt:
    sampling = Sampling(max_new_tokens=new, temperature=each.sampling.temperature)
    return Attempt(**{**{name: getattr(each, name) for name in each.__struct_fields__}, "sampling": sampling})
