"""A model asked the rows of a task, greedily, and scored beside the wanted answers. It goes on where a kill left it.

completions.jsonl    what the model wrote, appended as it is written
rows.jsonl           prompt, answer, wanted answer and scores of each row
utility.json         the scores; both are made from the completions

Attempts are named by their content, so a row is asked once, whatever the metric and however many rows are wanted.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import msgspec

from fathom.engine import TransformersEngine
from fathom.engine.endpoint import EndpointEngine, ServedModel
from fathom.journal import Journal, read_journal, write_whole
from fathom.model import ChatModel
from fathom.progress import Display, silent
from fathom.records import Attempt, Completion, Finish, Message, Sampling, encode_line
from fathom.tampering import UtilityScore
from fathom.utility.records import ScoredRow, TaskUtility
from fathom.utility.scores import Metric, mean_interval

__all__ = ["TaskRun", "Wanted"]

WRITE_EVERY = 1.0  # seconds; each write waits for the disk, and what a kill loses is done again


@dataclass(frozen=True)
class Wanted:
    """A row: a conversation up to the assistant's turn, the right answer, and where it stands."""

    messages: tuple[Message, ...]
    answer: str
    source: str


@dataclass(frozen=True, eq=False)
class TaskRun:
    """A task as it is asked of a model, in a directory that is the caller's to guard."""

    path: Path
    model: ChatModel | ServedModel
    name: str  # of the task
    rows: Sequence[Wanted]  # one at least
    metrics: Sequence[Metric]
    max_new_tokens: int
    display: Display = silent

    def __call__(self) -> TaskUtility:
        """Ask what has not been answered, score everything, and write both.

        Raises:
            UserError: a row does not fit into the model's context, before anything is asked, or into memory.
        """
        attempts = [self._attempt(row) for row in self.rows]
        answered = self._answered(attempts)
        scored = [self._scored(row, answered[one.id]) for row, one in zip(self.rows, attempts, strict=True)]
        write_whole(self.path / "rows.jsonl", b"".join(map(encode_line, scored)))
        result = self._result(scored)
        content = msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
        write_whole(self.path / "utility.json", content)
        return result

    def _attempt(self, row: Wanted) -> Attempt:
        return Attempt.make(
            behavior=row.source,
            attack="direct",
            prompt_ids=self.model.chat.prompt_ids(row.messages),
            prefill_ids=(),
            sampling=Sampling(max_new_tokens=self.max_new_tokens),
            run_seed=0,
        )

    def _answered(self, attempts: Sequence[Attempt]) -> Mapping[str, Completion]:
        kept = self.path / "completions.jsonl"
        found = {done.attempt: done for done in read_journal(kept, Completion)}
        pending = {one.id: one for one in attempts if one.id not in found}
        if not pending:
            return found
        engine = EndpointEngine(self.model) if isinstance(self.model, ServedModel) else TransformersEngine(self.model)
        batch, since = list[Completion](), time.monotonic()
        with Journal(kept) as journal, self.display("answering", len(attempts)) as shown:
            shown.advance(len(attempts) - len(pending))
            try:
                for done in engine.complete(list(pending.values())):
                    batch.append(done)
                    found[done.attempt] = done
                    shown.advance(1)
                    if time.monotonic() - since >= WRITE_EVERY:
                        journal.append(batch)
                        batch, since = [], time.monotonic()
            finally:  # what was answered before an interruption is kept
                journal.append(batch)
        return found

    def _scored(self, row: Wanted, done: Completion) -> ScoredRow:
        return ScoredRow(
            source=row.source,
            prompt=row.messages,
            answer=done.text,
            wanted=row.answer,
            scores={str(metric): metric.score(row.answer, done.text) for metric in self.metrics},
            finish=done.finish,
        )

    def _result(self, scored: Sequence[ScoredRow]) -> TaskUtility:
        cut = sum(row.finish is Finish.LENGTH for row in scored)
        note = f"{cut} of {len(scored)} answers were cut at {self.max_new_tokens} tokens, and scored as far as they go."
        return TaskUtility(
            model=self.model.info.name,
            data=self.name,
            scores=tuple(
                _mean(self.name, metric, [row.scores[str(metric)] for row in scored]) for metric in self.metrics
            ),
            max_new_tokens=self.max_new_tokens,
            cut=cut,
            notes=(note,) if cut else (),
        )


def _mean(task: str, metric: Metric, scores: Sequence[float]) -> UtilityScore:
    low, high = mean_interval(scores)
    return UtilityScore(task=task, metric=metric.shown, n=len(scores), score=fmean(scores), low=low, high=high)
