"""Two runs on one self-contained page: differences first, and every pair of answers to look at."""

from collections.abc import Iterable, Sequence

import altair as alt

from fathom.report import contrast, page, plot, tables
from fathom.report.compare import Comparison, PositionDifference, compare_pairs
from fathom.report.pairing import Pairing
from fathom.report.plot import Point
from fathom.report.samples import Packed, Sample, pack_json, packed_content

__all__ = ["render_comparison"]


def render_comparison(pairing: Pairing, comparison: Comparison | None = None) -> str:
    """The page of two paired runs."""
    found = comparison or compare_pairs(pairing)
    names = tuple(contrast.side_name(side) for side in (found.first, found.second))
    return (
        page.environment()
        .get_template("compare.html.j2")
        .render(
            title=f"{names[0]} and {names[1]} compared",
            comparison=found,
            names=names,
            headline=contrast.headline(found),
            figures=contrast.figures(found),
            strands=contrast.strands(found),
            others=contrast.others(found),
            points=contrast.points,
            signed=contrast.signed,
            span=contrast.span,
            within_chance=contrast.within_chance,
            pair_count=len(pairing.samples),
            provenance=[
                (name, tables.provenance(run.audit, run.manifest))
                for name, run in zip(names, (pairing.first, pairing.second), strict=True)
            ],
            **page.inlined(_charts(found, names), _pack(pairing.samples, names), ("app.js", "browse.js", "pairs.js")),
        )
    )


def _pack(pairs: Sequence[tuple[Sample, Sample]], names: Sequence[str]) -> Packed:
    runs = [packed_content(pair[side] for pair in pairs) for side in (0, 1)]
    return pack_json({"names": list(names), "runs": runs, "pairs": [[i, i] for i in range(len(pairs))]})


def _charts(comparison: Comparison, names: Sequence[str]) -> dict[str, object]:
    specs: dict[str, object] = {}
    strands = contrast.strands(comparison)
    if strands and len(strands[0].rows) > 1:
        specs["asr"] = _asr_chart(strands[0], names)
        specs["difference"] = _difference_chart([strand for strand in strands if strand.counted == "continuation"])
    if comparison.divergence:
        y = alt.Y("value:Q", title="KL in nats", axis=alt.Axis(tickCount=5))
        specs["divergence"] = _position_chart(comparison.divergence, names, y, "position")
    if comparison.recovery:
        specs["recovery"] = _position_chart(
            comparison.recovery, names, plot.share_axis("probability of starting a refusal", "value"), "tokens"
        )
    return specs


def _asr_chart(strand: contrast.Strand, names: Sequence[str]) -> dict[str, object]:
    points: list[Point] = [
        {"tokens": row.prefill_tokens, "share": share, "series": f"{number}: {name}", "pairs": row.asr.behaviors}
        for row in strand.rows
        for number, name, share in ((1, names[0], row.asr.first), (2, names[1], row.asr.second))
    ]
    x = plot.depth_axis([point["tokens"] for point in points])
    tips = ["tokens:Q", "series:N", plot.share_tip("share", "ASR"), "pairs:Q"]
    return plot.spec([plot.rule_across(0.5), *_lines(points, x, plot.share_axis("harmful answers"), tips)])


def _difference_chart(strands: Sequence[contrast.Strand]) -> dict[str, object]:
    """Paired differences of ASR by depth, each with its interval, around zero."""
    points: list[Point] = [
        {
            "tokens": row.prefill_tokens,
            "difference": row.asr.difference,
            "low": row.asr.low,
            "high": row.asr.high,
            "series": strand.drawn,
            "difference in points": contrast.points(row.asr.difference),
            "95 % interval": contrast.span(row.asr),
            "pairs": row.asr.behaviors,
        }
        for strand in strands
        for row in strand.rows
    ]
    x = plot.depth_axis([point["tokens"] for point in points])
    ticks = alt.Axis(labelExpr="datum.value == 0 ? '0' : format(datum.value, '+.0%')", values=[-1, -0.5, 0, 0.5, 1])
    y = alt.Y("difference:Q", title="difference of ASR", scale=alt.Scale(domain=[-1, 1]), axis=ticks)
    tips = ["tokens:Q", "series:N", "difference in points:N", "95 % interval:N", "pairs:Q"]
    return plot.spec([plot.rule_across(0), *plot.band_line(points, x=x, y=y, tooltip=tips)], height=240)


def _position_chart(rows: Sequence[PositionDifference], names: Sequence[str], y: alt.Y, axis: str) -> dict[str, object]:
    points: list[Point] = [
        {axis: row.position, "value": value, "series": f"{number}: {name}", "pairs": row.value.behaviors}
        for row in rows
        for number, name, value in ((1, names[0], row.value.first), (2, names[1], row.value.second))
    ]
    x = (
        plot.position_axis(rows[-1].position)
        if axis == "position"
        else plot.depth_axis([row.position for row in rows], "tokens of the harmful answer given")
    )
    tips = [f"{axis}:Q", "series:N", alt.Tooltip("value:Q", format=".3f"), "pairs:Q"]
    return plot.spec(_lines(points, x, y, tips), height=220)


def _lines(points: Sequence[Point], x: alt.X, y: alt.Y, tips: Iterable[object]) -> list[alt.Chart]:
    base = plot.points_chart(points).encode(x=x, color=plot.colour("series", points))
    return [
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_point(filled=True, size=34, opacity=1).encode(y=y),
        base.mark_point(filled=True, size=420, opacity=0).encode(y=y, tooltip=list(tips)),
    ]
