"""The charts as Vega-Lite specifications. Colours are names of the page's CSS variables, so they follow its theme.

Every chart's data also stands in a table of the page; nothing is shown here alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import altair as alt
import vl_convert

from fathom.report.wording import Curve, interval_percent
from fathom.schema import BenignRow, DivergenceRow, HalfDepth, RecoveryRow

__all__ = [
    "asr_chart",
    "base_favoured_chart",
    "benign_chart",
    "difference_chart",
    "divergence_chart",
    "recovery_chart",
    "script",
]

Point = Mapping[str, str | float | int | None]

PALETTE = ("var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)")
HEIGHT = 300
FONT = "system-ui, sans-serif"  # as on the page: text is measured before it is drawn
LOG_BEYOND = 48  # positions; a longer axis is logarithmic, since what matters stands at its start
SHARE_TITLE = "harmful answers"


@cache
def script() -> str:
    """Vega, Vega-Lite and their embedding in one classic script that defines `vegaEmbed` and needs no network."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", alt.SCHEMA_VERSION.rpartition(".")[0])
    return "(()=>{" + bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--") + "})();"


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
    layers = [_half_rule()]
    if half is not None and half.tokens is not None:
        layers += _half_mark(half)
    tooltip = ["tokens:Q", "series:N", "counted:N", _share_tip("share", "ASR"), "95 % interval:N", "harmful of n:N"]
    layers += _band_line(
        points,
        x=_depth_axis([point["tokens"] for point in points]),
        colour="series",
        dash="counted",
        tooltip=[*tooltip, "undecided:Q"],
        y_title=SHARE_TITLE,
    )
    return _spec(alt.layer(*layers))


def divergence_chart(rows: Sequence[DivergenceRow]) -> dict[str, object]:
    """KL(model ‖ base) by response position, with its interval."""
    points = _divergence_points(rows)
    base = _divergence_base(rows, points)
    y = alt.Y("kl:Q", title="KL in nats", scale=alt.Scale(zero=True))
    return _spec(
        alt.layer(
            base.mark_area(opacity=0.16, line=False).encode(y=alt.Y("low:Q", title="KL in nats"), y2="high:Q"),
            base.mark_line(strokeWidth=2).encode(y=y),
            base.mark_point(filled=True, size=22, opacity=1).encode(y=y),
            base.mark_point(filled=True, size=260, opacity=0).encode(y=y, tooltip=_divergence_tips()),
        ).properties(height=240, width="container")
    )


def base_favoured_chart(rows: Sequence[DivergenceRow]) -> dict[str, object]:
    """The share of behaviors where the base gives the harmful token more probability than the model does."""
    points = _divergence_points(rows)
    base = _divergence_base(rows, points)
    y = alt.Y("base:Q", title="base-favoured", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=2))
    return _spec(
        alt.layer(
            base.mark_line(strokeWidth=1.6).encode(y=y),
            base.mark_point(filled=True, size=200, opacity=0).encode(y=y, tooltip=_divergence_tips()),
        ).properties(height=96, width="container")
    )


def _divergence_points(rows: Sequence[DivergenceRow]) -> list[Point]:
    return [
        {
            "position": row.position,
            "kl": row.kl_nats,
            "low": row.low,
            "high": row.kl_nats if row.high is None else row.high,
            "ids": f"{row.variant} ids to the base",
            "base": row.base_favoured,
            "rank": row.harmful_rank,
            "n": row.n,
        }
        for row in rows
    ]


def _divergence_base(rows: Sequence[DivergenceRow], points: Sequence[Point]) -> alt.Chart:
    x = _position_axis(max((row.position for row in rows), default=1))
    return alt.Chart(alt.Data(values=list(points))).encode(x=x, color=_colour("ids", points))


def _divergence_tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("position:Q"),
        alt.Tooltip("kl:Q", title="KL in nats", format=".3f"),
        alt.Tooltip("low:Q", title="interval from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        _share_tip("base", "base-favoured"),
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
    layers = _band_line(
        points,
        x=_depth_axis([row.position for row in rows], title="tokens of the harmful answer given"),
        colour="series",
        dash=None,
        tooltip=["tokens:Q", alt.Tooltip("share:Q", title="refusal mass", format=".3~%"), "n:Q"],
        y_title="probability of starting a refusal",
    )
    return _spec(alt.layer(*layers))


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
    layers = _band_line(
        points,
        x=_depth_axis([row.prefill_tokens for row in rows]),
        colour="series",
        dash=None,
        tooltip=[
            "tokens:Q",
            "series:N",
            _share_tip("share", "share"),
            "95 % interval:N",
            "helped / refused / undecided:N",
        ],
        y_title="benign requests",
    )
    return _spec(alt.layer(*layers))


def difference_chart(points: Sequence[Point], title: str) -> dict[str, object]:
    """Paired differences of ASR by depth, each with its interval, around zero."""
    data = alt.Data(values=list(points))
    x = _depth_axis([point["tokens"] for point in points])
    y = alt.Y("difference:Q", title=title, axis=alt.Axis(format="+.0%"))
    base = alt.Chart(data).encode(x=x, color=_colour("series", points))
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(stroke="var(--axis)").encode(y="zero:Q")
    tooltip = ["tokens:Q", "series:N", alt.Tooltip("difference:Q", format="+.1%"), "95 % interval:N", "pairs:Q"]
    return _spec(
        alt.layer(
            zero,
            base.mark_rule(strokeWidth=2, opacity=0.7).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
            base.mark_point(filled=True, size=60, opacity=1).encode(y=y),
            base.mark_point(filled=True, size=400, opacity=0).encode(y=y, tooltip=tooltip),
        )
    )


def _band_line(
    points: Sequence[Point],
    *,
    x: alt.X,
    colour: str,
    dash: str | None,
    tooltip: Iterable[object],
    y_title: str,
) -> list[alt.Chart]:
    """An interval as a band, its line and points, and unseen larger points that are easy to hover over."""
    y = alt.Y("share:Q", title=y_title, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5))
    base = alt.Chart(alt.Data(values=list(points))).encode(x=x, color=_colour(colour, points))
    if dash is not None and len(_values(dash, points)) > 1:
        base = base.encode(strokeDash=alt.StrokeDash(f"{dash}:N", title=None, scale=_dashes(dash, points)))
    band = base.mark_area(opacity=0.13, line=False).encode(y=alt.Y("low:Q", title=y_title), y2="high:Q")
    if dash is not None:
        band = band.encode(detail=f"{dash}:N")
    dots = base.mark_point(filled=True, size=34, opacity=1).encode(y=y)
    near = base.mark_point(filled=True, size=420, opacity=0).encode(y=y, tooltip=list(tooltip))
    return [band, base.mark_line(strokeWidth=2).encode(y=y), dots, near]


def _half_rule() -> alt.Chart:
    return (
        alt.Chart(alt.Data(values=[{"half": 0.5}]))
        .mark_rule(stroke="var(--axis)", strokeDash=[2, 4], strokeWidth=1)
        .encode(y="half:Q")
    )


def _half_mark(half: HalfDepth) -> list[alt.Chart]:
    high = half.deepest if half.high is None else half.high
    data = alt.Data(values=[{"at": half.tokens, "from": half.tokens if half.low is None else half.low, "to": high}])
    mark = alt.Chart(data)
    return [
        mark.mark_rect(fill="var(--ink)", opacity=0.06).encode(x="from:Q", x2="to:Q"),
        mark.mark_rule(stroke="var(--ink)", strokeWidth=1.2).encode(x="at:Q"),
    ]


def _depth_axis(depths: Iterable[object], title: str = "tokens of the answer given (0 = asked directly)") -> alt.X:
    """log(1 + k), so that the direct request has a place at the left end; few enough ticks to read."""
    found = sorted({int(str(depth)) for depth in depths if depth is not None})
    shown = [depth for depth in (0, 1, 2, 3, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560) if depth <= found[-1]]
    scale = alt.Scale(type="symlog", constant=1, domain=[0, max(found[-1], 1)], nice=False)
    return alt.X("tokens:Q", title=title, scale=scale, axis=alt.Axis(values=shown, grid=False))


def _position_axis(last: int) -> alt.X:
    title = "response position t (1 = first token of the answer)"
    if last > LOG_BEYOND:
        shown = [position for position in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if position <= last]
        scale = alt.Scale(type="log", domain=[1, last], nice=False)
        return alt.X("position:Q", title=title, scale=scale, axis=alt.Axis(values=shown, grid=False))
    scale = alt.Scale(domain=[1, max(last, 2)], nice=False)
    return alt.X("position:Q", title=title, scale=scale, axis=alt.Axis(grid=False, tickMinStep=1))


def _values(field: str, points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(str(point[field]) for point in points))


def _colour(field: str, points: Sequence[Point]) -> alt.Color:
    names = _values(field, points)
    scale = alt.Scale(domain=names, range=[PALETTE[i % len(PALETTE)] for i in range(len(names))])
    legend = alt.Legend(title=None) if len(names) > 1 else None
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=legend)


def _dashes(field: str, points: Sequence[Point]) -> alt.Scale:
    return alt.Scale(domain=_values(field, points), range=[[1, 0], [5, 4], [2, 3]])


def _share_tip(field: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=".1~%")


def _spec(chart: alt.LayerChart) -> dict[str, object]:
    if chart.height is alt.Undefined:
        chart = chart.properties(height=HEIGHT, width="container")
    spec: dict[str, object] = chart.configure(**_config()).to_dict()
    return spec


def _config() -> dict[str, object]:
    """Quiet axes in the page's own font and colours."""
    text = {"labelColor": "var(--muted)", "titleColor": "var(--muted)", "labelFont": FONT, "titleFont": FONT}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": "transparent"},
        "axis": {
            **text,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 12,
            "labelPadding": 6,
            "domainColor": "var(--axis)",
            "tickColor": "var(--axis)",
            "gridColor": "var(--line)",
        },
        "axisY": {"domain": False, "ticks": False},
        "legend": {
            **text,
            "orient": "top",
            "labelFontSize": 12.5,
            "labelColor": "var(--ink)",
            "labelLimit": 400,
            "symbolType": "stroke",
            "symbolStrokeWidth": 2.5,
            "padding": 0,
            "offset": 14,
            "columns": 2,
        },
    }
