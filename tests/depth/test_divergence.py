import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.depth.divergence import BehaviorDivergence, divergence, divergence_rows
from fathom.records import decode_line, encode_line
from fathom.schema import DivergenceRow
from fathom.scoring import ReferenceAnswer, Scorer, compare
from tiny_models import random_ids, tiny


def items() -> list[ReferenceAnswer]:
    return [
        ReferenceAnswer(
            behavior=f"b{i}",
            prompt_ids=random_ids(4 + i, seed=i),
            answer_ids=random_ids(3 + 4 * i, seed=50 + i),
            base_prompt_ids=random_ids(3, seed=90 + i),
        )
        for i in range(4)
    ]


def test_a_record_depends_on_its_item_alone():
    model, base = tiny(), tiny(seed=1)
    together = list(divergence(model, base, items(), variant="plain"))
    assert [next(iter(divergence(model, base, [item], variant="plain"))) for item in items()] == together
    assert list(divergence(model, base, items()[::-1], variant="plain"))[::-1] == together


def test_a_record_says_what_scoring_says():
    model, base = tiny(), tiny(seed=1)
    for item, record in zip(items(), divergence(model, base, items(), variant="same"), strict=True):
        scores = compare(Scorer.of(model), Scorer.of(base), item)
        assert record.kl_nats == tuple(scores.kl_nats.tolist())
        assert record.harmful_rank == tuple(scores.model.ranks.tolist())
        assert record.base_favoured == tuple(
            q > p for p, q in zip(scores.model.logprobs.tolist(), scores.base_logprobs.tolist(), strict=True)
        )


def test_swapping_the_models_swaps_the_favour():
    model, base = tiny(), tiny(seed=1)
    item = items()[3]
    ours = next(iter(divergence(model, base, [drop_base_prompt(item)], variant="same")))
    theirs = next(iter(divergence(base, model, [drop_base_prompt(item)], variant="same")))
    assert [not favoured for favoured in ours.base_favoured] == list(theirs.base_favoured)
    assert ours.kl_nats != theirs.kl_nats


def drop_base_prompt(item: ReferenceAnswer) -> ReferenceAnswer:
    return ReferenceAnswer(behavior=item.behavior, prompt_ids=item.prompt_ids, answer_ids=item.answer_ids)


def test_the_plain_variant_needs_plain_ids():
    with pytest.raises(ValueError, match="base_prompt_ids"):
        list(divergence(tiny(), tiny(seed=1), [drop_base_prompt(items()[0])], variant="plain"))
    with pytest.raises(ValueError, match="other"):
        list(divergence(tiny(), tiny(seed=1), items(), variant="other"))


entries = st.lists(
    st.lists(st.tuples(st.floats(0, 50), st.booleans(), st.integers(1, 900)), min_size=1, max_size=6), max_size=8
)


def records(rows, variant="same") -> list[BehaviorDivergence]:
    return [
        BehaviorDivergence(
            behavior=str(i),
            variant=variant,
            kl_nats=tuple(kl for kl, _, _ in row),
            base_favoured=tuple(favoured for _, favoured, _ in row),
            harmful_rank=tuple(rank for _, _, rank in row),
        )
        for i, row in enumerate(rows)
    ]


@given(entries)
def test_rows_average_the_records_that_reach_a_position(rows):
    found = divergence_rows(records(rows))
    assert [row.position for row in found] == list(range(1, max(map(len, rows), default=0) + 1))
    for row in found:
        column = [entry[row.position - 1] for entry in rows if len(entry) >= row.position]
        assert row.n == len(column)
        assert row.kl_nats == pytest.approx(statistics.fmean(kl for kl, _, _ in column))
        assert row.base_favoured == sum(favoured for _, favoured, _ in column) / len(column)
        assert row.harmful_rank == statistics.median(rank for _, _, rank in column)
        assert 0 <= row.low <= row.kl_nats + 1e-9
        assert (row.high is None) == (row.n == 1)
        assert row.high is None or row.high >= row.kl_nats - 1e-9


@given(entries)
def test_rows_do_not_depend_on_the_order_of_records(rows):
    assert divergence_rows(records(rows)[::-1]) == divergence_rows(records(rows))


@given(entries)
def test_rows_and_records_survive_the_disk(rows):
    for record in records(rows):
        assert decode_line(encode_line(record), BehaviorDivergence) == record
    for row in divergence_rows(records(rows)):
        assert decode_line(encode_line(row), DivergenceRow) == row


def test_variants_are_kept_apart():
    both = records([[(1.0, True, 1)]], "same") + records([[(3.0, False, 2)]], "plain")
    assert [(row.variant, row.kl_nats, row.n) for row in divergence_rows(both)] == [("plain", 3.0, 1), ("same", 1.0, 1)]


def test_a_record_of_uneven_columns_is_refused():
    with pytest.raises(ValueError, match="differ"):
        BehaviorDivergence(behavior="b", variant="same", kl_nats=(1.0,), base_favoured=(), harmful_rank=(1,))
