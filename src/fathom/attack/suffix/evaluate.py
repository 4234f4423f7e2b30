"""Losses of candidates and the gradient of one suffix, for one case, on one model.

`SharedEvaluator` holds the keys of the case's fixed beginning once and computes of a candidate only what differs from
the current suffix. `PlainEvaluator` runs every candidate whole and needs nothing of an architecture but that it is
causal. Both give the same numbers; `evaluator` tries the first and falls back to the second.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from fathom.attack.suffix.attention import BasePlan, CandidatePlan, Keys, Run
from fathom.attack.suffix.feedforward import lean_feed_forward
from fathom.attack.suffix.objective import Reading, loss_of, read_targets
from fathom.attack.suffix.options import Objective
from fathom.attack.suffix.problem import Case
from fathom.engine.memory import is_out_of_memory
from fathom.engine.shared import shared_attention
from fathom.errors import UserError
from fathom.scoring import LogitTable, Scorer

__all__ = ["Evaluator", "Gradient", "PlainEvaluator", "SharedEvaluator", "Spent", "evaluator"]

PACKED_CPU, PACKED_GPU = 1088, 32_768  # tokens of candidates in one forward pass
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3}  # nats a token between both ways; coarser dtypes: 0.3
COARSE = 0.3


class Spent(NamedTuple):
    """What was run: inputs scored, tokens through the model, and tokens through which a gradient was taken.

    A case's fixed beginning is not in it: how often that is computed depends on how often a search is taken up again.
    """

    queries: int = 0
    forward_tokens: int = 0
    backward_tokens: int = 0

    def plus(self, other: "Spent") -> "Spent":
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))


class Gradient(NamedTuple):
    """At one suffix: how it reads, and the loss's gradient with respect to the one-hot vectors of its ids."""

    reading: Reading
    loss: float
    slope: Float[Tensor, "suffix vocabulary"]
    spent: Spent


class Scores(NamedTuple):
    reading: Reading
    spent: Spent


class Evaluator(Protocol):
    """Of one case."""

    @property
    def case(self) -> Case: ...
    def gradient(self, suffix: Sequence[int], objective: Objective) -> Gradient: ...
    def settle(self, suffix: Sequence[int]) -> Spent:
        """Make this suffix the one that candidates are compared with, as a gradient does, by a forward pass alone."""
        ...

    def scores(self, candidates: Int[Tensor, "candidates suffix"], tokens: int | None = None) -> Scores:
        """How the first `tokens` target tokens read (None: all) behind each candidate."""
        ...


@dataclass(eq=False)
class _Common:
    """What both ways need of a model."""

    scorer: Scorer
    case: Case
    notify: Callable[[str], None]
    packed: int  # tokens at once; lowered when memory runs out

    @property
    def device(self) -> torch.device:
        return self.scorer.model.device

    def embed(self, ids: Tensor) -> Tensor:
        embeddings: nn.Module = self.scorer.plain.get_input_embeddings()
        vectors: Tensor = embeddings(ids)
        return vectors

    def slope(self, gradient: Float[Tensor, "suffix width"]) -> Float[Tensor, "suffix vocabulary"]:
        """Gradient of embeddings → of one-hot vectors: one product with the (scaled) embedding matrix, in blocks."""
        embeddings = self.scorer.plain.get_input_embeddings()
        if type(embeddings) is nn.Embedding:  # a subclass may scale
            slope: Tensor = gradient @ embeddings.weight.detach().T
            return slope[:, : self.scorer.vocabulary].float()
        size, block = self.scorer.vocabulary, 1 << 15
        parts = [
            gradient @ self.embed(torch.arange(start, min(start + block, size), device=self.device)).T
            for start in range(0, size, block)
        ]
        return torch.cat(parts, dim=1).float()

    def halve(self, error: BaseException, single: int) -> None:
        """Go on with half as much at once, and say so.

        Raises:
            UserError: a single candidate does not fit.
        """
        if not is_out_of_memory(error):
            raise error
        if self.packed <= single:
            raise UserError(
                f"out of memory with a single candidate of {single} tokens on {self.device}: load the model in a "
                "smaller dtype or quantised, or give a shorter prompt or target"
            ) from error
        self.packed = max(single, self.packed // 2)
        self.notify(f"out of memory: going on with {max(1, self.packed // single)} candidates at once")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def gradient_of(self, vectors: Tensor, rows: Callable[[Tensor], Tensor], objective: Objective) -> Gradient:
        """Loss and slope, where `rows` gives the logits of the target rows from the suffix's embeddings."""
        target = torch.tensor(self.case.target.ids, device=self.device)
        with torch.enable_grad():
            leaf = vectors.detach().requires_grad_()
            logits = rows(leaf).float()
            own = logits.gather(1, target[:, None])[:, 0]
            nll = torch.logsumexp(logits, 1) - own
            reading = Reading(own[None], nll[None], (own >= logits.amax(1))[None])
            loss = loss_of(reading, self.case.target, objective)[0]
            (slope,) = torch.autograd.grad(loss, leaf)
        detached = Reading(*(part.detach() for part in reading))
        return Gradient(detached, float(loss.detach()), self.slope(slope[0]), Spent())


@dataclass(eq=False)
class SharedEvaluator(_Common):
    """One cache of the fixed beginning; candidates from their first change on. `PACKED_*` tokens at once."""

    _past: dict[int, Keys] | None = None
    _trunk: dict[int, Keys] = field(default_factory=dict)
    _current: tuple[int, ...] = ()

    def gradient(self, suffix: Sequence[int], objective: Objective) -> Gradient:
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
            stop = _fitting(lengths, start, self.packed)
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


@dataclass(eq=False)
class PlainEvaluator(_Common):
    """Every candidate whole, in unpadded batches."""

    def gradient(self, suffix: Sequence[int], objective: Objective) -> Gradient:
        before, after = (self._ids(ids) for ids in (self.case.before_ids, self.case.after_ids))
        target = self._ids(self.case.target.ids[:-1])
        sides = [self.embed(ids).detach() for ids in (before, torch.cat([after, target], 1))]

        def rows(vectors: Tensor) -> Tensor:
            inputs = torch.cat([sides[0], vectors, sides[1]], dim=1)
            return self._logits(len(self.case.target.ids), inputs_embeds=inputs)[0]

        found = self.gradient_of(self.embed(self._ids(suffix)), rows, objective)
        length = self.case.length(len(suffix)) - 1
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
            group = candidates[start : start + max(1, self.packed // length)]
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


def evaluator(
    scorer: Scorer, case: Case, start: Sequence[int], objective: Objective, notify: Callable[[str], None]
) -> Evaluator:
    """The fast way where it reproduces the plain one on this model and case, else the plain one, and says so.

    Raises:
        UserError: prompt, suffix and target are longer than the model's context, or not even one fits into memory.
    """
    limit, needed = scorer.model.context, case.length(len(start))
    if limit is not None and needed > limit:
        raise UserError(
            f"behavior {case.behavior}: {len(case.before_ids) + len(case.after_ids)} prompt + {len(start)} suffix + "
            f"{len(case.target.ids)} target tokens = {needed}, but the model's context is {limit} tokens: "
            + ("give a shorter target" if len(case.target.ids) > limit // 2 else "give a shorter prompt or suffix")
        )
    packed = PACKED_CPU if scorer.model.device.type == "cpu" else PACKED_GPU
    plain = PlainEvaluator(scorer, case, notify, packed)
    shared = SharedEvaluator(scorer, case, notify, packed)
    known = _checked.get(scorer.plain)
    if known is None or (known.reason is None and needed > known.length):
        # Decided once for a model, and again for what is longer: a window or a rotary encoding may end in between.
        known = _checked[scorer.plain] = _Checked(needed, _obstacle(shared, plain, start, objective))
    if known.reason is None:
        return shared
    reason = known.reason
    notify(f"candidates are computed whole, which is slower: {reason}")
    return plain


class _Checked(NamedTuple):
    length: int  # of the longest case that was tried
    reason: str | None


_checked: WeakKeyDictionary[PreTrainedModel, _Checked] = WeakKeyDictionary()


def _obstacle(shared: SharedEvaluator, plain: PlainEvaluator, start: Sequence[int], objective: Objective) -> str | None:
    """Why nothing can be shared between candidates of this model, or None: both ways are tried and compared."""
    if shared.scorer.head is None:
        return "the model's head is no plain projection"
    try:
        found = shared.gradient(start, objective)
        # Two changes in one candidate, none in the other: parts of trunk and of own tokens on both.
        trial = torch.tensor([start, start])
        trial[1, len(start) // 2 :] = trial[1, len(start) // 2 :].flip(0)
        ours, theirs = shared.scores(trial).reading.nll, plain.scores(trial).reading.nll
    except UserError:
        raise
    except Exception as error:  # whatever an architecture answers to an unusual call, it only means: not this way
        if is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines() or [type(error).__name__]
        return first[0][:200]
    worst = float(torch.maximum((ours - theirs).abs().max(), (found.reading.nll.cpu() - theirs[:1]).abs().max()))
    if worst <= TOLERANCE.get(shared.scorer.plain.dtype, COARSE):
        return None
    return f"sharing changes the losses of {type(shared.scorer.plain).__name__} by {worst:.2g} nats"


def _fitting(lengths: Sequence[int], start: int, limit: int) -> int:
    """How far candidates from `start` on fit into one pass; one at least."""
    stop, total = start + 1, lengths[start]
    while stop < len(lengths) and total + lengths[stop] <= limit:
        total += lengths[stop]
        stop += 1
    return stop
