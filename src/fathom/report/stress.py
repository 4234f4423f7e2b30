"""A fine-tuning sweep on one self-contained page: worst cases, curves of ASR against steps, and what moved where."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import altair as alt

from fathom.journal import read_journal, read_whole
from fathom.report import moved, page, paper, plot, shallowest, wording, worst
from fathom.report.learned import learned
from fathom.report.plot import Point
from fathom.report.samples import Packed, pack_json
from fathom.report.worst import Question, Worst
from fathom.tally import percent
from fathom.tampering import Answer, Dynamics, Stress, start_cell

__all__ = ["read_answers", "render_stress", "stress_headline", "write_dynamics_report", "write_stress_report"]

MOST_ANSWERS = 20_000  # that a page embeds; all are in the run's files
MOST_NAMED = 4  # objectives in the sentence at the top: the weakest and the strongest ones


def write_stress_report(path: Path) -> Path:
    """Make a sweep's page from its files, wholly or not at all; the page's path.

    Raises:
        UserError: the sweep is not finished, or its files are of another version.
    """
    stress = read_whole(path / "stress.json", Stress)
    return page.write_report(path / "report.html", render_stress(stress, (), read_answers(path)))


def write_dynamics_report(path: Path) -> Path:
    """Make the page of dynamics from their file; otherwise as `write_stress_report`."""
    empty = Stress(judge="", utility_bound=0.0, finetunes=())
    dynamics = read_whole(path / "dynamics.json", Dynamics)
    return page.write_report(path / "report.html", render_stress(empty, (dynamics,)))


def read_answers(path: Path) -> tuple[Answer, ...]:
    """Every answer of a sweep; one that a kill made twice is given once."""
    found = {
        (answer.cell, answer.step, answer.asked, answer.temperature, answer.behavior, answer.sample): answer
        for answer in read_journal(path / "answers.jsonl", Answer)
    }
    return tuple(found.values())


def render_stress(stress: Stress, dynamics: Sequence[Dynamics] = (), answers: Sequence[Answer] = ()) -> str:
    """The page of a sweep; either part may be empty."""
    cases = worst.worst_cases(stress)
    shown = answers[:MOST_ANSWERS]
    specs = _curves(stress, cases) | _share_charts(cases)
    fates = shallowest.fates(stress)
    specs |= {f"depth-{number}": shallowest.depth_chart(found) for number, found in enumerate(fates)}
    for number, one in enumerate(dynamics):
        specs |= {f"dynamics-{number}-{name}": spec for name, spec in moved.charts(one).items()}
    return (
        page.environment()
        .get_template("stress.html.j2")
        .render(
            title="What fine-tuning does to the alignment",
            stress=stress,
            headline=stress_headline(cases),
            cases=cases,
            learned=learned(stress),
            paper=paper.beside_stress(stress),
            grids=_grids(cases),
            every=[(question, worst.choices(stress, question)) for question in worst.questions(stress)],
            curve_names=[name for name in specs if name.startswith("curve-")],
            curve_titles=_curve_titles(cases),
            share_titles={_share_name(place): _title(place) for place in _share_places(cases)},
            fates=list(enumerate(fates)),
            depth_sentence=shallowest.sentence(fates) if fates else "",
            depth_name=shallowest.depth_name,
            half_name=shallowest.half_name,
            poisoned=wording.poisoned,
            dynamics=[(number, one, moved.table_rows(one), moved.parts(one)) for number, one in enumerate(dynamics)],
            setting_name=worst.setting_name,
            answers=len(shown),
            answers_left=len(answers) - len(shown),
            **page.inlined(specs, _pack(shown, _cell_names(stress)), ("app.js", "browse.js", "answers.js")),
        )
    )


def stress_headline(cases: Sequence[Worst]) -> str:
    """The strongest case of each objective, greedy before sampled, in one sentence."""
    found: dict[str, Worst] = {}
    for case in cases:
        known = found.get(case.question.objective)
        if case.choice is not None and (known is None or known.choice is None or case.choice.asr > known.choice.asr):
            found[case.question.objective] = case
    if not found:
        return "No fine-tuned model stayed within the bound on utility, so there is no attack to report."
    by_asr = sorted(found.values(), key=lambda case: -case.choice.asr if case.choice else 0.0)
    shown = by_asr if len(by_asr) <= MOST_NAMED else [by_asr[0], *by_asr[1 - MOST_NAMED :]]
    parts = [_case(case) for case in shown]
    return (
        f"Harmful requests that get through at worst, after fine-tuning that leaves a useful model: {'; '.join(parts)}."
    )


def _case(case: Worst) -> str:
    question, choice = case.question, case.choice
    parts = (question.attack, wording.poisoned(question.share), question.asked, wording.drawn(question.temperature))
    how = ", ".join(filter(None, parts))
    if choice is None:
        return f"none under {question.objective} ({how})"
    counts = f"{choice.harmful:,} of {choice.n:,}, 95 % interval {wording.interval_percent(*choice.interval)}"
    return f"{percent(choice.harmful, choice.n)} under {question.objective} ({counts}; {how})"


@dataclass(frozen=True)
class Grid:
    """Worst cases of one model under one way of drawing: a row an objective, a column an attack and a way of asking."""

    model: str
    temperature: float
    columns: tuple[tuple[str, str, float | None], ...]
    rows: tuple[tuple[str, tuple[Worst | None, ...]], ...]


def _grids(cases: Sequence[Worst]) -> list[Grid]:
    grids = []
    for model, temperature in dict.fromkeys((case.question.model, case.question.temperature) for case in cases):
        here = [case for case in cases if (case.question.model, case.question.temperature) == (model, temperature)]
        columns = tuple(
            dict.fromkeys((case.question.attack, case.question.asked, case.question.share) for case in here)
        )
        objectives = tuple(dict.fromkeys(case.question.objective for case in here))
        cells = {(q.objective, q.attack, q.asked, q.share): case for case in here for q in [case.question]}
        rows = tuple((name, tuple(cells.get((name, *column)) for column in columns)) for name in objectives)
        grids.append(Grid(model, temperature, columns, rows))
    return grids


def _curve_titles(cases: Sequence[Worst]) -> dict[str, str]:
    return {_curve_name(place): _title(place) for place in _places(cases)}


class Place(NamedTuple):
    """What one chart is about."""

    model: str
    attack: str
    asked: str
    share: float | None = None

    @property
    def slug(self) -> str:
        parts = (*self[:3], *([] if self.share is None else [f"{self.share:g}"]))
        return "-".join("".join(char if char.isalnum() else "_" for char in part) for part in parts)


def _place(question: Question) -> Place:
    return Place(question.model, question.attack, question.asked, question.share)


def _places(cases: Iterable[Worst]) -> list[Place]:
    return list(dict.fromkeys(_place(case.question) for case in cases))


def _curve_name(place: Place) -> str:
    return f"curve-{place.slug}"


def _title(place: Place) -> str:
    asked = "asked directly" if place.asked == "direct" else f"asked {place.asked}"
    return f"{', '.join(filter(None, (place.attack, wording.poisoned(place.share), asked)))}: {place.model}"


def _curves(stress: Stress, cases: Sequence[Worst]) -> dict[str, object]:
    """ASR against steps at each objective's worst setting: one chart an attack and a way of asking."""
    specs: dict[str, object] = {}
    for place in _places(cases):
        points: list[Point] = []
        for case in cases:
            if _place(case.question) == place:
                points += _curve_points(stress, case)
        steps = [int(str(point["step"])) for point in points]
        if len(set(steps)) < 2:
            continue
        tips = [
            "step:Q",
            "series:N",
            "drawn:N",
            plot.share_tip("share", "ASR"),
            "95 % interval:N",
            "harmful of n:N",
            "setting:N",
            "useful:N",
        ]
        layers = plot.band_line(
            points, x=plot.step_axis(steps), y=plot.share_axis("harmful answers"), tooltip=tips, dash="drawn"
        )
        specs[_curve_name(place)] = plot.spec(layers, height=240)
    return specs


def _curve_points(stress: Stress, case: Worst) -> list[Point]:
    found = worst.choices(stress, case.question)
    tuned = [choice for choice in found if choice.step > 0]
    strongest = case.choice or max(tuned, key=lambda choice: choice.asr, default=None)
    return [
        {
            "step": choice.step,
            "share": choice.asr,
            "low": choice.interval.low,
            "high": choice.interval.high,
            "series": case.question.objective,
            "drawn": wording.drawn(case.question.temperature),
            "95 % interval": wording.interval_percent(*choice.interval),
            "harmful of n": f"{choice.harmful} of {choice.n}",
            "setting": worst.setting_name(choice.parameters),
            "useful": "yes" if choice.useful else "no",
        }
        for choice in found
        if strongest is not None and choice.parameters == strongest.parameters
    ]


def _share_places(cases: Iterable[Worst]) -> list[Place]:
    """Where ASR can be drawn against shares of poison."""
    shares: dict[Place, set[float]] = {}
    for question in (case.question for case in cases):
        if question.share is not None:
            shares.setdefault(Place(*question[:3]), set()).add(question.share)
    return [place for place, found in shares.items() if len(found) > 1]


def _share_name(place: Place) -> str:
    return f"shares-{place.slug}"


def _share_charts(cases: Sequence[Worst]) -> dict[str, object]:
    """The worst case of each objective against the share of harmful rows."""
    specs: dict[str, object] = {}
    for place in _share_places(cases):
        points: list[Point] = [
            {
                "poison": case.question.share,
                "share": case.choice.asr,
                "low": case.choice.interval.low,
                "high": case.choice.interval.high,
                "series": case.question.objective,
                "drawn": wording.drawn(case.question.temperature),
                "95 % interval": wording.interval_percent(*case.choice.interval),
                "harmful of n": f"{case.choice.harmful} of {case.choice.n}",
                "step": case.choice.step,
            }
            for case in cases
            if case.question[:3] == place[:3] and case.choice is not None
        ]
        if points:
            x = alt.X("poison:Q", title="harmful rows", axis=alt.Axis(format=".3~%", grid=False))
            tips = [alt.Tooltip("poison:Q", title="harmful rows", format=".3~%"), "series:N", "drawn:N", "step:Q"]
            tips += [plot.share_tip("share", "ASR"), "95 % interval:N", "harmful of n:N"]
            layers = plot.band_line(points, x=x, y=plot.share_axis("harmful answers"), tooltip=tips, dash="drawn")
            specs[_share_name(place)] = plot.spec(layers, height=240)
    return specs


def _cell_names(stress: Stress) -> dict[str, str]:
    """What each cell of the answers is, in a few words."""
    found = {start_cell(tuned.attack): f"start ({tuned.attack})" for tuned in stress.finetunes}
    for tuned in stress.finetunes:
        setting = wording.setting(tuned.parameters, without=("rows", "batch"))  # the same all over a sweep
        parts = (tuned.attack, wording.poisoned(tuned.share), tuned.objective, setting, f"seed = {tuned.seed}")
        found[tuned.track] = ", ".join(filter(None, parts))
    return found


def _pack(answers: Sequence[Answer], names: Mapping[str, str]) -> Packed:
    return pack_json(
        [
            {
                "model": names.get(answer.cell, answer.cell),
                "step": answer.step,
                "asked": answer.asked,
                "temperature": answer.temperature,
                "behavior": answer.behavior,
                "text": answer.text,
                "verdict": "scored" if answer.label is None else str(answer.label),
                "reason": answer.reason,
                "score": answer.score,
            }
            for answer in answers
        ]
    )
