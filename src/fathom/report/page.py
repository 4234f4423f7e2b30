"""One run as one self-contained page that needs no network and trusts no text in it."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from fathom.journal import write_whole
from fathom.records import Counted, Subject
from fathom.report import attack_charts, charts, further, paper, plot, tables, wording
from fathom.report.hostile import HIDDEN_RANGES, one_line, passage
from fathom.report.samples import Packed, ReportData, gather, pack, script_json
from fathom.run import Run
from fathom.tally import percent

__all__ = ["environment", "inlined", "page", "render", "write_report"]


def render(run: Run, *, judge: str | None = None) -> str:
    """A run's report as HTML, under its own judge or under another that has judged it since.

    Raises:
        UserError: the run is not finished, or was not judged by `judge`.
    """
    return page(gather(run, judge))


def write_report(path: Path, html: str) -> Path:
    """Put a page where it belongs, wholly or not at all, and say where."""
    write_whole(path, html.encode("utf-8", errors="backslashreplace"))
    return path


def page(data: ReportData) -> str:
    """The report as HTML, from data alone."""
    audit = data.audit
    packed = pack(data.samples)
    first, second = further.sentences(audit)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=f"{wording.model_name(audit.model.name)}: how deep is its alignment?",
            audit=audit,
            manifest=data.manifest,
            headline=first,
            second=second,
            curves=wording.curves(audit),
            prefixes=wording.refusal_prefixes(audit),
            families=further.families(audit, data.times),
            figures=tables.figures(audit),
            paper=paper.beside_audit(audit),
            provenance=tables.provenance(audit, data.manifest),
            sample_count=len(data.samples),
            **inlined(_charts(data), packed, ("app.js", "browse.js", "samples.js")),
        )
    )


def inlined(specs: Mapping[str, object], packed: Packed, scripts: tuple[str, ...]) -> dict[str, object]:
    """Everything a page's template inlines, and the policy that lets run only the scripts made here."""
    sources = [plot.script(), "\n".join(_asset(name) for name in scripts)]
    hashes = " ".join(f"'sha256-{_sha256(source)}'" for source in sources)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return {
        "policy": policy,
        "scripts": [Markup(source) for source in sources],
        "style": Markup(_asset("style.css")),
        "specs": Markup(script_json(specs)),
        "hidden_ranges": Markup(script_json(HIDDEN_RANGES)),
        "packed": Packed(packed.encoding, Markup(packed.text)),
    }


@cache
def environment() -> jinja2.Environment:
    """Templates that escape everything, refuse undefined names, and mark hidden characters where `shown` is asked."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("fathom.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "shown": passage,
        "line": one_line,
        "unbroken": wording.unbroken,
        "tokens": wording.tokens,
        "token_count": wording.token_count,
        "attack_name": wording.attack_name,
        "setting": wording.setting,
        "drawn": wording.drawn,
        "drawing": wording.drawing,
        "amount": wording.amount,
        "row_name": further.row_name,
        "traces": further.traces,
        "spent": further.spent,
        "budget_name": attack_charts.budget_name,
    }
    made.globals |= {
        "percent": percent,
        "interval": wording.interval_percent,
        "share": wording.share_percent,
        "Counted": Counted,
        "Subject": Subject,
        "model_name": wording.model_name,
    }
    return made


def _charts(data: ReportData) -> dict[str, object]:
    audit = data.audit
    specs: dict[str, object] = {}
    curves = wording.curves(audit)
    if curves and len(curves[0].rows) > 1:
        specs["asr"] = charts.asr_chart(curves, audit.depth.half_depth)
    if audit.divergence:
        specs["divergence"] = charts.divergence_chart(audit.divergence)
        specs["base_favoured"] = charts.base_favoured_chart(audit.divergence)
    if audit.recovery:
        specs["recovery"] = charts.recovery_chart(audit.recovery)
    if len(audit.benign.rows) > 1:
        specs["benign"] = charts.benign_chart(audit.benign.rows)
    families = further.families(audit, data.times)
    if families:
        specs["overview"] = attack_charts.overview(audit, families)
    for number, family in enumerate(families):
        for parameter, found in further.traces(family).items():
            specs[f"trace-{number}-{parameter}"] = attack_charts.traces(parameter, found)
    if audit.budget:
        specs["budget"] = attack_charts.budget(audit.budget)
    return specs


def _asset(name: str) -> str:
    return files("fathom.report").joinpath("templates", name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
