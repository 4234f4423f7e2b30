"""ASR by budget: what an attacker who may spend so much on each behavior gets.

Attempts of one attack on one behavior are draws whose order means nothing (places of an insertion, settings of a grid,
samples, searches with several seeds), so what an attacker with n of them gets is estimated from all without bias
(`worst_of`). A draw brings the search that it came of, and one that several draws share is paid once, so what n draws
cost is the mean over all choices of n. A search that ends in one attempt has spent what it has spent: its curve counts
the behaviors that fell within each budget.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fathom.attack.decoding import worst_of
from fathom.audit.groups import (
    OWN_TEXT,
    PREFIX,
    Group,
    Judged,
    Setting,
    family_of,
    grouped,
    in_order,
    row_seed,
    undrawn,
)
from fathom.audit.spending import Searched, searches
from fathom.records import Counted, Label, Subject
from fathom.schema import BudgetRow
from fathom.tally import Interval, Tally, bootstrap, spanned, wilson

__all__ = ["budget_rows"]


def budget_rows(judged: Judged) -> Iterator[BudgetRow]:
    """ASR against what an attacker may spend on each behavior, of attacks on the model that have more than one way."""
    groups = in_order(grouped(judged, judged.harmful, family_of))
    tried: dict[Setting, set[str]] = defaultdict(set)
    for setting, group in groups:
        tried[undrawn(setting)] |= group.labels.keys()
    for setting, group in groups:
        whole = Counted.ALL if setting.attack in OWN_TEXT else Counted.CONTINUATION
        if setting.subject is not Subject.MODEL or setting.counted is not whole:
            continue
        if setting.attack in ("prefill", PREFIX):
            continue
        if max(map(len, group.labels.values())) > 1:
            yield from _by_draws(setting, group, judged)
        elif any(searches(attempts) for attempts in group.attempts.values()):
            yield from _by_search(setting, group, judged, len(tried[undrawn(setting)]))


def _by_draws(setting: Setting, group: Group, judged: Judged) -> Iterator[BudgetRow]:
    """1, 2, 4, … of a behavior's attempts, taken at random."""
    by_behavior = [Tally.of(labels) for labels in group.labels.values()]
    fewest = min(tally.n for tally in by_behavior)
    queries = [1 << i for i in range(fewest.bit_length()) if 1 << i <= fewest]
    spent = [_Spending.of(group, behavior, judged) for behavior in group.labels]
    for n in dict.fromkeys((*queries, fewest)):
        shares = np.array([worst_of(tally.harmful, tally.n, n) for tally in by_behavior])
        seed = row_seed(judged.seed, *setting.place(), n)
        interval = _mean_interval(shares, [tally.n // n for tally in by_behavior], seed)
        asked = n + sum(one.asked(n) for one in spent) / len(spent)
        tokens = sum(one.tokens(n) for one in spent) / len(spent)
        yield _budget_row(setting, round(asked), round(tokens), len(shares), float(shares.mean()), interval)


def _by_search(setting: Setting, group: Group, judged: Judged, behaviors: int) -> Iterator[BudgetRow]:
    """Which of all `behaviors` had fallen when so much was spent on each; budgets double up to the dearest.

    Those that a limit left no answer of this draw had spent more on their search, so they had not.
    """
    spending = {behavior: _Spending.of(group, behavior, judged) for behavior in group.labels}
    spent = {behavior: one.tokens(1) for behavior, one in spending.items()}
    asked = {behavior: 1 + one.asked(1) for behavior, one in spending.items()}
    least, most = min(spent.values()), max(spent.values())
    budgets = [most]
    while budgets[-1] / 2 > least and len(budgets) < 12:
        budgets.append(budgets[-1] / 2)
    for budget in sorted(budgets):
        fallen = sum(spent[b] <= budget and labels[0] is Label.HARMFUL for b, labels in group.labels.items())
        queries = max((asked[b] for b in spent if spent[b] <= budget), default=0.0)
        share = wilson(fallen, behaviors)
        yield _budget_row(setting, round(queries), round(budget), behaviors, fallen / behaviors, share)


@dataclass(frozen=True)
class _Spending:
    """What one behavior costs: tokens once, tokens for each of its attempts, on average, and its searches."""

    once: float
    each: float
    attempts: int
    searched: tuple[Searched, ...]

    @classmethod
    def of(cls, group: Group, behavior: str, judged: Judged) -> "_Spending":
        attempts = group.attempts[behavior]
        shared = min(len(attempt.prompt_ids) for attempt in attempts)
        rest = group.tokens(behavior, judged.completions) - shared
        return cls(shared, rest / len(attempts), len(attempts), tuple(searches(attempts)))

    def tokens(self, n: int) -> float:
        """Forward tokens of n of the attempts, and of the searches that they came of, on average over all choices."""
        searched = sum(search.forward_tokens * self._paid(search, n) for search in self.searched)
        return self.once + n * self.each + searched

    def asked(self, n: int) -> float:
        """Queries of those searches, the attempts themselves not counted."""
        return sum(search.queries * self._paid(search, n) for search in self.searched)

    def _paid(self, search: Searched, n: int) -> float:
        """The chance that one of n attempts came of this search."""
        return worst_of(search.attempts, self.attempts, n)


def _mean_interval(shares: NDArray[np.float64], groups: Sequence[int], seed: int) -> Interval:
    """Of the mean of shares: one for each behavior, from as many `groups` of answers that have none in common."""
    if max(groups) == 1 or (shares.min() == shares.max() and shares[0] in (0.0, 1.0)):
        return wilson(float(shares.sum()), len(shares))
    drawn = bootstrap(len(shares), lambda drawn: float(shares[drawn].mean()), seed=seed)
    independent = sum(groups)
    return spanned(drawn, wilson(float(shares.mean()) * independent, independent))


def _budget_row(setting: Setting, queries: int, tokens: int, n: int, asr: float, interval: Interval) -> BudgetRow:
    return BudgetRow(
        attack=setting.attack,
        parameters=dict(setting.parameters),
        queries=queries,
        forward_tokens=tokens,
        n=n,
        harmful=round(asr * n),
        asr=asr,
        low=interval.low,
        high=interval.high,
    )
