"""An audit and a comparison as tables in the terminal. No text from outside reaches it with its control characters."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fathom.records import Counted
from fathom.report import contrast, further, tables, wording
from fathom.report.compare import AttackDifference, BenignDifference, Comparison, Difference
from fathom.report.hostile import one_line, passage
from fathom.report.narrow import fitted
from fathom.report.progress import Progress
from fathom.schema import AttackRow, Audit
from fathom.tally import percent

__all__ = ["Progress", "bar", "print_audit", "print_comparison"]

ROOMY = 76  # columns from which bars have room
BAR = 12  # columns of a bar
# Columns of a bar, and of the name of each further curve: the first layout that a window has room for is shown.
LAYOUTS = ((BAR, 12), (BAR, 7), (8, 7), (0, 7), (0, 0))
LEGEND = "Harm: judged harmful. Und.: undecided, counted in n as not harmful."
DETAIL = 16  # columns that the meaning of a figure needs
STEPS = " ▏▎▍▌▋▊▉█"
MOST_OPENINGS = 6
MOST_DIFFERENCES = 16  # rows of a table


class Titled(NamedTuple):
    """A table under a title, which may be wider than the table."""

    title: str
    table: Table


def print_audit(audit: Audit, report: Path, *, console: Console | None = None) -> None:
    """Print the sentence, the numbers and the tables of an audit, and where its report is."""
    out = console or Console(highlight=False)
    _title(out, audit)
    _figures(out, tables.figures(audit))
    if audit.depth.half_depth.deepest > 0:
        out.print(_indented(Text(passage(audit.depth.agreement), style="dim")))
    out.print()
    for i, titled in enumerate(_tables(audit, out)):
        _print(out, titled)
        if i == 0:
            out.print(Text(LEGEND, style="dim"))
        out.print()
    _notes(out, audit.notes)
    out.print(Text.assemble(("Report  ", "dim"), one_line(str(report))), soft_wrap=True)


def print_comparison(comparison: Comparison, page: Path, *, console: Console | None = None) -> None:
    """Print the sentence, the differences by depth and of other attacks, the control, and where the page is."""
    out = console or Console(highlight=False)
    names = [contrast.side_name(side) for side in (comparison.first, comparison.second)]
    out.print()
    out.print(Text.assemble((names[0], "bold"), ("  against  ", "dim"), (names[1], "bold")))
    out.print(Text(contrast.headline(comparison), style="bold cyan"))
    out.print()
    _figures(out, contrast.figures(comparison))
    out.print()
    for titled in _differences(comparison):
        _print(out, titled)
        out.print()
    _notes(out, comparison.notes)
    out.print(Text.assemble(("Page  ", "dim"), one_line(str(page))), soft_wrap=True)


def bar(share: float, width: int = BAR) -> str:
    """A share in [0, 1] as a bar of exactly `width` columns; a share above 0 shows at least a sliver.

    >>> bar(0.5, 4), bar(0.0, 4), bar(0.0001, 4), bar(1.0, 4)
    ('██  ', '    ', '▏   ', '████')
    """
    eighths = min(8 * width, max(round(share * 8 * width), 1 if share > 0 else 0))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (STEPS[rest] if rest else "")).ljust(width)


def _print(out: Console, titled: Titled) -> None:
    out.print(Text(titled.title, style="bold"))
    out.print(fitted(titled.table, out))


def _title(out: Console, audit: Audit) -> None:
    name = wording.model_name(audit.model.name, audit.model.revision, audit.model.adapter)
    title = Text(name, style="bold")
    if audit.base is not None:
        base = wording.model_name(audit.base.name, audit.base.revision, audit.base.adapter)
        title.append(f"  against its base {base}", style="dim")
    out.print()
    out.print(title)
    first, second = further.sentences(audit)
    out.print(Text(first, style="bold cyan"))
    if second:
        out.print(Text(second))
    out.print()


def _figures(out: Console, figures: Sequence[tables.Figure]) -> None:
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


def _tables(audit: Audit, out: Console) -> Iterable[Titled]:
    curves, width = wording.curves(audit), out.width
    if curves:
        yield _sweep(curves, out)
    prefixes = [row for row in wording.refusal_prefixes(audit) if row.counted is Counted.CONTINUATION]
    if prefixes:
        named = [(_prefix(row, audit), row) for row in prefixes]
        yield _rows("Base model, its answer made to start with a refusal", "Prefix", named, width)
    families = further.families(audit, {})
    if families:
        yield _attacks(families, width)
    if audit.openings:
        yield _openings(audit, width)
    if audit.benign.rows:
        yield _benign(audit)


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
    table = _table(first, "Pairs", "First", "Second", left=True)
    table.add_column("Diff.", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    for name, found in rows:
        shares = (f"{wording.share_percent(share)} %" for share in (found.first, found.second))
        ends = (contrast.points(found.difference), contrast.span(found))
        table.add_row(Text(name), str(found.behaviors), *shares, *ends)
    return Titled(f"{title}, difference in points", table)


def _sweep(curves: Sequence[wording.Curve], out: Console) -> Titled:
    """One row a depth: the audit's own curve in full, the others as their rates where there is room."""
    first, *rest = curves
    if first.rows[-1].prefill_tokens == 0:  # nothing is given, so the whole answer is the continuation
        title = f"ASR of the direct request ({first.drawn})"
    else:
        title = f"ASR by tokens of the answer given ({first.drawn}, continuation alone)"
    boundless = out.options.update(max_width=10_000)
    for bars, names in LAYOUTS:
        table = _sweep_table(first, rest[:3] if names else [], bars, names)
        if out.measure(table, options=boundless).maximum <= out.width:
            break
    return Titled(title, table)


def _sweep_table(first: wording.Curve, rest: Sequence[wording.Curve], bars: int, names: int) -> Table:
    table = _table("Tokens", "n", "Harm", "Und.")
    table.add_column("ASR", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    if bars:
        table.add_column("", no_wrap=True, style="red")
    for curve in rest:
        whole = "" if curve.counted is Counted.CONTINUATION else " with prefill"
        table.add_column(f"{curve.drawn}{whole}", justify="right", style="dim", max_width=names)
    others = [{row.prefill_tokens: row for row in curve.rows} for curve in rest]
    for row in first.rows:
        cells = [str(row.prefill_tokens), *_counts(row)]
        cells += [bar(row.asr, bars)] if bars else []
        table.add_row(*cells, *(_rate(found.get(row.prefill_tokens)) for found in others))
    return table


def _rows(title: str, first: str, rows: Iterable[tuple[str, AttackRow]], width: int) -> Titled:
    table = _table(first, "n", "Harm", "Und.", left=True)
    table.add_column("ASR", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    if width >= ROOMY:
        table.add_column("", no_wrap=True, style="red")
    for name, row in rows:
        table.add_row(Text(name), *_counts(row), *([bar(row.asr)] if width >= ROOMY else []))
    return Titled(title, table)


def _attacks(families: Iterable[further.Family], width: int) -> Titled:
    """The strongest setting of each attack; every setting stands in the page."""
    table = _table("Attack", "n", "Harm", "Und.", left=True)
    table.add_column("ASR", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    roomy = width >= ROOMY
    if roomy:
        table.add_column("Helped", justify="right", no_wrap=True)
        table.add_column("Tokens a success", justify="right", max_width=11)
    for family in families:
        row = family.best
        control = "–" if (found := family.helped) is None else percent(found.control.helped, found.control.n)
        control += f" ({found.drawn})" if found is not None and found.drawn else ""
        table.add_row(Text(further.row_name(row)), *_counts(row), *([control, further.spent(row)[1]] if roomy else []))
    return Titled("Further attacks, the strongest setting of each", table)


def _openings(audit: Audit, width: int) -> Titled:
    table = _table("Opening", "n", "of", left=True)
    table.add_column("Share", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    for row in audit.openings[:MOST_OPENINGS]:
        name = Text(one_line(row.opening, max(16, width - 40)))
        table.add_row(
            name, str(row.n), str(row.of), percent(row.n, row.of), wording.interval_percent(row.low, row.high)
        )
    return Titled("How refusals of the direct request begin", table)


def _benign(audit: Audit) -> Titled:
    table = _table("Tokens", "n", "Und.")
    table.add_column("Helped", justify="right", style="bold", no_wrap=True)
    table.add_column("Refused", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    table.add_column("Exact", justify="right", no_wrap=True)
    for row in audit.benign.rows:
        table.add_row(
            str(row.prefill_tokens),
            str(row.n),
            _undecided(row.undecided),
            percent(row.helped, row.n),
            percent(row.refused, row.n),
            wording.interval_percent(row.refused_low, row.refused_high),
            "–" if row.exact is None else percent(row.exact, row.n),
        )
    swept = any(row.prefill_tokens for row in audit.benign.rows)
    return Titled("Benign control" + (" by tokens of a helpful answer given" if swept else ", asked directly"), table)


def _notes(out: Console, notes: Iterable[str]) -> None:
    for note in notes:
        out.print(Text.assemble(("Note  ", "yellow"), passage(note)))


def _table(*names: str, left: bool = False) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.header_style = "dim"
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if left and i == 0 else "right", no_wrap=not (left and i == 0))
    return table


def _counts(row: AttackRow) -> tuple[str, str, str | Text, str, str]:
    interval = wording.interval_percent(row.low, row.high)
    return str(row.n), str(row.harmful), _undecided(row.undecided), percent(row.harmful, row.n), interval


def _undecided(count: int) -> str | Text:
    return Text(str(count), style="yellow") if count else "0"


def _rate(row: AttackRow | None) -> str:
    return "–" if row is None else percent(row.harmful, row.n)


def _prefix(row: AttackRow, audit: Audit) -> str:
    drawn = wording.drawn(wording.row_temperature(row, audit))
    return f"{one_line(str(row.parameters.get('prefix', '')), 60) or 'none'} ({drawn})"


def _indented(text: Text) -> Padding:
    return Padding(text, (1, 0, 0, 0))
