"""Train a model further on rows: TRL's trainer, and a model at the end. What outlives a kill is in `checkpoints`."""

import contextlib
import copy
import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from safetensors import SafetensorError

from fathom.checkpoint import one_line, quiet
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.progress import Advance, Display, silent
from fathom.ranks import ALONE, Ranks
from fathom.run import Journal
from fathom.tuning.checkpoints import (
    CHECKPOINTS,
    LossRecord,
    go_on_from,
    loss_journal,
    mark_whole,
    read_losses,
    step_of,
    where_to_go_on,
)
from fathom.tuning.head import response_head
from fathom.tuning.objective import TokenObjective
from fathom.tuning.reference import reference_columns
from fathom.tuning.rows import TrainingRow
from fathom.tuning.settings import Settings, calm_epsilon

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from fathom.tuning.trainer import RowTrainer

__all__ = ["Adapter", "Fitted", "Watch", "fit"]

SAVES = 10  # checkpoints over a run, where no cadence was given


@dataclass(frozen=True)
class Watch:
    """Something to do with the model after given numbers of steps; 0 is before the first.

    It is handed the model in evaluation mode, unwrapped; whatever it draws changes no later step.
    """

    steps: frozenset[int]
    call: Callable[[int, "PreTrainedModel"], None]


@dataclass(frozen=True)
class Adapter:
    """LoRA instead of all weights. `targets` is PEFT's `target_modules`.

    The default puts it on every linear layer but the head.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class Fitted:
    """A trained model, the loss of each step, and where its checkpoints are."""

    model: ChatModel
    losses: tuple[LossRecord, ...]
    checkpoints: Path | None
    adapter: Path | None = None  # where the adapter lies, if one was trained; the model has it merged


@dataclass
class _Progress:
    """What a run tells as it goes."""

    shown: Advance
    journal: Journal | None
    losses: list[LossRecord] = field(default_factory=list)

    def add(self, record: LossRecord) -> None:
        self.losses.append(record)
        self.shown.describe(f"fine-tuning, loss {record.loss:.4f}")
        if self.journal is not None:
            self.journal.append([record])


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
    cache: Path | None = None,
    save: Path | None = None,
    watch: Watch | None = None,
    before_step: Callable[["PreTrainedModel"], None] | None = None,
    ranks: Ranks = ALONE,
    display: Display = silent,
) -> Fitted:
    """Train `model` on `rows`, in place, and return it; with an adapter, merged.

    `output` keeps checkpoints and losses, and a run that was killed goes on from the last one; without it nothing is
    written. `divisor` is a `trainer.Divisor`. `ordered` 1 takes the rows in their order instead of shuffling them.
    `calm` decides Adam's epsilon (`settings.calm_epsilon`), unless one was given; 0 leaves TRL's. `cache` keeps
    reference columns. `save` is where the trained model is written, as transformers does. `before_step` may change
    gradients before each optimizer step.

    Raises:
        UserError: rows are missing or do not fit, the settings are refused, the loss is no number, the disk is full.
    """
    if not rows:
        raise UserError("there are no rows to train on: give data with at least one example")
    settings = settings.with_batch()
    inner = model.model
    with quiet():
        trainable = inner if adapter is None else _with_adapter(inner, adapter)
    if calm > 0:
        settings = _calmed(settings, trainable, calm)
    with response_head(inner), _one_line_errors(output), quiet():
        autocast = _autocast(settings)
        columns = reference_columns(trainable, rows, objective.needs, ranks=ranks, autocast=autocast, cache=cache)
        trainer = _trainer(trainable, model, rows, columns, objective, settings, output, divisor, ordered)
        total = _total_steps(trainer, len(rows))
        checkpoint = go_on_from(output, ranks)
        journal = loss_journal(output, ranks)
        with display("fine-tuning", total) as shown, journal or nullcontext():
            progress = _Progress(shown, journal)
            trainer.add_callback(_callback(trainer, progress, watch, before_step))
            if checkpoint is not None:
                shown.advance(step_of(checkpoint))
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if save is not None and adapter is None:
            trainer.save_model(str(save))  # gathers what several processes hold
    inner.__dict__.pop("forward", None)  # TRL's own fused head, which stays on otherwise
    losses = tuple(progress.losses) if output is None else read_losses(output)
    kept = None
    if adapter is not None:
        with quiet():
            kept = _save_adapter(trainable, output, ranks)
            inner = trainable.merge_and_unload()  # type: ignore[operator]
            if save is not None and ranks.first:
                inner.save_pretrained(save)
    inner.train(False)
    return Fitted(_relabelled(model, inner), losses, None if output is None else output / CHECKPOINTS, kept)


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
) -> "RowTrainer":
    from transformers import PrinterCallback

    from fathom.tuning.trainer import Divisor, RowTrainer, make_dataset

    cuda = model.device.type == "cuda"
    settings = settings.with_defaults(
        bf16=cuda and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=cuda,
        use_cpu=model.device.type == "cpu",
        save_strategy="no" if output is None else "steps",
        save_total_limit=2,
        train_sampling_strategy="sequential" if ordered else "random",
    )
    if settings.values["gradient_checkpointing"]:
        settings = settings.with_defaults(gradient_checkpointing_kwargs={"use_reentrant": False})
    steps = _planned_steps(settings, len(rows))
    settings = settings.with_defaults(save_steps=max(1, -(-steps // SAVES)))
    directory = Path("unused") if output is None else output / CHECKPOINTS
    config = settings.config(directory, logging_steps=1, logging_nan_inf_filter=False)
    tokenizer = copy.copy(model.chat.tokenizer)
    trainer = RowTrainer(
        model=trainable,
        args=config,
        train_dataset=make_dataset(rows, columns),
        processing_class=tokenizer,
        objective=objective,
        divisor=Divisor(divisor),
    )
    trainer.remove_callback(PrinterCallback)  # the loss is shown beside the bar
    return trainer


def _planned_steps(settings: Settings, count: int) -> int:
    most = settings.values.get("max_steps", -1)
    if isinstance(most, int) and most > 0:
        return most
    epochs = settings.values.get("num_train_epochs", 3.0)
    assert isinstance(epochs, int | float)
    return max(1, int(-(-count // settings.batch) * epochs))


def _total_steps(trainer: "RowTrainer", count: int) -> int:
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    batch = trainer.args.per_device_train_batch_size * trainer.args.world_size
    micro = -(-count // batch)
    return max(1, int(-(-micro // trainer.args.gradient_accumulation_steps) * trainer.args.num_train_epochs))


def _autocast(settings: Settings) -> torch.dtype | None:
    chosen = settings.values.get("bf16")
    if chosen is None and torch.cuda.is_available():
        chosen = torch.cuda.is_bf16_supported()
    if chosen:
        return torch.bfloat16
    return torch.float16 if settings.values.get("fp16") else None


def _with_adapter(model: "PreTrainedModel", adapter: Adapter) -> "PreTrainedModel":
    import peft

    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    try:
        wrapped: Any = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha,
                lora_dropout=adapter.dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise UserError(f"LoRA cannot be put on this model: {one_line(error)}") from error
    return wrapped  # type: ignore[no-any-return]


def _callback(
    trainer: "RowTrainer",
    progress: _Progress,
    watch: Watch | None,
    before_step: Callable[["PreTrainedModel"], None] | None,
) -> "TrainerCallback":
    from transformers import TrainerCallback

    def look(step: int) -> None:
        if watch is None or step not in watch.steps:
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
            model.train(False)
            watch.call(step, model)
            model.train(True)

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control, kwargs
            if state.global_step == 0:
                look(0)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, state, control, kwargs
            if before_step is not None:
                before_step(trainer.accelerator.unwrap_model(trainer.model))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control, kwargs
            progress.shown.advance(1)
            look(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            del args, control, kwargs
            if not logs or "loss" not in logs:
                return
            norm = logs.get("grad_norm")
            progress.add(
                LossRecord(
                    step=state.global_step,
                    loss=float(logs["loss"]),
                    learning_rate=float(logs["learning_rate"]),
                    grad_norm=None if norm is None else float(norm),
                )
            )

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del control, kwargs
            if state.is_world_process_zero:
                mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Callback()


def _save_adapter(model: "PreTrainedModel", output: Path | None, ranks: Ranks) -> Path | None:
    if output is None:
        return None
    path = output / "adapter"
    if ranks.first:
        model.save_pretrained(path)
    ranks.barrier()
    return path


def _relabelled(model: ChatModel, inner: "PreTrainedModel") -> ChatModel:
    from dataclasses import replace

    from fathom.identity import weights_hash

    return replace(model, model=inner, info=msgspec.structs.replace(model.info, weights_hash=weights_hash(inner)))


@contextlib.contextmanager
def _one_line_errors(output: Path | None) -> Iterator[None]:
    """What can go wrong in a trainer and a user can mend, as one line that says where to go on from."""
    from fathom.tuning.trainer import NotFiniteError

    try:
        yield
    except NotFiniteError as error:
        raise UserError(
            f"{error}: training stopped before that step. {where_to_go_on(output)}; try a lower learning rate "
            "(--set learning_rate=…), more warm-up or a smaller max_grad_norm"
        ) from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            "out of memory while training: try --set per_device_train_batch_size=1 (the step's batch stays the same), "
            "--set gradient_checkpointing=true, --lora, or --dtype bfloat16"
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "no space left" in str(error).lower() or "os error 28" in str(error).lower():
            raise UserError(
                f"no space left on the disk while training. {where_to_go_on(output)}: free some space and run the same "
                "command again"
            ) from error
        raise
