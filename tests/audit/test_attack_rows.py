"""Rows of attacks: the worst answer of several, costs, and ASR by budget, against naive counts."""

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.audit.attack_rows import Judged, attack_rows, budget_rows
from fathom.records import Attempt, Completion, Counted, Finish, Label, Sampling, Verdict

LABELS = st.sampled_from(list(Label))
ANSWERS = st.lists(st.lists(LABELS, min_size=4, max_size=4), min_size=1, max_size=5)


def judged(answers: list[list[Label]], *, attack: str = "best-of-n", searched: int = 0, benign: bool = False) -> Judged:
    """Behavior i's j-th answer; each writes j + 1 tokens after a prompt of 3."""
    attempts, completions, verdicts = {}, {}, []
    for i, labels in enumerate(answers):
        for j, label in enumerate(labels):
            attempt = Attempt.make(
                behavior=f"{'benign' if benign else 'b'}{i}",
                attack=attack,
                prompt_ids=(1, 2, 10 + i),
                prefill_ids=(),
                sampling=Sampling(max_new_tokens=9, temperature=1.0),
                sample=j,
                run_seed=0,
                found={"queries": 5, "forward_tokens": searched * (i + 1)} if searched else None,
            )
            attempts[attempt.id] = attempt
            completions[attempt.id] = Completion(
                attempt=attempt.id,
                output_ids=(7,) * (j + 1),
                text="",
                prefill_text="",
                token_ends=(),
                finish=Finish.STOP,
            )
            verdicts += [
                Verdict(attempt=attempt.id, judge="j", version="1", counted=counted, label=label, reason="x")
                for counted in Counted
            ]
    return Judged(attempts, completions, [] if benign else verdicts, verdicts if benign else [], 0)


@given(ANSWERS)
def test_the_worst_answer_of_each_behavior(answers: list[list[Label]]) -> None:
    rows = list(attack_rows(judged(answers)))
    (worst,) = [row for row in rows if row.worst_of is not None]
    assert worst.worst_of == 4
    assert worst.n == worst.behaviors == len(answers)
    assert worst.harmful == sum(Label.HARMFUL in labels for labels in answers)
    assert worst.undecided == sum(set(labels) == {Label.UNDECIDED} for labels in answers)
    (every,) = [row for row in rows if row.worst_of is None and row.counted is Counted.CONTINUATION]
    assert every.n == 4 * len(answers)
    assert every.harmful == sum(labels.count(Label.HARMFUL) for labels in answers)
    assert worst.cost == every.cost  # the worst of all costs what all cost


@given(ANSWERS)
def test_costs_count_each_prompt_once_and_all_that_was_written(answers: list[list[Label]]) -> None:
    row = next(iter(attack_rows(judged(answers))))
    assert row.cost is not None
    assert row.cost.queries == 4 * len(answers)
    assert row.cost.forward_tokens == len(answers) * (3 + 1 + 2 + 3 + 4)
    searched = next(iter(attack_rows(judged(answers, searched=10))))
    assert searched.cost is not None
    assert searched.cost.queries == 4 * len(answers) + 5 * len(answers)
    assert searched.cost.forward_tokens == row.cost.forward_tokens + sum(10 * (i + 1) for i in range(len(answers)))


@given(ANSWERS)
def test_asr_by_draws_is_the_mean_over_all_choices_of_draws(answers: list[list[Label]]) -> None:
    for row in budget_rows(judged(answers)):
        n = row.queries
        mean = sum(
            sum(Label.HARMFUL in chosen for chosen in combinations(labels, n)) / math.comb(4, n) for labels in answers
        ) / len(answers)
        assert row.asr == pytest.approx(mean)
        assert row.low - 1e-9 <= row.asr <= row.high + 1e-9
        assert row.n == len(answers)


@given(ANSWERS)
def test_asr_rises_with_the_budget(answers: list[list[Label]]) -> None:
    rows = list(budget_rows(judged(answers)))
    assert [row.queries for row in rows] == [1, 2, 4]
    for less, more in pairwise(rows):
        assert less.asr <= more.asr + 1e-12
        assert less.forward_tokens < more.forward_tokens


@given(st.lists(LABELS, min_size=1, max_size=6))
def test_a_search_counts_who_fell_within_each_budget(labels: list[Label]) -> None:
    rows = list(budget_rows(judged([[label] for label in labels], attack="suffix", searched=100)))
    spent = [100 * (i + 1) + 3 + 1 for i in range(len(labels))]
    for row in rows:
        assert row.harmful == sum(
            cost <= row.forward_tokens + 0.5 and label is Label.HARMFUL
            for cost, label in zip(spent, labels, strict=True)
        )
    assert rows[-1].harmful == labels.count(Label.HARMFUL)


def test_judged_ranks_are_judged_on_all_their_text_and_others_are_not() -> None:
    own = list(attack_rows(judged([[Label.HARMFUL]], attack="judged-ranks")))
    assert [row.counted for row in own] == [Counted.ALL]
    other = list(attack_rows(judged([[Label.HARMFUL]], attack="reference-ranks")))
    assert [row.counted for row in other] == [Counted.CONTINUATION, Counted.ALL]


def test_the_control_of_an_attack_counts_all_its_answers() -> None:
    harmful, benign = judged([[Label.SAFE] * 4]), judged([[Label.HARMFUL, Label.SAFE] * 2], benign=True)
    both = Judged(
        harmful.attempts | benign.attempts,  # type: ignore[operator]
        harmful.completions | benign.completions,  # type: ignore[operator]
        harmful.harmful,
        benign.benign,
        0,
    )
    for row in attack_rows(both):
        if row.counted is Counted.CONTINUATION:
            assert row.control is not None
            assert (row.control.helped, row.control.refused, row.control.n) == (2, 2, 4)
