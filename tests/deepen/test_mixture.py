"""The share of safety is what it says: exactly α over examples, or the token mean."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.deepen.mixture import Anchor, Mixture, Share
from fathom.errors import UserError
from fathom.tuning.rows import Kind, TrainingRow


def row(number: int, length: int, kind: Kind) -> TrainingRow:
    return TrainingRow(prompt_ids=(number,), response_ids=(7,) * length, kind=kind)


def rows(kind: Kind, lengths: list[int]) -> list[TrainingRow]:
    return [row(number, length, kind) for number, length in enumerate(lengths)]


LENGTHS = st.lists(st.integers(1, 40), min_size=8, max_size=8)


@given(st.floats(0.01, 0.99), LENGTHS, LENGTHS)
def test_an_exact_share_is_exact_in_every_step(alpha: float, safe: list[int], useful: list[int]) -> None:
    mixture = Mixture(alpha, recovery=4, utility=6, anchor=Anchor.ANSWERS)
    mixed = mixture.mix(rows(Kind.RECOVERY, safe), rows(Kind.UTILITY, useful), seed=0)
    length = sum(len(r.response_ids) for r in mixed) / len(mixed)
    for start in range(0, len(mixed), mixture.batch):
        step = mixed[start : start + mixture.batch]
        # What a trainer computes when every token costs c nats, against Eq. 2 written out.
        loss = sum(r.loss_weight * len(r.response_ids) for r in step) / len(step)
        means = [
            sum(len(r.response_ids) for r in step if r.kind is kind) / count
            for kind, count in ((Kind.RECOVERY, 4), (Kind.UTILITY, 6))
        ]
        assert loss == pytest.approx((alpha * means[0] + (1 - alpha) * means[1]) / length)
        shares = [sum(r.loss_weight for r in step if r.kind is kind) for kind in (Kind.RECOVERY, Kind.UTILITY)]
        assert shares[0] / sum(shares) == pytest.approx(alpha)


def test_a_token_mean_leaves_the_weights_alone() -> None:
    mixture = Mixture(share=Share.TOKENS, recovery=2, utility=3, anchor=Anchor.ANSWERS)
    mixed = mixture.mix(rows(Kind.RECOVERY, [5] * 4), rows(Kind.UTILITY, [5] * 4), seed=0)
    assert {r.loss_weight for r in mixed} == {1.0}
    assert mixture.divisor == "tokens"
    assert Mixture().divisor == "rows"


@pytest.mark.parametrize("share", list(Share))
def test_an_anchor_of_divergence_weighs_as_much_as_one_of_answers(share: Share) -> None:
    found = [
        Mixture(share=share, recovery=2, utility=3, anchor=anchor).mix(
            rows(Kind.RECOVERY, [5, 9] * 2), rows(Kind.UTILITY, [4, 6, 8]), seed=0
        )
        for anchor in (Anchor.ANSWERS, Anchor.KL)
    ]
    for learned, held in zip(*found, strict=True):
        if learned.kind is Kind.UTILITY:
            assert (held.loss_weight, held.held) == (0.0, learned.loss_weight)
            held = msgspec.structs.replace(held, loss_weight=held.held, held=0.0)
        assert learned == held


def test_every_step_has_its_rows_and_utility_comes_round() -> None:
    mixture = Mixture(recovery=2, utility=3)
    mixed = mixture.mix(rows(Kind.RECOVERY, [4] * 8), rows(Kind.UTILITY, [9] * 4), seed=1)
    assert len(mixed) == 4 * 5
    assert [r.kind for r in mixed] == ([Kind.RECOVERY] * 2 + [Kind.UTILITY] * 3) * 4
    used = [r.prompt_ids[0] for r in mixed if r.kind is Kind.UTILITY]
    for start in range(0, 12, 4):
        assert sorted(used[start : start + 4]) == [0, 1, 2, 3]
    assert mixed == mixture.mix(rows(Kind.RECOVERY, [4] * 8), rows(Kind.UTILITY, [9] * 4), seed=1)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_of_no_sense_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match="alpha"):
        Mixture(alpha)


def test_no_anchor_is_refused() -> None:
    with pytest.raises(UserError, match="no utility rows"):
        Mixture(recovery=1, utility=1).mix(rows(Kind.RECOVERY, [3]), [], seed=0)
