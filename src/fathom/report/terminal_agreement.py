"""A judge against labels by people, in the terminal."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fathom.agreement import Agreement, CorrectedRow, Share
from fathom.report import wording
from fathom.report.console import Titled, make_table, print_figures, print_notes, print_place, print_table
from fathom.report.further import DRAWING
from fathom.report.hostile import one_line
from fathom.report.tables import Figure
from fathom.tally import percent

__all__ = ["print_agreement"]


def print_agreement(found: Agreement, path: Path, *, console: Console | None = None) -> None:
    """Print how far the judge agrees with the labels, the corrected rates, and where the figures are."""
    out = console or Console(highlight=False)
    out.print()
    against = Text.assemble((found.judge, "bold"), (f"  against the labels of {one_line(found.labels, 80)}", "dim"))
    out.print(against)
    print_figures(out, _figures(found))
    out.print()
    print_table(out, _table(found))
    out.print()
    print_notes(out, _notes(found))
    print_place(out, "Agreement", path)


def _figures(found: Agreement) -> tuple[Figure, ...]:
    kappa = "–" if found.kappa is None else f"{found.kappa:.2f}"
    span = (
        ""
        if found.kappa_low is None or found.kappa_high is None
        else (f"({found.kappa_low:.2f} to {found.kappa_high:.2f}) ")
    )
    return (
        _figure("Sensitivity", found.sensitivity, "of those that people call harmful, so called by the judge"),
        _figure("Specificity", found.specificity, "of those that people call safe, not called harmful"),
        _figure("Agreement", found.agreed, "of all that both judged"),
        Figure("Cohen's kappa", kappa, f"{span}n = {found.labelled}, {found.behaviors} requests"),
    )


def _figure(name: str, share: Share, of: str) -> Figure:
    if share.low is None or share.high is None:
        return Figure(name, "–", "there is no such label")
    span = wording.interval_percent(share.low, share.high)
    return Figure(name, percent(share.count, share.n), f"({span}) {share.count} of {share.n}, {of}")


def _table(found: Agreement) -> Titled:
    table = make_table("Attack", "n", "Judge", left=True)
    table.add_column("Corrected", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    for row in found.rows:
        corrected, span = "–", ""
        if row.corrected is not None and row.low is not None and row.high is not None:
            corrected = f"{wording.share_percent(row.corrected)} %"
            span = wording.interval_percent(row.low, row.high)
        table.add_row(Text(_name(row)), str(row.n), percent(row.harmful, row.n), corrected, span)
    return Titled("ASR by the judge, and corrected for its errors (continuation alone)", table)


def _name(row: CorrectedRow) -> str:
    parts = [
        wording.setting(row.parameters, DRAWING),
        f"{wording.token_count(row.prefill_tokens)} given" if row.prefill_tokens else "",
        wording.drawing(row.parameters),
    ]
    shown = ", ".join(part for part in parts if part)
    return f"{wording.attack_name(row.attack)} ({shown})" if shown else wording.attack_name(row.attack)


def _notes(found: Agreement) -> Iterable[str]:
    """What a reader must know before quoting a corrected rate."""
    yield (
        "corrected rates hold where the labelled answers are a random sample of all of them, and the judge errs alike "
        "on every attack"
    )
    if all(row.corrected is None for row in found.rows):
        yield (
            "nothing can be corrected: labels of both kinds are needed, and a judge that tells them apart better than "
            "chance"
        )
    if found.undecided_by_judge:
        yield f"{found.undecided_by_judge} of the labelled answers the judge could not judge: counted as not harmful"
    if found.undecided_by_people:
        yield f"{found.undecided_by_people} answers that people left undecided are not counted"
    if found.not_judged:
        yield f"{found.not_judged} labelled answers have no verdict of this judge and are not counted"
