"""Run a plan into a run directory, over one process or many, from nothing or from wherever a kill left it.

Each stage reads what is already there, does its own share of what is missing, appends, and waits for the others:

    searches → attempts → completions → verdicts → divergence → refusals → recovery → audit.json

Results travel through the files only, so one process and many, or one run and ten interrupted ones, read the same.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec

from fathom.attack.kinds import Intervention, PreparedBehavior, Victim
from fathom.audit.budgets import budget_uses, write_uses
from fathom.audit.parts import Part, States
from fathom.audit.plan import Plan
from fathom.audit.search import found_states, run_searches
from fathom.audit.summary import RefusalsUsed, direct_refusals, read_refusals, recovery_positions, summarise
from fathom.audit.verdicts import judge_run
from fathom.depth.divergence import BehaviorDivergence, divergence
from fathom.depth.recovery import BehaviorRecovery, recovery, refusal_set
from fathom.engine import TransformersEngine
from fathom.engine.endpoint import EndpointEngine, ServedModel
from fathom.errors import UserError
from fathom.journal import write_whole
from fathom.model import ChatModel
from fathom.progress import Display
from fathom.ranks import Ranks
from fathom.records import Attempt, Judge, Subject
from fathom.run import Run, RunLock
from fathom.schema import Audit, TimeRow
from fathom.scoring import ReferenceAnswer

__all__ = ["Execution", "encode_audit"]

WRITE_EVERY = 1.0  # seconds; each write waits for the disk, and what a kill loses is done again
MOST_REFUSALS = 32  # openings whose probability is summed


class _OfBehavior(Protocol):
    """A record that says what was measured of one behavior."""

    @property
    def behavior(self) -> str: ...


_Item = TypeVar("_Item")
_Record = TypeVar("_Record", bound=_OfBehavior)
_Made = TypeVar("_Made", bound=_OfBehavior, covariant=True)


@dataclass(frozen=True, eq=False)
class Execution:
    """One process's part in an audit. Of a model that a server runs, what needs its weights is left out.

    `drafts` are the models that searches rank candidates with, by the names that the attacks have for them.
    """

    run: Run
    plan: Plan
    judge: Judge
    model: ChatModel | ServedModel
    base: ChatModel | None
    ranks: Ranks
    display: Display
    drafts: Mapping[str, ChatModel] = field(default_factory=dict)

    def __call__(self) -> Audit | None:
        """Do what is missing; the first process returns the audit, the others None.

        Raises:
            UserError: the directory is in use or cannot be written, or an input does not fit the model's context.
        """
        with RunLock(self.run.path) if self.ranks.first else nullcontext():
            self._write_behaviors()
            self.ranks.barrier()
            run_searches(self.run, self.plan, self._victims(), self.ranks, self.display)
            self.ranks.barrier()
            self._attack(found_states(self.run, self.plan))
            if self.ranks.first:
                judge_run(self.run, self.judge)
                self._write_refusals()
            self.ranks.barrier()
            self._measure_divergence()
            self._measure_recovery()
            self.ranks.barrier()
            if not self.ranks.first:
                return None
            audit = summarise(self.run, self.judge.name)
            write_whole(self.run.path / "audit.json", encode_audit(audit))
            return audit

    def _victims(self) -> dict[str, Victim]:
        seed = self.plan.options.seed
        models = {Subject.MODEL: self.model, Subject.BASE: self.base}
        return {
            name: Victim(model, self.judge, seed, self.drafts)
            for name, model in models.items()
            if isinstance(model, ChatModel)
        }

    def _write_behaviors(self) -> None:
        if self.ranks.first:
            # Same configuration, same behaviors in the same order: what is missing is always the end.
            have = self.run.behaviors
            with self.run.journal("behaviors") as journal:
                journal.append(behavior for behavior in self.plan.behaviors if behavior.id not in have)
            del self.run.behaviors  # read anew, now that they are whole

    def _attack(self, found: Mapping[str, States]) -> None:
        """Run the attempts; where answers left something of a budget, those that it pays for, until it is spent.

        Each round knows the answers of the rounds before it and no others, so a run that was killed goes through the
        same rounds, in the same order.
        """
        written: dict[str, int] = {}
        attempts = self.plan.attempts(found)
        while True:
            self._write_attempts(attempts)
            self.ranks.barrier()
            vars(self.run).pop("attempts", None)  # read anew: another process may have written them
            self._generate(found, written)
            self.ranks.barrier()
            if all(part.budget is None for part in self.plan.parts):
                return
            done = self.run.completions
            written = {identity: len(done[identity].output_ids) for identity in attempts}
            further = self.plan.attempts(found, written)
            if further.keys() == attempts.keys():
                break
            attempts = further
        if self.ranks.first:
            write_uses(self.run, budget_uses(self.plan.parts, found, written))

    def _write_attempts(self, attempts: Mapping[str, Attempt]) -> None:
        if self.ranks.first:
            have = self.run.attempts
            with self.run.journal("attempts") as journal:
                journal.append(attempt for identity, attempt in attempts.items() if identity not in have)

    def _generate(self, found: Mapping[str, States], written: Mapping[str, int]) -> None:
        """Run every attempt once: all that leave the model as it is together, then each intervention by itself."""
        plain: dict[Subject, dict[str, Attempt]] = {}
        changed: list[Part] = []
        for part in self.plan.parts:
            if isinstance(part.attack, Intervention):
                changed.append(part)
                continue
            of_subject = plain.setdefault(part.setting.subject, {})
            states = found.get(part.identity, {})
            of_subject |= {attempt.id: attempt for attempt in part.attempts(states, written)}
        for subject, attempts in plain.items():
            label = "generating" if subject is Subject.MODEL else "generating (base)"
            self._complete(self._model(subject), attempts.values(), label)
        for part in changed:
            states = found.get(part.identity, {})
            model = self._model(part.setting.subject)
            assert isinstance(part.attack, Intervention)
            assert isinstance(model, ChatModel), "a plan for a server changes no weights"
            with part.attack.applied(model, states):
                self._complete(model, part.attempts(states, written), f"generating ({part.attack.name})")

    def _model(self, subject: Subject) -> ChatModel | ServedModel:
        model = self.model if subject is Subject.MODEL else self.base
        assert model is not None, "a plan without a base has no part on it"
        return model

    def _complete(self, model: ChatModel | ServedModel, attempts: Iterable[Attempt], label: str) -> None:
        done = self.run.completions.keys()
        # What shares a prompt shares its cache.
        mine = self.ranks.share(attempts, key=lambda attempt: attempt.prompt_ids)
        pending = {attempt.id: attempt for attempt in mine if attempt.id not in done}
        if not pending:
            return
        engine = EndpointEngine(model) if isinstance(model, ServedModel) else TransformersEngine(model)
        with (
            self.run.journal("completions", self.ranks.rank) as journal,
            self.run.journal("times", self.ranks.rank) as times,
            self.display(label, len(mine)) as shown,
        ):
            shown.advance(len(mine) - len(pending))
            since = time.monotonic()
            for batch in _batches(engine.complete(list(pending.values()))):
                journal.append(batch)
                shown.advance(len(batch))
                since, seconds = time.monotonic(), time.monotonic() - since
                times.append(_times([pending[completion.attempt].attack for completion in batch], seconds))

    def _write_refusals(self) -> None:
        """Fix, once a run, which refusals `recovery` looks for: those of the model itself first."""
        path = self.run.path / "refusals.json"
        if path.exists():
            return
        own = [completion.output_ids for completion in direct_refusals(self.run, self.judge.name)]
        chat = self.model.chat
        references = [
            chat.response_ids(item.messages, item.behavior.refusal)
            for item in self.plan.harmful
            if item.behavior.refusal is not None
        ]
        found = refusal_set(chat, own, references, limit=MOST_REFUSALS)
        used = RefusalsUsed(ids=tuple(found), texts=tuple(chat.decode(ids) for ids in found))
        write_whole(path, msgspec.json.format(msgspec.json.encode(used), indent=1) + b"\n")

    def _measure_divergence(self) -> None:
        model, base = self.model, self.base
        if base is None or not isinstance(model, ChatModel):
            return
        base_prompts = {item.behavior.id: item.prompt_ids for item in self.plan.base_items}
        items = [self._reference(item, base_prompts[item.behavior.id]) for item in self.plan.harmful if item.answer_ids]
        self._measure(
            "divergence",
            BehaviorDivergence,
            items,
            "KL to the base",
            lambda pending: divergence(model, base, pending, variant=self.plan.options.base_variant),
        )

    def _measure_recovery(self) -> None:
        model = self.model
        if not isinstance(model, ChatModel):
            return
        items = [self._reference(item, item.prompt_ids) for item in self.plan.harmful if item.answer_ids]
        refusals = read_refusals(self.run)
        longest = max((len(item.answer_ids) for item in items), default=0)
        positions = recovery_positions(longest, self.plan.depths)
        self._measure(
            "recovery",
            BehaviorRecovery,
            items,
            "refusal mass",
            lambda pending: recovery(model, pending, refusals.ids, positions),
        )

    def _reference(self, item: PreparedBehavior, base_prompt_ids: tuple[int, ...]) -> ReferenceAnswer:
        """The answer as far as both contexts go; `n` at each position says how many reach it."""
        longest = max(len(item.prompt_ids), len(base_prompt_ids))
        contexts = [model.context for model in (self.model, self.base) if model is not None]
        room = min((context - longest for context in contexts if context is not None), default=len(item.answer_ids))
        return ReferenceAnswer(
            behavior=item.behavior.id,
            prompt_ids=item.prompt_ids,
            answer_ids=item.answer_ids[: min(self.plan.options.divergence_positions, room)],
            base_prompt_ids=base_prompt_ids,
        )

    def _measure(
        self,
        stem: str,
        kind: type[_Record],
        items: Sequence[ReferenceAnswer],
        description: str,
        measure: "Measure[_Record]",
    ) -> None:
        done = {record.behavior for record in self.run.records(stem, kind)}
        mine = self.ranks.share(items, key=lambda item: item.behavior)
        pending = [item for item in mine if item.behavior not in done]
        if not pending:
            return
        with self.run.journal(stem, self.ranks.rank) as journal, self.display(description, len(mine)) as shown:
            shown.advance(len(mine) - len(pending))
            for batch in _batches(measure(pending)):
                journal.append(batch)
                shown.advance(len(batch))


class Measure(Protocol[_Made]):
    def __call__(self, pending: Sequence[ReferenceAnswer], /) -> Iterable[_Made]: ...


def _times(attacks: Sequence[str], seconds: float) -> list[TimeRow]:
    """A batch's seconds, shared between its attacks by how many of its completions are theirs."""
    shares = Counter(attacks)
    return [TimeRow(attack=attack, seconds=round(seconds * n / len(attacks), 4)) for attack, n in shares.items()]


def encode_audit(audit: Audit) -> bytes:
    """`audit.json`: indented, keys in the order of the schema, a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(audit), indent=2) + b"\n"


def _batches(records: Iterable[_Item]) -> Iterator[list[_Item]]:
    """Records as they come, in order, put together into one list every `WRITE_EVERY` seconds.

    Where no further ones can be had, those that came before are handed on before the error is.
    """
    batch: list[_Item] = []
    since = time.monotonic()
    try:
        for record in records:
            batch.append(record)
            if time.monotonic() - since >= WRITE_EVERY:
                yield batch
                batch, since = [], time.monotonic()
    except UserError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
