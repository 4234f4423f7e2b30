"""An audit in the terminal."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fathom.records import Counted, Subject
from fathom.report import further, tables, wording
from fathom.report.console import Titled, make_table, print_figures, print_notes, print_place, print_table
from fathom.report.hostile import one_line, passage
from fathom.schema import AttackRow, Audit
from fathom.tally import percent

__all__ = ["bar", "print_audit"]

ROOMY = 76  # columns from which bars have room
BAR = 12  # columns of a bar
# Columns of a bar, and of the name of each further curve: the first layout that a window has room for is shown.
LAYOUTS = ((BAR, 12), (BAR, 7), (8, 7), (0, 7), (0, 0))
LEGEND = "Harm: judged harmful. Und.: undecided, counted in n as not harmful."
STEPS = " ▏▎▍▌▋▊▉█"
MOST_OPENINGS = 6


def print_audit(audit: Audit, report: Path, *, console: Console | None = None) -> None:
    """Print the sentence, the numbers and the tables of an audit, and where its report is."""
    out = console or Console(highlight=False)
    _title(out, audit)
    print_figures(out, tables.figures(audit))
    if audit.depth.half_depth.deepest > 0:
        out.print(_indented(Text(passage(audit.depth.agreement), style="dim")))
    out.print()
    for i, titled in enumerate(_tables(audit, out)):
        print_table(out, titled)
        if i == 0:
            out.print(Text(LEGEND, style="dim"))
        out.print()
    print_notes(out, audit.notes)
    print_place(out, "Report", report)


def bar(share: float, width: int = BAR) -> str:
    """A share in [0, 1] as a bar of exactly `width` columns; a share above 0 shows at least a sliver.

    >>> bar(0.5, 4), bar(0.0, 4), bar(0.0001, 4), bar(1.0, 4)
    ('██  ', '    ', '▏   ', '████')
    """
    eighths = min(8 * width, max(round(share * 8 * width), 1 if share > 0 else 0))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (STEPS[rest] if rest else "")).ljust(width)


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


def _tables(audit: Audit, out: Console) -> Iterable[Titled]:
    curves, width = wording.curves(audit), out.width
    if curves:
        yield _sweep(curves, out)
    for subject, name in ((Subject.BASE, "Base model"), (Subject.MODEL, "The model itself")):
        prefixes = [
            (_prefix(row, audit), row)
            for row in wording.refusal_prefixes(audit)
            if row.counted is Counted.CONTINUATION and row.subject is subject
        ]
        if prefixes:
            yield _rows(f"{name}, its answer made to start with a refusal", "Prefix", prefixes, width)
    families = further.families(audit, {})
    if families:
        yield _attacks(families, width)
    if audit.openings:
        yield _openings(audit, width)
    if audit.benign.rows:
        yield _benign(audit)


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
    table = _counted_table("Tokens")
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
    table = _counted_table(first, left=True)
    if width >= ROOMY:
        table.add_column("", no_wrap=True, style="red")
    for name, row in rows:
        table.add_row(Text(name), *_counts(row), *([bar(row.asr)] if width >= ROOMY else []))
    return Titled(title, table)


def _attacks(families: Iterable[further.Family], width: int) -> Titled:
    """The strongest setting of each attack; every setting stands in the page."""
    table = _counted_table("Attack", left=True)
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
    table = make_table("Opening", "n", "of", left=True)
    table.add_column("Share", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    for row in audit.openings[:MOST_OPENINGS]:
        name = Text(one_line(row.opening, max(16, width - 40)))
        table.add_row(
            name, str(row.n), str(row.of), percent(row.n, row.of), wording.interval_percent(row.low, row.high)
        )
    return Titled("How refusals of the direct request begin", table)


def _benign(audit: Audit) -> Titled:
    table = make_table("Tokens", "n", "Und.")
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


def _counted_table(first: str, *, left: bool = False) -> Table:
    """A table whose rows begin with a name and `_counts`."""
    table = make_table(first, "n", "Harm", "Und.", left=left)
    table.add_column("ASR", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
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
