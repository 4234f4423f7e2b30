"""What a suffix is searched for: where its tokens stand, and which response tokens it is to make probable.

    Case      one conversation: ids before and after the suffix, and its targets
    Target    response ids with a weight each; the loss is the weighted mean of their negative log-probabilities
    Problem   the cases that one suffix must serve: one for a suffix per prompt, many for a universal one

A case's ids are those of the model's own chat template around the suffix's text. `docs/attacks/suffix.md` tells how
targets are chosen.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from fathom.errors import UserError
from fathom.records import Message

__all__ = ["PLACE", "Case", "Joined", "Problem", "Target", "emphasised", "without_place"]

PLACE = "{suffix}"  # where a user wants the suffix in a message; without it, it goes to the end of the last one
_WITH_SPACE = re.compile(rf"^{re.escape(PLACE)} ?| ?{re.escape(PLACE)}")


def without_place(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages as they are asked without a suffix: its place, and a space beside it, are taken out."""
    return tuple(Message(role=one.role, content=_WITH_SPACE.sub("", one.content)) for one in messages)


class Joined(StrEnum):
    """What stands between the end of a request and the suffix."""

    SPACE = "space"
    DIRECTLY = "directly"  # nothing

    @property
    def text(self) -> str:
        return " " if self is Joined.SPACE else ""


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Response ids that the suffix is to bring about, and how much each counts (all above 0, by default 1)."""

    ids: tuple[int, ...]
    weights: tuple[float, ...] = ()
    # Only the first so many ids must be the model's greedy choice for the target to count as reached; None: all.
    reach: int | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            raise UserError("a target has no tokens: give the beginning of the answer that a suffix is to bring about")
        if self.weights and (len(self.weights) != len(self.ids) or min(self.weights) <= 0):
            raise ValueError(f"{len(self.weights)} weights for {len(self.ids)} ids: one above 0 for each is needed")

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, scaled to sum to 1."""
        weights = self.weights or (1.0,) * len(self.ids)
        total = sum(weights)
        return tuple(weight / total for weight in weights)

    @property
    def wanted(self) -> int:
        """How many ids must be greedy choices."""
        return len(self.ids) if self.reach is None else min(self.reach, len(self.ids))


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One conversation around the suffix: the model reads `before_ids`, the suffix, `after_ids`, and then responds.

    `messages` hold `PLACE` where the suffix's text goes; without them, the ids stand for themselves.
    """

    behavior: str  # as errors name it
    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    target: Target
    messages: tuple[Message, ...] = ()
    joined: Joined | None = None  # None where the messages name the place

    def prompt_ids(self, suffix: Sequence[int]) -> tuple[int, ...]:
        """What the model reads with this suffix."""
        return (*self.before_ids, *suffix, *self.after_ids)

    def length(self, suffix: int) -> int:
        """Tokens of prompt, suffix and target together."""
        return len(self.before_ids) + suffix + len(self.after_ids) + len(self.target.ids)


class Problem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cases that one suffix serves, easiest first where the search adds them one by one."""

    cases: tuple[Case, ...]

    def __post_init__(self) -> None:
        if not self.cases:
            raise UserError("a suffix is searched for no behavior at all: give at least one with a target")


def emphasised(refusal_mass: Sequence[float], *, floor: float = 0.1) -> tuple[float, ...]:
    """Weights of target tokens from the probability, before each, that the model turns to a refusal there.

    A model deepened on recoveries turns back at many depths; the loss then presses where it would. Mass m gives
    weight `floor` + m, so tokens that nothing threatens still count. Pass what `fathom.depth.recovery` measured.
    """
    return tuple(floor + mass for mass in refusal_mass)
