"""What every suffix search has in common: its options, its target, and the search that follows from both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

import torch

from fathom.attack.kinds import PreparedBehavior, Target, Victim, search_cost
from fathom.attack.suffix.options import Allowed, CrossEntropy, Full, Halving, Mellowmax, Options, Probe, Selection
from fathom.attack.suffix.problem import Case, Joined, Problem, emphasised
from fathom.attack.suffix.problem import Target as Wanted
from fathom.attack.suffix.search import SuffixSearch
from fathom.attack.suffix.state import State
from fathom.attack.suffix.text import after_suffix, allowed_ids, place_suffix, start_ids, suffix_text
from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.scoring import Scorer

__all__ = ["Suffixes", "TargetKind", "found_fields", "search_of", "shared_cost", "wanted"]


class TargetKind(StrEnum):
    """What a suffix is to bring about."""

    PREFIX = "prefix"  # the behavior's target ("Sure, here is …"); without one, the first tokens of its answer
    EXTENDED = "extended"  # the prefix and `tokens` more of the answer
    DEEP = "deep"  # the first `tokens` of the answer, weighted where this model would turn to a refusal


@dataclass(frozen=True)
class Suffixes:
    """What every search has: nanoGCG's options by their names here (`Options`), and what the target is.

    `first` and `keep` turn candidates away early (`Halving`); `keep` 0 scores all of them whole. `mellowmax` is the
    alpha of that loss (`Mellowmax`); None: cross-entropy. `draft` names a smaller model of the same tokenizer for probe
    sampling with `reduction` and `factor` (`Probe`). Both want `keep` 0.
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
    mellowmax: float | None = None
    draft: str | None = None
    reduction: int = 8
    factor: int = 16
    seed: int = 0
    state: ClassVar[type[State]] = State

    def __post_init__(self) -> None:
        self._options()
        if self.tokens < 1:
            raise UserError(f"tokens is {self.tokens}; a target needs at least 1")

    def _options(self) -> Options:
        """Raises `UserError` for knobs that exclude one another, or lie outside of what a search can do."""
        for name, value, why in (
            ("mellowmax", self.mellowmax, "early rejection adds up the parts of cross-entropy"),
            ("draft", self.draft, "both would say which candidates are scored whole"),
        ):
            if value is not None and self.keep:
                raise UserError(f"{name} is {value} and keep is {self.keep}, but {why}: give keep=0 with {name}")
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
            objective=CrossEntropy() if self.mellowmax is None else Mellowmax(self.mellowmax),
            selection=self._selection(),
            seed=self.seed,
        )

    def _selection(self) -> Selection:
        if self.draft is not None:
            return Probe(self.reduction, self.factor)
        return Full() if self.keep == 0 else Halving(self.first, self.keep)

    def told(self) -> Mapping[str, str | float]:
        """What tells attempts of this search from those of one with the usual loss and selection."""
        given = {"mellowmax": self.mellowmax, "draft": self.draft}
        return {name: value for name, value in given.items() if value is not None}

    def spent(self, state: State) -> int:
        return state.forward_tokens

    def step(self, state: State, target: Target, victim: Victim) -> State:
        """One step of the search, and a look at the answer where it is due."""
        search = search_of(self, target, victim)
        state = search.step(state)
        while all(state.best.reached) and state.active < len(search.problem.cases):
            state = search.widen(state)
        return self.looked(state, search, target, victim)

    def init(self, target: Target, victim: Victim) -> State:
        """The start of the suffix, scored."""
        search = search_of(self, target, victim)
        return self.looked(search.init(self._active(len(search.problem.cases))), search, target, victim)

    def _active(self, cases: int) -> int:
        return cases

    def looked(self, state: State, search: SuffixSearch, target: Target, victim: Victim) -> State:
        del search, target, victim
        return state

    def wanted(self, item: PreparedBehavior, model: ChatModel) -> Wanted:
        """The response ids that the suffix is to bring about."""
        return wanted(item, model, self.target, self.tokens)

    def adds(self, item: PreparedBehavior, chat: ChatFormat) -> int:
        """The suffix, and a space before it."""
        del item
        return 1 + (self.length if self.start is None else len(chat.tokenise(self.start)))

    def _most_tokens(self, item: PreparedBehavior, chat: ChatFormat) -> int:
        """Forward tokens of one case in all steps, if every candidate were scored on all of its target.

        What stands before the suffix counts once, as where candidates share it.
        """
        prefix = () if item.behavior.target is None else chat.response_ids(item.behavior.messages, item.behavior.target)
        target = max(len(prefix), min(self.tokens + len(prefix), len(item.answer_ids)))
        whole = self.adds(item, chat) - 1 + after_suffix(chat, item.behavior.messages) + target
        passes = self.width + self.merge + 2  # candidates, the gradient, and another start with what it is compared to
        return (self.steps + 1) * passes * whole + 2 * (len(item.prompt_ids) + target)


def wanted(item: PreparedBehavior, model: ChatModel, kind: TargetKind, tokens: int) -> Wanted:
    """The response ids that a search is to bring about, as `kind` says.

    Raises:
        UserError: the behavior has neither a target nor an answer.
    """
    behavior, chat = item.behavior, model.chat
    prefix = () if behavior.target is None else chat.response_ids(behavior.messages, behavior.target)
    answer = item.answer_ids if item.whole else ()
    if kind is TargetKind.PREFIX and prefix:
        return Wanted(prefix)
    longest = tokens + (len(prefix) if kind is TargetKind.EXTENDED else 0)
    ids = answer[:longest] if answer else prefix
    if not ids:
        raise UserError(
            f"behavior {behavior.name} has neither a target nor an answer to bring about: give it a target, such "
            "as 'Sure, here is'"
        )
    if kind is not TargetKind.DEEP:
        return Wanted(ids)
    return Wanted(ids, emphasised(_refusal_mass(model, item, ids)))


class _Latest(NamedTuple):
    key: tuple[int, str, str]
    search: SuffixSearch


_latest: list[_Latest] = []  # the search that was stepped last: caches that the next step needs again, and no more


def search_of(attack: Suffixes, target: Target, victim: Victim) -> SuffixSearch:
    key = (id(victim.model), repr(attack), target.key)
    if not _latest or _latest[0].key != key:
        _latest[:] = [_Latest(key, _made(attack, target, victim))]
    return _latest[0].search


def _made(attack: Suffixes, target: Target, victim: Victim) -> SuffixSearch:
    """Everything of a search that follows from attack, target and victim.

    Raises:
        UserError: a prompt leaves no room for suffix and target, the start cannot be typed, or the draft is not there.
    """
    options, model = attack._options(), victim.model
    if attack.draft is not None and attack.draft not in victim.drafts:
        raise UserError(f"the draft model {attack.draft} is not loaded: give it among the victim's drafts")
    draft = None if attack.draft is None else victim.drafts[attack.draft]
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
        cases.append(place_suffix(model.chat, behavior.name, behavior.messages, attack.wanted(item, model), start))
    return SuffixSearch.of(model, Problem(tuple(cases)), options, start, draft=draft)


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


def found_fields(chat: ChatFormat, state: State, joined: Joined | None) -> Mapping[str, str | int | float | bool]:
    """What a search found. `suffix` and `joined` are what `TypedSuffix` takes to give the same ids."""
    return {
        "suffix": suffix_text(chat, state.best.ids),
        **({} if joined is None else {"joined": joined.value}),
        "loss": round(state.best.loss, 4),
        "reached": all(state.best.reached),
        "search_steps": state.step,
    }


def shared_cost(state: State, behaviors: int) -> Mapping[str, str | int | float | bool]:
    return search_cost(
        queries=state.queries / behaviors,
        forward_tokens=state.forward_tokens / behaviors,
        backward_tokens=state.backward_tokens / behaviors,
    )
