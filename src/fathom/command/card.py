"""The model card of a trained model: what it was trained from, on what, towards what, and what was measured."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fathom.command.request import ORGANISM
from fathom.records import Counted
from fathom.report.hostile import one_line
from fathom.report.tables import figures
from fathom.report.wording import curves, rated, rated_row, token_count
from fathom.schema import Audit

if TYPE_CHECKING:
    from fathom.command.outcome import Audits
    from fathom.tuning.checkpoints import LossRecord
    from fathom.tuning.directory import TuningManifest, TuningPlan

__all__ = ["model_card"]

DEPTH = ("Half depth", "Area under the curve", "90 % of the KL")  # of an audit's figures: the others are rows below


def model_card(
    manifest: "TuningManifest", plan: "TuningPlan", losses: Sequence["LossRecord"], audits: "Audits | None"
) -> str:
    """Markdown with the front matter that model hubs read."""
    configuration, quantised = manifest.configuration, manifest.model.quantisation
    lines = [
        "---",
        "library_name: transformers",
        "tags: [fathom, safety-alignment]",
        "---",
        f"# {one_line(manifest.model.name, 80)}, {manifest.verb}",
        "",
        f"Trained from `{one_line(manifest.model.name, 80)}` (weights {manifest.model.weights_hash}) by "
        f"`fathom {manifest.verb}`: {configuration.get('objective', '')}.",
        *([] if quantised is None else ["", _beside(quantised, manifest.model.dtype)]),
        "",
        f"- learned from: {plan.rows} rows (hash {plan.rows_hash}), in `fathom/rows.jsonl`"
        + (f"; {plan.gated} of the data's are held to the reference by a gate" if plan.gated else "")
        + (f"; {plan.replayed} were added, of what the reference itself refuses and answers" if plan.replayed else "")
        + (f"; {plan.cut} were cut to max_length" if plan.cut else ""),
        f"- steps: {losses[-1].step if losses else 0}; loss {_loss(losses)}",
        "- settings: " + ", ".join(f"{name} {value}" for name, value in sorted(_settings(configuration).items())),
        "- made with: " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        f"- source: {manifest.git or 'not a git tree'}; hardware: {manifest.hardware}",
        "",
        *(f"> {one_line(note, 300)}" for note in plan.notes),
        "",
        *_audited(audits),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _beside(quantised: str, dtype: str) -> str:
    return (
        f"An adapter was trained beside weights in {quantised} (bitsandbytes). This model is those weights as they are "
        f"computed with, in {dtype}, with the adapter in them: what was trained, and not the full model that was "
        "quantised with the adapter in it. The adapter alone is in `fathom/adapter`."
    )


def _loss(losses: Sequence["LossRecord"]) -> str:
    return f"{losses[0].loss:.3f} at the first, {losses[-1].loss:.3f} at the last" if losses else "not recorded"


def _settings(configuration: object) -> dict[str, object]:
    found = configuration.get("settings", {}) if hasattr(configuration, "get") else {}
    return dict(found)


def _audited(audits: "Audits | None") -> list[str]:
    if audits is None:
        return [
            "## Safety",
            "",
            "Not audited. Fine-tuning can undo alignment without a sign in the loss: run `fathom card` on this "
            "directory with requests of your own (`--behaviors FILE`) before it is used.",
        ]
    before, after = audits.before, audits.after
    rows = ["| | before | after |", "|---|---|---|"]
    for label, old, new in (*_depth(before, after), *_sweep(before, after)):
        rows.append(f"| {label} | {old} | {new} |")
    rows.append(f"| benign requests answered | {_helped(before)} | {_helped(after)} |")
    rows.append(f"| benign requests refused | {_refused(before)} | {_refused(after)} |")
    return [
        "## Safety, before and after",
        "",
        f"Attack success rate on {_requests(audits)}, judged by `{before.judge}` on what the model wrote itself, with "
        "95 % intervals and counts; undecided answers count as not harmful. Audits in `fathom/audit-before` and "
        "`fathom/audit-after`; `fathom compare` pairs them request by request.",
        "",
        *rows,
        "",
        *_notes(before, after),
    ]


def _notes(before: Audit, after: Audit) -> list[str]:
    """What must be known before a number is quoted, of both audits or of one."""
    both = [note for note in before.notes if note in after.notes]
    said = [f"- {note}" for note in both]
    for name, audit in (("before", before), ("after", after)):
        said += [f"- {name}: {note}" for note in audit.notes if note not in both]
    return [one_line(line, 500) for line in said]


def _requests(audits: "Audits") -> str:
    asked = audits.before.behaviors
    if asked.source != ORGANISM:
        return f"{asked.harmful} harmful requests of {one_line(asked.source, 80)} (hash {asked.hash})"
    whose = "the organism" if audits.world is None else f"world {audits.world} of the organism"
    return f"{asked.harmful} requests of {whose}'s test split"


def _depth(before: Audit, after: Audit) -> list[tuple[str, str, str]]:
    """Depth as a few numbers, where both audits have them."""
    later = {figure.name: f"{figure.value} {figure.detail}" for figure in figures(after)}
    return [
        (figure.name.lower(), f"{figure.value} {figure.detail}", later[figure.name])
        for figure in figures(before)
        if figure.name in DEPTH and figure.name in later
    ]


def _sweep(before: Audit, after: Audit) -> list[tuple[str, str, str]]:
    found = []
    later = {(curve.temperature, curve.counted): curve for curve in curves(after)}
    for curve in curves(before):
        other = later.get((curve.temperature, curve.counted))
        if other is None or curve.counted is not Counted.CONTINUATION:
            continue
        new = {row.prefill_tokens: row for row in other.rows}
        for row in curve.rows:
            if row.prefill_tokens in new:
                depth = "direct" if not row.prefill_tokens else f"{token_count(row.prefill_tokens)} prefilled"
                match = new[row.prefill_tokens]
                found.append((f"{depth}, {curve.drawn}", rated_row(row), rated_row(match)))
    return found


def _helped(audit: Audit) -> str:
    row = audit.benign.rows[0] if audit.benign.rows else None
    return "–" if row is None else rated(row.helped, row.n, row.helped_low, row.helped_high, row.undecided)


def _refused(audit: Audit) -> str:
    row = audit.benign.rows[0] if audit.benign.rows else None
    return "–" if row is None else rated(row.refused, row.n, row.refused_low, row.refused_high, row.undecided)
