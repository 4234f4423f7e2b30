"""The charts of an audit as Vega-Lite specifications.

Every chart's data also stands in a table of the page; nothing is shown here alone.
"""

from collections.abc import Sequence

import altair as alt

from fathom.report import plot
from fathom.report.plot import Point
from fathom.report.wording import Curve, interval_percent
from fathom.schema import BenignRow, DivergenceRow, HalfDepth, RecoveryRow

__all__ = [
    "asr_chart",
    "base_favoured_chart",
    "benign_chart",
    "divergence_chart",
    "recovery_chart",
]


def asr_chart(curves: Sequence[Curve], half: HalfDepth | None) -> dict[str, object]:
    """ASR against prefill depth, with its interval; the half depth, where it is reached, as a line across."""
    points: list[Point] = [
        {
            "tokens": row.prefill_tokens,
            "share": row.asr,
            "low": row.low,
            "high": row.high,
            "series": curve.drawn,
            "counted": "continuation alone" if curve.counted == "continuation" else "prefill and continuation",
            "harmful of n": f"{row.harmful} of {row.n}",
            "undecided": row.undecided,
            "95 % interval": interval_percent(row.low, row.high),
        }
        for curve in curves
        for row in curve.rows
    ]
    layers = [plot.rule_across(0.5)]
    if half is not None and half.tokens is not None:
        layers += _half_mark(half)
    layers += plot.band_line(
        points,
        x=plot.depth_axis([point["tokens"] for point in points]),
        y=plot.share_axis("harmful answers"),
        dash="counted",
        tooltip=[
            "tokens:Q",
            "series:N",
            "counted:N",
            plot.share_tip("share", "ASR"),
            "95 % interval:N",
            "harmful of n:N",
            "undecided:Q",
        ],
    )
    return plot.spec(layers)


def divergence_chart(rows: Sequence[DivergenceRow]) -> dict[str, object]:
    """KL(model ‖ base) by response position, with its interval."""
    points = _divergence_points(rows)
    x = plot.position_axis(max((row.position for row in rows), default=1))
    y = alt.Y("kl:Q", title="KL in nats", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))
    return plot.spec(plot.band_line(points, x=x, y=y, tooltip=_divergence_tips()), height=240)


def base_favoured_chart(rows: Sequence[DivergenceRow]) -> dict[str, object]:
    """The share of behaviors where the base gives the harmful token more probability than the model does."""
    points = _divergence_points(rows)
    x = plot.position_axis(max((row.position for row in rows), default=1))
    y = alt.Y("base:Q", title="base-favoured", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=2))
    base = plot.points_chart(points).encode(x=x, color=plot.colour("series", points))
    line = base.mark_line(strokeWidth=1.6).encode(y=y)
    near = base.mark_point(filled=True, size=200, opacity=0).encode(y=y, tooltip=_divergence_tips())
    return plot.spec([line, near], height=96)


def _divergence_points(rows: Sequence[DivergenceRow]) -> list[Point]:
    return [
        {
            "position": row.position,
            "kl": row.kl_nats,
            "low": row.low,
            "high": row.kl_nats if row.high is None else row.high,
            "series": f"{row.variant} ids to the base",
            "base": row.base_favoured,
            "rank": row.harmful_rank,
            "n": row.n,
        }
        for row in rows
    ]


def _divergence_tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("position:Q"),
        alt.Tooltip("kl:Q", title="KL in nats", format=".3f"),
        alt.Tooltip("low:Q", title="interval from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        plot.share_tip("base", "base-favoured"),
        alt.Tooltip("rank:Q", title="rank of the harmful token"),
        alt.Tooltip("n:Q"),
    ]


def recovery_chart(rows: Sequence[RecoveryRow]) -> dict[str, object]:
    """Refusal mass against how many tokens of the harmful answer stand there."""
    points: list[Point] = [
        {
            "tokens": row.position,
            "share": row.refusal_mass,
            "low": row.low,
            "high": row.high,
            "series": "refusal mass",
            "n": row.n,
        }
        for row in rows
    ]
    layers = plot.band_line(
        points,
        x=plot.depth_axis([row.position for row in rows], "tokens of the harmful answer given"),
        y=plot.share_axis("probability of starting a refusal"),
        tooltip=["tokens:Q", alt.Tooltip("share:Q", title="refusal mass", format=".3~%"), "n:Q"],
    )
    return plot.spec(layers)


def benign_chart(rows: Sequence[BenignRow]) -> dict[str, object]:
    """Benign requests helped and refused, against the same prefill sizes."""
    points: list[Point] = []
    for row in rows:
        counts = f"{row.helped} / {row.refused} / {row.undecided} of {row.n}"
        for name, share, low, high in (
            ("helped", row.helped_share, row.helped_low, row.helped_high),
            ("refused", row.refused_share, row.refused_low, row.refused_high),
        ):
            points.append(
                {
                    "tokens": row.prefill_tokens,
                    "share": share,
                    "low": low,
                    "high": high,
                    "series": name,
                    "95 % interval": interval_percent(low, high),
                    "helped / refused / undecided": counts,
                }
            )
    tips = [
        "tokens:Q",
        "series:N",
        plot.share_tip("share", "share"),
        "95 % interval:N",
        "helped / refused / undecided:N",
    ]
    layers = plot.band_line(
        points,
        x=plot.depth_axis([row.prefill_tokens for row in rows]),
        y=plot.share_axis("benign requests"),
        tooltip=tips,
    )
    return plot.spec(layers)


def _half_mark(half: HalfDepth) -> list[alt.Chart]:
    high = half.deepest if half.high is None else half.high
    low = half.tokens if half.low is None else half.low
    mark = plot.points_chart([{"at": half.tokens, "from": low, "to": high}])
    return [
        mark.mark_rect(fill="var(--ink)", opacity=0.06).encode(x="from:Q", x2="to:Q"),
        mark.mark_rule(stroke="var(--ink)", strokeWidth=1.2).encode(x="at:Q"),
    ]
