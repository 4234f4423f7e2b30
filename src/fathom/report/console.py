"""What everything in the terminal is put together from. No text from outside keeps its control characters here."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fathom.report import tables
from fathom.report.hostile import one_line, passage
from fathom.report.narrow import fitted

__all__ = ["Titled", "make_table", "print_figures", "print_notes", "print_place", "print_table"]

DETAIL = 16  # columns that the meaning of a figure needs


class Titled(NamedTuple):
    """A table under a title, which may be wider than the table."""

    title: str
    table: Table


def make_table(*names: str, left: bool = False) -> Table:
    """A table without lines, its columns to the right; with `left`, the first one is of texts."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.header_style = "dim"
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if left and i == 0 else "right", no_wrap=not (left and i == 0))
    return table


def print_table(out: Console, titled: Titled) -> None:
    """The title, and the table or, in a window without room for it, its rows one below the other."""
    out.print(Text(titled.title, style="bold"))
    out.print(fitted(titled.table, out))


def print_figures(out: Console, figures: Sequence[tables.Figure]) -> None:
    """Figures in columns; in a window without room for what they mean, one above the other."""
    names, values = ([len(figure.name) for figure in figures], [len(figure.value) for figure in figures])
    beside = max(names, default=0) + max(values, default=0) + 4
    if out.width - beside < DETAIL:
        for figure in figures:
            out.print(Text.assemble((f"{figure.name}  ", "dim"), (figure.value, "bold")))
            out.print(Padding(Text(figure.detail, style="dim"), (0, 0, 0, 2)))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(style="dim")
    for figure in figures:
        grid.add_row(figure.name, figure.value, figure.detail)
    out.print(grid)


def print_notes(out: Console, notes: Iterable[str]) -> None:
    """What a reader must know, a paragraph each."""
    for note in notes:
        out.print(Text.assemble(("Note  ", "yellow"), passage(note)))


def print_place(out: Console, name: str, path: Path) -> None:
    """Where a page is, on one line however narrow the window, to be copied."""
    out.print(Text.assemble((f"{name}  ", "dim"), one_line(str(path))), soft_wrap=True)
