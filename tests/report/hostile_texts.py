"""Texts that act, hide or do not end, and runs that carry them wherever a text can stand."""

import dataclasses

import msgspec
import synthetic

from fathom.records import Message
from fathom.report.samples import ReportData, Sample
from fathom.schema import SkippedRow

MEGABYTE = "x" * 1_000_000
TEXTS = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "'\"><svg onload=window.hacked=1>",
    "<!-- <script>",
    "{{ 7 * 7 }}{% raw %}",
    "[bold red]not markup[/bold red]",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[2J",
    "\x9b31m C1",
    "left \u202eright\u2066 to\u2069 left",
    "zero\u200bwidth\ufeff",
    "tag\U000e0041\U000e0042",
    "half \ud800 a pair \udfff",
    "null \x00 byte",
    "line\u2028separator\r\nreturn",
    "&lt;b&gt; &amp;",
)


def everywhere(text: str, data: ReportData | None = None) -> ReportData:
    """A small run in which every name, note and answer carries the text."""
    setting = synthetic.Setting(behaviors=4, benign=2, depths=(0, 2), positions=6, temperatures=(0.0,))
    data = data or synthetic.with_attacks(synthetic.report_data(setting))
    audit, manifest = data.audit, data.manifest
    audit = msgspec.structs.replace(
        audit,
        model=msgspec.structs.replace(audit.model, name=text, revision=text, adapter=text, architecture=text),
        base=msgspec.structs.replace(audit.base, name=text),
        judge=text,
        behaviors=msgspec.structs.replace(
            audit.behaviors,
            source=text,
            categories={text: 4},
            skipped=(SkippedRow(source=text, line=1, reason=text),),
        ),
        depth=msgspec.structs.replace(audit.depth, agreement=text),
        attacks=tuple(
            msgspec.structs.replace(row, parameters={**row.parameters, "prefix": text, text: text})
            if row.attack in ("refusal_prefix", "framing")
            else row
            for row in audit.attacks
        ),
        budget=tuple(msgspec.structs.replace(row, parameters={text: text}) for row in audit.budget[:2]),
        divergence=tuple(msgspec.structs.replace(row, variant=text) for row in audit.divergence),
        refusals=(text,),
        openings=tuple(msgspec.structs.replace(row, opening=text) for row in audit.openings),
        notes=(text,),
    )
    manifest = msgspec.structs.replace(
        manifest, command=("fathom", text), versions={text: text}, git=text, hardware=text, judge=text
    )
    return dataclasses.replace(data, audit=audit, manifest=manifest, samples=samples_of(text, data))


def samples_of(text: str, data: ReportData) -> tuple[Sample, ...]:
    samples = []
    for sample in data.samples:
        behavior = msgspec.structs.replace(
            sample.behavior,
            id=f"{sample.behavior.id} {text}",
            category=text,
            messages=(Message(role=text, content=text),),
        )
        attempt = msgspec.structs.replace(sample.attempt, behavior=behavior.id, found={"words": text})
        completion = msgspec.structs.replace(sample.completion, text=text, prefill_text=text)
        verdicts = tuple(msgspec.structs.replace(verdict, reason=text, judge=text) for verdict in sample.verdicts)
        samples.append(
            dataclasses.replace(sample, behavior=behavior, attempt=attempt, completion=completion, verdicts=verdicts)
        )
    return tuple(samples)
