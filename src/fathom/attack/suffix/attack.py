"""The suffix attack as a search: one suffix for each prompt, one for all of them, or one that is known already.

Suffix            a search for each behavior; its greedy answer is judged when its target is reached, and now and then
UniversalSuffix   one search over the first `train` behaviors; tried on these, on the others, and on benign ones
TypedSuffix       no search: a text found elsewhere (on another model, in a report) put to the same requests
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import msgspec

from fathom.attack.kinds import Estimate, PreparedBehavior, Setting, Target, Victim
from fathom.attack.suffix.base import Suffixes, TargetKind, found_fields, search_of, shared_cost
from fathom.attack.suffix.search import Known, SuffixSearch
from fathom.attack.suffix.state import Entry, State
from fathom.attack.suffix.text import start_ids, typed_messages
from fathom.attack.suffix.universal import TypedSuffix, UniversalSuffix
from fathom.errors import UserError
from fathom.records import Attempt

__all__ = ["Suffix", "TargetKind", "TypedSuffix", "UniversalSuffix"]

_GROUP = 4
_LIKELY = 0.65  # chance of a favourite, from which on it pays to look at its answer before others are scored


@dataclass(frozen=True)
class Suffix(Suffixes):
    """A suffix for each behavior. It ends as soon as its greedy answer is judged harmful (benign: to help).

    The answer, `answer_tokens` long, is looked at when the target is reached, at most every `rest` steps, and every
    `check` steps. After `patience` steps without a lower loss, or `misses` answers in vain behind a reached target, the
    search begins anew (0: never; nor with a `start` that was given): at its best suffix with `kick` tokens exchanged
    for any, or at another random one (`kick` 0).

    Of every `chain` behaviors, each search begins with the last `pool` distinct suffixes that were found for those
    before it. The answers behind at most `tries` of them are looked at until one is harmful: first the one that opened
    most of what it was tried on, if that is likely enough to do, then best first among four at a time. Else the search
    goes on from the very best. With `chain` 1 or `pool` 0, each goes by itself.

    Source: starting from what was found elsewhere, Jia et al. 2405.21018 (easy-to-hard initialisation); here from all
    behaviors that were already won. Going on from the best, disturbed: iterated local search.
    """

    steps: int = 200
    length: int = 12
    width: int = 8
    topk: int = 16
    merge: int = 1
    keep: int = 0
    chain: int = 25
    pool: int = 8
    tries: int = 8
    patience: int = 6
    misses: int = 2
    kick: int = 4
    rest: int = 2
    check: int = 3
    answer_tokens: int = 160
    name: ClassVar[str] = "suffix"

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"chain": 1, "pool": 0, "tries": 1, "patience": 0, "misses": 0, "kick": 0, "rest": 1}
        for name, lowest in (least | {"check": 0}).items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {lowest}")

    def begin(self, target: Target, victim: Victim, earlier: Sequence[State]) -> State:
        """Begin with what was found for the chain's earlier behaviors, where that was anything."""
        search = search_of(self, target, victim)
        state: State | None = None
        for group in _groups(_won(earlier, self.pool), earlier):
            known = search.ranked(group)
            if known.entries:
                state = search.begin(known) if state is None else search.join(state, known)
                state = self._tried(state, known, search, target, victim)
                if state.verified:
                    return state
        return self.looked(search.init(), search, target, victim) if state is None else state

    def _tried(self, state: State, known: Known, search: SuffixSearch, target: Target, victim: Victim) -> State:
        """The answers behind what is known, best first, until one is what was asked for."""
        for entry in known.entries:
            if not state.verified and len(state.tried) < self.tries:
                state = self.judged(state, entry, search, target, victim)
        return state

    def init(self, target: Target, victim: Victim) -> State:
        return self.begin(target, victim, ())

    def step(self, state: State, target: Target, victim: Victim) -> State:
        """One step, a look at the answer where it is due, and another start where this one leads no further."""
        state = super().step(state, target, victim)
        over = 0 < self.patience <= state.stale or 0 < self.misses <= state.missed
        if state.verified or self.start is not None or not over:
            return state
        search, chat = search_of(self, target, victim), victim.model.chat
        if self.kick:
            kicked = search.kicked(state.best.ids, self.kick, state.step)
            return state if kicked is None else search.anew(state, kicked)
        messages = target.items[0].behavior.messages
        start = start_ids(chat, messages, search.allowed, self.length, self.seed, turn=state.step)
        return search.anew(state, start) if search.typist.typed_everywhere(start) else state

    def targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        return tuple(Target(item.behavior.id, (item,)) for item in items)

    def done(self, state: State) -> bool:
        return state.verified

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """As if no suffix were found before the last step."""
        checked = self.steps // self.check if self.check else 0
        looks = self.tries + min(self.steps, checked + self.steps // self.rest + 1)
        tokens = 0
        for item in items:
            typed = len(item.prompt_ids) + self.adds(item, setting.chat)
            known = self.pool * 2 * typed
            tokens += self._most_tokens(item, setting.chat) + known + looks * (typed + self.answer_tokens)
            tokens += typed + setting.new_tokens
        return Estimate(len(items) * setting.answers, tokens)

    def looked(self, state: State, search: SuffixSearch, target: Target, victim: Victim) -> State:
        # An answer costs as much as many candidates: where the target is reached and not enough, seldom.
        rested = state.looked is None or state.step - state.looked >= self.rest
        if state.reaching is not None and rested:
            entry = state.reaching
        elif self.check and state.step and state.step % self.check == 0:
            entry = state.current if state.best.ids in state.tried else state.best
        else:
            return state
        if entry.ids in state.tried:
            return state
        after = self.judged(state, entry, search, target, victim)
        missed = state.missed + (not after.verified and entry is state.reaching)
        return msgspec.structs.replace(after, missed=missed)

    def judged(self, state: State, entry: Entry, search: SuffixSearch, target: Target, victim: Victim) -> State:
        """Write the greedy answer behind a suffix, and have it judged."""
        (item,), prompt = target.items, search.problem.cases[0].prompt_ids(entry.ids)
        seen = victim.look(item, prompt, attack=self.name, most=self.answer_tokens)
        return msgspec.structs.replace(
            state,
            verified=seen.harmful,
            tried=(*state.tried, entry.ids),
            looked=state.step,
            best=entry if seen.harmful else state.best,
            queries=state.queries + 1,
            forward_tokens=state.forward_tokens + seen.forward_tokens,
        )

    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, State]
    ) -> Iterator[Attempt]:
        """The best suffix of each behavior, whether or not its answer was found to be harmful."""
        for item in items:
            state = states.get(item.behavior.id)
            if state is not None:
                joined = next(iter(state.joined), None)
                typed = typed_messages(setting.chat, item.behavior.messages, state.best.ids, joined)
                yield from setting.attempts(
                    item,
                    self.name,
                    prompt_ids=setting.chat.prompt_ids(typed.messages),
                    parameters={"target": self.target, "length": len(state.best.ids), **self.told()},
                    found={**found_fields(setting.chat, state, typed.joined), **shared_cost(state, 1)},
                )


def _won(states: Sequence[State], count: int) -> list[tuple[int, ...]]:
    """The distinct suffixes whose answers were judged to do what was asked, latest first, at most so many."""
    return list(dict.fromkeys(state.best.ids for state in reversed(states) if state.verified))[:count]


def _groups(known: Sequence[tuple[int, ...]], earlier: Sequence[State]) -> Iterator[Sequence[tuple[int, ...]]]:
    """Those of a group are scored before any answer is looked at; a favourite is a group of its own, the first."""
    favourite = max(known, key=partial(_chance, earlier=earlier), default=None)
    if favourite is not None and _chance(favourite, earlier) >= _LIKELY:
        yield (favourite,)
        known = [ids for ids in known if ids != favourite]
    for start in range(0, len(known), _GROUP):
        yield known[start : start + _GROUP]


def _chance(ids: tuple[int, ...], earlier: Sequence[State]) -> float:
    """That this suffix does for one more behavior what it did for earlier ones.

    By Laplace's rule, over those it was tried on without the one that it was found for.
    """
    won = [state.verified and state.best.ids == ids for state in earlier]
    vain = sum(ids in state.tried and not done for state, done in zip(earlier, won, strict=True))
    return sum(won) / (sum(won) + vain + 1)
