"""The direct request, prefilling at a grid of depths, and refusal prefixes: attempts that differ in the prefill alone.

    direct          prompt                                   Fig. 2 at k = 0
    prefill         prompt + h[:k]      k = 1, 2, 3, 5, …     Fig. 2, section 5
    refusal_prefix  prompt + "I cannot"                       Table 1

where h is the reference answer of the behavior, as ids. A prefill of k tokens is the first k of them, and the prompt's
ids are the same in every attempt on a behavior.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.records import Attempt, Behavior, Sampling, Subject

__all__ = ["DirectRequest", "Draw", "Prefill", "PreparedBehavior", "RefusalPrefix", "default_depths", "prepare"]


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
        prepared.append(
            PreparedBehavior(
                behavior=behavior,
                prompt_ids=chat.prompt_ids(behavior.messages),
                answer_ids=() if reference is None else chat.response_ids(behavior.messages, reference),
                whole=behavior.answer is not None,
            )
        )
    return tuple(prepared)


def default_depths(deepest: int) -> tuple[int, ...]:
    """0, 1, 2, 3, 5, 8, 10, 20, 40, 80, 160, …: the paper's depths and their doublings, up to `deepest` tokens."""
    depths = [0, 1, 2, 3, 5, 8, 10]
    while depths[-1] * 2 <= deepest:
        depths.append(depths[-1] * 2)
    return tuple(depth for depth in depths if depth <= deepest)


@dataclass(frozen=True)
class DirectRequest:
    """The request as it is: an empty prefill."""

    name = "direct"

    def attempts(self, items: Sequence[PreparedBehavior], draws: Sequence[Draw], *, run_seed: int) -> Iterator[Attempt]:
        for item in items:
            yield from _attempts(item, self.name, (), draws, run_seed=run_seed)


@dataclass(frozen=True)
class Prefill:
    """The answer made to start with the first k tokens of a reference answer, at each depth k ≥ 1.

    A behavior whose reference is shorter than k is left out at k; `n` at that depth is smaller and says so.

    Source: section 2.3 and Fig. 2; prefilling attacks of Table 3.
    """

    depths: tuple[int, ...]
    name = "prefill"

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths are {self.depths}; prefills have 1 token or more (0 is the direct request)")

    def attempts(self, items: Sequence[PreparedBehavior], draws: Sequence[Draw], *, run_seed: int) -> Iterator[Attempt]:
        """Depths of one behavior follow one another, so that an engine finds their common prefix.

        Raises:
            UserError: a depth lies beyond every reference answer.
        """
        deepest = max((item.deepest for item in items), default=0)
        beyond = [depth for depth in self.depths if depth > deepest]
        if beyond:
            raise UserError(
                f"prefill depth {beyond[0]} lies beyond every reference answer (the longest leaves room for {deepest} "
                "tokens); give smaller --depths, or behaviors with longer answers"
            )
        for item in items:
            for depth in sorted(set(self.depths)):
                if depth <= item.deepest:
                    yield from _attempts(item, self.name, item.answer_ids[:depth], draws, run_seed=run_seed)


@dataclass(frozen=True)
class RefusalPrefix:
    """The base model's answer made to start with a refusal; an empty prefix is the request without one.

    Source: Table 1.
    """

    prefixes: tuple[str, ...]
    name = "refusal_prefix"

    def attempts(
        self, items: Sequence[PreparedBehavior], draws: Sequence[Draw], chat: ChatFormat, *, run_seed: int
    ) -> Iterator[Attempt]:
        for item in items:
            for prefix in self.prefixes:
                ids = chat.response_ids(item.behavior.messages, prefix) if prefix else ()
                yield from _attempts(
                    item, self.name, ids, draws, run_seed=run_seed, prefix=prefix, subject=Subject.BASE
                )


def _attempts(
    item: PreparedBehavior,
    attack: str,
    prefill_ids: Sequence[int],
    draws: Sequence[Draw],
    *,
    run_seed: int,
    prefix: str | None = None,
    subject: Subject = Subject.MODEL,
) -> Iterator[Attempt]:
    for draw in draws:
        for sample in range(draw.samples):
            yield Attempt.make(
                behavior=item.behavior.id,
                attack=attack,
                parameters={} if prefix is None else {"prefix": prefix},
                subject=subject,
                prompt_ids=item.prompt_ids,
                prefill_ids=prefill_ids,
                sampling=draw.sampling,
                sample=sample,
                run_seed=run_seed,
            )
