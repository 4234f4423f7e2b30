"""`fathom report` and `fathom compare`."""

from pathlib import Path
from typing import Annotated

import typer

from fathom.cli.options import AsJson, RunArgument

__all__ = ["compare", "report"]


def report(run: RunArgument) -> None:
    """Make report.html of a run anew, from its files.

    RUN may also be what `fathom stress` or `fathom dynamics` wrote, or a trained model with the audits in it.
    """
    from fathom.command.report import write_reports

    for page in write_reports(run):
        print(page)


def compare(
    first: RunArgument,
    second: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page (default: SECOND/compare.html).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, paired by behavior: differences with intervals, and one page."""
    from fathom.command.report import compare_runs

    compare_runs(first, second, output, as_json=as_json)
