"""Scores of a user's task in the terminal."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from fathom.report import wording
from fathom.report.console import Titled, make_table, print_notes, print_place, print_table
from fathom.report.hostile import one_line
from fathom.utility.records import TaskUtility

__all__ = ["print_utility"]


def print_utility(utility: TaskUtility, rows: Path, *, console: Console | None = None) -> None:
    """Print each metric's score with its n and interval, and where the answers are."""
    out = console or Console(highlight=False)
    table = make_table("Metric", "n", "Score", "95 %", left=True)
    for score in utility.scores:
        span = wording.interval_percent(score.low, score.high)
        cells = (score.metric, str(score.n), f"{wording.share_percent(score.score)} %", span)
        table.add_row(*map(Text, cells))
    out.print()
    print_table(out, Titled(f"{one_line(utility.data, 60)}, answered greedily by {one_line(utility.model, 60)}", table))
    out.print()
    print_notes(out, utility.notes)
    print_place(out, "Answers", rows)
