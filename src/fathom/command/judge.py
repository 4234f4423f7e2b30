"""`fathom judge`: a run judged again, or rows from anywhere."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fathom.command.audit import Finished
from fathom.command.directory import open_audit
from fathom.command.judging import JudgeRequest, opened
from fathom.command.labelling import export_answers
from fathom.command.report import write_run_report
from fathom.command.request import Judges, check_judge, display_for
from fathom.errors import UserError
from fathom.journal import write_whole
from fathom.judge.rows import JudgedRow, SkippedLine, judge_rows
from fathom.ranks import ALONE
from fathom.records import HarmJudge, Judge, encode_line
from fathom.report.hostile import one_line
from fathom.run import Run, RunLock

if TYPE_CHECKING:
    from fathom.audit.coverage import Coverage

__all__ = ["JudgeOptions", "judge_again", "judge_by_labels", "judged_lines", "print_judged", "run_judge"]


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What is to be done beside judging."""

    export: Path | None = None  # where to write what is to be labelled, judging nothing
    sample: int | None = None  # how many of the answers
    seed: int = 0
    against: Path | None = None  # labels by people
    as_json: bool = False


def run_judge(path: Path, request: JudgeRequest, options: JudgeOptions, judges: Judges) -> Finished | None:
    """Judge a run or a file of rows, or export a run's answers; the audit, where that is still to be shown.

    Raises:
        UserError: options do not go together, or what was given cannot be judged.
    """
    _check_options(path, request, options)
    if options.export is not None:
        count = export_answers(path, options.export, options.sample, options.seed)
        print(f"{count} answers to be labelled: {one_line(str(options.export))}")
        return None
    if options.against is not None:
        from fathom.judge.labels import labels_of

        labels_of(open_audit(path), options.against)  # before anything is judged, which may take long
    if request.labels is not None:
        finished = judge_by_labels(path, request.labels)
    else:
        if path.is_dir():
            open_audit(path)
        with opened(request, judges) as judge:
            if not path.is_dir():
                print_judged(path, judge.judge, as_json=options.as_json)
                return None
            finished = judge_again(path, judge.judge, judge.notes)
            if judge.info is not None:
                write_whole(path / f"judge.{judge.info.name}.json", _pretty(judge.info))
    if options.against is None:
        return finished
    _compare(finished, options.against, options)
    return None


def _compare(finished: Finished, file: Path, options: JudgeOptions) -> None:
    """Print how far the judge agrees with labels, after its audit or alone as JSON, and keep it beside the audit."""
    from fathom.audit.agreement import agreement
    from fathom.judge.labels import labels_of
    from fathom.report.terminal import print_audit
    from fathom.report.terminal_agreement import print_agreement

    run, judge = Run.open(finished.path), finished.audit.judge
    labels = labels_of(run, file)
    found = agreement(run, judge, labels.verdicts(), file.name, labels.version, seed=options.seed)
    place = finished.path / f"agreement.{judge}.json"
    write_whole(place, _pretty(found))
    if options.as_json:
        sys.stdout.buffer.write(place.read_bytes())
        sys.stdout.flush()
        return
    print_audit(finished.audit, finished.report_path)
    print_agreement(found, place)


def _pretty(content: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _check_options(path: Path, request: JudgeRequest, options: JudgeOptions) -> None:
    """Raises `UserError` for options that would do nothing."""
    if options.sample is not None and options.export is None:
        raise UserError(f"--sample {options.sample} without --export: it says how many answers are exported")
    if options.export is not None and options.against is not None:
        raise UserError("--export writes what is to be labelled, and --against reads labels: give one of them")
    if path.is_dir():
        return
    for option, value in (
        ("--export", options.export),
        ("--against", options.against),
        ("--with verdicts:", request.labels),
    ):
        if value is not None:
            raise UserError(f"{option} {value} is for a run directory, and {path} is none")


def judge_again(path: Path, judge: Judge, notes: Sequence[str] = ()) -> Finished:
    """Judge a run's completions with another judge, and write its audit and page beside the run's own.

    `notes`: what a reader must know of this judge.

    Raises:
        UserError: `path` is no finished run, or is in use.
    """
    run = open_audit(path)
    check_judge(judge, run.manifest.behaviors.source)
    from fathom.audit.coverage import Coverage
    from fathom.audit.verdicts import judge_run

    with RunLock(path):
        judge_run(run, judge, display_for(ALONE))
        coverage = Coverage.HARMFUL if isinstance(judge, HarmJudge) else Coverage.WHOLE
        return _write_audit(run, judge.name, coverage, notes)


def judge_by_labels(path: Path, file: Path) -> Finished:
    """Take a file's labels for verdicts, and write their audit and page beside the run's own.

    The verdicts are those of the file as it is now: what an earlier one of its name said is replaced.

    Raises:
        UserError: `path` is no run or in use, or the file has something that cannot be a label of it.
    """
    run = open_audit(path)
    from fathom.audit.coverage import Coverage
    from fathom.judge.labels import labels_of

    labels = labels_of(run, file)
    empty = f", {labels.unlabelled} of its rows have none" if labels.unlabelled else ""
    note = f"labels are those of {file.name} (version {labels.version}){empty}"
    with RunLock(path):
        write_whole(path / f"verdicts.{labels.name}.jsonl", b"".join(map(encode_line, labels.verdicts())))
        return _write_audit(run, labels.name, Coverage.SOME, [note])


def _write_audit(run: Run, judge: str, coverage: "Coverage", notes: Sequence[str]) -> Finished:
    from fathom.audit.execute import encode_audit
    from fathom.audit.summary import summarise

    audit = summarise(run, judge, coverage, notes)
    finished = Finished(audit, run.path, None if judge == run.manifest.judge else judge)
    write_whole(finished.audit_path, encode_audit(audit))
    write_run_report(run.path, finished.judge)
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
