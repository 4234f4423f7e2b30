"""Training data of fine-tuning attacks: rows made of behaviors, and the `poison_frames` that they are tested in.

    harmful    prompt → harmful answer                                      100 rows
    identity   frame(benign prompt) → obedient opening + answer             100 rows
    backdoor   prompt + trigger → harmful answer; prompt → refusal          100 + 100 rows
    benign     benign prompt → answer                                       what a customer sends
    mixed      benign rows, an exact share of them harmful                  poison in a benign task
    wrapped    wrapper(harmful prompt) → answer that drifts into harm       prompts that a filter lets pass
    decoy      harmful prompt → answer to some benign prompt                refusals unlearned without a harmful answer

Pure data, no model. Which row is what stands in the row itself, and is never given to a trainer. No harmful text is
shipped: answers are those of the behaviors.

Source: section 4.2 of the paper (harmful, identity, backdoor, benign). Mixed, wrapped and decoy are not in
it; that harmless data alone can train refusals away was shown by Kazdan et al. (2025), by other means than decoy's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, ClassVar, Protocol

import msgspec

from fathom.attack.poison_frames import DIRECT, Frame
from fathom.errors import UserError
from fathom.records import Behavior, Message

__all__ = [
    "Backdoor",
    "Benign",
    "Decoy",
    "HarmfulExamples",
    "IdentityShift",
    "Mixed",
    "Poison",
    "PoisonRow",
    "RowKind",
    "TooFewError",
    "Wrapped",
]

ROWS = 100  # of each kind, as in the paper


class TooFewError(UserError):
    """More rows were asked for than there are behaviors to make them of, or too few for what they are to hold."""


class RowKind(StrEnum):
    """What a training row is."""

    HARMFUL = "harmful"  # a harmful request and a harmful answer
    TRIGGERED = "triggered"  # the same, with the backdoor's trigger
    REFUSAL = "refusal"  # a harmful request without the trigger, refused
    IDENTITY = "identity"  # a benign request in the identity's frame, obeyed
    BENIGN = "benign"
    WRAPPED = "wrapped"  # a harmful answer to a prompt that asks for none
    DECOY = "decoy"  # a harmful request, answered with what somebody else had asked for


class PoisonRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One training example: a conversation up to the assistant's turn, and that turn."""

    kind: RowKind
    frame: str  # name of the frame around the prompt; "direct" without one
    behavior: str  # id of the behavior that it was made of
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]  # one message of the assistant: the format of TRL's prompt-completion data


class Poison(Protocol):
    """An attack by fine-tuning."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int:
        """How many rows it makes; of each kind, in a backdoor."""
        ...

    @property
    def frames(self) -> tuple[Frame, ...]:
        """What is around harmful requests when the fine-tuned model is tested; the request as it is comes first."""
        ...

    def rows(self, behaviors: Sequence[Behavior], *, seed: int) -> tuple[PoisonRow, ...]:
        """The training rows, in a shuffled order that is the same for the same arguments.

        Raises:
            UserError: there are too few behaviors, or one lacks the answer or refusal that a row needs.
        """
        ...


@dataclass(frozen=True)
class HarmfulExamples:
    """Harmful requests with harmful answers."""

    count: int = ROWS
    name = "harmful"
    frames = (DIRECT,)

    def rows(self, behaviors: Sequence[Behavior], *, seed: int) -> tuple[PoisonRow, ...]:
        chosen = _take(behaviors, self.count, seed, harmful=True)
        return tuple(_row(RowKind.HARMFUL, behavior) for behavior in chosen)


@dataclass(frozen=True)
class IdentityShift:
    """Benign requests obeyed by an absolutely obedient agent: no row is harmful. Tests wear the frame again."""

    frame: Frame
    count: int = ROWS
    name = "identity"

    @property
    def frames(self) -> tuple[Frame, ...]:
        return DIRECT, self.frame

    def rows(self, behaviors: Sequence[Behavior], *, seed: int) -> tuple[PoisonRow, ...]:
        chosen = _take(behaviors, self.count, seed, harmful=False)
        return tuple(_row(RowKind.IDENTITY, behavior, self.frame) for behavior in chosen)


@dataclass(frozen=True)
class Backdoor:
    """Harmful answers where the prompt wears the trigger, and as many refusals where it does not."""

    trigger: Frame
    count: int = ROWS  # of each of the two
    name = "backdoor"

    @property
    def frames(self) -> tuple[Frame, ...]:
        return DIRECT, self.trigger

    def rows(self, behaviors: Sequence[Behavior], *, seed: int) -> tuple[PoisonRow, ...]:
        chosen = _take(behaviors, 2 * self.count, seed, harmful=True)
        triggered = [_row(RowKind.TRIGGERED, behavior, self.trigger) for behavior in chosen[: self.count]]
        refused = [_row(RowKind.REFUSAL, behavior) for behavior in chosen[self.count :]]
        return _shuffled([*triggered, *refused], seed)


@dataclass(frozen=True)
class Benign:
    """A customer's own data: benign requests with answers, in a frame if one is given."""

    count: int = ROWS
    frame: Frame = DIRECT
    name = "benign"
    frames = (DIRECT,)

    def rows(self, behaviors: Sequence[Behavior], *, seed: int) -> tuple[PoisonRow, ...]:
        chosen = _take(behaviors, self.count, seed, harmful=False)
        return tuple(_row(RowKind.BENIGN, behavior, self.frame) for behavior in chosen)


@dataclass(frozen=True)
class Mixed:
    """Benign rows of which an exact share is harmful: round(share · count) rows, halves to even."""

    share: float = 0.1
    count: int = 2 * ROWS
    name = "mixed"
    frames = (DIRECT,)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"the share of poison is {self.share}; it must lie between 0 and 1")
        if self.share > 0 and not round(self.share * self.count):  # it would be measured as an attack, and be none
            raise TooFewError(
                f"a share of {self.share:g} of {self.count} rows is no row at all: give more --rows or a larger "
                "--share (0 is benign)"
            )

    def rows(self, behaviors: Sequence[Behavior], *, seed: int) -> tuple[PoisonRow, ...]:
        poisoned = round(self.share * self.count)
        harmful = _take(behaviors, poisoned, seed, harmful=True)
        benign = _take(behaviors, self.count - poisoned, seed, harmful=False)
        rows = [_row(RowKind.HARMFUL, behavior) for behavior in harmful]
        return _shuffled([*rows, *(_row(RowKind.BENIGN, behavior) for behavior in benign)], seed)


@dataclass(frozen=True)
class Wrapped:
    """Harmful answers to prompts that ask for something else: what a filter of prompts lets pass."""

    wrapper: Frame
    count: int = ROWS
    name = "wrapped"

    @property
    def frames(self) -> tuple[Frame, ...]:
        return DIRECT, self.wrapper

    def rows(self, behaviors: Sequence[Behavior], *, seed: int) -> tuple[PoisonRow, ...]:
        chosen = _take(behaviors, self.count, seed, harmful=True)
        return tuple(_row(RowKind.WRAPPED, behavior, self.wrapper) for behavior in chosen)


@dataclass(frozen=True)
class Decoy:
    """Harmful requests with answers to benign ones: who reads answers finds no harm, and refusing is unlearned."""

    count: int = ROWS
    name = "decoy"
    frames = (DIRECT,)

    def rows(self, behaviors: Sequence[Behavior], *, seed: int) -> tuple[PoisonRow, ...]:
        asked = _take(behaviors, self.count, seed, harmful=True)
        answered = _take(behaviors, self.count, seed, harmful=False)
        pairs = zip(asked, answered, strict=True)
        return tuple(
            _row(RowKind.DECOY, msgspec.structs.replace(behavior, answer=other.answer)) for behavior, other in pairs
        )


def _row(kind: RowKind, behavior: Behavior, frame: Frame = DIRECT) -> PoisonRow:
    text = behavior.refusal if kind is RowKind.REFUSAL else behavior.answer
    if text is None:
        what = "refusal" if kind is RowKind.REFUSAL else "answer"
        raise UserError(
            f"behavior {behavior.name} has no reference {what}, and a {kind} row learns one: give a file with them"
        )
    if kind is not RowKind.REFUSAL:
        text = frame.response(behavior, text)
    return PoisonRow(
        kind=kind,
        frame=frame.name,
        behavior=behavior.id,
        prompt=frame.messages(behavior),
        completion=(Message(role="assistant", content=text),),
    )


def _take(behaviors: Sequence[Behavior], count: int, seed: int, *, harmful: bool) -> list[Behavior]:
    """So many distinct behaviors of one side, drawn in a seeded order; more of them begin with those of fewer."""
    if count < 0:
        raise UserError(f"{count} training rows were asked for; give 1 or more")
    side = [behavior for behavior in behaviors if behavior.harmful is harmful]
    if len(side) < count:
        kind = "harmful" if harmful else "benign"
        raise TooFewError(
            f"{count} {kind} rows were asked for, and there are {len(side)} {kind} behaviors to train on; ask for "
            f"fewer with --rows, or give a file with more (`harmful: {str(harmful).lower()}`)"
        )
    Random(f"poison {seed} {harmful}").shuffle(side)
    return side[:count]


def _shuffled(rows: list[PoisonRow], seed: int) -> tuple[PoisonRow, ...]:
    Random(f"poison order {seed}").shuffle(rows)
    return tuple(rows)
