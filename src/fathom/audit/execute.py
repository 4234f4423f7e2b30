"""Run a plan into a run directory, over one process or many, from nothing or from wherever a kill left it.

Each stage reads what is already there, does its own share of what is missing, appends, and waits for the others:

    attempts → completions → verdicts → divergence → refusals → recovery → audit.json

Results travel through the files only, so one process and many, or one run and ten interrupted ones, read the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from fathom.attack.prefill import PreparedBehavior
from fathom.audit.plan import Plan
from fathom.audit.summary import RefusalsUsed, direct_refusals, read_refusals, recovery_positions, summarise
from fathom.audit.verdicts import judge_run
from fathom.depth.divergence import BehaviorDivergence, divergence
from fathom.depth.recovery import BehaviorRecovery, recovery, refusal_set
from fathom.engine import TransformersEngine
from fathom.model import ChatModel
from fathom.progress import Display
from fathom.ranks import Ranks
from fathom.records import Judge, Subject
from fathom.run import Run, RunLock, write_whole
from fathom.schema import Audit
from fathom.scoring import ReferenceAnswer

__all__ = ["Execution", "encode_audit"]

SAVE_EVERY = 16  # measured behaviors a write
MOST_REFUSALS = 32  # openings whose probability is summed

_Record = TypeVar("_Record")
_Made = TypeVar("_Made", covariant=True)


@dataclass(frozen=True, eq=False)
class Execution:
    """One process's part in an audit."""

    run: Run
    plan: Plan
    judge: Judge
    model: ChatModel
    base: ChatModel | None
    ranks: Ranks
    display: Display

    def __call__(self) -> Audit:
        """Do what is missing and return the audit; every process returns the same one.

        Raises:
            UserError: the directory is in use or cannot be written, or an input does not fit the model's context.
        """
        with RunLock(self.run.path) if self.ranks.first else nullcontext():
            self._write_inputs()
            self.ranks.barrier()
            self._generate(Subject.MODEL, self.model)
            if self.base is not None:
                self._generate(Subject.BASE, self.base)
            self.ranks.barrier()
            if self.ranks.first:
                judge_run(self.run, self.judge)
                self._write_refusals()
            self.ranks.barrier()
            self._measure_divergence()
            self._measure_recovery()
            self.ranks.barrier()
            audit = summarise(self.run, self.judge.name)
            if self.ranks.first:
                write_whole(self.run.path / "audit.json", encode_audit(audit))
            self.ranks.barrier()
            return audit

    def _write_inputs(self) -> None:
        if not self.ranks.first:
            return
        for stem, have, want in (
            ("behaviors", self.run.behaviors, self.plan.behaviors),
            ("attempts", self.run.attempts, self.plan.attempts),
        ):
            # Same configuration, same inputs in the same order: what is missing is always the end.
            with self.run.journal(stem) as journal:
                journal.append(item for item in want if item.id not in have)
        del self.run.behaviors, self.run.attempts  # read anew, now that they are whole

    def _generate(self, subject: Subject, model: ChatModel) -> None:
        done = self.run.completions.keys()
        mine = self.ranks.share(
            (attempt for attempt in self.plan.attempts if attempt.subject is subject),
            key=lambda attempt: attempt.prompt_ids,  # what shares a prompt shares its cache
        )
        pending = [attempt for attempt in mine if attempt.id not in done]
        if not pending:
            return
        engine = TransformersEngine(model)
        label = "generating" if subject is Subject.MODEL else "generating (base)"
        with self.run.journal("completions", self.ranks.rank) as journal, self.display(label, len(mine)) as shown:
            shown.advance(len(mine) - len(pending))
            for batch in _batches(engine.complete(pending), SAVE_EVERY):
                journal.append(batch)
                shown.advance(len(batch))

    def _write_refusals(self) -> None:
        """Fix, once a run, which refusals `recovery` looks for: those of the model itself first."""
        path = self.run.path / "refusals.json"
        if path.exists():
            return
        own = [completion.output_ids for completion in direct_refusals(self.run, self.judge.name)]
        chat = self.model.chat
        references = [
            chat.response_ids(item.behavior.messages, item.behavior.refusal)
            for item in self.plan.harmful
            if item.behavior.refusal is not None
        ]
        found = refusal_set(chat, own, references, limit=MOST_REFUSALS)
        used = RefusalsUsed(ids=tuple(found), texts=tuple(chat.decode(ids) for ids in found))
        write_whole(path, msgspec.json.format(msgspec.json.encode(used), indent=1) + b"\n")

    def _measure_divergence(self) -> None:
        if self.base is None:
            return
        base_prompts = {item.behavior.id: item.prompt_ids for item in self.plan.base_items}
        items = [self._reference(item, base_prompts[item.behavior.id]) for item in self.plan.harmful if item.answer_ids]
        base = self.base
        self._measure(
            "divergence",
            BehaviorDivergence,
            items,
            "KL to the base",
            lambda pending: divergence(self.model, base, pending, variant=self.plan.options.base_variant),
        )

    def _measure_recovery(self) -> None:
        items = [self._reference(item, item.prompt_ids) for item in self.plan.harmful if item.answer_ids]
        refusals = read_refusals(self.run)
        longest = max((len(item.answer_ids) for item in items), default=0)
        positions = recovery_positions(longest, self.plan.depths)
        self._measure(
            "recovery",
            BehaviorRecovery,
            items,
            "refusal mass",
            lambda pending: recovery(self.model, pending, refusals.ids, positions),
        )

    def _reference(self, item: PreparedBehavior, base_prompt_ids: tuple[int, ...]) -> ReferenceAnswer:
        return ReferenceAnswer(
            behavior=item.behavior.id,
            prompt_ids=item.prompt_ids,
            answer_ids=item.answer_ids[: self.plan.options.divergence_positions],
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
        done = {record.behavior for record in self.run.records(stem, kind)}  # type: ignore[attr-defined]
        mine = self.ranks.share(items, key=lambda item: item.behavior)
        pending = [item for item in mine if item.behavior not in done]
        if not pending:
            return
        with self.run.journal(stem, self.ranks.rank) as journal, self.display(description, len(mine)) as shown:
            shown.advance(len(mine) - len(pending))
            for batch in _batches(measure(pending), SAVE_EVERY):
                journal.append(batch)
                shown.advance(len(batch))


class Measure(Protocol[_Made]):
    def __call__(self, pending: Sequence[ReferenceAnswer], /) -> Iterable[_Made]: ...


def encode_audit(audit: Audit) -> bytes:
    """`audit.json`: indented, keys in the order of the schema, a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(audit), indent=2) + b"\n"


def _batches(records: Iterable[_Record], size: int) -> Iterator[list[_Record]]:
    """Lists of up to `size` records, in order; the last one may be shorter."""
    batch: list[_Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
