"""How things moved at each response position while a model was fine-tuned: the charts and the table of `dynamics`."""

from collections.abc import Mapping, Sequence

import altair as alt

from fathom.report import plot
from fathom.report.plot import Point
from fathom.tampering import Dynamics, DynamicsRow

__all__ = ["charts", "parts", "table_rows"]

REACHED = 0.25  # of the measured rows: positions that fewer reach are not drawn, for a mean of few rows is noise
MOST_STEPS = 9  # curves in a chart of dynamics
PARTS = {
    "cross_entropy": "Cross-entropy, nats",
    "gradient_norm": "Gradient norm",
    "kl_nats": "KL to the start, nats",
}


def parts(moved: Dynamics) -> Mapping[str, str]:
    """What is drawn, and what it is called: an adapter's gradient norm is not the model's."""
    return PARTS | ({"gradient_norm": "Gradient norm of the adapter"} if "lora_rank" in moved.parameters else {})


def _value(row: DynamicsRow, part: str) -> float | None:
    values = {"cross_entropy": row.cross_entropy, "gradient_norm": row.gradient_norm, "kl_nats": row.kl_nats}
    return values[part]


def charts(moved: Dynamics) -> dict[str, object]:
    """By response position, one curve a step, darker as fine-tuning proceeds."""
    steps = _few(sorted({row.step for row in moved.rows}))
    fewest = REACHED * max((row.n for row in moved.rows), default=0)
    drawn = [row for row in moved.rows if row.step in steps and row.n >= fewest]
    specs: dict[str, object] = {}
    for part, title in parts(moved).items():
        points: list[Point] = [
            {"position": row.position, "value": value, "step": f"step {row.step}", "order": row.step, "n": row.n}
            for row in drawn
            if (value := _value(row, part)) is not None
        ]
        if not points:
            continue
        names = [f"step {step}" for step in steps]
        shades = [
            f"color-mix(in srgb, var(--accent) {_shade(i, len(steps))}%, var(--paper))" for i in range(len(steps))
        ]
        colour = alt.Color(
            "step:N",
            title=None,
            scale=alt.Scale(domain=names, range=shades),
            legend=alt.Legend(title=None, columns=4),  # as many as a telephone has room for
        )
        x = plot.position_axis(max(row.position for row in drawn))
        y = alt.Y("value:Q", title=title, axis=alt.Axis(tickCount=5), scale=alt.Scale(zero=True))
        tips = ["position:Q", "step:N", alt.Tooltip("value:Q", title=title, format=".3f"), "n:Q"]
        base = plot.points_chart(points).encode(x=x, y=y, color=colour)
        layers = [
            base.mark_line(strokeWidth=2),
            base.mark_point(filled=True, size=300, opacity=0).encode(tooltip=tips),
        ]
        specs[part] = plot.spec(layers, height=220)
    return specs


def _shade(place: int, of: int) -> int:
    """Per cent of the accent colour; the first curve can still be seen."""
    return 100 if of == 1 else round(30 + 70 * place / (of - 1))


def _few(steps: Sequence[int]) -> list[int]:
    """The first, the last, and evenly spread ones between."""
    if len(steps) <= MOST_STEPS:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (MOST_STEPS - 1))] for i in range(MOST_STEPS)]


def table_rows(moved: Dynamics) -> list[DynamicsRow]:
    return sorted(moved.rows, key=lambda row: (row.step, row.position))
