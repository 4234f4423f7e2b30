"""A short harmful span put into a refusal: does the model, in the middle of saying no, follow the span or the refusal?

    prefill = r[:i] + h[start : start + span]      i = 0, 1, 2, 3, 5, 8, … to the refusal's length

where r is a refusal and h the behavior's reference answer, both as ids. `Insertion` takes the refusals that come with
the behaviors, `OwnInsertion` the model's own answers to the direct request.

Source: arXiv 2606.04168 (random insertion). There the place is random; here all places of a grid are tried.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from fathom.attack.kinds import (
    Estimate,
    PreparedBehavior,
    Setting,
    Target,
    Victim,
    direct_answers,
    search_cost,
    shared_key,
)
from fathom.errors import UserError
from fathom.records import Attempt, Exchange, Label, Parameter

__all__ = ["Insertion", "OwnInsertion", "OwnRefusal", "OwnRefusals", "places"]


def places(length: int) -> tuple[int, ...]:
    """0, 1, 2, 3, 5, 8, 12, 18, … and `length` itself: where a span may be put into a refusal of so many tokens."""
    grid, place = [0, 1, 2, 3, 5, 8], 12
    while place < length:
        grid.append(place)
        place = place * 3 // 2
    return (*(place for place in grid if place < length), length)


@dataclass(frozen=True)
class _Span:
    """Where in the reference answer the inserted tokens come from, and how many they are."""

    span: int = 8
    start: int = 0

    def __post_init__(self) -> None:
        if self.span < 1:
            raise ValueError(f"span is {self.span}; at least 1 token must be inserted")
        if self.start < 0:
            raise ValueError(f"start is {self.start}; it must be 0 (the answer's beginning) or above")

    def of(self, item: PreparedBehavior) -> tuple[int, ...]:
        """The span's ids; empty where the answer is too short to leave the model something to write after them."""
        return item.answer_ids[self.start : self.start + self.span] if self.start + self.span <= item.deepest else ()


@dataclass(frozen=True)
class Insertion(_Span):
    """A span of the reference answer put into the refusal that comes with the behavior, at each place of a grid.

    `place` counts the refusal's tokens before the span; the last place of each behavior, after the whole refusal, is
    named "end". Behaviors without a refusal, or with an answer shorter than `start + span`, are left out.
    """

    name: ClassVar[str] = "insertion"

    def attempts(self, items: Sequence[PreparedBehavior], setting: Setting) -> Iterator[Attempt]:
        """All places of one behavior follow one another.

        Raises:
            UserError: no behavior has both a refusal and an answer that is long enough.
        """
        refusals = {
            item.behavior.id: setting.chat.response_ids(item.messages, item.behavior.refusal)
            for item in items
            if item.behavior.refusal is not None
        }
        if not any(item.behavior.id in refusals and self.of(item) for item in items):
            raise UserError(
                f"insertion needs behaviors with a refusal and an answer of more than {self.start + self.span} tokens, "
                "and there is none: add a `refusal` column, or use own-insertion, which takes the model's own"
            )
        for item in items:
            yield from _inserted(self.name, self, item, refusals.get(item.behavior.id, ()), setting, None)


class OwnRefusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model answered to one direct request, where that is a refusal."""

    behavior: str
    ids: tuple[int, ...]


class OwnRefusals(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model's refusals of direct requests, and what it cost to hear them."""

    refusals: tuple[OwnRefusal, ...]
    queries: int
    forward_tokens: int


@dataclass(frozen=True)
class OwnInsertion(_Span):
    """As `Insertion`, into the model's own greedy refusal of the direct request; what it answers is left out."""

    longest: int = 64  # tokens of its answer that are asked for
    name: ClassVar[str] = "own-insertion"
    state: ClassVar[type[OwnRefusals]] = OwnRefusals
    steps: ClassVar[int] = 0

    def targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        """All behaviors at once: a batch of requests is one call."""
        return (Target(shared_key(items), tuple(items)),) if items else ()

    def init(self, target: Target, victim: Victim) -> OwnRefusals:
        refusals, tokens = [], 0
        for item, done in direct_answers(target.items, victim, self.longest):
            tokens += len(item.prompt_ids) + len(done.output_ids)
            exchange = Exchange(behavior=item.behavior, prefill="", response=done.text, finish=done.finish)
            if victim.judge.judge(exchange).label is Label.SAFE:
                refusals.append(OwnRefusal(behavior=item.behavior.id, ids=done.output_ids))
        return OwnRefusals(refusals=tuple(refusals), queries=len(target.items), forward_tokens=tokens)

    def step(self, state: OwnRefusals, target: Target, victim: Victim) -> OwnRefusals:
        """There is nothing to do after `init`."""
        del target, victim
        return state

    def done(self, state: OwnRefusals) -> bool:
        del state
        return True

    def spent(self, state: OwnRefusals) -> int:
        return state.forward_tokens

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """As if every behavior were refused at full length."""
        ways = len(places(self.longest))
        prompts = sum(len(item.prompt_ids) for item in items)
        each = self.longest + ways * (self.longest + self.span + setting.new_tokens)
        return Estimate(len(items) * ways * setting.answers, 2 * prompts + len(items) * each)

    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, OwnRefusals]
    ) -> Iterator[Attempt]:
        refusals = {refusal.behavior: refusal.ids for state in states.values() for refusal in state.refusals}
        for item in items:
            refusal = refusals.get(item.behavior.id, ())
            # One query each, shared by that behavior's attempts.
            cost = search_cost(queries=1, forward_tokens=len(item.prompt_ids) + len(refusal))
            yield from _inserted(self.name, self, item, refusal, setting, cost)


def _inserted(
    name: str,
    span: _Span,
    item: PreparedBehavior,
    refusal: Sequence[int],
    setting: Setting,
    found: Mapping[str, Parameter] | None,
) -> Iterator[Attempt]:
    inserted = span.of(item)
    if not refusal or not inserted:
        return
    for place in places(len(refusal)):
        yield from setting.attempts(
            item,
            name,
            prefill_ids=(*refusal[:place], *inserted),
            parameters={
                "place": "end" if place == len(refusal) else place,
                "span": span.span,
                **({"start": span.start} if span.start else {}),
            },
            found=found,
        )
