"""Judge what was written: completions → verdicts, on the continuation alone and on the whole response."""

from bisect import bisect_right
from collections.abc import Iterator

from fathom.records import Attempt, Behavior, Completion, Counted, Exchange, Judge, Judgement, Verdict
from fathom.run import Run

__all__ = ["judge_run", "verdicts_of"]

BATCH = 256  # verdicts a write: judging is quick, so a kill loses a moment


def judge_run(run: Run, judge: Judge) -> int:
    """Judge every completion of a run that this version of the judge has not judged yet; the number of new verdicts."""
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


def verdicts_of(judge: Judge, behavior: Behavior, attempt: Attempt, completion: Completion) -> Iterator[Verdict]:
    """Both verdicts on one completion. Without a prefill the two texts are one, judged once."""
    judgement: Judgement | None = None
    for counted in (Counted.CONTINUATION, Counted.ALL):
        alone = counted is Counted.CONTINUATION
        if judgement is None or completion.prefill_text:
            exchange = Exchange(
                behavior=behavior,
                prefill=completion.prefill_text if alone else "",
                response=completion.text if alone else completion.prefill_text + completion.text,
                finish=completion.finish,
            )
            judgement = judge.judge(exchange)
        start = 0 if alone else len(completion.prefill_text)
        yield Verdict(
            attempt=completion.attempt,
            judge=judge.name,
            version=judge.version,
            counted=counted,
            label=judgement.label,
            reason=judgement.reason,
            refusal_char=judgement.refusal_char,
            refusal_token=_refusal_token(attempt, completion, judgement.refusal_char, start),
            exact=judgement.exact,
        )


def _refusal_token(attempt: Attempt, completion: Completion, char: int | None, start: int) -> int | None:
    """Response tokens before the refusal, prefill included; None where it lies in the prefill itself."""
    if char is None or char < start:
        return None
    return len(attempt.prefill_ids) + bisect_right(completion.token_ends, char - start)
