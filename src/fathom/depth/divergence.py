"""Per-token KL(model ‖ base) over reference harmful answers: how far alignment changed each response position.

It shows change, not safety (the paper calls deeper KL "neutral"): never report it without the prefilling curve. Beside
it stand two readings of the same positions: where the base still gives the harmful token more probability than the
model does (alignment pushed it down there), and the token's rank under the model (how easily it is drawn all the same).
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from fathom.profile import DepthProfile
from fathom.schema import DivergenceRow

if TYPE_CHECKING:
    from fathom.model import ChatModel
    from fathom.scoring import ReferenceAnswer

__all__ = ["BehaviorDivergence", "Variant", "divergence", "divergence_rows"]


class Variant(StrEnum):
    """Which ids of the request the base is given; the ids of the answer are the same for both models."""

    SAME = "same"  # the model's own, chat template included: the paper's comparison
    PLAIN = "plain"  # the request as plain text, for bases that never saw the template


class BehaviorDivergence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One behavior's divergence: entry t - 1 of each tuple is response position t."""

    behavior: str
    variant: str
    kl_nats: tuple[float, ...]
    base_favoured: tuple[bool, ...]  # π_base(y_t) > π_model(y_t)
    harmful_rank: tuple[int, ...]  # of y_t under the model; 1 = the most probable

    def __post_init__(self) -> None:
        if not len(self.kl_nats) == len(self.base_favoured) == len(self.harmful_rank) > 0:
            raise ValueError(f"behavior {self.behavior}: positions of KL, favour and rank differ, or there are none")


def divergence(
    model: "ChatModel", base: "ChatModel", items: "Sequence[ReferenceAnswer]", *, variant: str
) -> Iterator[BehaviorDivergence]:
    """Measure each item by itself, in order: a record depends on its item and the two models alone.

    Raises:
        UserError: an item exceeds a context or the base's vocabulary.

    Source: Fig. 1 (KL); base-favoured tokens after arXiv 2511.12155; ranks after arXiv 2512.05518.
    """
    from fathom.scoring import Scorer, compare  # torch, only where a model is measured: records are read without it

    variant = Variant(variant)
    ours, theirs = Scorer.of(model), Scorer.of(base)
    for item in items:
        if variant is Variant.PLAIN and item.base_prompt_ids is None:
            raise ValueError(f"behavior {item.behavior}: the plain variant needs base_prompt_ids")
        scores = compare(ours, theirs, item)
        yield BehaviorDivergence(
            behavior=item.behavior,
            variant=variant.value,
            kl_nats=tuple(scores.kl_nats.tolist()),
            base_favoured=tuple((scores.base_logprobs > scores.model.logprobs).tolist()),
            harmful_rank=tuple(scores.model.ranks.tolist()),
        )


def divergence_rows(records: Iterable[BehaviorDivergence]) -> tuple[DivergenceRow, ...]:
    """Average records by position, one block of rows for each variant; position t has the records that reach it."""
    by_variant: dict[str, list[BehaviorDivergence]] = {}
    for record in records:
        by_variant.setdefault(record.variant, []).append(record)
    return tuple(row for variant in sorted(by_variant) for row in _rows(by_variant[variant], variant))


def _rows(records: Sequence[BehaviorDivergence], variant: str) -> Iterator[DivergenceRow]:
    kl = DepthProfile.of(record.kl_nats for record in records)
    for t in range(len(kl)):
        reaching = [record for record in records if len(record.kl_nats) > t]
        interval = kl.interval(t + 1)
        yield DivergenceRow(
            position=t + 1,
            n=kl.n[t],
            kl_nats=kl.means[t],
            low=max(0.0, interval.low),  # KL is never negative
            high=None if kl.n[t] < 2 else interval.high,
            base_favoured=sum(record.base_favoured[t] for record in reaching) / len(reaching),
            harmful_rank=float(statistics.median(record.harmful_rank[t] for record in reaching)),
            variant=variant,
        )
