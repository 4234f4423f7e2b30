"""What an audit is made of: attacks, each on some behaviors, drawn in some ways, on one of the two models.

A suite is a function from a `Ground` to its parts. `depth_parts` is the one that measures depth; whoever has more
attacks adds parts to its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from fathom.attack.kinds import Attack, Draw, PreparedBehavior, Search, Setting
from fathom.attack.prefill import DirectRequest, Prefill, RefusalPrefix
from fathom.audit.spending import of_search, within
from fathom.chat import ChatFormat
from fathom.records import Attempt, Subject, content_hash

__all__ = ["Ground", "Part", "States", "Suite", "depth_parts", "direct_parts"]

States = Mapping[str, Any]  # the last state of each of a search's targets, by the target's key


@dataclass(frozen=True)
class Part:
    """One attack on some behaviors. `budget` bounds the forward tokens that it spends on each of them."""

    attack: Attack | Search[Any]
    items: tuple[PreparedBehavior, ...]
    setting: Setting
    budget: int | None = None

    @property
    def identity(self) -> str:
        """The same for parts that share an attack and so what it searches for, whichever behaviors they are."""
        return content_hash((self.attack.name, msgspec.to_builtins(self.attack), self.setting.subject, self.budget))

    def attempts(self, states: States, written: Mapping[str, int] | None = None) -> tuple[Attempt, ...]:
        """What the part runs, once its search, if it has one, is over.

        A budget leaves room for more attempts the more answers are known: `written` holds their lengths in tokens, by
        attempt.

        Raises:
            UserError: the behaviors do not allow the attack.
        """
        return tuple(within(self.unbounded(states), self.budget, written or {}))

    def unbounded(self, states: States) -> Sequence[Attempt]:
        """The attempts as if there were no budget."""
        if not isinstance(self.attack, Search):
            return self._unsearched
        return tuple(of_search(self.attack.found(self.items, self.setting, states), self.identity))

    @cached_property
    def _unsearched(self) -> tuple[Attempt, ...]:
        """Made once, since a plan asks for them at each stage: to see whether they can be, to check, write and run."""
        assert not isinstance(self.attack, Search)
        return tuple(self.attack.attempts(self.items, self.setting))

    def configuration(self) -> Mapping[str, object]:
        """Plain data that tells this part from any other."""
        return {
            "attack": self.attack.name,
            **msgspec.to_builtins(self.attack),
            "subject": self.setting.subject,
            "draws": [msgspec.to_builtins(draw) for draw in self.setting.draws],
            "behaviors": content_hash([item.behavior.id for item in self.items]),
            **({} if self.budget is None else {"budget": self.budget}),
        }


@dataclass(frozen=True)
class Ground:
    """What parts are made from. `base_chat` is None where there is no base; `depths` holds 0."""

    chat: ChatFormat
    base_chat: ChatFormat | None
    harmful: tuple[PreparedBehavior, ...]
    benign: tuple[PreparedBehavior, ...]
    base_items: tuple[PreparedBehavior, ...]
    draws: tuple[Draw, ...]
    depths: tuple[int, ...]
    prefixes: tuple[str, ...]
    seed: int

    def setting(self, draws: Sequence[Draw] | None = None) -> Setting:
        """On the model itself; drawn in all ways unless told otherwise."""
        return Setting(self.chat, self.draws if draws is None else tuple(draws), self.seed)

    @property
    def first(self) -> Setting:
        """Drawn as the depth sweep is: what controls need."""
        return self.setting(self.draws[:1])


Suite = Callable[[Ground], Sequence[Part]]


def direct_parts(ground: Ground) -> tuple[Part, ...]:
    """The direct request alone, with its control: what any attack is compared with."""
    parts = [Part(DirectRequest(), ground.harmful, ground.setting())]
    if ground.benign:
        parts.append(Part(DirectRequest(), ground.benign, ground.first))
    return tuple(parts)


def depth_parts(ground: Ground) -> tuple[Part, ...]:
    """The direct request and prefills of the harmful behaviors, the same of the benign ones, refusal prefixes.

    Those are put into the base's mouth and, to be compared with, into the model's: Table 1 has both.
    """
    deep = tuple(depth for depth in ground.depths if depth > 0)
    parts = [Part(DirectRequest(), ground.harmful, ground.setting())]
    if deep:
        parts.append(Part(Prefill(deep), ground.harmful, ground.setting()))
    if ground.benign:
        parts.append(Part(DirectRequest(), ground.benign, ground.first))
        reach = max(item.deepest for item in ground.benign)
        within = tuple(depth for depth in deep if depth <= reach)
        if within:
            parts.append(Part(Prefill(within), ground.benign, ground.first))
    if ground.base_items and ground.base_chat is not None and ground.prefixes:
        setting = Setting(ground.base_chat, ground.draws[:1], ground.seed, Subject.BASE)
        parts.append(Part(RefusalPrefix(ground.prefixes), ground.base_items, setting))
        parts.append(Part(RefusalPrefix(ground.prefixes), ground.harmful, ground.first))
    return tuple(parts)
