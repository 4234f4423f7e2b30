"""`fathom report` and `fathom compare`: pages from run directories."""

import sys
from pathlib import Path

import msgspec

from fathom.command.directory import Made, made_by, open_audit, own_audits
from fathom.errors import UserError
from fathom.run import Run

__all__ = ["compare_runs", "write_reports", "write_run_report"]


def write_reports(path: Path) -> tuple[Path, ...]:
    """Make the pages of a directory anew from its files: of a run, a sweep or dynamics, or of a trained model's audits.

    Raises:
        UserError: `path` is not finished, or holds nothing that a page is made of.
    """
    made = made_by(path)
    if made is Made.TRAINING:
        runs = own_audits(path)
        if not runs:
            raise UserError(
                f"{path} is a trained model without an audit, so it has no page; `fathom audit {path}` measures it"
            )
        return tuple(write_run_report(run) for run in runs)
    if made is Made.AUDIT:
        return (write_run_report(path),)
    if made in (Made.POISON, Made.TRIPLETS, Made.UTILITY):
        raise UserError(f"{path} holds what `fathom {made}` made, which has no page; give a run, or a trained model")
    if not (path / f"{made}.json").is_file():
        raise UserError(f"{path} is not finished (no {made}.json); run the same `fathom {made}` command again")
    from fathom.report.stress import write_dynamics_report, write_stress_report

    return (write_stress_report(path) if made is Made.STRESS else write_dynamics_report(path),)


def write_run_report(path: Path, judge: str | None = None) -> Path:
    """Make a run's page from its files; `judge` names another judge's audit of the same run.

    Raises:
        UserError: `path` is no finished run.
    """
    run = Run.open(path)
    from fathom.report.page import render, write_report

    name = "report.html" if judge is None else f"report.{judge}.html"
    return write_report(path / name, render(run, judge=judge))


def compare_runs(first: Path, second: Path, output: Path | None, *, as_json: bool) -> None:
    """Pair two runs by behavior, write the page, print the differences.

    Raises:
        UserError: one of them is no finished run, or they share no behavior.
    """
    runs = open_audit(first), open_audit(second)
    from fathom.report.compare import compare_pairs
    from fathom.report.compare_page import render_comparison
    from fathom.report.page import write_report
    from fathom.report.pairing import pair_runs
    from fathom.report.terminal_comparison import print_comparison

    pairing = pair_runs(*runs)
    comparison = compare_pairs(pairing)
    page = write_report(output or second / "compare.html", render_comparison(pairing, comparison))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(comparison), indent=2) + b"\n")
    else:
        print_comparison(comparison, page)
