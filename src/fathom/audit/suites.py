"""Suites: attacks that are run beside the depth sweep, on the harmful behaviors and, as a control, on the benign ones.

    quick      seconds to minutes: a few inputs for each behavior, nothing is searched
    standard   every attack that needs no gradient, at small settings
    paper      the protocols of section 5: the decoding grid, one suffix for 50 behaviors, the code frame of Table 5
    adaptive   what is aimed at deep alignment: insertion, ranks, the refusal direction, depth that goes on, suffixes
               whose target reaches past a recovery

or a file of the user's own (`load_suite`). An attack is given in plain data, its name and its parameters.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from fathom.attack.decoding import BestOfN, Decoding
from fathom.attack.deep import DeepPrefill, MultiTurn, deep_depths
from fathom.attack.framing import FRAMES, Frame, Framing, load_frames
from fathom.attack.insertion import Insertion, OwnInsertion
from fathom.attack.kinds import Attack, Estimated, Search
from fathom.attack.ranks import JudgedRanks, ReferenceRanks
from fathom.attack.refusal_direction import RefusalDirection
from fathom.attack.suffix.attack import Suffix, TypedSuffix, UniversalSuffix
from fathom.audit.parts import Ground, Part, Suite, depth_parts
from fathom.audit.spending import planned_tokens
from fathom.errors import UserError

__all__ = [
    "ATTACKS",
    "SUITES",
    "AttackSuite",
    "NamedAttack",
    "PlannedCost",
    "Wording",
    "load_suite",
    "planned_costs",
    "suite_of",
]

AnyAttack = Attack | Search[Any]

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
    """The parts of attacks, behind those that measure depth or, alone, behind the direct request."""

    attacks: tuple[tuple[AnyAttack, int | None], ...]
    before: Suite = depth_parts

    def __call__(self, ground: Ground) -> tuple[Part, ...]:
        parts = list(self.before(ground))
        for attack, budget in self.attacks:
            if isinstance(attack, RefusalDirection):  # needs both kinds to find anything
                parts.append(Part(attack, (*ground.harmful, *ground.benign), ground.setting(), budget))
                continue
            parts.append(Part(attack, ground.harmful, ground.setting(), budget))
            if ground.benign:
                parts.append(Part(attack, ground.benign, ground.first, budget))
        return tuple(parts)


def suite_of(attacks: Sequence[NamedAttack], wording: Wording, *, budget: int | None, before: Suite) -> AttackSuite:
    """A suite of named attacks; `budget` is that of attacks without one of their own."""
    return AttackSuite(tuple((_made(one, wording), one.budget or budget) for one in attacks), before)


def _made(named: NamedAttack, wording: Wording) -> AnyAttack:
    """The attack of a name with its parameters.

    Raises:
        UserError: there is no such attack or parameter, or a value that the attack does not take.
    """
    kind: Any = ATTACKS.get(named.name)
    if kind is None:
        raise UserError(f"there is no attack called {named.name!r}; choose one of {', '.join(sorted(ATTACKS))}")
    known = {field.name: field.default for field in fields(kind)}
    for name in named.parameters:
        if name not in known:
            choices = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise UserError(f"attack {named.name} has no parameter {name!r}: {choices}")
    usual = {"framing": {"frames": wording.frames}, "multi-turn": {"ask": wording.ask}}.get(named.name, {})
    if named.name == "deep-prefill":
        usual = {"depths": deep_depths(wording.room) or (wording.room or 1,), "filler": wording.filler}
    frames = named.parameters.get("frames")
    if named.name == "framing" and isinstance(frames, str):
        return Framing(load_frames(Path(frames)))
    given = {
        name: [value] if isinstance(known[name], tuple) and isinstance(value, int | float | str) else value
        for name, value in named.parameters.items()
    }  # one value is a list of one
    try:
        attack: AnyAttack = msgspec.convert({**msgspec.to_builtins(usual), **given}, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise UserError(
            f"attack {named.name}: {' '.join(str(error).split())}; mend the suite or its options"
        ) from error
    return attack


def load_suite(path: Path) -> tuple[NamedAttack, ...]:
    """The attacks of a TOML or JSON file: `[[attack]]` tables, each with a `name`, its parameters, perhaps a `budget`.

    Raises:
        UserError: the file cannot be read, or is not such a list.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known = ", ".join(SUITES)
        raise UserError(f"there is no suite {str(path)!r}: give {known}, or a TOML or JSON file") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(f"the suite {path} cannot be read ({reason}): give a TOML or JSON file") from error
    try:
        whole = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the suite {path} cannot be used ({' '.join(str(error).split())}): mend it there") from error
    listed = whole.get("attack") if isinstance(whole, dict) else whole
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise UserError(f'the suite {path} lists no attacks: give [[attack]] tables, each with name = "…"')
    return tuple(_from_table(path, number, table) for number, table in enumerate(listed, start=1))


def _from_table(path: Path, number: int, table: Mapping[str, object]) -> NamedAttack:
    name, budget = table.get("name"), table.get("budget")
    if not isinstance(name, str):
        raise UserError(f"the suite {path}: attack {number} has no name; choose one of {', '.join(sorted(ATTACKS))}")
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
        raise UserError(f"the suite {path}: the budget of {name} is {budget!r}; give forward tokens, 1 or more")
    parameters = {key: value for key, value in table.items() if key not in ("name", "budget")}
    return NamedAttack(name, parameters, budget)


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
        attempts = part.attempts({})
        return PlannedCost(name, count, len(attempts), sum(planned_tokens(attempts)))
    if not isinstance(part.attack, Estimated):
        return PlannedCost(name, count, None, most)
    estimate = part.attack.estimate(part.items, part.setting)
    tokens = estimate.forward_tokens if most is None else min(most, estimate.forward_tokens)
    return PlannedCost(name, count, estimate.attempts, tokens)


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if any(value is None for value in known) else sum(value for value in known if value is not None)
