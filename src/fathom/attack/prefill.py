"""The direct request, prefilling at a grid of depths, and refusal prefixes: attempts that differ in the prefill alone.

    direct          prompt                                   Fig. 2 at k = 0
    prefill         prompt + h[:k]      k = 1, 2, 3, 5, …     Fig. 2, section 5
    refusal_prefix  prompt + "I cannot"                       Table 1

where h is the reference answer of the behavior, as ids. A prefill of k tokens is the first k of them, and the prompt's
ids are the same in every attempt on a behavior.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fathom.attack.kinds import PreparedBehavior, Setting
from fathom.errors import UserError
from fathom.records import Attempt

__all__ = ["DirectRequest", "Prefill", "RefusalPrefix", "default_depths"]


def default_depths(deepest: int) -> tuple[int, ...]:
    """0, 1, 2, 3, 5, 8, 10, 20, 40, 80, 160, …: the paper's depths and their doublings, up to `deepest` tokens."""
    depths = [0, 1, 2, 3, 5, 8, 10]
    while depths[-1] * 2 <= deepest:
        depths.append(depths[-1] * 2)
    return tuple(depth for depth in depths if depth <= deepest)


@dataclass(frozen=True)
class DirectRequest:
    """The request as it is: an empty prefill."""

    name: ClassVar[str] = "direct"

    def attempts(self, items: Sequence[PreparedBehavior], setting: Setting) -> Iterator[Attempt]:
        for item in items:
            yield from setting.attempts(item, self.name)


@dataclass(frozen=True)
class Prefill:
    """The answer made to start with the first k tokens of a reference answer, at each depth k ≥ 1.

    A behavior whose reference is shorter than k is left out at k; `n` at that depth is smaller and says so.

    Source: section 2.3 and Fig. 2; prefilling attacks of Table 3.
    """

    depths: tuple[int, ...]
    name: ClassVar[str] = "prefill"

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths are {self.depths}; prefills have 1 token or more (0 is the direct request)")

    def attempts(self, items: Sequence[PreparedBehavior], setting: Setting) -> Iterator[Attempt]:
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
                    yield from setting.attempts(item, self.name, prefill_ids=item.answer_ids[:depth])


@dataclass(frozen=True)
class RefusalPrefix:
    """The answer made to start with a refusal; an empty prefix is the request without one.

    What it does to a base model says how much of safety is the opening; the aligned model is there to compare with.

    Source: Table 1.
    """

    prefixes: tuple[str, ...]
    name: ClassVar[str] = "refusal_prefix"

    def attempts(self, items: Sequence[PreparedBehavior], setting: Setting) -> Iterator[Attempt]:
        for item in items:
            for prefix in self.prefixes:
                ids = setting.chat.response_ids(item.messages, prefix) if prefix else ()
                yield from setting.attempts(item, self.name, prefill_ids=ids, parameters={"prefix": prefix})
