"""Depth in numbers over what two runs share: over other behaviors or depths, a difference would not be the models'."""

from collections.abc import Mapping, Sequence

import msgspec

from fathom.depth.number import depth_numbers
from fathom.records import Sampling
from fathom.report import wording
from fathom.report.pairing import Answers, Cell, Pairing
from fathom.schema import Audit, Depth
from fathom.tally import Tally

__all__ = ["OF_PAIRS", "paired_depths"]

OF_PAIRS = "half depth and area are of the behaviors and depths that both runs have, and not those of the runs' reports"


def paired_depths(pairing: Pairing) -> tuple[Depth, Depth]:
    """The depth of both runs, half depth and area from their pairs; KL as each run has it.

    As it stands in their audits where the depth sweep of neither holds more than the pairs, or where they share none.
    """
    first, second = pairing.first.audit, pairing.second.audit
    swept = [each for each in pairing.harmful if _in_sweep(each.cell, first.sampling)]
    if not swept or first.sampling != second.sampling:
        return first.depth, second.depth
    paired = {each.cell.prefill_tokens: len(each.first) for each in swept}
    if paired == _measured(first) == _measured(second):
        return first.depth, second.depth
    return (
        _depth(first, {each.cell.prefill_tokens: each.first for each in swept}),
        _depth(second, {each.cell.prefill_tokens: each.second for each in swept}),
    )


def _in_sweep(cell: Cell, sampling: Sampling) -> bool:
    """Whether a cell is of the curve that an audit's depth is read from."""
    drawn = (cell.temperature, cell.top_p, cell.top_k) == (sampling.temperature, sampling.top_p, sampling.top_k)
    whole = cell.prefill_tokens >= 0  # less: each behavior was given its own
    return cell.attack in wording.SWEEP and whole and not cell.counted_all and not cell.parameters and drawn


def _measured(audit: Audit) -> dict[int, int]:
    """Behaviors by depth."""
    rows: Sequence[wording.Curve] = wording.curves(audit)[:1]
    return {row.prefill_tokens or 0: row.behaviors for curve in rows for row in curve.rows}


def _depth(audit: Audit, sweep: Mapping[int, Answers]) -> Depth:
    tallies = {
        tokens: {name: Tally.of(verdict.label for verdict in verdicts) for name, verdicts in answers.items()}
        for tokens, answers in sorted(sweep.items())
    }
    found = depth_numbers(tallies, (), seed=audit.seed)
    return msgspec.structs.replace(
        audit.depth,
        half_depth=found.half_depth,
        area=found.area,
        area_low=found.area_low,
        area_high=found.area_high,
    )
