"""What budgets left out of a run: `budgets.json`, written once its attempts are over, and the notes that say so."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from fathom.attack.kinds import Frugal, Search
from fathom.audit.parts import Part, States
from fathom.journal import read_whole, write_whole
from fathom.records import Attempt
from fathom.run import Run

__all__ = ["BudgetUse", "BudgetUses", "budget_notes", "budget_uses", "write_uses"]


class BudgetUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far one attack came within its budget, benign behaviors included."""

    attack: str
    budget: int  # forward tokens for each behavior
    attempts: int  # that there would have been without it
    left_out: int  # of them
    behaviors: int  # that had fewer attempts for it
    searches: int  # one for each behavior or for several, as the attack has it
    ended: int  # of them, by the budget

    def __add__(self, other: "BudgetUse") -> "BudgetUse":
        added = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("attempts", "left_out", "behaviors", "searches", "ended")
        }
        return msgspec.structs.replace(self, **added)


class BudgetUses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `budgets.json` holds."""

    uses: tuple[BudgetUse, ...]


def budget_uses(
    parts: Sequence[Part], found: Mapping[str, States], written: Mapping[str, int]
) -> tuple[BudgetUse, ...]:
    """One for each attack and budget of a finished run; `written` holds the lengths of all its answers."""
    uses: dict[tuple[str, int], BudgetUse] = {}
    searched: set[str] = set()  # parts that share an identity share their searches, and what came of one key
    for part in parts:
        if part.budget is None:
            continue
        states = found.get(part.identity, {})
        use = _of_attempts(part, part.budget, part.unbounded(states), part.attempts(states, written))
        if isinstance(part.attack, Search):
            use += _of_searches(part, part.attack, part.budget, states, searched)
        key = (use.attack, use.budget)
        uses[key] = uses[key] + use if key in uses else use
    return tuple(uses.values())


def _of_attempts(part: Part, budget: int, wanted: Sequence[Attempt], made: Sequence[Attempt]) -> BudgetUse:
    kept = {attempt.id for attempt in made}
    left_out = [attempt for attempt in wanted if attempt.id not in kept]
    return BudgetUse(
        attack=part.attack.name,
        budget=budget,
        attempts=len(wanted),
        left_out=len(left_out),
        behaviors=len({attempt.behavior for attempt in left_out}),
        searches=0,
        ended=0,
    )


def _of_searches(part: Part, attack: Search[Any], budget: int, states: States, searched: set[str]) -> BudgetUse:
    targets = [target for target in attack.targets(part.items) if part.identity + target.key not in searched]
    searched |= {part.identity + target.key for target in targets}
    ended = 0
    for target in targets:
        state = states.get(target.key)
        if state is not None and isinstance(attack, Frugal) and not attack.done(state):
            ended += attack.spent(state) >= budget * len(target.items)
    none = {"attempts": 0, "left_out": 0, "behaviors": 0}
    return BudgetUse(attack=attack.name, budget=budget, searches=len(targets), ended=ended, **none)


def write_uses(run: Run, uses: Sequence[BudgetUse]) -> None:
    """Write them where there are any; a run without budgets has no such file."""
    if uses:
        write_whole(
            run.path / "budgets.json",
            msgspec.json.format(msgspec.json.encode(BudgetUses(tuple(uses))), indent=1) + b"\n",
        )


def budget_notes(run: Run) -> Iterator[str]:
    """A sentence for each attack that a budget cut; nothing in runs of earlier versions, which did not keep it."""
    path = run.path / "budgets.json"
    if not path.exists():
        return
    for use in read_whole(path, BudgetUses).uses:
        cut = []
        if use.left_out:
            cut.append(f"left out {use.left_out} of {use.attempts} attempts, on {use.behaviors} behaviors")
        if use.ended:
            cut.append(f"ended {use.ended} of {use.searches} searches")
        if cut:
            yield f"{use.attack}: its budget of {use.budget} forward tokens a behavior {' and '.join(cut)}"
