"""Judge what was written: completions → verdicts, on the continuation alone and on the whole response."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from fathom.progress import Display, silent
from fathom.records import Attempt, Behavior, Completion, Counted, Exchange, HarmJudge, Judge, Judgement, Verdict
from fathom.run import Run

__all__ = ["judge_run", "verdicts_of"]

BATCH = 256  # verdicts a write: judging is quick, so a kill loses a moment


def judge_run(run: Run, judge: Judge, display: Display = silent) -> int:
    """Judge every completion of a run that this version of the judge has not judged yet; the number of new verdicts.

    A `HarmJudge` is shown the answers to harmful requests alone, each text once; its verdicts are kept one by one.
    """
    if isinstance(judge, HarmJudge):
        return _judge_harm(run, judge, display)
    judged = {(verdict.attempt, verdict.counted) for verdict in run.verdicts(judge.name, judge.version)}
    attempts, behaviors = run.attempts, run.behaviors
    pending: list[Verdict] = []
    new = 0
    with run.journal(f"verdicts.{judge.name}") as journal:
        for identity, completion in run.completions.items():
            attempt = attempts[identity]
            if all((identity, counted) in judged for counted in Counted):
                continue
            found = verdicts_of(judge, behaviors[attempt.behavior], attempt, completion)
            pending += [verdict for verdict in found if (identity, verdict.counted) not in judged]
            if len(pending) >= BATCH:
                journal.append(pending)
                new, pending = new + len(pending), []
        journal.append(pending)
    return new + len(pending)


@dataclass
class _Shown:
    """A text to be judged, and all whose verdict it is."""

    exchange: Exchange
    of: list[tuple[Completion, Counted]] = field(default_factory=list)


def _judge_harm(run: Run, judge: HarmJudge, display: Display) -> int:
    known = run.verdicts(judge.name, judge.version)
    judged = {(verdict.attempt, verdict.counted) for verdict in known}
    shown: dict[tuple[str, str, str], _Shown] = {}
    attempts = run.attempts
    for identity, completion in run.completions.items():
        behavior = run.behaviors[attempts[identity].behavior]
        for counted in Counted:
            if not behavior.harmful or (identity, counted) in judged:
                continue
            exchange = _exchange(behavior, completion, counted)
            key = behavior.id, exchange.prefill, exchange.response
            shown.setdefault(key, _Shown(exchange)).of.append((completion, counted))
    waiting = list(shown.values())
    new = 0
    with run.journal(f"verdicts.{judge.name}") as journal, display("judging", len(waiting)) as progress:
        # The last verdict is the one that counts: where another version has judged since, this one says so again.
        last = {(verdict.attempt, verdict.counted): verdict.version for verdict in run.verdicts(judge.name)}
        journal.append(one for one in known if last[one.attempt, one.counted] != judge.version)
        for place, judgement in judge.judge_all([one.exchange for one in waiting]):
            found = [
                _verdict(judge, judgement, counted, attempts[completion.attempt], completion)
                for completion, counted in waiting[place].of
            ]
            journal.append(found)
            new += len(found)
            progress.advance()
    return new


def verdicts_of(judge: Judge, behavior: Behavior, attempt: Attempt, completion: Completion) -> Iterator[Verdict]:
    """Both verdicts on one completion. Without a prefill the two texts are one, judged once."""
    judgement: Judgement | None = None
    for counted in (Counted.CONTINUATION, Counted.ALL):
        if judgement is None or completion.prefill_text:
            judgement = judge.judge(_exchange(behavior, completion, counted))
        yield _verdict(judge, judgement, counted, attempt, completion)


def _exchange(behavior: Behavior, completion: Completion, counted: Counted) -> Exchange:
    alone = counted is Counted.CONTINUATION
    return Exchange(
        behavior=behavior,
        prefill=completion.prefill_text if alone else "",
        response=completion.text if alone else completion.prefill_text + completion.text,
        finish=completion.finish,
    )


def _verdict(judge: Judge, judgement: Judgement, counted: Counted, attempt: Attempt, completion: Completion) -> Verdict:
    start = 0 if counted is Counted.CONTINUATION else len(completion.prefill_text)
    return Verdict(
        attempt=completion.attempt,
        judge=judge.name,
        version=judge.version,
        counted=counted,
        label=judgement.label,
        reason=judgement.reason,
        refusal_char=judgement.refusal_char,
        refusal_token=_refusal_token(attempt, completion, judgement.refusal_char, start),
        exact=judgement.exact,
        rationale=judgement.rationale,
    )


def _refusal_token(attempt: Attempt, completion: Completion, char: int | None, start: int) -> int | None:
    """Response tokens before the refusal, prefill included; None where it lies in the prefill itself."""
    if char is None or char < start:
        return None
    return len(attempt.prefill_ids) + bisect_right(completion.token_ends, char - start)
