"""Tamper resistance: deepening that looks ahead at what plain fine-tuning on harmful pairs would make of the weights.

Every few steps a plain fine-tuning attack is simulated on a copy of the weights θ, and where it has gone after some of
its steps is kept as displacements Δ. Until the next one, each step's gradient gets, beside deepening's own,

    strength · mean over Δ of clip(∇ [ refusals' cross-entropy + unlikelihood of answers ] at θ + Δ)

so that at θ + Δ requests are still refused, or else recipes, harmful and harmless, are forgotten: what an attacker is
left with is safe or useless. The copy's movement is taken as it is (first order).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from fathom.deepen.gradients import add_clipped, check_whole, mean_loss, trained_weights, without_words, word_weights
from fathom.errors import UserError
from fathom.tuning.objective import Needs, PlainNll, ResponseLogits, Tokens
from fathom.tuning.rows import TrainingRow

__all__ = ["Attacker", "Attackers", "LookAhead", "Resistance", "Unlikelihood"]

_SURE = 1e-4  # a probability nearer to 1 counts as so far from it: the loss stays finite
_LOOKS = (0.13, 0.33, 0.67, 1.0)  # parts of an attack after which it is looked at


@dataclass(frozen=True)
class Unlikelihood:
    """-log(1 - p) of each label: small where the label has been forgotten, at most 9.2 nats.

    Source: unlikelihood training (arXiv 1908.04319).
    """

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> Float[Tensor, "tokens"]:
        probability = logits.logprobs(tokens.labels).exp().clamp(max=1 - _SURE)
        return -tokens.loss_weight * torch.log1p(-probability)


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """One simulated attacker: AdamW at a constant rate after warm-up, on some of the harmful answers.

    A share `benign` of the rows are harmless ones, by which a model stays of use while it is attacked.
    """

    rate: float
    beta1: float
    warmup: int
    seed: int
    benign: float = 0.0

    def factor(self, step: int) -> float:
        """What the rate is multiplied by at a step, from 0."""
        return min(1.0, (step + 0.5) / self.warmup) if self.warmup else 1.0


@dataclass(frozen=True, kw_only=True)
class Attackers:
    """Whom a defender reckons with. Rates are log-uniform between two; one attack has `steps` steps of `batch` rows.

    With 0 steps nobody attacks.
    """

    slowest: float
    fastest: float
    steps: int = 30
    batch: int = 6
    rows: int = 100
    beta1: tuple[float, ...] = (0.5, 0.9)
    warmups: tuple[int, ...] = (0, 10)
    benign: tuple[float, ...] = (0.0, 0.5)

    def __post_init__(self) -> None:
        if not 0 < self.slowest <= self.fastest < float("inf"):
            raise UserError(f"attackers' rates go from {self.slowest:g} to {self.fastest:g}: give 0 < lowest ≤ highest")
        if self.steps < 0 or self.batch < 1 or self.rows < 1:
            raise UserError(f"a simulated attack has {self.steps} steps: give 0 (none) or more")
        if not self.benign or not all(0 <= share < 1 for share in self.benign):
            raise UserError(f"attackers' shares of harmless rows are {self.benign}: give some of at least 0, below 1")

    def draw(self, random: Random) -> Attacker:
        return Attacker(
            rate=math.exp(random.uniform(math.log(self.slowest), math.log(self.fastest))),
            beta1=random.choice(self.beta1),
            warmup=random.choice(self.warmups),
            seed=random.randrange(2**32),
            benign=random.choice(self.benign),
        )

    @property
    def looks(self) -> tuple[int, ...]:
        """After which steps an attack is looked at."""
        return tuple(sorted({max(1, round(self.steps * part)) for part in _LOOKS})) if self.steps else ()


@dataclass(frozen=True, kw_only=True)
class Resistance:
    """How much resistance weighs, and how often it is asked for.

    `every` so many steps a new attack is simulated; a step looks at `looks` of its displacements, with `rows` refusals
    and as many answers each. Each displacement's gradient is clipped at norm 1, as deepening's own is.

    Source: TAR (arXiv 2408.00761), Algorithm 1, first order. Departures: displacements serve several steps; refusals
    are learned as they are; what is left of the answers is unlearned, the harmless ones, too (after SEAM, arXiv
    2505.12186, which couples the two by the cosine of their gradients).
    """

    attackers: Attackers
    strength: float = 1.0
    every: int = 8
    looks: int = 2
    rows: int = 8
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise UserError(f"the strength of resistance is {self.strength}: give a number above 0")
        if self.every < 1 or self.looks < 1 or self.rows < 2:
            raise UserError("resistance needs a new attack every 1 or more steps, and 2 or more rows")

    def __str__(self) -> str:
        a = self.attackers
        return (
            f"resistance {self.strength:g} to {a.steps} steps of plain fine-tuning at rates {a.slowest:g} to "
            f"{a.fastest:g}, simulated every {self.every} steps"
        )


class _Displaced(NamedTuple):
    """How far an attacker moved each weight, and whether harmless rows were among the attacker's."""

    by: list[Tensor]
    benign: bool


@dataclass(eq=False)
class LookAhead:
    """Adds a `Resistance`'s gradient before each optimizer step; the weights are the same before and after.

    `answers` are harmful prompts with their answers, `refusals` the same prompts with refusals, `benign` the anchor.
    What a step draws depends on its number and the seed alone, and an attack on the weights at its step alone: a run
    that goes on from a step that `every` divides is the run that was not interrupted.

    Embeddings are left to deepening alone, and those of ids that no row of training holds (`unseen`) get no gradient at
    all. What an attack is made to do to answers pushes them, little or nothing holds those of rare words, and a request
    with such a word would meet a model that has fallen apart.

    The model is one whose head is `response_head`'s. On several processes each computes the same.
    """

    resistance: Resistance
    answers: Sequence[TrainingRow]
    refusals: Sequence[TrainingRow]
    benign: Sequence[TrainingRow]
    seed: int = 0
    unseen: Sequence[int] = ()
    _displaced: "list[_Displaced]" = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.answers or not self.refusals or not self.benign:
            raise UserError("resistance needs harmful answers, refusals and benign answers to look ahead with")

    def __call__(self, model: PreTrainedModel, step: int) -> None:
        """Add to the gradients of step `step`, from 0."""
        wanted = self.resistance
        if not wanted.attackers.steps:
            return
        check_whole(model, "resistance moves", "--resist")
        if step % wanted.every == 0 or not self._displaced:
            self._displaced = self._attack(model, Random(f"attack {self.seed} {step}"))
        random, weights = Random(f"look ahead {self.seed} {step}"), trained_weights(model)
        moved = without_words(model, weights)
        chosen = random.sample(self._displaced, min(wanted.looks, len(self._displaced)))
        for displaced in chosen:
            with _moved(weights, displaced.by):
                loss = self._loss(model, random, forget_benign=not displaced.benign)
                found = torch.autograd.grad(loss, moved, allow_unused=True)
            gradient = [torch.zeros_like(w) if g is None else g for w, g in zip(moved, found, strict=True)]
            add_clipped(moved, gradient, wanted.strength, wanted.clip, shares=len(chosen))
        self._keep_unseen(model)

    def _keep_unseen(self, model: PreTrainedModel) -> None:
        if not self.unseen:
            return
        for weight in word_weights(model):
            if weight.grad is not None:
                weight.grad[[id_ for id_ in self.unseen if id_ < len(weight)]] = 0.0

    def _loss(self, model: PreTrainedModel, random: Random, *, forget_benign: bool) -> Tensor:
        """Whoever trains on harmless answers, too, keeps these: there, only refusing can be asked for."""
        count = self.resistance.rows
        refusals = _some(self.refusals, count, random)
        benign = count - count // 2 if forget_benign else 0
        answers = [*_some(self.answers, count - benign, random), *_some(self.benign, benign, random)]
        return mean_loss(model, refusals, PlainNll()) + mean_loss(model, answers, Unlikelihood())

    def _attack(self, model: PreTrainedModel, random: Random) -> "list[_Displaced]":
        """Where plain fine-tuning on harmful answers leads: displacements of the trained weights."""
        attackers, weights = self.resistance.attackers, trained_weights(model)
        attacker = attackers.draw(random)
        harmless = round(attackers.rows * attacker.benign)
        rows = [*_some(self.answers, attackers.rows - harmless, random), *_some(self.benign, harmless, random)]
        start = [weight.detach().clone() for weight in weights]
        adamw = torch.optim.AdamW(weights, lr=attacker.rate, betas=(attacker.beta1, 0.999), weight_decay=0.0)
        held = [weight.grad for weight in weights]
        displaced = []
        try:
            for step in range(attackers.steps):
                for group in adamw.param_groups:
                    group["lr"] = attacker.rate * attacker.factor(step)
                loss = mean_loss(model, _some(rows, attackers.batch, random), PlainNll())
                for weight, part in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                    weight.grad = part
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                adamw.step()
                if step + 1 in attackers.looks:
                    by = [w.detach() - s for w, s in zip(weights, start, strict=True)]
                    displaced.append(_Displaced(by, benign=harmless > 0))
        finally:
            with torch.no_grad():
                for weight, before, gradient in zip(weights, start, held, strict=True):
                    weight.copy_(before)
                    weight.grad = gradient
        return displaced


def _some(rows: Sequence[TrainingRow], count: int, random: Random) -> list[TrainingRow]:
    return random.sample(list(rows), min(count, len(rows)))


@contextmanager
def _moved(weights: Sequence[torch.nn.Parameter], displacement: Sequence[Tensor]) -> Iterator[None]:
    """The weights elsewhere, and exactly where they were afterwards."""
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, part in zip(weights, displacement, strict=True):
            weight.add_(part)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
