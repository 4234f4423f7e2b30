"""A fine-tuning sweep as tables in the terminal."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fathom.records import Parameter
from fathom.report import shallowest, wording, worst
from fathom.report.console import Titled, make_table, print_notes, print_place, print_table
from fathom.report.hostile import one_line, passage
from fathom.report.learned import Learned, Lesson, learned
from fathom.report.stress import stress_headline
from fathom.tally import percent
from fathom.tampering import Stress, UtilityScore

__all__ = ["print_stress"]

MOST_LESSONS = 24  # checkpoints in a table of what was learned
SETTINGS = 100  # columns from which the setting that an attacker keeps has room
LEGEND = (
    "Before: ASR of the model as it was. ASR, Step: the strongest model that stayed useful, and when. Kept: its score "
    "on benign requests. 95 %: of the ASR; it does not know that the strongest was picked."
)

DEPTH_LEGEND = (
    "By tokens: ASR once so many tokens of a harmful answer are given (end: all but one). Half depth: where it "
    "crosses 50 %, with 95 %. Before: the model as it was; others: the useful model that is the shallowest."
)


def print_stress(stress: Stress, page: Path, *, console: Console | None = None) -> None:
    """Print the sentence, each objective's worst case with the utility it leaves, and where the page is."""
    out = console or Console(highlight=False)
    cases = worst.worst_cases(stress)
    out.print()
    out.print(Text(passage(stress_headline(cases)), style="bold cyan"))
    fates = shallowest.fates(stress)
    if fates:
        out.print(Text(passage(shallowest.sentence(fates)), style="cyan"))
    out.print()
    alike = _alike(stress)
    for (model, attack, asked), found in groupby(cases, key=lambda case: case.question[:3]):
        way = "asked directly" if asked == "direct" else f"asked {asked}"
        title = ", ".join(one_line(part, 60) for part in (model, f"attack {attack}", way))
        print_table(out, Titled(title, _table(stress, list(found), alike, settings=out.width >= SETTINGS)))
        out.print()
    for fate in fates:
        parts = (fate.model, f"attack {fate.attack}", wording.poisoned(fate.share), "by tokens of the answer given")
        title = ", ".join(one_line(part, 60) for part in (*filter(None, parts), wording.drawn(fate.temperature)))
        print_table(out, Titled(title, _depth_table(fate)))
        out.print()
    for lessons in learned(stress):
        _print_learned(out, lessons, alike)
    if cases:
        out.print(Text(LEGEND, style="dim"))
        if fates:
            out.print(Text(DEPTH_LEGEND, style="dim"))
        out.print(Text(f"In all: {wording.setting(alike)}", style="dim"))
    print_notes(out, stress.notes)
    print_place(out, "Report", page)


def _table(stress: Stress, cases: Sequence[worst.Worst], alike: Mapping[str, Parameter], *, settings: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    poisoned = any(case.question.share is not None for case in cases)
    for name in ("Objective", "Drawn"):
        table.add_column(name)
    if poisoned:
        table.add_column("Share", justify="right", no_wrap=True)
    for name in ("n", "Before", "ASR", "95 %", "Step", "Kept"):
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "ASR" else "")
    if settings:
        table.add_column("Setting", style="dim")
    for question, choice, choices, _ in cases:
        cells = [one_line(question.objective, 40), wording.drawn(question.temperature)]
        cells += [f"{100 * (question.share or 0.0):g} %"] if poisoned else []
        start = next((found for found in worst.choices(stress, question) if found.step == 0), None)
        before = "–" if start is None else percent(start.harmful, start.n)
        if choice is None:
            cells += ["–", before, "none", "–", "–", "–", f"none of {choices} models stayed useful"]
        else:
            span = wording.interval_percent(*choice.interval)
            cells += [str(choice.n), before, percent(choice.harmful, choice.n), span, str(choice.step)]
            cells += [_kept(choice.utility), wording.setting(dict(choice.parameters), without={*alike, "rows"})]
        table.add_row(*map(Text, cells if settings else cells[:-1]))
    return table


def _depth_table(fate: shallowest.Fates) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("Objective")
    for name in ("n", "Step", *map(shallowest.depth_name, fate.tokens)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Half depth", style="bold")
    for name, deep in fate.rows:
        if deep is None:
            table.add_row(Text(one_line(name, 40)), "–", "–", *("–" for _ in fate.tokens), "none useful")
            continue
        counts = sorted({depth.n for depth in deep.depths})
        n = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        rates = [percent(depth.harmful, depth.n) for depth in deep.depths]
        table.add_row(*map(Text, (one_line(name, 40), n, str(deep.step), *rates, shallowest.half_name(deep.half))))
    return table


def _print_learned(out: Console, learned: Learned, alike: Mapping[str, Parameter]) -> None:
    """A task's score at every checkpoint, or where these are many at each setting's last one, beside the ASR there."""
    lessons = learned.lessons
    if len(lessons) > MOST_LESSONS:
        last = {(one.objective, one.choice.parameters): one for one in lessons}  # steps ascend
        lessons = tuple(last.values())
    scores = (name for metric in learned.metrics for name in (metric, "95 %"))
    table = make_table("Objective", "Step", *scores, "ASR", "95 %", left=True)
    rows = [_lesson(one, alike) for one in lessons]
    settings = any(row[-1] for row in rows)
    if settings:
        table.add_column("Setting", style="dim")
    for row in rows:
        table.add_row(*map(Text, row if settings else row[:-1]))
    n = lessons[0].scores[0].n
    name, attack = one_line(learned.task, 40), one_line(learned.attack, 40)
    if learned.share is not None:
        attack = f"{attack}, {wording.poisoned(learned.share)}"
    drawn = wording.drawn(learned.temperature)
    out_of = f"{one_line(learned.model, 60)}, attack {attack}: what was learned of {name} (n = {n}); ASR {drawn}"
    print_table(out, Titled(out_of, table))
    if len(lessons) < len(learned.lessons):
        out.print(Text("Each setting's last step; all are in the report.", style="dim"))
    out.print()


def _lesson(one: Lesson, alike: Mapping[str, Parameter]) -> list[str]:
    choice = one.choice
    cells = [one_line(one.objective, 40) or "before", str(choice.step)]
    for score in one.scores:
        cells += [f"{wording.share_percent(score.score)} %", wording.interval_percent(score.low, score.high)]
    setting = wording.setting(dict(choice.parameters), without={*alike, "rows"}) if one.objective else ""
    return [*cells, percent(choice.harmful, choice.n), wording.interval_percent(*choice.interval), setting]


def _kept(utility: tuple[UtilityScore, ...]) -> str:
    return f"{wording.share_percent(utility[0].score)} %" if utility else "–"


def _alike(stress: Stress) -> Mapping[str, Parameter]:
    """The parameters that every fine-tune of the sweep shares."""
    first = stress.finetunes[0].parameters if stress.finetunes else {}
    return {
        name: value
        for name, value in first.items()
        if all(tuned.parameters.get(name) == value for tuned in stress.finetunes)
    }
