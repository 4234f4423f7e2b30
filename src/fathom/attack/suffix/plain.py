"""Candidates computed whole: of an architecture nothing is needed but that it is causal."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from fathom.attack.suffix.evaluation import Common, Gradient, Scores, Spent
from fathom.attack.suffix.objective import Reading, read_targets
from fathom.attack.suffix.options import Objective
from fathom.scoring import LogitTable

__all__ = ["PlainEvaluator"]


@dataclass(eq=False)
class PlainEvaluator(Common):
    """Every candidate whole, in unpadded batches."""

    def gradient(self, suffix: Sequence[int], objective: Objective) -> Gradient:
        before, after = (self._ids(ids) for ids in (self.case.before_ids, self.case.after_ids))
        target = self._ids(self.case.target.ids[:-1])
        sides = [self.embed(ids).detach() for ids in (before, torch.cat([after, target], 1))]

        def rows(vectors: Tensor) -> Tensor:
            inputs = torch.cat([sides[0], vectors, sides[1]], dim=1)
            return self._logits(len(self.case.target.ids), inputs_embeds=inputs)[0]

        length = self.case.length(len(suffix)) - 1
        with self.alone(length):
            found = self.gradient_of(self.embed(self._ids(suffix)), rows, objective)
        return found._replace(spent=Spent(1, length, length))

    def settle(self, suffix: Sequence[int]) -> Spent:
        del suffix  # nothing is shared
        return Spent()

    def scores(self, candidates: Int[Tensor, "candidates suffix"], tokens: int | None = None) -> Scores:
        targets = self.case.target.ids[:tokens]
        length = len(self.case.before_ids) + candidates.shape[1] + len(self.case.after_ids) + len(targets) - 1
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        start = 0
        while start < len(candidates):
            group = candidates[start : start + max(1, self.at_once // length)]
            try:
                parts.append(self._batch(group, targets))
            except (RuntimeError, MemoryError) as error:
                self.halve(error, length)
                continue
            start += len(group)
        own, nll, greedy = (torch.cat(list(part)) for part in zip(*parts, strict=True))
        return Scores(Reading(own, nll, greedy), Spent(len(candidates), len(candidates) * length, 0))

    @torch.inference_mode()
    def _batch(self, group: Tensor, targets: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        count = len(group)
        sides = (self.case.before_ids, (*self.case.after_ids, *targets[:-1]))
        before, after = (self._ids(ids).expand(count, -1) for ids in sides)
        inputs = torch.cat([before, group.to(self.device), after], 1)
        logits = self._logits(len(targets), input_ids=inputs)
        table = LogitTable(logits.reshape(-1, logits.shape[-1]))
        own, nll, greedy = read_targets(table, torch.tensor(targets).repeat(count))
        return (own.view(count, -1).cpu(), nll.view(count, -1).cpu(), greedy.view(count, -1).cpu())

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], dtype=torch.long, device=self.device)

    def _logits(self, rows: int, **inputs: Tensor) -> Tensor:
        model = self.scorer.model.model
        try:
            output = model(use_cache=False, logits_to_keep=rows, **inputs)
        except TypeError:  # an architecture without logits_to_keep
            output = model(use_cache=False, **inputs)
        logits: Tensor = output.logits[:, -rows:]
        return logits
