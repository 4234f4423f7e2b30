"""How much of the data the reference would have said itself: where there is nothing to learn.

Adam divides a gradient by its own size. Where rows are held, or are what the model says anyway, that size is of noise,
and steps of full length go anywhere. Where the data is new, nothing is to slow it.
"""

from collections.abc import Sequence
from random import Random
from statistics import fmean

from fathom.model import ChatModel
from fathom.ranks import ALONE
from fathom.tuning.head import response_head
from fathom.tuning.objective import Needs
from fathom.tuning.reference import make_columns
from fathom.tuning.rows import TrainingRow

__all__ = ["known_share"]

ALIKE = 2.0  # times the cross-entropy of its own answers
LOOKED_AT = 256  # rows of data, at most


def known_share(model: ChatModel, rows: Sequence[TrainingRow], own: Sequence[TrainingRow], *, seed: int) -> float:
    """The share of rows whose cross-entropy a token is at most twice the mean of the reference's own answers, 0 to 1.

    `own` are answers that the reference drew at T = 1. 1 where there are no rows, or none of its own to compare with.
    """
    if not rows or not own:
        return 1.0
    seen = Random(f"known {seed}").sample(list(rows), min(LOOKED_AT, len(rows)))
    found = _nats(model, [*seen, *own])
    usual = fmean(found[len(seen) :])
    return fmean(nats <= ALIKE * usual for nats in found[: len(seen)])


def _nats(model: ChatModel, rows: Sequence[TrainingRow]) -> list[float]:
    """Mean cross-entropy of each row's response, in nats a token."""
    with response_head(model.model):
        columns = make_columns(model.model, rows, Needs(logprobs=1), ranks=ALONE, autocast=None)
    return [-fmean(row) for row in columns.logprobs]
