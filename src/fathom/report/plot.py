"""What all charts are made of: quiet axes, intervals as bands, points that are easy to hover over.

Colours are names of the page's CSS variables, so that charts follow its theme.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import altair as alt
import vl_convert

__all__ = [
    "Point",
    "band_line",
    "colour",
    "depth_axis",
    "points_chart",
    "position_axis",
    "rule_across",
    "script",
    "share_axis",
    "share_tip",
    "spec",
    "step_axis",
    "values_of",
]

Point = Mapping[str, str | float | int | None]

PALETTE = tuple(f"var(--series-{i})" for i in range(1, 7))
DASHES = [[1, 0], [5, 4], [2, 3], [8, 3, 2, 3]]
HEIGHT = 300
FONT = "system-ui, sans-serif"  # as on the page: text is measured before it is drawn
LOG_BEYOND = 48  # positions; a longer axis is logarithmic, since what matters stands at its start
DOUBLINGS = (0, 1, 2, 3, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240)
CLOSE = 1.28  # ticks nearer than this factor to the last one are left out


@cache
def script() -> str:
    """Vega, Vega-Lite and their embedding in one classic script that defines `vegaEmbed` and needs no network."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", alt.SCHEMA_VERSION.rpartition(".")[0])
    return "(()=>{" + bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--") + "})();"


def spec(layers: Sequence[alt.Chart], *, height: int = HEIGHT) -> dict[str, object]:
    """Layers as one specification, as wide as the page. A test holds it to the schema, so a report need not."""
    made: dict[str, object] = alt.layer(*layers).to_dict(validate=False)
    return made | {"config": _config(), "width": "container", "height": height}


def points_chart(points: Sequence[Point]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[dict(point) for point in points]))


def band_line(
    points: Sequence[Point],
    *,
    x: alt.X,
    y: alt.Y,
    tooltip: Iterable[object],
    dash: str | None = None,
) -> list[alt.Chart]:
    """An interval (`low`, `high`) of each `series` as a band, its line and points, and larger ones to hover over.

    A series of one point is drawn as a point with a rule for its interval: a band has no width there.
    """
    base = points_chart(points).encode(x=x, color=colour("series", points))
    line = base.mark_line(strokeWidth=2).encode(y=y)
    ends = y.copy()
    ends["shorthand"] = "low:Q"
    band = base.mark_area(opacity=0.13, line=False).encode(y=ends, y2="high:Q")
    if dash is not None:
        band = band.encode(detail=f"{dash}:N")
        if len(values_of(dash, points)) > 1:
            line = line.encode(strokeDash=alt.StrokeDash(f"{dash}:N", title=None, scale=_dashes(dash, points)))
    elif len(names := values_of("series", points)) > len(PALETTE):
        line = line.encode(strokeDash=alt.StrokeDash("series:N", title=None, scale=_rounds(names)))
    layers = [band]
    if _lonely(points, dash):
        layers.append(base.mark_rule(strokeWidth=1.6, opacity=0.5).encode(y=ends, y2="high:Q"))
    dots = base.mark_point(filled=True, size=34, opacity=1).encode(y=y)
    near = base.mark_point(filled=True, size=420, opacity=0).encode(y=y, tooltip=list(tooltip))
    return [*layers, line, dots, near]


def rule_across(value: float) -> alt.Chart:
    """A dotted line at one height."""
    mark = points_chart([{"across": value}]).mark_rule(stroke="var(--axis)", strokeDash=[2, 4], strokeWidth=1)
    return mark.encode(y="across:Q")  # type: ignore[no-any-return]


def depth_axis(depths: Iterable[object], title: str = "tokens of the answer given (0 = asked directly)") -> alt.X:
    """log(1 + k), so that the direct request has a place at the left end; few enough ticks to read."""
    last = max((int(str(depth)) for depth in depths if depth is not None), default=1)
    shown = [*(depth for depth in DOUBLINGS if depth * CLOSE < last), last]
    return _from_zero("tokens", title, last, shown)


def step_axis(steps: Iterable[int]) -> alt.X:
    """log(1 + steps): 0 is the model before fine-tuning."""
    last = max(steps, default=1)
    shown = [0, *(2**i for i in range(20) if 2**i <= last)]
    return _from_zero("step", "optimizer steps", last, shown)


def position_axis(last: int) -> alt.X:
    """From the first response token on; logarithmic where the answers are long."""
    if last > LOG_BEYOND:
        shown = [place for place in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if place <= last]
        scale, axis = (
            alt.Scale(type="log", domain=[1, last], nice=False),
            alt.Axis(values=shown, grid=False, format="d"),
        )
    else:
        scale, axis = alt.Scale(domain=[1, max(last, 2)], nice=False), alt.Axis(grid=False, tickMinStep=1, format="d")
    return alt.X("position:Q", title="response position", scale=scale, axis=axis)


def _from_zero(field: str, title: str, last: int, shown: Sequence[int]) -> alt.X:
    scale = alt.Scale(type="symlog", constant=1, domain=[0, max(last, 1)], nice=False)
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(values=shown, grid=False, format="d"))


def share_axis(title: str, field: str = "share") -> alt.Y:
    """0 to 100 %, whatever the data: the same height always means the same share."""
    return alt.Y(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1]),
    )


def colour(field: str, points: Sequence[Point]) -> alt.Color:
    names = values_of(field, points)
    scale = alt.Scale(domain=names, range=[PALETTE[i % len(PALETTE)] for i in range(len(names))])
    legend = alt.Legend(title=None) if len(names) > 1 else None
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=legend)


def values_of(field: str, points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(str(point[field]) for point in points))


def share_tip(field: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=".1~%")


def _lonely(points: Sequence[Point], dash: str | None) -> bool:
    keys = [(point["series"], point[dash] if dash else None) for point in points]
    return any(keys.count(key) == 1 for key in set(keys))


def _dashes(field: str, points: Sequence[Point]) -> alt.Scale:
    return alt.Scale(domain=values_of(field, points), range=DASHES)


def _rounds(names: Sequence[str]) -> alt.Scale:
    """Another dash each time that the colours begin anew: no two of so many series look the same."""
    dashes = [DASHES[(i // len(PALETTE)) % len(DASHES)] for i in range(len(names))]
    return alt.Scale(domain=list(names), range=dashes)


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
            "symbolOpacity": 1,
            "symbolStrokeColor": "var(--muted)",
            "padding": 0,
            "offset": 14,
            "columns": 2,
        },
    }
