"""One example's ids as a table in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fathom.ids import IdsReport, Law, TokenRow
from fathom.report.hostile import one_line, sanitise

__all__ = ["print_ids"]

WIDEST_TOKEN = 40


def print_ids(name: str, found: IdsReport, laws: Sequence[Law], *, console: Console | None = None) -> None:
    """Print where the ids come from, every token with its part, and each law with whether it holds."""
    out = console or Console(highlight=False)
    out.print()
    out.print(Text(one_line(name), style="bold"))
    out.print(_grid(found))
    out.print()
    out.print(_tokens(found.tokens))
    out.print()
    for law in laws:
        mark = Text("holds  ", "green") if law.passed else Text("BROKEN ", "bold red")
        why = f" ({sanitise(law.why)})" if law.why else ""
        out.print(Text.assemble(mark, law.name, (why, "dim")))
    for note in found.notes:
        out.print(Text.assemble(("Note   ", "yellow"), sanitise(note)))


def _grid(found: IdsReport) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    source = (
        found.template_source if found.template_hash is None else f"{found.template_source} ({found.template_hash})"
    )
    grid.add_row("Template", Text(one_line(source)))
    grid.add_row("System prompt", Text("none" if found.system is None else one_line(found.system, 200)))
    grid.add_row("Prefill at", Text(found.prefill_at))
    grid.add_row("Response begins", Text(f"at id {found.response_start}; a prefill of k ends k ids later"))
    grid.add_row("Stops at", Text(", ".join(map(str, found.stop_ids))))
    return grid


def _tokens(rows: Sequence[TokenRow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("At", justify="right", style="dim", no_wrap=True)
    table.add_column("Id", justify="right", style="bold", no_wrap=True)
    table.add_column("Token", no_wrap=True)
    table.add_column("Text", no_wrap=True)
    table.add_column("Part", style="dim", no_wrap=True)
    for row in rows:
        table.add_row(str(row.position), str(row.id), _cell(row.token), _cell(repr(row.text)), str(row.part))
    return table


def _cell(text: str) -> Text:
    return Text(one_line(text, WIDEST_TOKEN))
