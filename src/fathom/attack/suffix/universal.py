"""One suffix for many behaviors: searched for on all of them together, or known as text already."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fathom.attack.kinds import Estimate, PreparedBehavior, Setting, Target
from fathom.attack.suffix.base import Suffixes, found_fields, shared_cost
from fathom.attack.suffix.problem import PLACE, Joined
from fathom.attack.suffix.state import State
from fathom.attack.suffix.text import ending_in_place, typed_messages, with_suffix
from fathom.errors import UserError
from fathom.records import Attempt

__all__ = ["TypedSuffix", "UniversalSuffix"]


@dataclass(frozen=True)
class UniversalSuffix(Suffixes):
    """One suffix for the first `train` behaviors, which join the search one by one as those before are reached.

    Source: section 5 (one suffix over 50 behaviors, 500 steps); joining one by one: Zou et al. 2307.15043, Algorithm 2.
    """

    steps: int = 500
    train: int = 50
    name: ClassVar[str] = "universal-suffix"
    key: ClassVar[str] = "universal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train < 1:
            raise UserError(f"train is {self.train}; a suffix is searched for on at least 1 behavior")

    def targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        """One, of the same name whichever behaviors are given: what the harmful ones bring serves the benign ones."""
        return (Target(self.key, tuple(items[: self.train])),) if items else ()

    def done(self, state: State) -> bool:
        """All that it is searched for on are in use and reached: `train` of them, or as many as there are."""
        cases = self.train if state.cases is None else state.cases
        return len(state.best.reached) >= cases and all(state.best.reached)

    def _active(self, cases: int) -> int:
        del cases
        return 1

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """As if all behaviors were in use from the first step on."""
        searched = sum(self._most_tokens(item, setting.chat) for item in items[: self.train])
        answers = sum(len(item.prompt_ids) + self.length + 1 + setting.new_tokens for item in items)
        return Estimate(len(items) * setting.answers, searched + answers)

    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, State]
    ) -> Iterator[Attempt]:
        """The suffix on every behavior; `split` says which ones the search has seen."""
        state = states.get(self.key)
        if state is None:
            return
        for place, item in enumerate(items):
            harmful = item.behavior.harmful
            split = "train" if place < self.train and harmful else "held-out"
            joined = state.joined[place] if split == "train" and state.joined else next(iter(state.joined), None)
            typed = typed_messages(setting.chat, item.behavior.messages, state.best.ids, joined)
            cost = shared_cost(state, len(items)) if harmful else {}
            yield from setting.attempts(
                item,
                self.name,
                prompt_ids=setting.chat.prompt_ids(typed.messages),
                parameters={"split": split if harmful else "benign", "length": len(state.best.ids), **self.told()},
                found={**found_fields(setting.chat, state, typed.joined), **cost},
            )


@dataclass(frozen=True)
class TypedSuffix:
    """A suffix that is known as text: found on another model, or in an earlier report, which says how it is joined."""

    suffix: str
    joined: Joined = Joined.SPACE
    name: ClassVar[str] = "typed-suffix"

    def __post_init__(self) -> None:
        if not self.suffix.strip():
            raise UserError("the suffix is empty: give its text")

    def attempts(self, items: Sequence[PreparedBehavior], setting: Setting) -> Iterator[Attempt]:
        """At its place where the messages name one, else at the end of the request, as `joined` says."""
        joined = {} if self.joined is Joined.SPACE else {"joined": self.joined.value}
        for item in items:
            messages = item.behavior.messages
            own = any(PLACE in message.content for message in messages)
            typed = with_suffix(messages if own else ending_in_place(messages, self.joined), self.suffix)
            yield from setting.attempts(
                item,
                self.name,
                prompt_ids=setting.chat.prompt_ids(typed),
                parameters={"suffix": self.suffix, **joined},
            )
