"""A comparison of two audits in the terminal."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fathom.records import Counted
from fathom.report import contrast, wording
from fathom.report.compare import AttackDifference, BenignDifference, Comparison, Difference
from fathom.report.console import Titled, make_table, print_figures, print_notes, print_place, print_table

__all__ = ["print_comparison"]

MOST_DIFFERENCES = 16  # rows of a table


def print_comparison(comparison: Comparison, page: Path, *, console: Console | None = None) -> None:
    """Print the sentence, the differences by depth and of other attacks, the control, and where the page is."""
    out = console or Console(highlight=False)
    names = [contrast.side_name(side) for side in (comparison.first, comparison.second)]
    out.print()
    out.print(Text.assemble((names[0], "bold"), ("  against  ", "dim"), (names[1], "bold")))
    out.print(Text(contrast.headline(comparison), style="bold cyan"))
    out.print()
    print_figures(out, contrast.figures(comparison))
    out.print()
    for titled in _differences(comparison):
        print_table(out, titled)
        out.print()
    print_notes(out, comparison.notes)
    print_place(out, "Page", page)


def _differences(comparison: Comparison) -> Iterable[Titled]:
    for strand in contrast.strands(comparison):
        if strand.counted is Counted.CONTINUATION:
            rows = [(str(row.prefill_tokens), row.asr) for row in strand.rows]
            asked = "of the direct request" if not any(row.prefill_tokens for row in strand.rows) else ""
            yield _difference(f"ASR {asked or 'by tokens of the answer given'} ({strand.drawn})", "Tokens", rows)
    others = [
        (f"{_setting_name(row)} ({wording.drawn(row.temperature)})", row.asr) for row in contrast.others(comparison)
    ]
    if others:
        yield _difference("Other attacks", "Attack", others)
    for name, shares in (
        ("Benign requests helped", [(row, row.helped) for row in comparison.benign]),
        ("Benign requests refused", [(row, row.refused) for row in comparison.benign]),
    ):
        moved = [(f"{_setting_name(row)} ({wording.drawn(row.temperature)})", share) for row, share in shares]
        if moved:
            yield _difference(name, "Attack", moved)


def _setting_name(row: AttackDifference | BenignDifference) -> str:
    parts = [
        wording.setting(row.parameters),
        f"{wording.token_count(row.prefill_tokens)} given" if row.prefill_tokens else "",
    ]
    return ", ".join([wording.attack_name(row.attack), *(part for part in parts if part)])


def _difference(title: str, first: str, rows: Iterable[tuple[str, Difference]]) -> Titled:
    """The largest differences, in the order of the page, which has them all; the depths of a sweep are few."""
    every = list(rows)
    largest = sorted(every, key=lambda row: abs(row[1].difference), reverse=True)[:MOST_DIFFERENCES]
    rows = [row for row in every if row in largest]
    if len(rows) < len(every):
        title += f", the {len(rows)} largest of {len(every)}"
    table = make_table(first, "Pairs", "First", "Second", left=True)
    table.add_column("Diff.", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    for name, found in rows:
        shares = (f"{wording.share_percent(share)} %" for share in (found.first, found.second))
        ends = (contrast.points(found.difference), contrast.span(found))
        table.add_row(Text(name), str(found.behaviors), *shares, *ends)
    return Titled(f"{title}, difference in points", table)
