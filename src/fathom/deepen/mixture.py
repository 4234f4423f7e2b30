"""Recovery rows and utility rows in one order, with the share α of the loss that the paper gives to safety.

    exact     α · mean over recovery rows of -log π(r | x, h_≤k)  +  (1-α) · mean over utility rows of -log π(y | x)
    tokens    the mean over all tokens of a step, as in the released code: the share follows the lengths

In place of -log π(y | x), utility rows may be held by KL to the model as it was, at every token of y. Where y is drawn
from that model both have the same expectation but for a constant; what one y says by chance is not learned then.

Every step holds the same number of rows of either kind, in the order in which they are written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

import msgspec

from fathom.errors import UserError
from fathom.tuning.rows import TrainingRow

__all__ = ["Anchor", "Mixture", "Share"]


class Share(StrEnum):
    """How α is kept."""

    EXACT = "exact"  # the paper's Eq. 2: an expectation over examples
    TOKENS = "tokens"  # the released code: a token mean over the step's rows


class Anchor(StrEnum):
    """What utility rows add to the loss."""

    KL = "kl"  # the divergence from the model as it was, at every token
    ANSWERS = "answers"  # cross-entropy of the answers: the paper's Eq. 2


@dataclass(frozen=True)
class Mixture:
    """`recovery` and `utility` rows a step, how α weighs them, and what the utility rows are for.

    Source: the paper's Eq. 2, α = 0.2, 16 and 64 rows. Exact shares are divided by the mean length of what is learned,
    one constant for the whole run, so that the loss is in nats a token; α is not touched by it.
    """

    alpha: float = 0.2
    recovery: int = 16
    utility: int = 64
    share: Share = Share.EXACT
    anchor: Anchor = Anchor.KL

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError(f"alpha is {self.alpha}: give a number between 0 and 1")
        if self.recovery < 1 or self.utility < 1:
            raise UserError("a step needs at least one recovery row and one utility row")

    @property
    def batch(self) -> int:
        """Rows a step."""
        return self.recovery + self.utility

    @property
    def divisor(self) -> str:
        """What a trainer divides by, as `tuning.trainer.Divisor` names it."""
        return "rows" if self.share is Share.EXACT else "tokens"

    def mix(
        self, recoveries: Sequence[TrainingRow], utilities: Sequence[TrainingRow], *, seed: int
    ) -> tuple[TrainingRow, ...]:
        """Whole steps, one after the other; utility rows come round in a new random order each time.

        `recoveries` are `recovery` rows for each step, already in their order.
        """
        if not utilities:
            raise UserError("there are no utility rows: without an anchor every answer would become a refusal")
        steps = len(recoveries) // self.recovery
        random, chosen = Random(f"utility {seed}"), list[TrainingRow]()
        while len(chosen) < steps * self.utility:
            chosen += random.sample(utilities, len(utilities))
        rows: list[TrainingRow] = []
        for step in range(steps):
            rows += recoveries[step * self.recovery : (step + 1) * self.recovery]
            rows += chosen[step * self.utility : (step + 1) * self.utility]
        return self._weighed(rows)

    def _weighed(self, rows: Sequence[TrainingRow]) -> tuple[TrainingRow, ...]:
        safety = utility = 1.0
        if self.share is Share.EXACT and rows:
            length = sum(len(row.response_ids) - row.learned_from for row in rows) / len(rows)
            safety = self.alpha * self.batch / self.recovery / length
            utility = (1 - self.alpha) * self.batch / self.utility / length
        learned, held = (0.0, utility) if self.anchor is Anchor.KL else (utility, 0.0)
        return tuple(
            msgspec.structs.replace(row, loss_weight=safety)
            if i % self.batch < self.recovery
            else msgspec.structs.replace(row, loss_weight=learned, held=held)
            for i, row in enumerate(rows)
        )
