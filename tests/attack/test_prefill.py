"""The direct request, prefills and refusal prefixes: attempts that differ in the prefill alone."""

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import GREEDY, items, setting, stage

from fathom.attack.kinds import Draw, PreparedBehavior, prepare
from fathom.attack.prefill import DirectRequest, Prefill, RefusalPrefix, default_depths
from fathom.errors import UserError
from fathom.records import Behavior, Message, Sampling

WARM = Draw(Sampling(max_new_tokens=60, temperature=1.0), samples=3)


@given(st.integers(0, 5000))
def test_the_default_grid_starts_with_the_papers_depths_and_doubles(deepest: int) -> None:
    depths = default_depths(deepest)
    assert depths == tuple(sorted(set(depths)))
    assert depths[0] == 0
    assert all(depth <= deepest for depth in depths)
    assert [depth for depth in depths if depth <= 10] == [d for d in (0, 1, 2, 3, 5, 8, 10) if d <= deepest]
    assert all(b == 2 * a for a, b in pairwise(depths[6:]))
    assert deepest < 10 or 2 * depths[-1] > deepest, "the grid reaches the end of the answer"


def test_a_prefill_is_the_first_k_ids_of_the_reference_and_leaves_the_prompt_alone() -> None:
    found = list(Prefill((5, 1, 20)).attempts(items(), setting()))
    by_behavior = {item.behavior.id: item for item in items()}
    for attempt in found:
        item = by_behavior[attempt.behavior]
        assert attempt.prompt_ids == item.prompt_ids
        assert attempt.prefill_ids == item.answer_ids[: len(attempt.prefill_ids)]
        assert attempt.parameters == {}
    # Depths of a behavior follow one another, shallow to deep.
    grouped = [(name, [len(a.prefill_ids) for a in group]) for name, group in groupby(found, lambda a: a.behavior)]
    assert grouped == [(item.behavior.id, [1, 5, 20]) for item in items()]


def test_the_direct_request_is_a_prefill_of_nothing() -> None:
    found = list(DirectRequest().attempts(items(), setting()))
    assert [attempt.behavior for attempt in found] == [item.behavior.id for item in items()]
    assert {attempt.prefill_ids for attempt in found} == {()}


def test_each_draw_has_its_samples_and_each_sample_its_own_seed() -> None:
    found = list(DirectRequest().attempts(items()[:1], setting(GREEDY, WARM)))
    assert [(attempt.sampling.temperature, attempt.sample) for attempt in found] == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert len({attempt.id for attempt in found}) == 4
    assert len({attempt.seed for attempt in found}) == 4


def test_answers_too_short_for_a_depth_are_left_out_there() -> None:
    short, long = items()[:2]
    short = PreparedBehavior(short.behavior, short.prompt_ids, short.answer_ids[:4], whole=True)
    found = list(Prefill((3, 4)).attempts([short, long], setting()))
    assert [(a.behavior == short.behavior.id, len(a.prefill_ids)) for a in found] == [(True, 3), (False, 3), (False, 4)]
    with pytest.raises(UserError, match="prefill depth 4 lies beyond every reference answer"):
        list(Prefill((3, 4)).attempts([short], setting()))


def test_the_whole_of_a_target_may_be_prefilled_of_an_answer_all_but_its_last_token() -> None:
    messages, text = (Message("user", "How do I brew this ?"),), "Take one root ."
    answer, target, neither = prepare(
        stage().chat,
        [
            Behavior(id="a", messages=messages, answer=text),
            Behavior(id="t", messages=messages, target=text),
            Behavior(id="n", messages=messages),
        ],
    )
    assert answer.answer_ids == target.answer_ids != ()
    assert target.deepest == len(target.answer_ids) == answer.deepest + 1
    assert (neither.answer_ids, neither.deepest) == ((), 0)


def test_a_refusal_prefix_is_tokenised_in_its_place_and_the_empty_one_is_the_request() -> None:
    found = list(RefusalPrefix(("", "I cannot")).attempts(items()[:1], setting()))
    assert [attempt.prefill_ids for attempt in found] == [
        (),
        stage().chat.response_ids(items()[0].behavior.messages, "I cannot"),
    ]
    assert [attempt.parameters for attempt in found] == [{"prefix": ""}, {"prefix": "I cannot"}]


@pytest.mark.parametrize("depths", [(), (0, 1), (-1,)])
def test_a_prefill_has_a_token_or_more(depths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="1 token or more"):
        Prefill(depths)


def test_greedy_decoding_has_one_draw() -> None:
    with pytest.raises(ValueError, match="samples must be 1"):
        Draw(Sampling(max_new_tokens=1), samples=2)
    with pytest.raises(ValueError, match="at least 1"):
        Draw(Sampling(max_new_tokens=1, temperature=1.0), samples=0)
