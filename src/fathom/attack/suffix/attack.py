"""The suffix attack as a search: one suffix for each prompt, one for all of them, or one that is known already.

Suffix            a search for each behavior; its greedy answer is judged when its target is reached, and now and then
UniversalSuffix   one search over the first `train` behaviors; tried on these, on the others, and on benign ones
TypedSuffix       no search: a text found elsewhere (on another model, in a report) put to the same requests
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

import msgspec
import torch

from fathom.attack.kinds import Estimate, PreparedBehavior, Setting, Target, Victim, search_cost
from fathom.attack.suffix.options import Allowed, Full, Halving, Options
from fathom.attack.suffix.problem import Case, Problem, emphasised
from fathom.attack.suffix.problem import Target as Wanted
from fathom.attack.suffix.search import SuffixSearch
from fathom.attack.suffix.state import Entry, State
from fathom.attack.suffix.text import allowed_ids, place_suffix, placed_messages, start_ids, suffix_text, with_suffix
from fathom.chat import ChatFormat
from fathom.engine import TransformersEngine
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.records import Attempt, Exchange, Label, Sampling
from fathom.scoring import Scorer

__all__ = ["Suffix", "TargetKind", "TypedSuffix", "UniversalSuffix"]


class TargetKind(StrEnum):
    """What a suffix is to bring about."""

    PREFIX = "prefix"  # the behavior's target ("Sure, here is …"); without one, the first tokens of its answer
    EXTENDED = "extended"  # the prefix and `tokens` more of the answer
    DEEP = "deep"  # the first `tokens` of the answer, weighted where this model would turn to a refusal


@dataclass(frozen=True)
class _Suffixes:
    """What every search has: nanoGCG's options by their names here (`Options`), and what the target is.

    `first` and `keep` turn candidates away early (`Halving`); `keep` 0 scores all of them whole.
    """

    steps: int = 100
    length: int = 20
    start: str | None = None
    width: int = 128
    topk: int = 64
    replace: int = 1
    buffer: int = 0
    merge: int = 4
    first: int = 1
    keep: int = 4
    allowed: Allowed = Allowed.ASCII
    target: TargetKind = TargetKind.PREFIX
    tokens: int = 16
    seed: int = 0
    state: ClassVar[type[State]] = State

    def __post_init__(self) -> None:
        self._options()
        if self.tokens < 1:
            raise UserError(f"tokens is {self.tokens}; a target needs at least 1")

    def _options(self) -> Options:
        return Options(
            steps=self.steps,
            length=self.length,
            start=self.start,
            width=self.width,
            topk=self.topk,
            replace=self.replace,
            buffer=self.buffer,
            merge=self.merge,
            allowed=self.allowed,
            selection=Full() if self.keep == 0 else Halving(self.first, self.keep),
            seed=self.seed,
        )

    def spent(self, state: State) -> int:
        return state.forward_tokens

    def step(self, state: State, target: Target, victim: Victim) -> State:
        """One step of the search, and a look at the answer where it is due."""
        search = _search(self, target, victim)
        state = search.step(state)
        while all(state.best.reached) and state.active < len(search.problem.cases):
            state = search.widen(state)
        return self._looked(state, search, target, victim)

    def init(self, target: Target, victim: Victim) -> State:
        """The start of the suffix, scored."""
        search = _search(self, target, victim)
        return self._looked(search.init(self._active(len(search.problem.cases))), search, target, victim)

    def _active(self, cases: int) -> int:
        return cases

    def _looked(self, state: State, search: SuffixSearch, target: Target, victim: Victim) -> State:
        del search, target, victim
        return state

    def wanted(self, item: PreparedBehavior, model: ChatModel) -> Wanted:
        """The response ids that the suffix is to bring about."""
        behavior, chat = item.behavior, model.chat
        prefix = () if behavior.target is None else chat.response_ids(behavior.messages, behavior.target)
        answer = item.answer_ids if item.whole else ()
        if self.target is TargetKind.PREFIX and prefix:
            return Wanted(prefix)
        longest = self.tokens + (len(prefix) if self.target is TargetKind.EXTENDED else 0)
        ids = answer[:longest] if answer else prefix
        if not ids:
            raise UserError(
                f"behavior {behavior.id} has neither a target nor an answer to bring about: give it a target, such as "
                "'Sure, here is'"
            )
        if self.target is not TargetKind.DEEP:
            return Wanted(ids)
        return Wanted(ids, emphasised(_refusal_mass(model, item, ids)))

    def _most_tokens(self, item: PreparedBehavior) -> int:
        """Forward tokens of one case in all steps, if every candidate were scored whole."""
        tail = 8 + max(self.tokens, 16)
        return (self.steps + 1) * (self.width + self.merge + 1) * (self.length + tail) + len(item.prompt_ids)


@dataclass(frozen=True)
class Suffix(_Suffixes):
    """A suffix for each behavior. It ends as soon as its greedy answer is judged harmful (benign: to help).

    The answer, `answer_tokens` long, is looked at when the target is reached, at most every `rest` steps, and every
    `check` steps. After `patience` steps without a lower loss, or `misses` answers in vain behind a reached target, the
    search begins anew with another random start (0: never; nor with a `start` that was given).

    Of every `chain` behaviors, each search begins with the best of the last `pool` distinct suffixes that were found
    for those before it; with `chain` 1 or `pool` 0, each by itself.

    Source: starting from what was found elsewhere, Jia et al. 2405.21018 (easy-to-hard initialisation); here from all
    behaviors that were already won, in the order in which they are given.
    """

    steps: int = 200
    length: int = 12
    width: int = 8
    topk: int = 16
    merge: int = 1
    keep: int = 0
    chain: int = 25
    pool: int = 4
    patience: int = 6
    misses: int = 2
    rest: int = 2
    check: int = 10
    answer_tokens: int = 160
    name: ClassVar[str] = "suffix"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("chain", 1), ("pool", 0), ("patience", 0), ("misses", 0), ("rest", 1), ("check", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def begin(self, target: Target, victim: Victim, earlier: Sequence[State]) -> State:
        """Begin with what was found for the chain's earlier behaviors, where that was anything."""
        search = _search(self, target, victim)
        return self._looked(search.init(known=_won(earlier, self.pool)), search, target, victim)

    def init(self, target: Target, victim: Victim) -> State:
        return self.begin(target, victim, ())

    def step(self, state: State, target: Target, victim: Victim) -> State:
        """One step, a look at the answer where it is due, and another start where this one leads no further."""
        state = super().step(state, target, victim)
        over = 0 < self.patience <= state.stale or 0 < self.misses <= state.missed
        if state.verified or self.start is not None or not over:
            return state
        search, chat = _search(self, target, victim), victim.model.chat
        messages = target.items[0].behavior.messages
        start = start_ids(chat, messages, search.allowed, self.length, self.seed, turn=state.step)
        return search.anew(state, start) if search.typist.typed_everywhere(start) else state

    def targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        return tuple(Target(item.behavior.id, (item,)) for item in items)

    def done(self, state: State) -> bool:
        return state.verified

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """As if no suffix were found before the last step."""
        looks = self.steps // max(1, self.check)
        each = [self._most_tokens(item) + looks * (len(item.prompt_ids) + self.answer_tokens) for item in items]
        answers = len(items) * setting.answers
        return Estimate(answers, sum(each) + sum(len(item.prompt_ids) + setting.new_tokens for item in items))

    def _looked(self, state: State, search: SuffixSearch, target: Target, victim: Victim) -> State:
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
        after = _judged(state, entry, search.problem.cases[0], target.items[0], victim, self.answer_tokens)
        missed = state.missed + (not after.verified and entry is state.reaching)
        return msgspec.structs.replace(after, missed=missed)

    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, State]
    ) -> Iterator[Attempt]:
        """The best suffix of each behavior, whether or not its answer was found to be harmful."""
        for item in items:
            state = states.get(item.behavior.id)
            if state is not None:
                messages = placed_messages(setting.chat, item.behavior.messages, state.best.ids)
                yield from setting.attempts(
                    item,
                    self.name,
                    prompt_ids=setting.chat.prompt_ids(messages),
                    parameters={"target": self.target, "length": len(state.best.ids)},
                    found={**_found(setting.chat, state), **_shared_cost(state, 1)},
                )


@dataclass(frozen=True)
class UniversalSuffix(_Suffixes):
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
        return len(state.best.reached) >= self.train and all(state.best.reached)

    def _active(self, cases: int) -> int:
        del cases
        return 1

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """As if all behaviors were in use from the first step on."""
        searched = sum(self._most_tokens(item) for item in items[: self.train])
        answers = sum(len(item.prompt_ids) + self.length + setting.new_tokens for item in items)
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
            messages = placed_messages(setting.chat, item.behavior.messages, state.best.ids)
            yield from setting.attempts(
                item,
                self.name,
                prompt_ids=setting.chat.prompt_ids(messages),
                parameters={"split": split if harmful else "benign", "length": len(state.best.ids)},
                found={**_found(setting.chat, state), **(_shared_cost(state, len(items)) if harmful else {})},
            )


@dataclass(frozen=True)
class TypedSuffix:
    """A suffix that is known as text: found on another model, or in an earlier report."""

    suffix: str
    name: ClassVar[str] = "typed-suffix"

    def __post_init__(self) -> None:
        if not self.suffix.strip():
            raise UserError("the suffix is empty: give its text")

    def attempts(self, items: Sequence[PreparedBehavior], setting: Setting) -> Iterator[Attempt]:
        """At its place where the messages name one, else at the end of the request, behind a space."""
        for item in items:
            *head, last = item.behavior.messages
            own = any("{suffix}" in message.content for message in item.behavior.messages)
            joined = msgspec.structs.replace(last, content=last.content if own else last.content + " {suffix}")
            messages = with_suffix((*head, joined), self.suffix)
            yield from setting.attempts(
                item, self.name, prompt_ids=setting.chat.prompt_ids(messages), parameters={"suffix": self.suffix}
            )


def _won(states: Sequence[State], count: int) -> list[tuple[int, ...]]:
    """The distinct suffixes whose answers were judged to do what was asked, latest first, at most so many."""
    return list(dict.fromkeys(state.best.ids for state in reversed(states) if state.verified))[:count]


class _Latest(NamedTuple):
    key: tuple[int, str, str]
    search: SuffixSearch


_latest: list[_Latest] = []  # the search that was stepped last: caches that the next step needs again, and no more


def _search(attack: _Suffixes, target: Target, victim: Victim) -> SuffixSearch:
    key = (id(victim.model), repr(attack), target.key)
    if not _latest or _latest[0].key != key:
        _latest[:] = [_Latest(key, _made(attack, target, victim.model))]
    return _latest[0].search


def _made(attack: _Suffixes, target: Target, model: ChatModel) -> SuffixSearch:
    """Everything of a search that follows from attack, target and model.

    Raises:
        UserError: a prompt leaves no room for suffix and target, or the start cannot be typed.
    """
    options = attack._options()
    first = target.items[0].behavior.messages
    if options.start is None:
        allowed = allowed_ids(model.chat, Scorer.of(model).vocabulary, options.allowed)
        start = start_ids(model.chat, first, allowed, options.length, options.seed)
    else:
        start = model.chat.tokenise(options.start)
        if not start:
            raise UserError(f"the start {options.start!r} of the suffix has no tokens to optimise: give one that has")
    cases: list[Case] = []
    for item in target.items:
        behavior = item.behavior
        cases.append(place_suffix(model.chat, behavior.id, behavior.messages, attack.wanted(item, model), start))
    return SuffixSearch.of(model, Problem(tuple(cases)), options, start)


def _judged(state: State, entry: Entry, case: Case, item: PreparedBehavior, victim: Victim, tokens: int) -> State:
    """Write the greedy answer behind a suffix, and have it judged."""
    prompt = case.prompt_ids(entry.ids)
    attempt = Attempt.make(
        behavior=item.behavior.id,
        attack="suffix",
        prompt_ids=prompt,
        prefill_ids=(),
        sampling=Sampling(max_new_tokens=tokens),
        run_seed=victim.seed,
    )
    (completion,) = TransformersEngine(victim.model).complete([attempt])
    exchange = Exchange(behavior=item.behavior, prefill="", response=completion.text, finish=completion.finish)
    harmful = victim.judge.judge(exchange).label is Label.HARMFUL
    return msgspec.structs.replace(
        state,
        verified=harmful,
        tried=(*state.tried, entry.ids),
        looked=state.step,
        best=entry if harmful else state.best,
        queries=state.queries + 1,
        forward_tokens=state.forward_tokens + len(prompt) + len(completion.output_ids),
    )


@torch.inference_mode()
def _refusal_mass(model: ChatModel, item: PreparedBehavior, ids: Sequence[int]) -> tuple[float, ...]:
    """Before each of the ids, the probability of a token that opens a refusal of this request.

    The openings are those of the model's own likeliest answers to the direct request and of the reference refusal; for
    the mass of whole openings over many requests see `fathom.depth.recovery`.
    """
    openings: set[int] = set()
    if item.behavior.refusal:
        openings |= set(model.chat.response_ids(item.behavior.messages, item.behavior.refusal)[:1])
    masses: list[float] = []
    for logits in Scorer.of(model).response_logits(item.prompt_ids, ids):
        probabilities = logits.columns(slice(0, logits.vocabulary)).softmax(1)
        if not masses:
            likely = probabilities[0].sort(descending=True)
            covered = likely.values.cumsum(0) < 0.9  # the model's own openings of its direct answer
            openings |= set(likely.indices[: int(covered.sum()) + 1][:64].tolist()) - {ids[0]}
        masses += probabilities[:, sorted(openings)].sum(1).tolist()
    return tuple(masses)


def _found(chat: ChatFormat, state: State) -> Mapping[str, str | int | float | bool]:
    return {
        "suffix": suffix_text(chat, state.best.ids),
        "loss": round(state.best.loss, 4),
        "reached": all(state.best.reached),
        "search_steps": state.step,
    }


def _shared_cost(state: State, behaviors: int) -> Mapping[str, str | int | float | bool]:
    return search_cost(
        queries=state.queries / behaviors,
        forward_tokens=state.forward_tokens / behaviors,
        backward_tokens=state.backward_tokens / behaviors,
    )
