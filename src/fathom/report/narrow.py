"""Tables in a window that is too narrow for them: row by row, each figure beside its name, instead of cut.

A rate without its n or the end of its interval is no result, so nothing of a row is left out.
"""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

__all__ = ["fitted"]

INDENT = 2  # columns before the figures of a row
BETWEEN = "  "
WORD = 16  # columns from which on a word may be broken


def fitted(table: Table, out: Console) -> RenderableType:
    """The table itself where no cell of it would be cut, else its rows one below the other."""
    for column in table.columns:
        column.overflow = "fold"  # a long word goes on in the next line
    needed = sum(map(_least, table.columns)) + len(BETWEEN) * (len(table.columns) - 1)
    return table if needed <= out.width else Group(*_stacked(table, out.width))


def _least(column: Column) -> int:
    """The columns of a window that this one takes at least: figures stay whole, texts are broken between words."""
    cells = [_plain(cell) for cell in (column.header, *column.cells)]
    if column.no_wrap:
        return max(map(cell_len, cells))
    return min(WORD, max(cell_len(word) for cell in cells for word in (*cell.split(), "")))


def _stacked(table: Table, width: int) -> Iterator[RenderableType]:
    """Below the texts at the beginning of a row, its figures."""
    columns = [(_plain(column.header), [_plain(cell) for cell in column.cells]) for column in table.columns]
    heads = next((place for place, column in enumerate(table.columns) if column.justify != "left"), len(columns))
    for row in range(table.row_count):
        shown = [f"{name} {cells[row]}" for name, cells in columns[max(heads, 1) :] if name]  # bars have no name
        head = [_head(name, cells[row]) for name, cells in columns[: max(heads, 1)]]
        yield Text(", ".join(head), overflow="fold")
        yield Padding(Text("\n".join(_lines(shown, width - INDENT)), overflow="fold"), (0, 0, 0, INDENT))


def _head(name: str, cell: str) -> str:
    """A text says what it is; a number needs its name."""
    return f"{name} {cell}" if cell.isdigit() else cell


def _lines(figures: Sequence[str], width: int) -> Iterator[str]:
    """As many on a line as fit; none is broken that fits on a line of its own."""
    line = ""
    for figure in figures:
        longer = f"{line}{BETWEEN}{figure}" if line else figure
        if line and cell_len(longer) > width:
            yield line
            longer = figure
        line = longer
    yield line


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
