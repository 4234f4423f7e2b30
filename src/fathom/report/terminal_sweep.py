"""A fine-tuning sweep as a table in the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fathom.report import wording, worst
from fathom.report.hostile import one_line, passage
from fathom.report.stress import stress_headline
from fathom.tally import percent
from fathom.tampering import Stress

__all__ = ["print_stress"]


def print_stress(stress: Stress, page: Path, *, console: Console | None = None) -> None:
    """Print the sentence, each objective's worst case with the utility it leaves, and where the page is."""
    out = console or Console(highlight=False)
    cases = worst.worst_cases(stress)
    out.print()
    out.print(Text(passage(stress_headline(cases)), style="bold cyan"))
    out.print()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("Attack", "Objective", "Drawn"):
        table.add_column(name)
    for name in ("n", "ASR", "95 %", "Step"):
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "ASR" else "")
    table.add_column("Setting", style="dim")
    for case in cases:
        question, choice = case.question, case.choice
        named = f"{one_line(question.attack, 30)}, {one_line(question.asked, 30)}"
        cells = [named, one_line(question.objective, 40), wording.drawn(question.temperature)]
        if choice is None:
            cells += ["–", "none useful", "–", "–", f"of {case.choices} choices"]
        else:
            span = wording.interval_percent(*choice.interval)
            cells += [str(choice.n), percent(choice.harmful, choice.n), span, str(choice.step)]
            cells.append(worst.setting_name(choice.parameters))
        table.add_row(*map(Text, cells))
    out.print(table)
    out.print()
    for note in stress.notes:
        out.print(Text.assemble(("Note  ", "yellow"), passage(note)))
    out.print(Text.assemble(("Page  ", "dim"), one_line(str(page))), soft_wrap=True)
