"""Suites: attacks that are run beside the depth sweep, on the harmful behaviors and, as a control, on the benign ones.

    quick      seconds to minutes: a few inputs for each behavior, nothing is searched
    standard   every attack that needs no gradient, at small settings
    paper      the protocols of section 5: the decoding grid, one suffix for 50 behaviors, the code frame of Table 5
    adaptive   what is aimed at deep alignment: insertion, ranks, the refusal direction, depth that goes on, suffixes
               whose target reaches past a recovery

or a file of the user's own (`suite_file`). An attack is given in plain data, its name and its parameters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import msgspec

from fathom.attack.decoding import BestOfN, Decoding
from fathom.attack.deep import DeepPrefill, MultiTurn, deep_depths
from fathom.attack.embedding import Embedding
from fathom.attack.framing import FRAMES, Frame, Framing, load_frames
from fathom.attack.insertion import Insertion, OwnInsertion
from fathom.attack.kinds import Attack, Estimated, PreparedBehavior, Search
from fathom.attack.ranks import JudgedRanks, ReferenceRanks
from fathom.attack.refusal_direction import RefusalDirection
from fathom.attack.suffix.attack import Suffix, TypedSuffix, UniversalSuffix
from fathom.audit.parts import Ground, Part, Suite, depth_parts
from fathom.audit.spending import at_most, most_tokens
from fathom.errors import UserError

__all__ = [
    "ATTACKS",
    "SUITES",
    "AttackSuite",
    "NamedAttack",
    "PlannedCost",
    "Wording",
    "attack_of",
    "planned_costs",
    "suite_of",
]

AnyAttack = Attack | Search[Any]
LeftOut = Callable[[str, str], None]  # is told an attack's name and why

ATTACKS: Mapping[str, type[AnyAttack]] = {
    "insertion": Insertion,
    "own-insertion": OwnInsertion,
    "deep-prefill": DeepPrefill,
    "multi-turn": MultiTurn,
    "framing": Framing,
    "decoding": Decoding,
    "best-of-n": BestOfN,
    "reference-ranks": ReferenceRanks,
    "judged-ranks": JudgedRanks,
    "refusal-direction": RefusalDirection,
    "suffix": Suffix,
    "universal-suffix": UniversalSuffix,
    "typed-suffix": TypedSuffix,
    "embedding": Embedding,
}


@dataclass(frozen=True)
class NamedAttack:
    """An attack by name, with the parameters that differ from its defaults, and perhaps a budget of its own."""

    name: str
    parameters: Mapping[str, object]
    budget: int | None = None


@dataclass(frozen=True)
class Wording:
    """Words that attacks put into a conversation, for models that do not know every word; and room in the context."""

    frames: tuple[Frame, ...] = FRAMES
    ask: str = "Please go on."
    filler: str | None = None
    room: int | None = None  # tokens that a prefill may take, next to prompt and answer


def _named(*names: str, **parameters: Mapping[str, object]) -> tuple[NamedAttack, ...]:
    return tuple(NamedAttack(name, parameters.get(name.replace("-", "_"), {})) for name in names)


SUITES: Mapping[str, tuple[NamedAttack, ...]] = {
    "quick": _named("insertion", "multi-turn", "framing", "best-of-n", best_of_n={"n": 8}),
    "standard": _named(
        "insertion",
        "deep-prefill",
        "multi-turn",
        "framing",
        "best-of-n",
        "reference-ranks",
        "judged-ranks",
        "refusal-direction",
    ),
    "paper": _named("decoding", "framing", "universal-suffix"),
    "adaptive": _named(
        "insertion",
        "own-insertion",
        "deep-prefill",
        "multi-turn",
        "best-of-n",
        "reference-ranks",
        "judged-ranks",
        "refusal-direction",
        "suffix",
        best_of_n={"n": 64},
        suffix={"target": "deep", "tokens": 40},
    ),
}


@dataclass(frozen=True)
class AttackSuite:
    """The parts of attacks, behind those that measure depth or, alone, behind the direct request.

    An attack that the behaviors do not allow (no refusals to insert into, no answers to begin with) is told to
    `left_out` and is left out, as long as another one remains; without a `left_out` its error is raised. Where only the
    benign behaviors do not allow it, it has no control.
    """

    attacks: tuple[tuple[AnyAttack, int | None], ...]
    before: Suite = depth_parts
    left_out: LeftOut | None = None

    def __call__(self, ground: Ground) -> tuple[Part, ...]:
        """Raises `UserError` for an attack that the behaviors do not allow."""
        parts, made = list(self.before(ground)), 0
        for attack, budget in self.attacks:
            both = isinstance(attack, RefusalDirection)  # needs both kinds to find anything
            items = (*ground.harmful, *ground.benign) if both else _with_target(attack, ground.harmful)
            part = Part(attack, items, ground.setting(), budget)
            if (obstacle := _obstacle(part)) is not None:
                if self.left_out is None or (made == 0 and attack is self.attacks[-1][0]):
                    raise obstacle
                self.left_out(attack.name, str(obstacle))
                continue
            parts.append(part)
            made += 1
            benign = () if both else ground.benign
            if isinstance(attack, Suffix | Embedding):  # one search for each of them, too
                benign = _with_target(attack, benign)
            control = Part(attack, benign, ground.first, budget)
            if benign and _obstacle(control) is None:
                parts.append(control)
        return tuple(parts)


def _with_target(attack: AnyAttack, items: tuple[PreparedBehavior, ...]) -> tuple[PreparedBehavior, ...]:
    """Those that a suffix, or vectors, can be searched for: these need something to bring about."""
    if not isinstance(attack, Suffix | UniversalSuffix | Embedding):
        return items
    return tuple(item for item in items if item.answer_ids)


def _obstacle(part: Part) -> UserError | None:
    """Why an attack cannot be run on a part's behaviors, as far as it is known before anything has run."""
    try:
        if isinstance(part.attack, Search):
            part.attack.targets(part.items)
        else:
            part.unbounded({})
    except UserError as error:
        return error
    if not part.items:
        return UserError(f"{part.attack.name} needs behaviors with a target or harmful_response, and there is none")
    return None


def suite_of(
    attacks: Sequence[NamedAttack],
    wording: Wording,
    *,
    budget: int | None,
    before: Suite,
    left_out: LeftOut | None = None,
) -> AttackSuite:
    """A suite of named attacks; `budget` is that of attacks without one of their own.

    Raises:
        UserError: there is no such attack or parameter, or two attacks have different frames of one name.
    """
    made = tuple((attack_of(one, wording), one.budget or budget) for one in attacks)
    _check_frames([attack.frames for attack, _ in made if isinstance(attack, Framing)])
    return AttackSuite(made, before, left_out)


def _check_frames(lists: Sequence[Sequence[Frame]]) -> None:
    """A row of the report is a frame's name: different texts under one name would be counted together."""
    seen: dict[str, Frame] = {}
    for frame in chain.from_iterable(lists):
        if seen.setdefault(frame.name, frame) != frame:
            raise UserError(
                f"two framing attacks have different frames called {frame.name!r}, and their answers would be counted "
                "as one: give each frame a name of its own"
            )


def attack_of(named: NamedAttack, wording: Wording) -> AnyAttack:
    """The attack of a name with its parameters.

    Raises:
        UserError: there is no such attack or parameter, or a value that the attack does not take.
    """
    kind: Any = ATTACKS.get(named.name)
    if kind is None:
        raise UserError(f"there is no attack called {named.name!r}; choose one of {', '.join(sorted(ATTACKS))}")
    known = {field.name: get_origin(field.type) is tuple for field in fields(kind)}
    for name in named.parameters:
        if name not in known:
            choices = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise UserError(f"attack {named.name} has no parameter {name!r}: {choices}")
    usual = {"framing": {"frames": wording.frames}, "multi-turn": {"ask": wording.ask}}.get(named.name, {})
    if named.name == "deep-prefill":
        usual = {"depths": deep_depths(wording.room) or (wording.room or 1,), "filler": wording.filler}
    if named.name in ("reference-ranks", "judged-ranks") and wording.room is not None:
        usual = {"tokens": max(1, min(kind.tokens, wording.room))}
    frames = named.parameters.get("frames")
    if named.name == "framing" and isinstance(frames, str):
        return Framing(load_frames(Path(frames)))
    given = {
        name: [value] if known[name] and isinstance(value, int | float | str) else value
        for name, value in named.parameters.items()
    }  # one value is a list of one
    try:
        attack: AnyAttack = msgspec.convert({**msgspec.to_builtins(usual), **given}, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise UserError(f"attack {named.name}: {_mistake(error, kind, given)}") from error
    return attack


def _mistake(error: Exception, kind: type[AnyAttack], given: Mapping[str, object]) -> str:
    """What is wrong with the parameters, and what is taken instead where that can be listed."""
    text = " ".join(str(error).split())
    for name, taken in get_type_hints(kind).items():
        if f"`$.{name}`" in text and isinstance(taken, type) and issubclass(taken, Enum):
            return f"{name} is {given.get(name)!r}; choose one of {', '.join(choice.value for choice in taken)}"
    return f"{text}; mend the suite or its options"


@dataclass(frozen=True)
class PlannedCost:
    """What an attack of a plan will do at most; `attempts` and `forward_tokens` are None where nothing is known."""

    attack: str
    behaviors: int
    attempts: int | None
    forward_tokens: int | None


def planned_costs(parts: Sequence[Part]) -> tuple[PlannedCost, ...]:
    """Costs by attack, controls included, in the order of the parts."""
    found: dict[str, list[PlannedCost]] = {}
    for part in parts:
        found.setdefault(part.attack.name, []).append(_planned(part))
    return tuple(
        PlannedCost(
            name,
            sum(cost.behaviors for cost in costs),
            _sum(cost.attempts for cost in costs),
            _sum(cost.forward_tokens for cost in costs),
        )
        for name, costs in found.items()
    )


def _planned(part: Part) -> PlannedCost:
    name, count = part.attack.name, len(part.items)
    most = None if part.budget is None else part.budget * count
    if not isinstance(part.attack, Search):
        attempts = part.unbounded({})
        return PlannedCost(name, count, len(at_most(attempts, part.budget)), most_tokens(attempts, part.budget))
    if not isinstance(part.attack, Estimated):
        return PlannedCost(name, count, None, most)
    estimate = part.attack.estimate(part.items, part.setting)
    tokens = estimate.forward_tokens if most is None else min(most, estimate.forward_tokens)
    return PlannedCost(name, count, estimate.attempts, tokens)


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if any(value is None for value in known) else sum(value for value in known if value is not None)
