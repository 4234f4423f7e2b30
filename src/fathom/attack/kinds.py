"""What an attack is: a frozen dataclass of plain data, its own configuration, that turns behaviors into attempts.

    Attack         makes its attempts at once (direct request, prefilling, sampling, framing, …)
    Search         looks for something with the model first: pure `init` and `step` over a frozen state, journalled by
                   whoever runs it, so that a search that was killed goes on at the same step with the same result
    Intervention   changes the model while its attempts run

Any of them may be given benign behaviors too: the same attack as a control.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from fathom.attack.suffix.problem import without_place
from fathom.chat import ChatFormat
from fathom.records import (
    Attempt,
    Behavior,
    Completion,
    Exchange,
    Judge,
    Label,
    Message,
    Parameter,
    Sampling,
    Subject,
    content_hash,
)

if TYPE_CHECKING:
    from fathom.engine import TransformersEngine
    from fathom.model import ChatModel

__all__ = [
    "Attack",
    "Draw",
    "Estimate",
    "Estimated",
    "Frugal",
    "Intervention",
    "Learner",
    "Lengthening",
    "Look",
    "PreparedBehavior",
    "Search",
    "Setting",
    "Target",
    "Victim",
    "direct_answers",
    "prepare",
    "search_cost",
    "shared_key",
]


@dataclass(frozen=True)
class PreparedBehavior:
    """A behavior in one model's ids. `answer_ids` is empty where the behavior has no reference answer.

    `whole` tells a full reference answer from a target prefix, which ends where the attacker's part ends: the whole of
    a target may be prefilled, of an answer all but its last token.
    """

    behavior: Behavior
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    whole: bool

    @property
    def messages(self) -> tuple[Message, ...]:
        """What is asked where there is no suffix: the behavior's messages without the place that they keep for one."""
        return without_place(self.behavior.messages)

    @property
    def deepest(self) -> int:
        """The longest prefill, in tokens, that leaves the model something to write."""
        return max(0, len(self.answer_ids) - 1) if self.whole else len(self.answer_ids)


@dataclass(frozen=True)
class Draw:
    """How each input is sampled, and how often. Greedy decoding has one outcome, so it has one draw."""

    sampling: Sampling
    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; it must be at least 1")
        if self.sampling.greedy and self.samples != 1:
            raise ValueError("greedy decoding gives the same answer every time; samples must be 1 at temperature 0")


def prepare(chat: ChatFormat, behaviors: Iterable[Behavior]) -> tuple[PreparedBehavior, ...]:
    """The ids of each behavior's prompt and reference answer, in the model's own chat format."""
    prepared = []
    for behavior in behaviors:
        reference = behavior.answer if behavior.answer is not None else behavior.target
        messages = without_place(behavior.messages)
        prepared.append(
            PreparedBehavior(
                behavior=behavior,
                prompt_ids=chat.prompt_ids(messages),
                answer_ids=() if reference is None else chat.response_ids(messages, reference),
                whole=behavior.answer is not None,
            )
        )
    return tuple(prepared)


@dataclass(frozen=True)
class Setting:
    """What attempts are made with: the format that makes ids, how they are drawn, the run's seed, which model."""

    chat: ChatFormat
    draws: tuple[Draw, ...]
    seed: int
    subject: Subject = Subject.MODEL

    def attempts(
        self,
        item: PreparedBehavior,
        attack: str,
        *,
        prefill_ids: Sequence[int] = (),
        prompt_ids: Sequence[int] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        found: Mapping[str, Parameter] | None = None,
    ) -> Iterator[Attempt]:
        """One attempt for each draw; the prompt is the behavior's own unless another is given.

        `parameters` say what the attack's rows have in common; `found` what a search brought for this behavior alone.
        """
        for draw in self.draws:
            for sample in range(draw.samples):
                yield Attempt.make(
                    behavior=item.behavior.id,
                    attack=attack,
                    parameters=parameters,
                    subject=self.subject,
                    prompt_ids=item.prompt_ids if prompt_ids is None else prompt_ids,
                    prefill_ids=prefill_ids,
                    sampling=draw.sampling,
                    sample=sample,
                    run_seed=self.seed,
                    found=found,
                )

    @property
    def answers(self) -> int:
        """Answers to one input."""
        return sum(draw.samples for draw in self.draws)

    @property
    def new_tokens(self) -> int:
        """The most tokens of those answers together."""
        return sum(draw.samples * draw.sampling.max_new_tokens for draw in self.draws)


class Attack(Protocol):
    """Makes attempts from behaviors, in an order that keeps those of one behavior together."""

    @property
    def name(self) -> str: ...
    def attempts(self, items: Sequence[PreparedBehavior], setting: Setting, /) -> Iterator[Attempt]: ...


# --- attacks that search first ---


@dataclass(frozen=True)
class Target:
    """One search of several: a behavior's own, or one for all behaviors together. `key` names it in the journal."""

    key: str
    items: tuple[PreparedBehavior, ...]


@dataclass(frozen=True, eq=False)
class Victim:
    """What a search may ask: the model as it is loaded, and the judge; its own draws come from `seed`.

    `drafts` are smaller models by the names that attacks call them by, to rank what the model itself need not see.
    """

    model: "ChatModel"
    judge: Judge
    seed: int
    drafts: "Mapping[str, ChatModel]" = field(default_factory=dict)

    @cached_property
    def engine(self) -> "TransformersEngine":
        """One for all answers that a search looks at: what it learns of the model is learnt, and said, once."""
        from fathom.engine import TransformersEngine

        return TransformersEngine(self.model)

    def look(self, item: PreparedBehavior, prompt_ids: tuple[int, ...], *, attack: str, most: int) -> "Look":
        """Write the greedy answer to a prompt, of `most` tokens or what there is room for, and have it judged."""
        context = self.model.context
        attempt = Attempt.make(
            behavior=item.behavior.id,
            attack=attack,
            prompt_ids=prompt_ids,
            prefill_ids=(),
            sampling=Sampling(max_new_tokens=most if context is None else min(most, context - len(prompt_ids))),
            run_seed=self.seed,
        )
        (completion,) = self.engine.complete([attempt])
        exchange = Exchange(behavior=item.behavior, prefill="", response=completion.text, finish=completion.finish)
        harmful = self.judge.judge(exchange).label is Label.HARMFUL
        return Look(harmful, len(prompt_ids) + len(completion.output_ids))


class Look(NamedTuple):
    """What a search saw of an answer: whether it was judged harmful, and the tokens that it cost."""

    harmful: bool
    forward_tokens: int


_State = TypeVar("_State")
_Seen = TypeVar("_Seen", contravariant=True)
_Learnt = TypeVar("_Learnt")


@runtime_checkable
class Search(Protocol[_State]):
    """Looks for something before it makes attempts. States are frozen msgspec structs: what is in them is resumed.

    `init` and `step` are pure: the same target, victim and state give the same next state. `steps` bounds how many
    steps one target takes; `done` may end it sooner. A target whose key another part of the suite has searched for is
    not searched for again: an attack found on the harmful behaviors as a whole serves the benign ones as it is.
    """

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> type[_State]: ...
    @property
    def steps(self) -> int: ...
    def targets(self, items: Sequence[PreparedBehavior], /) -> tuple[Target, ...]: ...
    def init(self, target: Target, victim: Victim, /) -> _State: ...
    def step(self, state: _State, target: Target, victim: Victim, /) -> _State: ...
    def done(self, state: _State, /) -> bool: ...
    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, _State], /
    ) -> Iterator[Attempt]:
        """The attempts that the last states stand for."""
        ...


@runtime_checkable
class Learner(Protocol[_Learnt]):
    """A search whose targets learn from those before them: `chain` consecutive targets, in their order.

    `begin` is pure, and `init` is `begin` with nothing learnt. All of a chain is searched for by one process, a target
    after the last state of every earlier one was written, so how often a run was killed changes nothing.
    """

    @property
    def chain(self) -> int: ...
    def begin(self, target: Target, victim: Victim, earlier: Sequence[_Learnt], /) -> _Learnt:
        """The first state, from the last states of the chain's earlier targets, in their order."""
        ...


@runtime_checkable
class Frugal(Protocol[_Seen]):
    """A search that knows what it has spent, so that a budget can end it."""

    def spent(self, state: _Seen, /) -> int:
        """Forward tokens so far, for all of a target's behaviors together."""
        ...


@dataclass(frozen=True)
class Estimate:
    """What a part will do at most, known before anything has run: its attempts, and tokens with those of its search."""

    attempts: int
    forward_tokens: int


@runtime_checkable
class Estimated(Protocol):
    """A search that can say beforehand what it will cost at most."""

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting, /) -> Estimate: ...


@runtime_checkable
class Lengthening(Protocol):
    """A search that knows beforehand how long what it looks for can be, so that what has no room is said at once."""

    def adds(self, item: PreparedBehavior, chat: ChatFormat, /) -> int:
        """The most tokens that an attempt's prompt and prefill have beside the direct request."""
        ...


# --- attacks that change the model ---


@runtime_checkable
class Intervention(Protocol):
    """Changes the model while its attempts run, and leaves it as it was."""

    def applied(self, model: "ChatModel", states: Mapping[str, Any], /) -> AbstractContextManager[None]: ...


def needs_model(attack: object) -> bool:
    """Whether an attack looks into the model or changes it, so that a server's answers are not enough for it."""
    return isinstance(attack, Search | Intervention)


# --- what attacks share ---


def search_cost(*, queries: float, forward_tokens: float, backward_tokens: float = 0) -> Mapping[str, Parameter]:
    """What a search cost on behalf of one behavior, for `found`: the report adds it once to that behavior's answers."""
    return {"queries": queries, "forward_tokens": forward_tokens, "backward_tokens": backward_tokens}


def shared_key(items: Sequence[PreparedBehavior]) -> str:
    """A target's key for a search on several behaviors together."""
    return content_hash([item.behavior.id for item in items])


def direct_answers(
    items: Sequence[PreparedBehavior], victim: Victim, max_new_tokens: int
) -> Iterator[tuple[PreparedBehavior, Completion]]:
    """The model's greedy answer to each direct request, in order."""
    draw = Draw(Sampling(max_new_tokens=max_new_tokens))
    setting = Setting(victim.model.chat, (draw,), victim.seed)
    asked = [attempt for item in items for attempt in setting.attempts(item, "direct")]
    done = {completion.attempt: completion for completion in victim.engine.complete(asked)}
    for item, attempt in zip(items, asked, strict=True):
        yield item, done[attempt.id]
