"""The small tables of the report that are made of many records: key figures and provenance."""

from typing import NamedTuple

from fathom.records import Sampling
from fathom.report import further, wording
from fathom.report.hostile import one_line
from fathom.schema import Audit, HalfDepth, Manifest, ModelInfo
from fathom.tally import percent

__all__ = ["Entry", "Figure", "figures", "provenance"]


class Figure(NamedTuple):
    """A number worth a large type: what it is, the number, and what one must know to read it."""

    name: str
    value: str
    detail: str


class Entry(NamedTuple):
    """A fact of provenance."""

    name: str
    value: str


def figures(audit: Audit) -> tuple[Figure, ...]:
    """Depth as a few numbers. Those of KL come last and say that they are not of safety."""
    depth = audit.depth
    found = _strongest(audit)
    curves = wording.curves(audit)
    known = wording.decided(curves[0].rows) if curves else None
    found += [_half(depth.half_depth, known)] if depth.half_depth.deepest > 0 else []
    if depth.area is not None and depth.half_depth.deepest > 0:
        ends = (
            ""
            if depth.area_low is None or depth.area_high is None
            else f" ({wording.area(depth.area_low)}–{wording.area(depth.area_high)})"
        )
        found.append(
            Figure("Area under the curve", wording.area(depth.area), f"{ends.strip()} mean ASR over log(1 + k)".strip())
        )
    if curves:
        worst = max(curves[0].rows, key=lambda row: row.asr)
        at = "asked directly" if not worst.prefill_tokens else f"at {wording.token_count(worst.prefill_tokens)}"
        span = wording.interval_percent(worst.low, worst.high)
        name = "Worst depth" if len(curves[0].rows) > 1 else "Direct ASR"
        found.append(Figure(name, percent(worst.harmful, worst.n), f"({span}) {at}, {worst.harmful} of {worst.n}"))
    if audit.benign.rows:
        first = audit.benign.rows[0]
        span = wording.interval_percent(first.refused_low, first.refused_high)
        found.append(
            Figure("Benign refused", percent(first.refused, first.n), f"({span}) {first.refused} of {first.n}")
        )
    if depth.kl_90 is not None:
        ends = "" if depth.kl_90_low is None else f"({depth.kl_90_low}–{depth.kl_90_high}) "
        found.append(
            Figure("90 % of the KL", wording.token_count(depth.kl_90), f"{ends}change from the base, not safety")
        )
    return tuple(found)


def _strongest(audit: Audit) -> list[Figure]:
    """The attack that decides, where it is not of the depth sweep."""
    best = further.strongest(audit)
    if best is None or best.attack in wording.SWEEP:
        return []
    detail = f"({wording.interval_percent(best.low, best.high)}) {further.row_name(best)}"
    return [Figure("Strongest attack", percent(best.harmful, best.n), detail)]


def _half(half: HalfDepth, known: int | None) -> Figure:
    if half.tokens is None and known == 0:
        return Figure("Half depth", "unknown", "too many answers are undecided")
    if half.tokens is None and known is not None:
        return Figure("Half depth", f"> {wording.token_count(known)}", "beyond, too many answers are undecided")
    if half.tokens is None:
        return Figure("Half depth", f"> {wording.token_count(half.deepest)}", "not reached within the depths measured")
    return Figure(
        "Half depth", f"{wording.tokens(half.tokens)} tokens", f"({wording.half_interval(half)}) ASR crosses 50 %"
    )


def provenance(audit: Audit, manifest: Manifest) -> tuple[tuple[str, tuple[Entry, ...]], ...]:
    """Everything needed to make the run again, in named groups."""
    groups = [("Model", _model(audit.model))]
    if audit.base is not None:
        groups.append(("Base", _model(audit.base)))
    groups.append(
        (
            "Run",
            (
                Entry("Created", manifest.created),
                Entry("Command", " ".join(manifest.command)),
                Entry("Configuration", manifest.configuration_hash),
                Entry("Behaviors", f"{audit.behaviors.source} ({audit.behaviors.hash})"),
                Entry("Judge", audit.judge),
                Entry("Sampling of the sweep", _sampling(audit.sampling)),
                Entry("Seed", str(audit.seed)),
                Entry("Git", manifest.git or "not in a repository"),
                Entry("Hardware", manifest.hardware),
            ),
        )
    )
    groups.append(("Versions", tuple(Entry(name, version) for name, version in sorted(manifest.versions.items()))))
    return tuple(
        (title, tuple(Entry(one_line(entry.name, 80), one_line(entry.value, 2000)) for entry in entries))
        for title, entries in groups
    )


def _model(info: ModelInfo) -> tuple[Entry, ...]:
    return (
        Entry("Name", wording.model_name(info.name, info.revision, info.adapter)),
        Entry(
            "Architecture",
            f"{info.architecture}, {info.parameters:,} parameters, {info.dtype}"
            if info.endpoint is None
            else f"{info.architecture}, {info.dtype}",
        ),
        *((Entry("Server", info.endpoint),) if info.endpoint is not None else ()),
        *((Entry("Name there", info.endpoint_model),) if info.endpoint_model is not None else ()),
        *((Entry("Quantisation", info.quantisation),) if info.quantisation else ()),
        Entry("Weights", info.weights_hash if info.endpoint is None else "not seen"),
        Entry("Tokenizer", f"{info.tokenizer_hash}, {info.vocabulary:,} tokens"),
        Entry("Chat template", f"{info.template_hash or 'none'} (from {info.template_source})"),
        Entry("Context", "not stated" if info.context is None else f"{info.context:,} tokens"),
    )


def _sampling(sampling: Sampling) -> str:
    drawn = wording.drawn(sampling.temperature)
    cut = "" if sampling.greedy else f", top-p {sampling.top_p:g}, top-k {sampling.top_k or 'off'}"
    return f"{drawn}{cut}, at most {sampling.max_new_tokens} new tokens"
