"""Candidates computed from their first change on, over the keys of what they share."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from fathom.attack.suffix.attention import BasePlan, CandidatePlan, Keys, Run
from fathom.attack.suffix.evaluation import Common, Gradient, Scores, Spent
from fathom.attack.suffix.feedforward import lean_feed_forward
from fathom.attack.suffix.objective import Reading, read_targets
from fathom.attack.suffix.options import Objective
from fathom.engine.shared import shared_attention

__all__ = ["SharedEvaluator"]


@dataclass(eq=False)
class SharedEvaluator(Common):
    """One cache of the fixed beginning; candidates from their first change on. `PACKED_*` tokens at once."""

    _past: dict[int, Keys] | None = None
    _trunk: dict[int, Keys] = field(default_factory=dict)
    _current: tuple[int, ...] = ()

    @property
    def layers(self) -> int:
        """How many layers left keys behind the gradient that was taken last."""
        return len(self._trunk)

    def gradient(self, suffix: Sequence[int], objective: Objective) -> Gradient:
        with self.alone(self.case.length(len(suffix)) - 1):
            return self._gradient(suffix, objective)

    def _gradient(self, suffix: Sequence[int], objective: Objective) -> Gradient:
        if self._past is None:
            self._past = self._beginning()
        target = self.case.target.ids
        tail = torch.tensor([[*self.case.after_ids, *target[:-1]]], dtype=torch.long, device=self.device)
        plan = BasePlan(self._past)
        length = len(suffix) + tail.shape[1]

        def rows(vectors: Tensor) -> Tensor:
            inputs = torch.cat([vectors, self.embed(tail).detach()], dim=1)
            hidden = self._body(plan, len(self.case.before_ids) + torch.arange(length), inputs_embeds=inputs)
            assert self.scorer.head is not None
            head = self.scorer.head
            last = hidden[0, -len(target) :].to(head.weight.device)
            return head.logits(last, slice(0, head.weight.shape[0]))

        found = self.gradient_of(self.embed(torch.tensor([list(suffix)], device=self.device)), rows, objective)
        self._keep(suffix, plan)
        return found._replace(spent=Spent(1, length, length))

    @torch.inference_mode()
    def settle(self, suffix: Sequence[int]) -> Spent:
        with self.alone(len(self.case.before_ids) + len(suffix)):
            if self._past is None:
                self._past = self._beginning()
            plan, ids = BasePlan(self._past), torch.tensor([list(suffix)], device=self.device)
            self._body(plan, len(self.case.before_ids) + torch.arange(len(suffix)), input_ids=ids)
            self._keep(suffix, plan)
        return Spent(1, len(suffix), 0)

    def _keep(self, suffix: Sequence[int], plan: BasePlan) -> None:
        """The keys of beginning and suffix, which candidates share as far as they agree with it."""
        size = len(suffix)
        self._trunk = {
            layer: Keys(
                torch.cat([self._before(layer, own).key, own.key[:, :, :size]], 2),
                torch.cat([self._before(layer, own).value, own.value[:, :, :size]], 2),
            )
            for layer, own in plan.own.items()
        }
        self._current = tuple(suffix)

    def scores(self, candidates: Int[Tensor, "candidates suffix"], tokens: int | None = None) -> Scores:
        targets = self.case.target.ids[:tokens]
        count, size = candidates.shape
        if len(self._current) != size:
            raise ValueError("candidates are scored against the suffix whose gradient was taken last")
        tail = torch.tensor([*self.case.after_ids, *targets[:-1]], dtype=torch.long)
        differs = candidates != torch.tensor(self._current)
        first = torch.where(differs.any(1), differs.int().argmax(1), size - 1)
        order = first.argsort(stable=True)
        lengths = (size - first[order] + len(tail)).tolist()
        logits, nll = torch.empty(count, len(targets)), torch.empty(count, len(targets))
        greedy = torch.empty(count, len(targets), dtype=torch.bool)
        start = 0
        while start < count:
            stop = _fitting(lengths, start, self.at_once)
            rows = order[start:stop]
            try:
                own, loss, top = self._packed(candidates[rows], first[rows], tail, targets)
            except (RuntimeError, MemoryError) as error:
                self.halve(error, max(lengths))
                continue
            logits[rows], nll[rows], greedy[rows] = own, loss, top
            start = stop
        return Scores(Reading(logits, nll, greedy), Spent(count, sum(lengths), 0))

    @torch.inference_mode()
    def _packed(
        self, candidates: Tensor, first: Tensor, tail: Tensor, targets: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates sorted by their first change, side by side in one sequence."""
        size, wanted, before = candidates.shape[1], len(targets), len(self.case.before_ids)
        ids, positions, kept, runs, at = [], [], [], [], 0
        places, counts = torch.unique_consecutive(first, return_counts=True)
        for place, group in zip(places.tolist(), torch.split(candidates, counts.tolist()), strict=True):
            count, length = len(group), size - place + len(tail)
            ids.append(torch.cat([group[:, place:], tail.expand(count, -1)], 1).reshape(-1))
            positions.append((before + place + torch.arange(length)).repeat(count))
            ends = torch.arange(length - wanted, length)
            kept.append((at + length * torch.arange(count)[:, None] + ends).reshape(-1))
            runs.append(Run(at, count, length, before + place))
            at += count * length
        plan = CandidatePlan(self._trunk, tuple(runs))
        read = torch.cat(kept)
        with lean_feed_forward(self.scorer.plain.base_model, read):
            hidden = self._body(plan, torch.cat(positions), input_ids=torch.cat(ids)[None].to(self.device))
        rows = hidden[0, read.to(hidden.device)]
        label = torch.tensor(targets).repeat(len(candidates))
        found = read_targets(self.scorer.head_logits(rows), label)
        own, nll, greedy = (part.view(len(candidates), wanted).cpu() for part in found)
        return own, nll, greedy

    @torch.inference_mode()
    def _beginning(self) -> dict[int, Keys]:
        """Keys of what stands before the suffix."""
        if not self.case.before_ids:
            return {}
        plan = BasePlan({})
        ids = torch.tensor([list(self.case.before_ids)], device=self.device)
        self._body(plan, torch.arange(ids.shape[1]), input_ids=ids)
        # Ordinary tensors, since a gradient is taken through what attends to them.
        return {layer: Keys(own.key.clone(), own.value.clone()) for layer, own in plan.own.items()}

    def _before(self, layer: int, own: Keys) -> Keys:
        assert self._past is not None
        return self._past.get(layer) or Keys(own.key[:, :, :0], own.value[:, :, :0])

    def _body(self, plan: BasePlan | CandidatePlan, positions: Tensor, **inputs: Tensor) -> Tensor:
        model = self.scorer.plain
        with shared_attention(model):
            hidden: Tensor = model.base_model(
                position_ids=positions[None].to(self.device), use_cache=False, fathom_plan=plan, **inputs
            ).last_hidden_state
        return hidden


def _fitting(lengths: Sequence[int], start: int, limit: int) -> int:
    """How far candidates from `start` on fit into one pass; one at least."""
    stop, total = start + 1, lengths[start]
    while stop < len(lengths) and total + lengths[stop] <= limit:
        total += lengths[stop]
        stop += 1
    return stop
