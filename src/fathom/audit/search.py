"""Run the searches of an audit's parts, one state at a time, in journals that a kill does not hurt.

`search.<attack>.jsonl` holds states as they come: of each target the one with the most steps counts, whichever process
wrote it. `times.jsonl` says how long it took, apart, since that differs between runs.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from fathom.attack.kinds import Frugal, Learner, Search, Target, Victim
from fathom.audit.parts import Part, States
from fathom.audit.plan import Plan
from fathom.journal import Journal
from fathom.progress import Advance, Display
from fathom.ranks import Ranks
from fathom.run import Run
from fathom.schema import TimeRow

__all__ = ["SearchState", "found_states", "run_searches"]

WRITE_EVERY = 1.0  # seconds; what a kill loses is done again, and comes out the same


class SearchState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One state of one target: after how many steps, and whether it is the last."""

    part: str  # `Part.identity`
    key: str  # of the target
    step: int
    last: bool
    state: msgspec.Raw


def found_states(run: Run, plan: Plan) -> Mapping[str, States]:
    """The last states that were written, by part and target."""
    found: dict[str, States] = {}
    for part in plan.parts:
        if isinstance(part.attack, Search) and part.identity not in found:
            kind = part.attack.state
            written = _written(run, part)
            found[part.identity] = {key: msgspec.json.decode(one.state, type=kind) for key, one in written.items()}
    return found


def run_searches(run: Run, plan: Plan, victims: Mapping[str, Victim], ranks: Ranks, display: Display) -> None:
    """Bring every search to its end; each process takes a share of the targets. `victims` are named by subject.

    Raises:
        UserError: the run's directory cannot be written.
    """
    begun: set[str] = set()
    for part in plan.parts:
        if not isinstance(part.attack, Search):
            continue
        targets = [target for target in part.attack.targets(part.items) if part.identity + target.key not in begun]
        begun |= {part.identity + target.key for target in targets}
        mine = ranks.share(_chained(part.attack, targets), key=lambda link: link.chain)
        written = _written(run, part)
        pending = [link for link in mine if link.target.key not in written or not written[link.target.key].last]
        if not pending:
            continue
        steps = part.attack.steps
        with (
            run.journal(f"search.{part.attack.name}", ranks.rank) as journal,
            run.journal("times", ranks.rank) as times,
            display(f"searching: {part.attack.name}", len(mine) * steps) as shown,
        ):
            shown.advance((len(mine) - len(pending)) * steps)
            searcher = _Searcher(part, part.attack, victims[part.setting.subject], journal, times, shown, written)
            for link in pending:
                searcher.search(link)


class _Link(NamedTuple):
    """A target, the chain that it is in, and the keys of those that it learns from; where nothing learns, none."""

    target: Target
    chain: str  # the key of its first target
    earlier: tuple[str, ...]


def _chained(attack: Search[Any], targets: Sequence[Target]) -> Iterator[_Link]:
    size = attack.chain if isinstance(attack, Learner) else 1
    for place, target in enumerate(targets):
        first = place - place % size
        yield _Link(target, targets[first].key, tuple(earlier.key for earlier in targets[first:place]))


def _written(run: Run, part: Part) -> dict[str, SearchState]:
    """Of each target the state with the most steps."""
    found: dict[str, SearchState] = {}
    for record in run.records(f"search.{part.attack.name}", SearchState):
        if record.part == part.identity and (record.key not in found or found[record.key].step <= record.step):
            found[record.key] = record
    return found


@dataclass(eq=False)
class _Searcher:
    """One process's search for the targets of one part."""

    part: Part
    attack: Search[Any]
    victim: Victim
    journal: Journal
    times: Journal
    shown: Advance
    written: dict[str, SearchState]  # the latest of each target; of a chain's earlier ones, the last

    def search(self, link: _Link) -> None:
        spoke = time.monotonic()
        target, written = link.target, self.written.get(link.target.key)
        if written is None:
            step, state = 0, self._begin(link)
        else:
            step, state = written.step, self._decoded(written)
            self.shown.advance(step)
        while not (last := step >= self.attack.steps or self.attack.done(state) or self._spent(state, target)):
            if time.monotonic() - spoke >= WRITE_EVERY:
                spoke = self._write(target, step, state, last, spoke)
            step, state = step + 1, self.attack.step(state, target, self.victim)
            self.shown.advance(1)
        self._write(target, step, state, last, spoke)
        self.shown.advance(self.attack.steps - step)

    def _begin(self, link: _Link) -> object:
        if not isinstance(self.attack, Learner):
            return self.attack.init(link.target, self.victim)
        earlier = [self._decoded(self.written[key]) for key in link.earlier]
        return self.attack.begin(link.target, self.victim, earlier)

    def _decoded(self, written: SearchState) -> object:
        return msgspec.json.decode(written.state, type=self.attack.state)

    def _spent(self, state: object, target: Target) -> bool:
        budget = self.part.budget
        if budget is None or not isinstance(self.attack, Frugal):
            return False
        return self.attack.spent(state) >= budget * len(target.items)

    def _write(self, target: Target, step: int, state: object, last: bool, since: float) -> float:
        now = time.monotonic()
        raw = msgspec.Raw(msgspec.json.encode(state))
        record = SearchState(part=self.part.identity, key=target.key, step=step, last=last, state=raw)
        self.journal.append([record])
        self.written[target.key] = record
        self.times.append([TimeRow(attack=self.attack.name, seconds=round(now - since, 3))])
        return now
