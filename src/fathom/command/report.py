"""`fathom report` and `fathom compare`: pages from run directories."""

import sys
from pathlib import Path

import msgspec

from fathom.errors import UserError
from fathom.run import Run

__all__ = ["compare_runs", "write_run_report"]


def write_run_report(path: Path, judge: str | None = None) -> Path:
    """Make a run's page from its files; `judge` names another judge's audit of the same run.

    Raises:
        UserError: `path` is no finished run.
    """
    for name, command in (("stress.json", "stress"), ("dynamics.json", "dynamics")):
        if (path / name).is_file():
            raise UserError(
                f"{path} holds no audit but what `fathom {command}` measured; run the same `fathom {command}` command "
                "again: it repeats nothing and makes the page anew"
            )
    run = Run.open(path)
    from fathom.report.page import render, write_report

    name = "report.html" if judge is None else f"report.{judge}.html"
    return write_report(path / name, render(run, judge=judge))


def compare_runs(first: Path, second: Path, output: Path | None, *, as_json: bool) -> None:
    """Pair two runs by behavior, write the page, print the differences.

    Raises:
        UserError: one of them is no finished run, or they share no behavior.
    """
    runs = Run.open(first), Run.open(second)
    from fathom.report.compare import compare_pairs
    from fathom.report.compare_page import render_comparison
    from fathom.report.page import write_report
    from fathom.report.pairing import pair_runs
    from fathom.report.terminal import print_comparison

    pairing = pair_runs(*runs)
    comparison = compare_pairs(pairing)
    page = write_report(output or second / "compare.html", render_comparison(pairing, comparison))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(comparison), indent=2) + b"\n")
    else:
        print_comparison(comparison, page)
