"""Which of a step's candidates is best, for how many tokens: all scored whole, or the poor ones turned away early."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.attack.suffix.evaluate import Evaluator, Spent
from fathom.attack.suffix.objective import loss_of
from fathom.attack.suffix.options import Full, Halving, Options, Probe
from fathom.errors import UserError
from fathom.model import ChatModel, check_pair

__all__ = ["Ranked", "Scored", "Scorers", "check_draft", "select"]


class Scored(NamedTuple):
    """Candidates with their mean loss over the cases in use, and which cases' targets each has reached."""

    candidates: Int[Tensor, "candidates suffix"]
    losses: Float[Tensor, "candidates"]
    reached: Bool[Tensor, "candidates cases"]
    spent: Spent

    def ordered(self) -> "Scored":
        """Best first; equal ones in the order in which they were drawn."""
        order = self.losses.argsort(stable=True)
        return Scored(self.candidates[order], self.losses[order], self.reached[order], self.spent)

    def joined(self, other: "Scored") -> "Scored":
        parts = [torch.cat([a, b]) for a, b in zip(self[:3], other[:3], strict=True)]
        return Scored(parts[0], parts[1], parts[2], self.spent.plus(other.spent)).ordered()


class Ranked(NamedTuple):
    """Those candidates that were scored whole, best first, and what ranking all of them took."""

    scored: Scored
    spent: Spent


@dataclass(frozen=True, eq=False)
class Scorers:
    """The evaluators of all cases, and of the draft model where there is one."""

    cases: Sequence[Evaluator]
    drafts: Sequence[Evaluator]
    options: Options

    def gradient(self, suffix: Sequence[int], active: int) -> tuple[Float[Tensor, "suffix vocabulary"], Spent]:
        """The mean of the cases' gradients."""
        total, spent = None, Spent()
        for case in self.cases[:active]:
            found = case.gradient(suffix, self.options.objective)
            total = found.slope if total is None else total + found.slope
            spent = spent.plus(found.spent)
        assert total is not None
        for draft in self.drafts[:active]:  # its own tokens are the draft's, and not counted as the model's
            draft.settle(suffix)
        return total / active, spent

    def settle(self, suffix: Sequence[int], active: int) -> Spent:
        """Make this suffix the one that candidates are compared with."""
        spent = Spent()
        for case in self.cases[:active]:
            spent = spent.plus(case.settle(suffix))
        return spent

    def scored(self, candidates: Int[Tensor, "candidates suffix"], active: int) -> Scored:
        """Every candidate on every target token."""
        return self._scored(self.cases[:active], candidates)

    def drafted(self, candidates: Int[Tensor, "candidates suffix"], active: int) -> Float[Tensor, "candidates"]:
        return self._scored(self.drafts[:active], candidates).losses

    def first_losses(
        self, candidates: Int[Tensor, "candidates suffix"], active: int, tokens: int
    ) -> tuple[Float[Tensor, "candidates"], Spent]:
        """The part of each candidate's loss that its first target tokens make; the rest can only add to it."""
        total, spent = torch.zeros(len(candidates)), Spent()
        for case in self.cases[:active]:
            found = case.scores(candidates, tokens)
            total += loss_of(found.reading, case.case.target, self.options.objective, tokens)
            spent = spent.plus(found.spent)
        return total / active, spent

    def _scored(self, cases: Sequence[Evaluator], candidates: Tensor) -> Scored:
        total, reached, spent = torch.zeros(len(candidates)), [], Spent()
        for case in cases:
            found = case.scores(candidates)
            target = case.case.target
            total += loss_of(found.reading, target, self.options.objective)
            reached.append(found.reading.greedy[:, : target.wanted].all(1))
            spent = spent.plus(found.spent)
        return Scored(candidates, total / len(cases), torch.stack(reached, 1), spent)


def check_draft(model: ChatModel, draft: ChatModel) -> None:
    """That a draft model can rank what the model is given.

    Raises:
        UserError: an id stands for another token, or the draft has no embedding for it.
    """
    check_pair(model, draft)
    ids = min(model.vocabulary, len(model.chat.tokenizer))
    if draft.vocabulary < ids:
        raise UserError(
            f"the draft model {draft.info.name} has {draft.vocabulary} tokens and {model.info.name} has {ids}: give a "
            "draft that knows them all"
        )


def select(
    scorers: Scorers, candidates: Int[Tensor, "candidates suffix"], active: int, random: torch.Generator
) -> Ranked:
    """Rank candidates by the selection that the options name."""
    selection = scorers.options.selection
    if isinstance(selection, Full):
        found = scorers.scored(candidates, active).ordered()
        return Ranked(found, found.spent)
    if isinstance(selection, Halving):
        return _halving(scorers, candidates, active, selection)
    return _probe(scorers, candidates, active, selection, random)


def _halving(scorers: Scorers, candidates: Tensor, active: int, selection: Halving) -> Ranked:
    """First tokens of all, then the promising ones whole, while they can still be the best."""
    partial, spent = scorers.first_losses(candidates, active, selection.first)
    order = partial.argsort(stable=True)[: -(-len(candidates) // selection.keep)]
    found: Scored | None = None
    for start in range(0, len(order), selection.group):
        group = order[start : start + selection.group]
        if found is not None:
            group = group[partial[group] <= found.losses[0]]
        if not len(group):
            break
        more = scorers.scored(candidates[group], active)
        spent = spent.plus(more.spent)
        found = more.ordered() if found is None else found.joined(more)
    assert found is not None
    return Ranked(found, spent)


def _probe(scorers: Scorers, candidates: Tensor, active: int, selection: Probe, random: torch.Generator) -> Ranked:
    """The draft model ranks all; how far it agrees with the model on a few says how many of its best are scored."""
    if not scorers.drafts:
        raise UserError("probe sampling needs a draft model with the same tokenizer: give one")
    count = len(candidates)
    probe = torch.randperm(count, generator=random)[: max(2, count // selection.factor)]
    rough = scorers.drafted(candidates, active)
    found = scorers.scored(candidates[probe], active)
    agreement = (1 + _rank_correlation(found.losses, rough[probe])) / 2
    kept = min(max(1, int((1 - agreement) * count / selection.reduction)), count)
    best = rough.argsort(stable=True)[:kept]
    best = best[~torch.isin(best, probe)]
    if len(best):
        found = found.joined(scorers.scored(candidates[best], active))
    return Ranked(found.ordered(), found.spent)


def _rank_correlation(left: Tensor, right: Tensor) -> float:
    """Spearman's; 0 where either side is constant."""
    if len(left) < 2:
        return 0.0
    ranks = torch.stack([x.argsort().argsort().double() for x in (left, right)])
    value = float(torch.corrcoef(ranks)[0, 1])
    return value if value == value else 0.0
