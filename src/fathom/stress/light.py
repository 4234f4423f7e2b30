"""The trainer's arithmetic without the trainer: for sweeps of many small models, where starting one costs more than it.

The same batches, objective, optimiser and schedule as `tuning.fit` with `ordered` rows give the same weights; a test
holds the two together. One process, one device, no mixed precision: whoever wants more takes `fit`. A step whose rows
do not fit into memory is taken in parts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fathom.engine.memory import is_out_of_memory
from fathom.errors import UserError
from fathom.ranks import ALONE
from fathom.tuning.batches import Example, collate_examples
from fathom.tuning.head import response_head
from fathom.tuning.objective import TokenObjective
from fathom.tuning.reference import Columns, make_columns, no_columns
from fathom.tuning.rows import TrainingRow
from fathom.tuning.settings import calm_epsilon

__all__ = ["LightFit", "LightState", "Optimiser", "columns_of", "order_of"]


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW with a linear warm-up to a rate, gradients clipped at `clip`. No decay of weights.

    A constant rate makes the model after k steps the same, however many steps are to come: one training gives every
    number of steps that is measured. With `until`, the rate falls linearly to 0 at that step, and each number of steps
    is a training of its own.

    Source: the paper's section 4 (betas, warm-up of 10 steps); its batch is 64.
    """

    rate: float
    warmup: int = 10
    until: int | None = None
    batch: int = 16
    beta1: float = 0.5
    beta2: float = 0.999
    clip: float = 1.0
    calm: float = 0.0  # see `tuning.settings.calm_epsilon`

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf"):
            raise UserError(f"the learning rate is {self.rate}: give a number above 0")
        if self.warmup < 0 or self.batch < 1:
            raise UserError(f"{self.warmup} warm-up steps and {self.batch} rows a step: give 0 or more, and 1 or more")
        if self.until is not None and self.until <= self.warmup:
            raise UserError(
                f"the rate is to fall until step {self.until}, after {self.warmup} of warm-up: give more steps"
            )

    def factor(self, step: int) -> float:
        """What the rate is multiplied by at a step, from 0; as transformers' `constant_with_warmup` and `linear`."""
        if step < self.warmup:
            return step / self.warmup
        return 1.0 if self.until is None else max(0.0, (self.until - step) / (self.until - self.warmup))


def order_of(rows: int, batch: int, steps: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Which rows each step sees: every row once an epoch, in an order of its own; the same for the same arguments.

    More steps begin with those of fewer. An epoch's last batch holds what is left.
    """
    random, batches = Random(f"order {seed}"), list[tuple[int, ...]]()
    while len(batches) < steps:
        order = list(range(rows))
        random.shuffle(order)
        batches += [tuple(order[first : first + batch]) for first in range(0, rows, batch)]
    return tuple(batches[:steps])


class LightState(NamedTuple):
    """After so many steps. `optimiser` goes on from there; `loss` is the objective's, of the last step."""

    step: int
    loss: float
    optimiser: dict[str, object]


@dataclass(frozen=True, eq=False)
class LightFit:
    """One model's training, step by step, in place. Make one with `LightFit.of`."""

    model: PreTrainedModel
    examples: tuple[Example, ...]
    objective: TokenObjective
    optimiser: Optimiser
    before_step: Callable[[PreTrainedModel, int], None] | None = None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        rows: Sequence[TrainingRow],
        objective: TokenObjective,
        optimiser: Optimiser,
        *,
        columns: Columns | None = None,
        before_step: Callable[[PreTrainedModel, int], None] | None = None,
    ) -> "LightFit":
        """With reference columns of `model` as it is now, unless they are given."""
        found = columns_of(model, rows, objective) if columns is None else columns
        return cls(model, examples_of(rows, found), objective, optimiser, before_step)

    def run(
        self, order: Sequence[Sequence[int]], *, done: int = 0, state: dict[str, object] | None = None
    ) -> Iterator[LightState]:
        """Take the steps after the first `done`, and say so after each; the model is in evaluation mode meanwhile.

        `state` is the optimiser's after those that are done.

        Raises:
            UserError: a loss is no number.
        """
        at_once = self.optimiser.batch
        with response_head(self.model):
            optimiser = self._adamw()
            if state is not None:
                optimiser.load_state_dict(state)
            for step in range(done, len(order)):
                for group in optimiser.param_groups:
                    group["lr"] = self.optimiser.rate * self.optimiser.factor(step)
                examples = [self.examples[i] for i in order[step]]
                loss, at_once = self._step(optimiser, examples, step, at_once)
                if not torch.isfinite(loss):
                    raise UserError(
                        f"the loss is {float(loss)} at step {step + 1} of a rate of {self.optimiser.rate:g}; "
                        "give lower rates or more warm-up"
                    )
                self.model.train(False)
                yield LightState(step + 1, float(loss), optimiser.state_dict())

    def _adamw(self) -> torch.optim.AdamW:
        betas = (self.optimiser.beta1, self.optimiser.beta2)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        count = sum(parameter.numel() for parameter in trained)
        epsilon = calm_epsilon(self.optimiser.calm, self.optimiser.clip, count)
        return torch.optim.AdamW(trained, lr=self.optimiser.rate, betas=betas, eps=epsilon, weight_decay=0.0)

    def _step(
        self, optimiser: torch.optim.AdamW, examples: Sequence[Example], step: int, at_once: int
    ) -> tuple[Tensor, int]:
        """One step; its loss, and how many rows fitted into memory at once."""
        self.model.train(True)
        while True:
            optimiser.zero_grad(set_to_none=True)
            try:
                loss = self._gradients(examples, at_once)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or at_once == 1:
                    raise
                at_once = -(-min(at_once, len(examples)) // 2)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optimiser.clip)
        if self.before_step is not None:
            self.before_step(self.model, step)
        optimiser.step()
        return loss, at_once

    def _gradients(self, examples: Sequence[Example], at_once: int) -> Tensor:
        """The loss of a step's rows, its gradients left behind: of the whole, in however many passes."""
        scale = 1.0 / max(1, sum(len(example.row.positions) for example in examples))
        total = torch.zeros((), device=self.model.device)
        for first in range(0, len(examples), at_once):
            batch = collate_examples(examples[first : first + at_once], self.model.device)
            output = self.model(
                **batch.inputs, labels=batch.labels, tokens=batch.tokens, objective=self.objective, scale=scale
            )
            output.loss.backward()
            total += output.loss.detach()
        return total


def examples_of(rows: Sequence[TrainingRow], columns: Columns) -> tuple[Example, ...]:
    """Rows with what the objective needs to know of the reference."""
    parts = zip(rows, columns.logprobs, columns.ids, columns.top, columns.mass, strict=True)
    return tuple(Example(*part) for part in parts)


def columns_of(model: PreTrainedModel, rows: Sequence[TrainingRow], objective: TokenObjective) -> Columns:
    """What the objective needs to know of the reference, which is `model` as it is now.

    Raises:
        UserError: there are no rows.
    """
    if not rows:
        raise UserError("there are no rows to train on: give data with at least one example")
    if not objective.needs.any:
        return no_columns(len(rows))
    with response_head(model):
        return make_columns(model, rows, objective.needs, ranks=ALONE, autocast=None)
