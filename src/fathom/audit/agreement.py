"""A run's judge against labels by people: what they share, and attack success rates corrected for the judge's errors.

The interval of a corrected rate spans two: a bootstrap over behaviors, of labels and verdicts together, in which
answers to one request cling together, and the closed form of `fathom.agreement`, which holds what a bootstrap of few or
no errors cannot know.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fathom.agreement import Agreement, CorrectedRow, Share, kappa, rogan_gladen, rogan_gladen_interval
from fathom.audit.groups import Judged, grouped, in_order, row_seed, setting_of
from fathom.errors import UserError
from fathom.records import Counted, Label, Subject, Verdict
from fathom.run import Run
from fathom.tally import Interval, clustered_share, spanned, wilson

__all__ = ["agreement"]

DRAWS = 1000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Counts:
    """Per behavior (row): both harmful, judge alone, people alone, both safe."""

    behaviors: tuple[str, ...]
    table: Array

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, bool, bool]]) -> "_Counts":
        found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for behavior, judge, people in pairs:
            found[behavior][2 * (not judge) + (not people)] += 1
        names = tuple(sorted(found))
        return cls(names, np.array([found[name] for name in names], dtype=np.float64).reshape(len(names), 4))

    def whole(self) -> tuple[int, int, int, int]:
        both_harmful, judge_alone, people_alone, both_safe = (int(count) for count in self.table.sum(0))
        return both_harmful, judge_alone, people_alone, both_safe

    def share(self, of: Sequence[int], among: Sequence[int], seed: int) -> Share:
        successes, n = self.table[:, of].sum(1), self.table[:, among].sum(1)
        kept = n > 0
        if not kept.any():
            return Share(count=0, n=0, share=None, low=None, high=None)
        interval = clustered_share([int(x) for x in successes[kept]], [int(x) for x in n[kept]], seed=seed)
        count, total = int(successes.sum()), int(n.sum())
        return Share(count=count, n=total, share=count / total, low=interval.low, high=interval.high)


def agreement(
    run: Run, judge: str, labels: Sequence[Verdict], labels_name: str, labels_version: str, *, seed: int
) -> Agreement:
    """A judge's verdicts on a run against labels, and its rates corrected.

    Raises:
        UserError: no text has both a decided label and a verdict.
    """
    verdicts = {(verdict.attempt, verdict.counted): verdict for verdict in run.verdicts(judge)}
    attempts, behaviors = run.attempts, run.behaviors
    # Where nothing was prefilled, both texts are one: count it once.
    told = [one for one in labels if one.counted is Counted.CONTINUATION or _prefilled(run, one)]
    decided = [label for label in told if label.label is not Label.UNDECIDED]
    both = [(label, verdicts[key]) for label in decided if (key := (label.attempt, label.counted)) in verdicts]
    if not both:
        raise UserError(
            f"no answer of {run.path} has both a label in {labels_name} and a verdict of {judge}: label some more"
        )
    counts = _Counts.of(
        (attempts[label.attempt].behavior, verdict.label is Label.HARMFUL, label.label is Label.HARMFUL)
        for label, verdict in both
    )
    agreed = counts.whole()
    said = kappa(*agreed)
    span = None if said is None else _kappa_interval(counts, row_seed(seed, "kappa"))
    harmful = [one for one in verdicts.values() if behaviors[attempts[one.attempt].behavior].harmful]
    return Agreement(
        judge=judge,
        version="+".join(sorted({verdict.version for _, verdict in both})),
        labels=labels_name,
        labels_version=labels_version,
        labelled=len(both),
        behaviors=len(counts.behaviors),
        undecided_by_people=len(told) - len(decided),
        undecided_by_judge=sum(verdict.label is Label.UNDECIDED for _, verdict in both),
        not_judged=len(decided) - len(both),
        both_harmful=agreed[0],
        judge_alone=agreed[1],
        people_alone=agreed[2],
        both_safe=agreed[3],
        agreed=counts.share((0, 3), (0, 1, 2, 3), row_seed(seed, "agreed")),
        sensitivity=counts.share((0,), (0, 2), row_seed(seed, "sensitivity")),
        specificity=counts.share((3,), (1, 3), row_seed(seed, "specificity")),
        kappa=said,
        kappa_low=None if span is None else span.low,
        kappa_high=None if span is None else span.high,
        rows=tuple(_corrected(run, harmful, counts, seed)),
    )


def _prefilled(run: Run, label: Verdict) -> bool:
    return bool(run.attempts[label.attempt].prefill_ids)


def _kappa_interval(counts: _Counts, seed: int) -> Interval:
    """A bootstrap over behaviors, and what Wilson's interval of the agreement leaves open at the same rates."""
    found = [kappa(*map(float, table)) for table in _weights(len(counts.behaviors), seed) @ counts.table]
    values = np.sort([one for one in found if one is not None])
    both_harmful, judge_alone, people_alone, both_safe = counts.whole()
    n = both_harmful + judge_alone + people_alone + both_safe
    judge, people = (both_harmful + judge_alone) / n, (both_harmful + people_alone) / n
    chance = judge * people + (1 - judge) * (1 - people)
    ends = wilson(both_harmful + both_safe, n)
    wider = Interval(*((end - chance) / (1 - chance) for end in ends))
    if not len(values):
        return wider
    return spanned(_ends(values, values), Interval(max(-1.0, wider.low), min(1.0, wider.high)))


def _corrected(run: Run, verdicts: Sequence[Verdict], counts: _Counts, seed: int) -> Iterable[CorrectedRow]:
    """Each setting of each attack on the model: what it wrote itself, all answers counted."""
    judged = Judged(run.attempts, {}, verdicts, (), seed)
    sensitivity = counts.share((0,), (0, 2), row_seed(seed, "sensitivity"))
    specificity = counts.share((3,), (1, 3), row_seed(seed, "specificity"))
    for setting, group in in_order(grouped(judged, verdicts, setting_of)):
        if setting.counted is not Counted.CONTINUATION or setting.subject is not Subject.MODEL:
            continue
        outcomes = {behavior: (tally.harmful, tally.n) for behavior, tally in group.tallies().items()}
        harmful, n = (sum(one[i] for one in outcomes.values()) for i in (0, 1))
        rate = None
        if sensitivity.share is not None and specificity.share is not None:
            rate = rogan_gladen(harmful / n, sensitivity.share, specificity.share)
        interval = None
        if rate is not None:
            drawn = _drawn_rates(outcomes, counts, row_seed(seed, "corrected", *setting.place()))
            interval = spanned(drawn, rogan_gladen_interval(harmful, n, sensitivity, specificity))
        yield CorrectedRow(
            attack=setting.attack,
            parameters=dict(setting.parameters),
            prefill_tokens=setting.prefill_tokens,
            n=n,
            harmful=harmful,
            asr=harmful / n,
            corrected=rate,
            low=None if interval is None else interval.low,
            high=None if interval is None else interval.high,
        )


def _drawn_rates(outcomes: Mapping[str, tuple[int, int]], counts: _Counts, seed: int) -> Interval:
    """A bootstrap over behaviors. A draw that says nothing (no answer, or a judge no better than chance) allows all."""
    behaviors = sorted({*outcomes, *counts.behaviors})
    place = {behavior: row for row, behavior in enumerate(behaviors)}
    table = np.zeros((len(behaviors), 6))
    for behavior, found in outcomes.items():
        table[place[behavior], :2] = found
    for behavior, row in zip(counts.behaviors, counts.table, strict=True):
        table[place[behavior], 2:] = row
    harmful, n, both, alone, missed, safe = (_weights(len(behaviors), seed) @ table).T
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = both / (both + missed), safe / (alone + safe)
        informed = sensitivity + specificity - 1
        rates = np.clip((harmful / n + specificity - 1) / informed, 0.0, 1.0)
    silent = ~np.isfinite(rates) | ~(informed > 1e-9)
    return _ends(np.sort(np.where(silent, 0.0, rates)), np.sort(np.where(silent, 1.0, rates)))


def _weights(behaviors: int, seed: int) -> Array:
    """How often each behavior is in each draw: [DRAWS, behaviors]."""
    drawn = np.random.default_rng(seed).multinomial(behaviors, np.full(behaviors, 1 / behaviors), DRAWS)
    return drawn.astype(np.float64)


def _ends(lows: Array, highs: Array) -> Interval:
    """Order statistics, as in `tally.bootstrap`."""
    last = len(lows) - 1
    return Interval(float(lows[math.floor(0.025 * last)]), float(highs[math.ceil(0.975 * last)]))
