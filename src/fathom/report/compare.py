"""Two runs compared: differences of ASR, help, KL and refusal mass, paired by behavior, each with its interval.

Every difference is second − first, of means over the behaviors that both runs have in that place. Its interval is a
bootstrap over those behaviors: each draw takes whole pairs, so what is hard or easy for both models cancels.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fathom.depth.divergence import BehaviorDivergence
from fathom.depth.recovery import BehaviorRecovery
from fathom.records import Counted, Label, Parameter, Verdict, content_hash
from fathom.report.paired_depth import OF_PAIRS, paired_depths
from fathom.report.pairing import Answers, PairedCell, Pairing, pair_runs
from fathom.run import Run
from fathom.schema import Depth, ModelInfo
from fathom.tally import Interval, spanned

__all__ = [
    "AttackDifference",
    "BenignDifference",
    "Comparison",
    "Difference",
    "Pair",
    "PositionDifference",
    "Side",
    "compare",
    "compare_pairs",
    "paired_difference",
]

SCHEMA = 1
DRAWS = 1000


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mean in both runs and their paired difference, second − first, with its 95 % interval."""

    first: float
    second: float
    difference: float
    low: float | None  # null where one pair tells nothing of a spread
    high: float | None
    behaviors: int  # pairs
    rose: int  # behaviors of which the second run's value is higher
    fell: int


class AttackDifference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """ASR of one attack at one setting in both runs."""

    attack: str
    parameters: Mapping[str, Parameter]
    prefill_tokens: int | None  # null where each behavior has its own
    temperature: float
    counted: Counted
    asr: Difference


class BenignDifference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The control in both runs: benign behaviors helped, refused, and answered right in full where that is judged."""

    attack: str
    parameters: Mapping[str, Parameter]
    prefill_tokens: int | None
    temperature: float
    helped: Difference
    refused: Difference
    exact: Difference | None


class PositionDifference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """KL in nats at a response position, or refusal mass after so many tokens, in both runs."""

    position: int
    value: Difference


class Side(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of the two runs."""

    model: ModelInfo
    base: ModelInfo | None
    configuration_hash: str
    depth: Depth  # half depth and area over the pairs; KL of the run


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `fathom compare --json` prints."""

    schema: int = SCHEMA
    first: Side
    second: Side
    judge: str
    behaviors: int  # harmful behaviors paired
    benign_behaviors: int
    attacks: tuple[AttackDifference, ...]
    benign: tuple[BenignDifference, ...]
    divergence: tuple[PositionDifference, ...]  # empty where a run has no base, or the bases differ
    recovery: tuple[PositionDifference, ...]
    notes: tuple[str, ...]


def compare(first: Run, second: Run) -> Comparison:
    """Compare two finished runs over what they share.

    Raises:
        UserError: the runs cannot be paired; says why.
    """
    return compare_pairs(pair_runs(first, second))


def compare_pairs(pairing: Pairing) -> Comparison:
    """The comparison of runs that are paired already."""
    first, second = pairing.first, pairing.second
    harmful = {name for paired in pairing.harmful for name in paired.first}
    depths = paired_depths(pairing)
    of_pairs = () if depths == (first.audit.depth, second.audit.depth) else (OF_PAIRS,)
    return Comparison(
        first=_side(first, depths[0]),
        second=_side(second, depths[1]),
        judge=pairing.judge,
        behaviors=len(harmful),
        benign_behaviors=len({name for paired in pairing.benign for name in paired.first}),
        attacks=tuple(_attack(paired) for paired in pairing.harmful),
        benign=tuple(_benign(paired) for paired in pairing.benign if not paired.cell.counted_all),
        divergence=tuple(_divergence(first, second, harmful)),
        recovery=tuple(_recovery(first, second, harmful)),
        notes=(*pairing.notes, *of_pairs),
    )


class Pair(NamedTuple):
    """A behavior's value in both runs."""

    first: float
    second: float


def paired_difference(pairs: Sequence[Pair], *, seed: int, shares: bool) -> Difference:
    """Mean difference over pairs, with a bootstrap interval over them.

    Where few pairs differ, a bootstrap knows too little spread: for `shares` of verdicts the interval also holds that
    among two made-up pairs more, one of which rose by 1 and one of which fell by 1 (after Agresti and Min, 2005).
    Where every pair differs by the same c, it knows none. For `shares` the interval is then
    the exact one: n pairs without an exception allow exceptions a probability u of up to 1 − 0.025^(1/n), and each
    could lie anywhere in [−1, 1], so it is (1 − u)·c ± u. For measures that are not counts it is c itself, and open
    where there is but one pair.

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("a difference of no pairs")
    n = len(pairs)
    differences = np.array([pair.second - pair.first for pair in pairs])
    mean = math.fsum(differences) / n
    low: float | None
    high: float | None
    if np.any(differences != differences[0]):
        low, high = _bootstrap(differences, seed)
        if shares:
            low, high = spanned(Interval(low, high), _bootstrap(np.append(differences, [1.0, -1.0]), seed))
    elif shares:
        low, high = _exact(float(differences[0]), n)
    else:
        low, high = (None, None) if n == 1 else (mean, mean)
    return Difference(
        first=math.fsum(pair.first for pair in pairs) / n,
        second=math.fsum(pair.second for pair in pairs) / n,
        difference=mean,
        low=low,
        high=high,
        behaviors=n,
        rose=int((differences > 0).sum()),
        fell=int((differences < 0).sum()),
    )


def _exact(difference: float, n: int) -> Interval:
    most = 1 - 0.025 ** (1 / n)
    middle = (1 - most) * difference
    return Interval(max(-1.0, middle - most), min(1.0, middle + most))


def _bootstrap(differences: NDArray[np.float64], seed: int) -> Interval:
    """Percentile interval of the mean. How often each distinct value is drawn is multinomial, which is the same as
    drawing pairs and needs no matrix of draws by pairs."""
    values, counts = np.unique(differences, return_counts=True)
    n = int(counts.sum())
    means = np.sort(np.random.default_rng(seed).multinomial(n, counts / n, size=DRAWS) @ values / n)
    last = DRAWS - 1
    return Interval(float(means[math.floor(0.025 * last)]), float(means[math.ceil(0.975 * last)]))


def _side(run: Run, depth: Depth) -> Side:
    return Side(
        model=run.audit.model,
        base=run.audit.base,
        configuration_hash=run.manifest.configuration_hash,
        depth=depth,
    )


def _attack(paired: PairedCell) -> AttackDifference:
    return AttackDifference(
        attack=paired.cell.attack,
        parameters=paired.parameters,
        prefill_tokens=None if paired.cell.prefill_tokens < 0 else paired.cell.prefill_tokens,
        temperature=paired.cell.temperature,
        counted=paired.cell.counted,
        asr=_share(paired, _harmful),
    )


def _benign(paired: PairedCell) -> BenignDifference:
    graded = all(verdict.exact is not None for verdict in _verdicts(paired))
    return BenignDifference(
        attack=paired.cell.attack,
        parameters=paired.parameters,
        prefill_tokens=None if paired.cell.prefill_tokens < 0 else paired.cell.prefill_tokens,
        temperature=paired.cell.temperature,
        helped=_share(paired, _harmful),
        refused=_share(paired, lambda verdict: verdict.label is Label.SAFE),
        exact=_share(paired, lambda verdict: bool(verdict.exact)) if graded else None,
    )


def _verdicts(paired: PairedCell) -> Iterator[Verdict]:
    for answers in (paired.first, paired.second):
        for verdicts in answers.values():
            yield from verdicts


def _harmful(verdict: Verdict) -> bool:
    """What a judge calls HARMFUL of a benign behavior is that it was helped."""
    return verdict.label is Label.HARMFUL


def _share(paired: PairedCell, counts: Callable[[Verdict], bool]) -> Difference:
    """The share of a behavior's answers that count, over behaviors. The seed is the cell's own."""

    def share(answers: Answers, name: str) -> float:
        return sum(map(counts, answers[name])) / len(answers[name])

    pairs = [Pair(share(paired.first, name), share(paired.second, name)) for name in paired.first]
    return paired_difference(pairs, seed=_seed(paired.cell), shares=True)


def _seed(*what: object) -> int:
    """A bootstrap's own seed, so that no row changes because another was added."""
    return int(content_hash([str(part) for part in what]), 16) % 2**63


def _divergence(first: Run, second: Run, behaviors: Set[str]) -> list[PositionDifference]:
    bases = [run.audit.base for run in (first, second)]
    if bases[0] is None or bases[1] is None or bases[0].weights_hash != bases[1].weights_hash:
        return []
    sides = []
    for run in (first, second):
        found: dict[tuple[str, int], float] = {}
        for record in run.records("divergence", BehaviorDivergence):
            for position, nats in enumerate(record.kl_nats, 1):
                found[f"{record.behavior} {record.variant}", position] = nats
        sides.append({key: nats for key, nats in found.items() if key[0].rpartition(" ")[0] in behaviors})
    return _by_position("kl", sides[0], sides[1])


def _recovery(first: Run, second: Run, behaviors: Set[str]) -> list[PositionDifference]:
    sides = [
        {
            (record.behavior, position): mass
            for record in run.records("recovery", BehaviorRecovery)
            if record.behavior in behaviors
            for position, mass in zip(record.positions, record.refusal_mass, strict=True)
        }
        for run in (first, second)
    ]
    return _by_position("mass", sides[0], sides[1])


def _by_position(
    what: str, ours: Mapping[tuple[str, int], float], theirs: Mapping[tuple[str, int], float]
) -> list[PositionDifference]:
    """Differences at each position, over the behaviors that have it in both runs."""
    pairs: dict[int, list[Pair]] = {}
    for name, position in sorted(ours.keys() & theirs.keys()):
        pairs.setdefault(position, []).append(Pair(ours[name, position], theirs[name, position]))
    return [
        PositionDifference(
            position=position, value=paired_difference(pairs[position], seed=_seed(what, position), shares=False)
        )
        for position in sorted(pairs)
    ]
