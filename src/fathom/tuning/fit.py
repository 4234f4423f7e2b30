"""Train a model further on rows: TRL's trainer, and a model at the end. What outlives a kill is in `checkpoints`."""

import copy
import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from fathom.checkpoint import quiet
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.progress import Display, silent
from fathom.ranks import ALONE, Ranks
from fathom.tuning.adapter import Adapter, merge, with_adapter
from fathom.tuning.checkpoints import (
    CHECKPOINTS,
    LossRecord,
    go_on_from,
    loss_journal,
    read_losses,
    step_of,
)
from fathom.tuning.failing import one_line_errors
from fathom.tuning.head import response_head
from fathom.tuning.objective import TokenObjective
from fathom.tuning.reference import reference_columns
from fathom.tuning.rows import TrainingRow
from fathom.tuning.settings import Settings, Value, calm_epsilon
from fathom.tuning.watching import Progress, Watch, callback, keeper

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import SFTConfig

    from fathom.tuning.trainer import RowTrainer

__all__ = ["Fitted", "fit", "keep_place"]

SAVES = 10  # checkpoints over a run, where no cadence was given


@dataclass(frozen=True)
class Fitted:
    """A trained model, the loss of each step, and where its checkpoints are."""

    model: ChatModel
    losses: tuple[LossRecord, ...]
    checkpoints: Path | None
    adapter: Path | None = None  # where the adapter lies, if one was trained; the model has it merged


def fit(
    model: ChatModel,
    rows: Sequence[TrainingRow],
    objective: TokenObjective,
    settings: Settings,
    *,
    output: Path | None = None,
    divisor: str = "tokens",
    ordered: int = 0,
    calm: float = 0.0,
    adapter: Adapter | None = None,
    adapted: "PreTrainedModel | None" = None,
    cache: Path | None = None,
    save: Path | None = None,
    watch: Watch | None = None,
    before_step: Callable[["PreTrainedModel", int], None] | None = None,
    save_every: int = 1,
    ranks: Ranks = ALONE,
    display: Display = silent,
) -> Fitted:
    """Train `model` on `rows`, in place, and return it; with an adapter, merged, and full weights for quantised ones.

    `adapted` is the model with an adapter on already (`adapter.worn`): it is trained, and left as it is.
    `output` keeps checkpoints and losses, and a run that was killed goes on from the last one; without it nothing is
    written. `divisor` is a `trainer.Divisor`. `ordered` 1 takes the rows in their order instead of shuffling them.
    `calm` decides Adam's epsilon (`settings.calm_epsilon`), unless one was given; 0 leaves TRL's. `cache` keeps
    reference columns. `save` is where the trained model is written, as transformers does. `before_step` may change
    gradients before each optimizer step; it is handed the model and the step, from 0. Where no cadence was given,
    checkpoints are made at multiples of `save_every` steps.

    Raises:
        UserError: rows are missing or do not fit, the settings are refused, the loss is no number, the disk is full.
    """
    if not rows:
        raise UserError("there are no rows to train on: give data with at least one example")
    settings = _for_device(settings.with_batch(), model.device)
    inner, kind = model.model, type(model.model)
    with quiet():
        trainable = _trainable(inner, adapter, adapted, settings.seed)
    if calm > 0:
        settings = _calmed(settings, trainable, calm)
    with response_head(inner), one_line_errors(output), quiet():
        autocast = _autocast(settings)
        columns = reference_columns(trainable, rows, objective.needs, ranks=ranks, autocast=autocast, cache=cache)
        kept = keeper(inner)
        trainer = _trainer(trainable, model, rows, columns, objective, settings, output, divisor, ordered, save_every)
        trainer.add_callback(kept)
        losses = _train(trainer, settings.steps(len(rows)), output, watch, before_step, ranks, display)
        if save is not None and adapter is None:
            trainer.save_model(str(save))  # gathers what several processes hold
    inner.__dict__.pop("forward", None)  # TRL's own fused head, which stays on otherwise
    path = None
    if adapter is not None:
        with quiet():
            inner, path = merge(trainable, adapter, kind, output, ranks)
            if save is not None and ranks.first:
                inner.save_pretrained(save)
    inner.train(False)
    if adapted is not None:
        return Fitted(model, losses, None if output is None else output / CHECKPOINTS)
    # What the first process alone has merged is told by it alone.
    unmerged = adapter is not None and not isinstance(inner, kind)
    trained = dataclasses.replace(model, model=inner) if unmerged else _relabelled(model, inner)
    return Fitted(trained, losses, None if output is None else output / CHECKPOINTS, path)


def _trainable(
    inner: "PreTrainedModel", adapter: Adapter | None, adapted: "PreTrainedModel | None", seed: int
) -> "PreTrainedModel":
    if adapted is not None:
        return adapted
    return inner if adapter is None else with_adapter(inner, adapter, seed)


def _train(
    trainer: "RowTrainer",
    steps: int,
    output: Path | None,
    watch: Watch | None,
    before_step: Callable[["PreTrainedModel", int], None] | None,
    ranks: Ranks,
    display: Display,
) -> tuple[LossRecord, ...]:
    """Take the steps, from the last checkpoint on where there is one; the loss of each, those before it included."""
    checkpoint, journal = go_on_from(output, ranks), loss_journal(output, ranks)
    with display("fine-tuning", steps) as shown, journal or nullcontext():
        progress = Progress(shown, journal)
        trainer.add_callback(callback(trainer, progress, watch, before_step))
        if checkpoint is not None:
            shown.advance(step_of(checkpoint))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return tuple(progress.losses) if output is None else read_losses(output)


def _calmed(settings: Settings, trainable: "PreTrainedModel", calm: float) -> Settings:
    count = sum(parameter.numel() for parameter in trainable.parameters() if parameter.requires_grad)
    clip = settings.values.get("max_grad_norm", 1.0)  # TRL's own default
    assert isinstance(clip, int | float)
    return settings.with_defaults(adam_epsilon=calm_epsilon(calm, float(clip) or 1.0, count))


def _trainer(
    trainable: "PreTrainedModel",
    model: ChatModel,
    rows: Sequence[TrainingRow],
    columns: Any,
    objective: TokenObjective,
    settings: Settings,
    output: Path | None,
    divisor: str,
    ordered: int,
    save_every: int,
) -> "RowTrainer":
    from transformers import PrinterCallback

    from fathom.tuning.trainer import Divisor, RowTrainer, make_dataset

    tenths = -(-settings.steps(len(rows)) // (SAVES * save_every))
    settings = settings.with_defaults(
        save_strategy="no" if output is None else "steps",
        save_steps=max(1, tenths) * save_every,
        save_total_limit=2,
        train_sampling_strategy="sequential" if ordered else "random",
    )
    # Trainers make their directory even where they keep nothing: then it is one that is there already.
    directory = Path(tempfile.gettempdir()) if output is None else output / CHECKPOINTS
    config = settings.config(directory, logging_steps=1, logging_nan_inf_filter=False)
    keep_place(config, model.device)
    trainer = RowTrainer(
        model=trainable,
        args=config,
        train_dataset=make_dataset(rows, columns),
        processing_class=copy.copy(model.chat.tokenizer),
        objective=objective,
        divisor=Divisor(divisor),
    )
    trainer.remove_callback(PrinterCallback)  # the loss is shown beside the bar
    return trainer


def keep_place(config: "SFTConfig", device: torch.device) -> None:
    """That one process trains on the GPU that its model is on.

    transformers takes the first GPU instead, and where it sees several, it puts a copy of the model on each of them and
    multiplies the batch: rows of different lengths, which lie end to end in a batch, cannot be dealt out so.
    """
    if device.type != "cuda" or config.world_size > 1:
        return
    torch.cuda.set_device(device)
    config._n_gpu = 1
    config.__dict__["_setup_devices"] = device  # a cached property


def _for_device(settings: Settings, device: torch.device) -> Settings:
    """What a device decides, where it was not given."""
    cuda = device.type == "cuda"
    settings = settings.with_defaults(
        **_precision(settings, device), gradient_checkpointing=cuda, use_cpu=device.type == "cpu"
    )
    if not settings.values["gradient_checkpointing"]:
        return settings
    return settings.with_defaults(gradient_checkpointing_kwargs={"use_reentrant": False})


def _precision(settings: Settings, device: torch.device) -> dict[str, Value]:
    """bf16 or fp16, one at most: what was given, else what `accelerate launch` says, else bf16 where CUDA has it."""
    if any(settings.values[name] for name in {"bf16", "fp16"} & settings.given):
        return {"bf16": False, "fp16": False}
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")  # by accelerate launch alone, which says "no", too
    if launched is not None:
        return {"bf16": launched == "bf16", "fp16": launched == "fp16"}
    return {"bf16": device.type == "cuda" and torch.cuda.is_bf16_supported(), "fp16": False}


def _autocast(settings: Settings) -> torch.dtype | None:
    """What the trainer computes in: reference columns are made in the same."""
    if settings.values["bf16"]:
        return torch.bfloat16
    return torch.float16 if settings.values["fp16"] else None


def _relabelled(model: ChatModel, inner: "PreTrainedModel") -> ChatModel:
    from fathom.identity import weights_hash

    info = msgspec.structs.replace(model.info, weights_hash=weights_hash(inner), quantisation=None)
    return dataclasses.replace(model, model=inner, info=info)
