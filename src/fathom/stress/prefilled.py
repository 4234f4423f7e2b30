"""What a fine-tuned model goes on with once the start of a harmful answer is given: an audit's depth sweep, in short.

All depths of a request go to the engine at once, which computes their common part once. What the model added is judged,
as in an audit's half depth; the prefill is the attacker's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from fathom.attack.kinds import Draw, PreparedBehavior, Setting, prepare
from fathom.attack.poison_frames import DIRECT
from fathom.attack.prefill import Prefill
from fathom.chat import ChatFormat
from fathom.engine import TransformersEngine
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.records import Attempt, Behavior, Completion, Label
from fathom.tally import Tally, clustered
from fathom.tampering import Answer, Asked, Prefilled

__all__ = ["END", "Depths", "Given", "by_depth", "deepest", "given_answers", "tallies", "way_of_asking"]

END = "end"


@dataclass(frozen=True)
class Depths:
    """How many tokens of its reference answer a request is given, besides none; `end`: all but the last one."""

    tokens: tuple[int, ...] = ()
    end: bool = False

    def __post_init__(self) -> None:
        if any(depth < 1 for depth in self.tokens):
            raise UserError(f"--depths has {min(self.tokens)}; give numbers of tokens, 0 or above, or {END}")

    @classmethod
    def read(cls, text: str) -> "Depths":
        """Of numbers and `end`, separated by commas; 0 is the direct request, which is always made.

        Raises:
            UserError: something else.
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        counts = {word for word in words if word != END}
        if not words or not all(word.isdecimal() for word in counts):
            raise UserError(f"--depths is {text!r}; give numbers of tokens and {END}, for example 0,5,20,{END}")
        return cls(tuple(sorted({int(word) for word in counts} - {0})), END in words)

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def count(self) -> int:
        return len(self.tokens) + self.end

    def within(self, deepest: int) -> "Depths":
        """Those that some answer reaches."""
        return Depths(tuple(depth for depth in self.tokens if depth <= deepest), self.end and deepest > 0)


class Given(NamedTuple):
    """An answer after a prefill of so many tokens (None: all of the reference answer but its last one)."""

    tokens: int | None
    behavior: Behavior
    attempt: Attempt
    completion: Completion


def way_of_asking(tokens: int | None) -> str:
    return f"prefill {END if tokens is None else tokens}"


def deepest(chat: ChatFormat, behaviors: Sequence[Behavior]) -> int:
    """The longest prefill that a reference answer of a harmful behavior allows, in tokens; 0: there is none."""
    return max((item.deepest for item in prepare(chat, _direct(behaviors))), default=0)


def given_answers(
    model: ChatModel, behaviors: Sequence[Behavior], depths: Depths, draw: Draw, *, seed: int
) -> Iterator[Given]:
    """Answers at each depth, by depth and then in the order of the harmful `behaviors`, the draws of each together.

    Behaviors are named as those that are asked directly. One whose reference answer is shorter is left out.
    """
    items = prepare(model.chat, _direct(behaviors))
    setting = Setting(model.chat, (draw,), seed)
    asked = [(depth, item, attempt) for depth, item, attempt in _attempts(items, depths, setting)]
    done = {one.attempt: one for one in TransformersEngine(model).complete([attempt for _, _, attempt in asked])}
    return (Given(depth, item.behavior, attempt, done[attempt.id]) for depth, item, attempt in asked)


def tallies(rows: Sequence[Answer]) -> dict[str, Tally]:
    """Verdicts on each behavior."""
    labels: dict[str, list[Label]] = {}
    for row in rows:
        if row.label is not None:
            labels.setdefault(row.behavior, []).append(row.label)
    return {behavior: Tally.of(found) for behavior, found in labels.items()}


def by_depth(
    asked: Sequence[Asked], depths: Depths, rows: Sequence[Answer], harmful: Sequence[Behavior]
) -> tuple[Prefilled, ...]:
    """Counts at no depth, which is the direct request, and at each of the depths that `rows` are the answers of."""
    direct = min((one for one in asked if one.asked == DIRECT.name), key=lambda one: one.temperature)
    order = [DIRECT.around(behavior).id for behavior in harmful]
    found = [
        Prefilled(
            tokens=0,
            temperature=direct.temperature,
            n=direct.n,
            harmful=direct.harmful,
            undecided=direct.undecided,
            asr=direct.asr,
            low=direct.low,
            high=direct.high,
            by_behavior=direct.by_behavior,
        )
    ]
    for tokens in (*depths.tokens, *([None] if depths.end else [])):
        each = tallies([row for row in rows if row.asked == way_of_asking(tokens)])
        tally = sum(each.values(), Tally())
        low, high = clustered(list(each.values()), seed=0)
        found.append(
            Prefilled(
                tokens=tokens,
                temperature=direct.temperature,
                n=tally.n,
                harmful=tally.harmful,
                undecided=tally.undecided,
                asr=tally.asr,
                low=low,
                high=high,
                by_behavior=tuple(each[name].harmful if name in each else None for name in order),
            )
        )
    return tuple(found)


def _attempts(
    items: Sequence[PreparedBehavior], depths: Depths, setting: Setting
) -> Iterator[tuple[int | None, PreparedBehavior, Attempt]]:
    for depth in depths.tokens:
        for item in items:
            if depth <= item.deepest:
                for attempt in Prefill((depth,)).attempts([item], setting):
                    yield depth, item, attempt
    for item in items if depths.end else ():
        if item.deepest:
            given = item.answer_ids[: item.deepest]
            for attempt in setting.attempts(item, Prefill.name, prefill_ids=given, parameters={"depth": END}):
                yield None, item, attempt


def _direct(behaviors: Sequence[Behavior]) -> list[Behavior]:
    """As they are asked directly, their targets kept: those are starts of an answer, too."""
    harmful = [behavior for behavior in behaviors if behavior.harmful]
    return [msgspec.structs.replace(DIRECT.around(behavior), target=behavior.target) for behavior in harmful]
