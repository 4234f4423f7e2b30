"""Charts of further attacks: the strongest setting of each, how ASR moves with a setting, and ASR against budget."""

from collections.abc import Sequence

import altair as alt

from fathom.report import further, plot, wording
from fathom.report.further import Family, Trace
from fathom.report.plot import Point
from fathom.schema import AttackRow, Audit, BudgetRow

__all__ = ["budget", "budget_name", "overview", "traces"]

ROW_HEIGHT = 30
MOST_TICKS = 12


def overview(audit: Audit, families: Sequence[Family]) -> dict[str, object]:
    """The strongest setting of each attack and of the depth sweep, with its interval; the strongest on top."""
    rows = [family.best for family in families]
    curves = wording.curves(audit)
    if curves:
        sweep = curves[0].rows
        rows += [row for row in sweep if row.prefill_tokens == 0]
        deeper = [row for row in sweep if row.prefill_tokens]
        rows += [max(deeper, key=lambda row: row.asr)] if deeper else []
    points: list[Point] = [
        {
            "attack": _short(row),
            "setting": further.row_name(row),
            "share": row.asr,
            "low": row.low,
            "high": row.high,
            "95 % interval": wording.interval_percent(row.low, row.high),
            "harmful of n": f"{row.harmful} of {row.n}",
        }
        for row in sorted(rows, key=lambda row: -row.asr)
    ]
    y = alt.Y("attack:N", title=None, sort=None, axis=alt.Axis(labelLimit=300, ticks=False, domain=False))
    axis = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])
    x = alt.X("share:Q", title="harmful answers", scale=alt.Scale(domain=[0, 1]), axis=axis)
    ends = x.copy()
    ends["shorthand"] = "low:Q"
    base = plot.points_chart(points).encode(y=y)
    tips = ["setting:N", plot.share_tip("share", "ASR"), "95 % interval:N", "harmful of n:N"]
    layers = [
        base.mark_rule(stroke="var(--harm)", strokeWidth=2, opacity=0.45).encode(x=ends, x2="high:Q"),
        base.mark_point(filled=True, size=80, opacity=1, fill="var(--harm)").encode(x=x),
        base.mark_point(filled=True, size=600, opacity=0).encode(x=x, tooltip=tips),
    ]
    return plot.spec(layers, height=ROW_HEIGHT * len({point["attack"] for point in points}))


def _short(row: AttackRow) -> str:
    if row.attack in wording.SWEEP:
        return "direct" if not row.prefill_tokens else f"prefill, {wording.token_count(row.prefill_tokens)}"
    name = wording.attack_name(row.attack)
    return name if row.worst_of is None else f"{name}, worst of {row.worst_of}"


def traces(parameter: str, found: Sequence[Trace]) -> dict[str, object]:
    """ASR against one setting of an attack."""
    points: list[Point] = [
        {
            "at": trace.at(row),
            "share": row.asr,
            "low": row.low,
            "high": row.high,
            "series": trace.name or "all",
            "95 % interval": wording.interval_percent(row.low, row.high),
            "harmful of n": f"{row.harmful} of {row.n}",
        }
        for trace in found
        for row in trace.rows
    ]
    values = [float(str(point["at"])) for point in points]
    wide = min(values) >= 0 and max(values) > plot.LOG_BEYOND
    scale = alt.Scale(type="symlog", constant=1, nice=False) if wide else alt.Scale(nice=False, zero=False)
    ticks = sorted(set(values)) if len(set(values)) <= MOST_TICKS else None
    axis = alt.Axis(grid=False, labelOverlap=True, **({"values": ticks} if ticks else {"tickCount": 8}))
    x = alt.X("at:Q", title=parameter.replace("_", " "), scale=scale, axis=axis)
    tips = [
        alt.Tooltip("at:Q", title=parameter.replace("_", " ")),
        "series:N",
        plot.share_tip("share", "ASR"),
        "95 % interval:N",
        "harmful of n:N",
    ]
    layers = plot.band_line(points, x=x, y=plot.share_axis("harmful answers"), tooltip=tips)
    return plot.spec(layers, height=220)


def budget(rows: Sequence[BudgetRow]) -> dict[str, object]:
    """ASR against forward tokens for each behavior, on a logarithmic axis."""
    points: list[Point] = [
        {
            "tokens": row.forward_tokens,
            "queries": row.queries,
            "share": row.asr,
            "low": row.low,
            "high": row.high,
            "series": budget_name(row),
            "95 % interval": wording.interval_percent(row.low, row.high),
            "behaviors": row.n,
        }
        for row in rows
    ]
    x = alt.X(
        "tokens:Q",
        title="forward tokens for each behavior, at most",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(grid=False, tickCount=6, format="~s"),
    )
    tips = [
        alt.Tooltip("tokens:Q", title="forward tokens", format=","),
        alt.Tooltip("queries:Q", format=","),
        "series:N",
        plot.share_tip("share", "ASR"),
        "95 % interval:N",
        "behaviors:Q",
    ]
    return plot.spec(plot.band_line(points, x=x, y=plot.share_axis("harmful answers"), tooltip=tips))


def budget_name(row: BudgetRow) -> str:
    """What a curve of ASR against budget is of."""
    parts = [wording.setting(row.parameters, further.DRAWING), wording.drawing(row.parameters)]
    return ", ".join([wording.attack_name(row.attack), *(part for part in parts if part)])
