"""TRL's trainer with another loss: rows of ids in, an objective on response positions, the same scale on any number of
processes and under any accumulation.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from trl import SFTTrainer

from fathom.errors import UserError
from fathom.model.quantised import quantisation_of
from fathom.tuning.batches import Example, collate_examples
from fathom.tuning.head import Sealed
from fathom.tuning.objective import ResponseLogits, TokenObjective, Tokens
from fathom.tuning.reference import Columns, arrow_columns, distinct
from fathom.tuning.rows import IGNORED, TrainingRow
from fathom.tuning.shares import EvenShares, RowsOrBlank, SharedLoader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Divisor", "RowTrainer", "make_dataset"]

_COLUMNS = (
    "input_ids",
    "labels",
    "response_start",
    "learned_from",
    "loss_weight",
    "held",
    "reference_logprobs",
    "reference_ids",
    "reference_top",
    "reference_mass",
)


class Divisor(StrEnum):
    """What the sum over a step's tokens is divided by."""

    TOKENS = "tokens"  # the learned tokens: every token counts alike
    ROWS = "rows"  # the rows: a row's loss is that of its whole response, so row weights are exact shares


def make_dataset(rows: Sequence[TrainingRow], columns: Columns) -> Dataset:
    """Everything that is learned from, as arrow: ids, labels, boundaries, weights, reference columns.

    Rows that come more than once are held once.
    """
    different, index = distinct(rows)
    first = {number: i for i, number in reversed(list(enumerate(index)))}
    reference = arrow_columns(columns.of([first[number] for number in range(len(different))]))
    found = Dataset.from_dict(
        {
            "input_ids": [row.input_ids for row in different],
            "labels": [row.labels for row in different],
            "response_start": [len(row.prompt_ids) for row in different],
            "learned_from": [row.learned_from for row in different],
            "loss_weight": [row.loss_weight for row in different],
            "held": [row.held for row in different],
            **{f"reference_{name}": values for name, values in reference.items()},
        }
    )
    return found if len(different) == len(rows) else found.select(index)


def _example(found: Mapping[str, Any]) -> Example:
    start = found["response_start"]
    row = TrainingRow(
        prompt_ids=tuple(found["input_ids"][:start]),
        response_ids=tuple(found["input_ids"][start:]),
        learned_from=found["learned_from"],
        loss_weight=found["loss_weight"],
        held=found["held"],
    )
    return Example(
        row,
        found["reference_logprobs"],
        found["reference_ids"],
        found["reference_top"],
        found["reference_mass"],
    )


def _collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    batch = collate_examples([_example(found) for found in examples])
    labels, learned = batch.labels, batch.tokens
    if any(found.get("blank") for found in examples):  # alone then
        labels, learned = torch.full_like(labels, IGNORED), learned[:0]
    # As a plain mapping, the tokens travel to the device with the rest.
    tokens = {name: value for name, value in vars(learned).items() if value is not None}
    return {**batch.inputs, "labels": labels, "tokens": tokens}


class RowTrainer(SFTTrainer):  # type: ignore[misc]
    """Minimises an objective over rows. The model has its response head on."""

    def __init__(self, *, objective: TokenObjective, divisor: Divisor, **arguments: Any) -> None:
        self.objective = objective
        self.divisor = divisor
        self._start_checked = False
        with _as_made(arguments["model"]):
            super().__init__(data_collator=_collate, **arguments)
        # What `compute_loss` returns is already divided by what all micro-batches of all processes hold.
        self.loss_is_scaled_for_ga = True

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(_COLUMNS)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Each process's share of the rows that one process would take, in their order.

        Orders of another kind than random or as they come, and `dataloader_drop_last`, are left to accelerate.
        """
        processes = self.accelerator.num_processes
        if processes == 1 or self.args.dataloader_drop_last:
            return super().get_train_dataloader()  # type: ignore[no-any-return]
        order = self._get_train_sampler(self.train_dataset)
        if type(order) not in (RandomSampler, SequentialSampler):
            return super().get_train_dataloader()  # type: ignore[no-any-return]
        if isinstance(order, RandomSampler):  # as accelerate has it, so that the order is that of one process
            order = SeedableRandomSampler(self.train_dataset, data_seed=self.args.data_seed)
        batch = self._train_batch_size * processes
        shares = EvenShares(order, batch, process=self.accelerator.process_index, processes=processes)
        return SharedLoader(
            RowsOrBlank(self.train_dataset),
            batch_sampler=shares,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """How many tokens, or rows, one optimizer step learns from, on all processes."""
        if self.divisor is Divisor.TOKENS:
            mine = sum(len(batch["tokens"]["labels"]) for batch in batch_samples)
        else:
            mine = sum(int((batch["labels"] != IGNORED).any(1).sum()) for batch in batch_samples)
        count = torch.tensor(float(mine), device=device)
        return self.accelerator.gather(count).sum()  # type: ignore[no-any-return]

    def compute_loss(
        self,
        model: "PreTrainedModel",
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        if return_outputs or not isinstance(num_items_in_batch, Tensor):
            raise NotImplementedError("rows are trained on, not evaluated on: audit the model instead")
        tokens = Tokens(**inputs.pop("tokens"))
        if not self._start_checked:
            self._check_start(model, inputs, tokens)
        # The count is of all processes, and DDP averages gradients over them.
        processes = self.accelerator.num_processes // self.get_tp_size()
        scale = processes / max(1.0, float(num_items_in_batch))
        output = model(**inputs, tokens=Sealed(tokens), objective=self.objective, scale=scale)
        return output.loss  # type: ignore[no-any-return]

    def _prepare_input(self, data: Any) -> Any:
        """To the device as it is: under DeepSpeed, transformers would round reference columns to bf16."""
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def training_step(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        loss = super().training_step(*args, **kwargs)
        self._stop_unless_finite(float(loss), "loss")
        return loss  # type: ignore[no-any-return]

    def _get_grad_norm(self, model: "PreTrainedModel", grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and self.accelerator.scaler is None:  # a scaler skips such steps by itself
            self._stop_unless_finite(float(norm), "gradient")
        return norm

    def _stop_unless_finite(self, value: float, what: str) -> None:
        if math.isfinite(value):
            return
        raise NotFiniteError(what=what, value=value, step=self.state.global_step + 1)

    def _check_start(self, model: "PreTrainedModel", inputs: Mapping[str, Any], tokens: Tokens) -> None:
        """Before the first step, the model in training must be the reference: the same forward, the same numbers."""
        self._start_checked = True
        if not self.objective.needs.logprobs or self.state.global_step > 0:
            return
        with torch.no_grad():
            output = model(**inputs, tokens=Sealed(tokens), read=_label_logprobs)  # by all processes, or by none
        if tokens.reference_logprobs is None or not output.read:  # no row is left for this process
            return
        # Held rows may be compared with what the reference says to another prompt.
        free = tokens.held == 0
        change = float((output.read[0] - tokens.reference_logprobs)[free].abs().mean()) if free.any() else 0.0
        device = tokens.labels.device.type
        own = next(model.parameters()).dtype  # of whatever wraps the model
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own
        if getattr(self.accelerator.unwrap_model(model), "is_loaded_in_8bit", False):
            dtype = torch.bfloat16  # which is as fine as the 8 bits that what goes into a layer is rounded to
        if change > max(1e-4, 8 * torch.finfo(dtype).eps):
            raise UserError(
                f"before the first step, the model differs from its own reference by {change:.2g} nats a token: "
                "the objective would constrain it to another model. Dropout is the usual cause (set it to 0 in the "
                "configuration); else the adapter changes the model before it is trained"
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written at the end, with what was measured."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL adds means of its own metrics, which this loss does not make.
        self._metrics["train"].clear()
        super().log(logs, start_time)


@contextlib.contextmanager
def _as_made(model: "PreTrainedModel") -> Iterator[None]:
    """Beside quantised weights, an adapter is as it was made afterwards: TRL would round it to bf16.

    Steps of a usual rate are lost on weights of so few digits, and other trainers of fathom's train it in float32.
    """
    quantised = quantisation_of(model) is not None
    kept = [(weight, weight.data) for weight in model.parameters() if quantised and weight.requires_grad]
    yield
    for weight, data in kept:
        weight.data = data


def _label_logprobs(logits: ResponseLogits, tokens: Tokens) -> tuple[Tensor, ...]:
    return (logits.logprobs(tokens.labels),)


class NotFiniteError(ArithmeticError):
    """The loss or its gradient is no number any more."""

    def __init__(self, *, what: str, value: float, step: int) -> None:
        super().__init__(f"the {what} is {value} at step {step}")
        self.what, self.value, self.step = what, value, step
