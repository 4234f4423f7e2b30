"""Laws of what attempts cost and of budgets, against naive counts."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fathom.audit.spending import at_most, fresh_tokens, most_tokens, planned_tokens, within
from fathom.records import Attempt, Sampling

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def naive_fresh(inputs: Sequence[Sequence[int]]) -> int:
    """Distinct beginnings: the nodes of the inputs' trie."""
    return len({tuple(ids[: i + 1]) for ids in inputs for i in range(len(ids))})


@given(st.lists(IDS, max_size=8))
def test_fresh_tokens_are_the_nodes_of_the_trie(inputs: list[list[int]]) -> None:
    assert sum(fresh_tokens(inputs)) == naive_fresh(inputs)


@given(IDS, st.integers(1, 20))
def test_the_same_input_again_costs_nothing(ids: list[int], times: int) -> None:
    assert list(fresh_tokens([ids] * times)) == [len(ids)] + [0] * (times - 1)


def attempt(behavior: str, prefill: Sequence[int], sample: int, searched: int = 0) -> Attempt:
    return Attempt.make(
        behavior=behavior,
        attack="a",
        prompt_ids=(1, 2, 3),
        prefill_ids=prefill,
        sampling=Sampling(max_new_tokens=7, temperature=1.0),
        sample=sample,
        run_seed=0,
        found={"forward_tokens": searched} if searched else None,
    )


@given(st.lists(st.tuples(st.sampled_from("abc"), IDS), max_size=10), st.integers(1, 80), st.integers(0, 30))
def test_a_budget_keeps_the_longest_beginning_that_it_pays_for(
    given_: list[tuple[str, list[int]]], budget: int, searched: int
) -> None:
    attempts = [attempt(behavior, ids, i, searched) for i, (behavior, ids) in enumerate(given_)]
    kept = list(within(attempts, budget, {}))
    assert list(within(attempts, None, {})) == attempts
    for behavior in {one.behavior for one in attempts}:
        mine = [one for one in attempts if one.behavior == behavior]
        own = [one for one in kept if one.behavior == behavior]
        assert own == mine[: len(own)]
        assert own  # the first is always made
        spent = searched + sum(planned_tokens(own))
        assert len(own) == 1 or spent <= budget
        if len(own) < len(mine):
            assert searched + sum(planned_tokens(mine[: len(own) + 1])) > budget


MADE = st.lists(st.tuples(st.sampled_from("ab"), IDS, st.integers(0, 7)), min_size=1, max_size=12)


@given(MADE, st.integers(1, 80))
def test_known_answers_leave_room_for_more(given_: list[tuple[str, list[int], int]], budget: int) -> None:
    """Rounds end at what one attempt after another would come to, which never exceeds the budget."""
    attempts = [attempt(behavior, ids, i) for i, (behavior, ids, _) in enumerate(given_)]
    lengths = {one.id: written for one, (_, _, written) in zip(attempts, given_, strict=True)}
    kept: list[Attempt] = []
    while True:
        known = {one.id: lengths[one.id] for one in kept}
        further = list(within(attempts, budget, known))
        assert {one.id for one in kept} <= {one.id for one in further}
        if len(further) == len(kept):
            break
        kept = further
    assert {one.id for one in kept} <= {one.id for one in at_most(attempts, budget)}
    total = 0
    for behavior in {one.behavior for one in attempts}:
        mine = [one for one in attempts if one.behavior == behavior]
        own: list[Attempt] = []
        spent = 0
        for one, most in zip(mine, planned_tokens(mine), strict=True):
            if own and spent + most > budget:
                break
            own.append(one)
            spent += most - 7 + lengths[one.id]
        assert [one for one in kept if one.behavior == behavior] == own
        assert len(own) == 1 or spent <= budget
        total += spent
    assert total <= most_tokens(attempts, budget)
    alone = ([one for one in attempts if one.behavior == behavior] for behavior in {one.behavior for one in attempts})
    assert most_tokens(attempts, None) == sum(sum(planned_tokens(mine)) for mine in alone)
