"""The sentences and the forms of numbers of a comparison, for its page and for the terminal."""

from collections.abc import Sequence
from typing import NamedTuple

from fathom.records import Counted
from fathom.report import wording
from fathom.report.compare import AttackDifference, BenignDifference, Comparison, Difference, Side
from fathom.report.tables import Figure
from fathom.schema import HalfDepth

__all__ = [
    "Strand",
    "figures",
    "headline",
    "others",
    "points",
    "side_name",
    "signed",
    "span",
    "strands",
    "within_chance",
]


class Strand(NamedTuple):
    """The depth sweep under one way of drawing and of counting; rows in order of depth."""

    temperature: float
    counted: Counted
    rows: tuple[AttackDifference, ...]

    @property
    def drawn(self) -> str:
        return wording.drawn(self.temperature)


def strands(comparison: Comparison) -> tuple[Strand, ...]:
    """The sweep, one strand a temperature and a way of counting: continuation before all, greedy first.

    Where nothing is given at any depth, the whole answer is the continuation, and is counted once.
    """
    found: dict[tuple[bool, float], list[AttackDifference]] = {}
    for row in comparison.attacks:
        if _in_sweep(row):
            found.setdefault((row.counted is Counted.ALL, row.temperature), []).append(row)
    return tuple(
        Strand(key[1], rows[0].counted, tuple(sorted(rows, key=lambda row: row.prefill_tokens or 0)))
        for key, rows in sorted(found.items())
        if rows[0].counted is Counted.CONTINUATION or any(row.prefill_tokens for row in rows)
    )


def others(comparison: Comparison) -> tuple[AttackDifference, ...]:
    """Attacks that are not of the depth sweep, on the continuation alone."""
    return tuple(row for row in comparison.attacks if not _in_sweep(row) and row.counted is Counted.CONTINUATION)


def _in_sweep(row: AttackDifference) -> bool:
    return row.attack in wording.SWEEP and not row.parameters and row.prefill_tokens is not None


def side_name(side: Side) -> str:
    """A run's model, with the revision and the adapter that tell it from its like, and whether a server ran it."""
    name = wording.model_name(side.model.name, side.model.revision, side.model.adapter)
    return name if side.model.endpoint is None else f"{name} (on a server)"


def headline(comparison: Comparison) -> str:
    """What changed from the first model to the second where the first fares worst, in one sentence."""
    row = _decisive(comparison)
    if row is None:
        return "The two runs share no attack to compare."
    first, second = (side_name(side) for side in (comparison.first, comparison.second))
    where = f"{wording.token_count(row.prefill_tokens)} given" if row.prefill_tokens else "asked directly"
    if not _in_sweep(row):
        where = ", ".join(part for part in (wording.attack_name(row.attack), wording.setting(row.parameters)) if part)
    verdict = "no difference beyond chance" if within_chance(row.asr) else f"{points(row.asr.difference)} points"
    return (
        f"{_change(row.asr)} harmful answers from {first} to {second}, where the first fares worst ({where}): "
        f"{verdict} (95 % interval {span(row.asr)})."
    )


def _decisive(comparison: Comparison) -> AttackDifference | None:
    """The depth at which the first run is attacked best; of equals, the shallowest."""
    found = strands(comparison)
    rows: Sequence[AttackDifference] = found[0].rows if found else others(comparison)
    return max(rows, key=lambda row: (row.asr.first, -(row.prefill_tokens or 0)), default=None)


def figures(comparison: Comparison) -> tuple[Figure, ...]:
    """Depth, the direct request and the control, before and after."""
    first, second = comparison.first.depth, comparison.second.depth
    shown, deepest = [], (first.half_depth.deepest, second.half_depth.deepest)
    if min(deepest) > 0:
        shown.append(
            Figure("Half depth", f"{_half(first.half_depth)} → {_half(second.half_depth)}", "tokens at ASR 50 %")
        )
    if first.area is not None and second.area is not None and deepest[0] == deepest[1] > 0:
        shown.append(
            Figure(
                "Area under the curve",
                f"{wording.area(first.area)} → {wording.area(second.area)}",
                "mean ASR over log(1 + k)",
            )
        )
    found = strands(comparison)
    direct = next((row for row in found[0].rows if row.prefill_tokens == 0), None) if found else None
    if direct is not None:
        shown.append(Figure("Asked directly", _change(direct.asr), f"harmful, {points(direct.asr.difference)} points"))
    plain: BenignDifference | None = next((row for row in comparison.benign if row.prefill_tokens == 0), None)
    if plain is not None:
        shown.append(Figure("Benign helped", _change(plain.helped), f"{span(plain.helped)} points"))
        shown.append(Figure("Benign refused", _change(plain.refused), f"{span(plain.refused)} points"))
    return tuple(shown)


def _half(half: HalfDepth) -> str:
    return f"> {half.deepest}" if half.tokens is None else wording.tokens(half.tokens)


def _change(difference: Difference) -> str:
    return f"{wording.share_percent(difference.first)} → {wording.share_percent(difference.second)} %"


def within_chance(difference: Difference) -> bool:
    """The interval holds zero, or has no ends."""
    return difference.low is None or difference.high is None or difference.low <= 0 <= difference.high


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed; 0 and 100 only where it is.

    >>> points(0.0), points(0.123), points(-1.0), points(-0.0001), points(0.9999)
    ('0', '+12.3', '−100', '> −0.1', '> +99.9')
    """
    if difference == 0:
        return "0"
    shown = f"{100 * abs(difference):.1f}"
    if shown == "0.0":
        return "< +0.1" if difference > 0 else "> −0.1"
    if shown == "100.0" and abs(difference) < 1:
        return "> +99.9" if difference > 0 else "< −99.9"
    return ("+" if difference > 0 else "−") + shown.removesuffix(".0")


def signed(value: float) -> str:
    """A difference in its own unit, to three decimals, signed; 0 only where it is.

    >>> signed(0.0), signed(1.25), signed(-0.0001)
    ('0', '+1.250', '> −0.001')
    """
    if value == 0:
        return "0"
    if abs(value) < 0.0005:
        return "< +0.001" if value > 0 else "> −0.001"
    return f"{'+' if value > 0 else '−'}{abs(value):.3f}"


def span(difference: Difference) -> str:
    """The interval of a difference of shares, in points."""
    if difference.low is None or difference.high is None:
        return "open"
    return f"{points(difference.low)} to {points(difference.high)}"
