"""`fathom judge`: a run judged again, or rows from anywhere."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fathom.command.audit import Finished
from fathom.command.directory import open_audit
from fathom.command.report import write_run_report
from fathom.command.request import ORGANISM
from fathom.errors import UserError
from fathom.journal import write_whole
from fathom.judge.rows import JudgedRow, SkippedLine, judge_rows
from fathom.records import Judge, encode_line
from fathom.report.hostile import one_line
from fathom.run import RunLock

__all__ = ["judge_again", "judged_lines", "print_judged"]


def judge_again(path: Path, judge: Judge) -> Finished:
    """Judge a run's completions with another judge, and write its audit and page beside the run's own.

    Raises:
        UserError: `path` is no finished run, or is in use.
    """
    run = open_audit(path)
    own = run.manifest.judge == judge.name
    if judge.name == ORGANISM and run.manifest.behaviors.source != ORGANISM:
        raise UserError(f"{path} holds requests that the organism's judge does not know; judge them --with refusal")
    from fathom.audit.execute import encode_audit
    from fathom.audit.summary import summarise
    from fathom.audit.verdicts import judge_run

    with RunLock(path):
        judge_run(run, judge)
        audit = summarise(run, judge.name)
        finished = Finished(audit, path, None if own else judge.name)
        write_whole(finished.audit_path, encode_audit(audit))
        write_run_report(path, finished.judge)
    return finished


def judged_lines(path: Path, judge: Judge) -> Iterator[JudgedRow | SkippedLine]:
    """Judge the rows of a JSONL file, streaming; `-` is standard input.

    Raises:
        UserError: the file cannot be read or has no usable row.
    """
    if str(path) == "-":
        yield from judge_rows(sys.stdin.buffer, judge, source="standard input")
        return
    if path.suffix.lower() in (".csv", ".tsv"):
        raise UserError(f"{path} is CSV by its name: give one JSON object a line (.jsonl), with prompt and completion")
    try:
        with path.open("rb") as file:
            yield from judge_rows(file, judge, source=str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a JSONL file or a run directory") from error


def print_judged(path: Path, judge: Judge, *, as_json: bool) -> None:
    """Write a line for each row to standard output: JSON, or a short table row and a count at the end."""
    counts: Counter[str] = Counter()
    for row in judged_lines(path, judge):
        if isinstance(row, SkippedLine):
            counts["skipped"] += 1
            print(f"fathom: {path}, line {row.row} was skipped: {one_line(row.skipped, 200)}", file=sys.stderr)
            continue
        counts[row.verdict] += 1
        if as_json:
            sys.stdout.buffer.write(encode_line(row))
        else:
            place = "" if row.refusal_char is None else f"  from character {row.refusal_char}"
            print(f"{row.row:>6}  {row.verdict:<9}  {row.reason}{place}")
    sys.stdout.flush()
    if not as_json:
        print("  ".join(f"{label}: {count}" for label, count in sorted(counts.items())))
