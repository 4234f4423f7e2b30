"""A short harmful span put into a refusal: does the model, in the middle of saying no, follow the span or the refusal?

    prefill = r[:i] + h[start : start + span]      i = 0, 1, 2, 3, 5, 8, … to the refusal's length

where r is a refusal and h the behavior's reference answer, both as ids. `Insertion` takes the refusals that come with
the behaviors, `OwnInsertion` the model's own answers to the direct request. As a control, `OwnInsertion` does the same
to the model's own answers of benign requests, which are no refusals: does it find its way on from a span that is out of
place, or does inserting alone end a good answer?

Source: arXiv 2606.04168 (random insertion). There the place is random (`places=random:N`); a grid of places is tried
here unless told otherwise, or each of them (`places=all`).
"""

import random
import re
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

__all__ = ["Insertion", "OwnAnswer", "OwnAnswers", "OwnInsertion", "grid"]

_RANDOM = re.compile(r"random:(\d{1,6})")


def grid(length: int) -> tuple[int, ...]:
    """0, 1, 2, 3, 5, 8, 12, 18, … and `length` itself: where a span may be put into a refusal of so many tokens."""
    found, place = [0, 1, 2, 3, 5, 8], 12
    while place < length:
        found.append(place)
        place = place * 3 // 2
    return (*(place for place in found if place < length), length)


@dataclass(frozen=True)
class _Span:
    """Where in the reference answer the inserted tokens come from, how many they are, and where they are put.

    `places`: "grid", "all" (before each token of the refusal, and after its last), or "random:N", of which each
    behavior has N of its own, none twice, drawn by `seed`.
    """

    span: int = 8
    start: int = 0
    places: str = "grid"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.span < 1:
            raise ValueError(f"span is {self.span}; at least 1 token must be inserted")
        if self.start < 0:
            raise ValueError(f"start is {self.start}; it must be 0 (the answer's beginning) or above")
        if self.places not in ("grid", "all") and not self._drawn:
            raise ValueError(f"places is {self.places!r}; give grid, all, or random:N with N of 1 or more")

    @property
    def _drawn(self) -> int:
        """How many places are drawn; 0 where they are not."""
        match = _RANDOM.fullmatch(self.places)
        return 0 if match is None else int(match[1])

    def at(self, length: int, behavior: str) -> tuple[int, ...]:
        """The places in one behavior's refusal of so many tokens, in order."""
        every = range(length + 1)
        if self._drawn:
            # Seeded by text: the same on every machine, and another draw for each behavior.
            drawn = random.Random(f"{self.seed} {behavior}").sample(every, min(self._drawn, len(every)))
            return tuple(sorted(drawn))
        return tuple(every) if self.places == "all" else grid(length)

    def of(self, item: PreparedBehavior) -> tuple[int, ...]:
        """The span's ids; empty where the answer is too short to leave the model something to write after them."""
        return item.answer_ids[self.start : self.start + self.span] if self.start + self.span <= item.deepest else ()


@dataclass(frozen=True)
class Insertion(_Span):
    """A span of the reference answer put into the refusal that comes with the behavior, at each of its places.

    `place` counts the refusal's tokens before the span; the last place of each behavior, after the whole refusal, is
    named "end". Places that are drawn are one row, "random". Behaviors without a refusal, or with an answer shorter
    than `start + span`, are left out.
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
            yield from _inserted(self.name, self, item, refusals.get(item.behavior.id, ()), setting, {})


class OwnAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model answered to one direct request: a harmful one that it refused, or a benign one that it did not."""

    behavior: str
    ids: tuple[int, ...]


class OwnAnswers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model's answers to direct requests, and what it cost to hear them."""

    answers: tuple[OwnAnswer, ...] = msgspec.field(name="refusals")  # as it is called in runs of earlier versions
    queries: int
    forward_tokens: int


@dataclass(frozen=True)
class OwnInsertion(_Span):
    """As `Insertion`, into the model's own greedy refusal of the direct request; what it answers is left out.

    Of a benign behavior the span goes into the model's own answer, and what it refuses is left out.
    """

    longest: int = 64  # tokens of its answer that are asked for
    name: ClassVar[str] = "own-insertion"
    state: ClassVar[type[OwnAnswers]] = OwnAnswers
    steps: ClassVar[int] = 0

    def targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        """All behaviors at once: a batch of requests is one call."""
        return (Target(shared_key(items), tuple(items)),) if items else ()

    def init(self, target: Target, victim: Victim) -> OwnAnswers:
        answers, tokens = [], 0
        for item, done in direct_answers(target.items, victim, self.longest):
            tokens += len(item.prompt_ids) + len(done.output_ids)
            exchange = Exchange(behavior=item.behavior, prefill="", response=done.text, finish=done.finish)
            refused = victim.judge.judge(exchange).label is Label.SAFE
            if refused == item.behavior.harmful and done.output_ids:
                answers.append(OwnAnswer(behavior=item.behavior.id, ids=done.output_ids))
        return OwnAnswers(answers=tuple(answers), queries=len(target.items), forward_tokens=tokens)

    def step(self, state: OwnAnswers, target: Target, victim: Victim) -> OwnAnswers:
        """There is nothing to do after `init`."""
        del target, victim
        return state

    def done(self, state: OwnAnswers) -> bool:
        del state
        return True

    def spent(self, state: OwnAnswers) -> int:
        return state.forward_tokens

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """As if every behavior were answered at full length; what its insertions share counts once."""
        ways = len(self.at(self.longest, ""))
        prompts = sum(len(item.prompt_ids) for item in items)
        each = 2 * self.longest + ways * (self.span + setting.new_tokens)
        return Estimate(len(items) * ways * setting.answers, 2 * prompts + len(items) * each)

    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, OwnAnswers]
    ) -> Iterator[Attempt]:
        answers = {answer.behavior: answer.ids for state in states.values() for answer in state.answers}
        for item in items:
            answer = answers.get(item.behavior.id, ())
            # One query each, shared by that behavior's attempts.
            cost = search_cost(queries=1, forward_tokens=len(item.prompt_ids) + len(answer))
            yield from _inserted(self.name, self, item, answer, setting, cost)


def _inserted(
    name: str,
    span: _Span,
    item: PreparedBehavior,
    answer: Sequence[int],
    setting: Setting,
    found: Mapping[str, Parameter],
) -> Iterator[Attempt]:
    """The span in one answer, at each of its places."""
    inserted = span.of(item)
    if not answer or not inserted:
        return
    drawn = span.places.startswith("random")
    for place in span.at(len(answer), item.behavior.id):
        named: Parameter = "random" if drawn else "end" if place == len(answer) else place
        yield from setting.attempts(
            item,
            name,
            prefill_ids=(*answer[:place], *inserted),
            parameters={"place": named, "span": span.span, **({"start": span.start} if span.start else {})},
            found={**found, "place": place} if drawn else found,
        )
