"""Which answers of a run a judge has judged: all, those to harmful requests, or the ones that people labelled."""

from collections.abc import Iterable
from enum import StrEnum

from fathom.errors import UserError
from fathom.records import Attempt, Counted, Verdict
from fathom.run import Run

__all__ = ["Coverage", "coverage_notes"]


class Coverage(StrEnum):
    """What has a verdict, for a judge's work to be done."""

    WHOLE = "whole"  # every answer
    HARMFUL = "harmful"  # every answer to a harmful request: whether a benign one is helped, no judge of harm tells
    SOME = "some"  # some answers to harmful requests, as with labels by people


def coverage_notes(run: Run, verdicts: Iterable[Verdict], coverage: Coverage) -> list[str]:
    """What a reader must know of what was not judged.

    Raises:
        UserError: answers without a verdict where each should have one, or no verdict at all.
    """
    judged = {verdict.attempt for verdict in verdicts if verdict.counted is Counted.CONTINUATION}
    wanted = [one for one in run.attempts.values() if coverage is Coverage.WHOLE or _harmful(run, one)]
    missing = sum(attempt.id not in judged for attempt in wanted)
    if not wanted or (missing and coverage is not Coverage.SOME) or missing == len(wanted):
        raise UserError(
            f"{run.path} is not finished ({missing} of {len(wanted)} attempts have no verdict); run the same "
            "`fathom audit` command again"
        )
    notes = []
    if missing:
        notes.append(
            f"{len(wanted) - missing} of {len(wanted)} answers to harmful requests were judged, and {missing} were "
            "not: rates are over those that were, and the worst of several answers is the worst of the judged ones"
        )
    if coverage is not Coverage.WHOLE and any(not behavior.harmful for behavior in run.behaviors.values()):
        notes.append(
            "answers to benign requests are no matter of harm and were not judged: over-refusal stands in the run's "
            "own report"
        )
    return notes


def _harmful(run: Run, attempt: Attempt) -> bool:
    return run.behaviors[attempt.behavior].harmful
