"""What a training tells as it goes: its losses, its progress, and the model to whoever wants to look at it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fathom.journal import Journal
from fathom.progress import Advance
from fathom.tuning.checkpoints import LossRecord, mark_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from fathom.tuning.trainer import RowTrainer

__all__ = ["Progress", "Watch", "callback", "keeper"]


@dataclass(frozen=True)
class Watch:
    """Something to do with the model after given numbers of steps; 0 is before the first.

    It is handed the model in evaluation mode, unwrapped; whatever it draws changes no later step.
    """

    steps: frozenset[int]
    call: Callable[[int, "PreTrainedModel"], None]


@dataclass
class Progress:
    """What a run tells as it goes."""

    shown: Advance
    journal: Journal | None
    losses: list[LossRecord] = field(default_factory=list)

    def add(self, record: LossRecord) -> None:
        self.losses.append(record)
        self.shown.describe(f"fine-tuning, loss {record.loss:.4f}")
        if self.journal is not None:
            self.journal.append([record])


def keeper(model: "PreTrainedModel") -> "TrainerCallback":
    """Puts back the special ids of a model's configuration before the first step and the first checkpoint.

    Trainers overwrite them with the tokenizer's, whose padding may even have no embedding; rows end as they are made.
    """
    from transformers import TrainerCallback

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    configs = [config for config in (model.config.get_text_config(), model.generation_config) if config is not None]
    kept = [(config, name, getattr(config, name, None)) for config in configs for name in names]

    class Keeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, state, control, kwargs
            for config, name, value in kept:
                setattr(config, name, value)

    return Keeper()


def callback(
    trainer: "RowTrainer",
    progress: Progress,
    watch: Watch | None,
    before_step: Callable[["PreTrainedModel", int], None] | None,
) -> "TrainerCallback":
    """What the trainer calls: it notes losses and whole checkpoints, and hands the model to those who asked for it."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control, kwargs
            if state.global_step == 0:
                _show(trainer, watch, 0)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control, kwargs
            if before_step is not None:
                before_step(trainer.accelerator.unwrap_model(trainer.model), state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control, kwargs
            progress.shown.advance(1)
            _show(trainer, watch, state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            del args, control, kwargs
            if logs and "loss" in logs:
                progress.add(_loss_record(state.global_step, logs))

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del control, kwargs
            if state.is_world_process_zero:
                mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Callback()


def _show(trainer: "RowTrainer", watch: Watch | None, step: int) -> None:
    """The model as `Watch` promises it: what is done with it changes no later step."""
    if watch is None or step not in watch.steps:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        model.train(False)
        watch.call(step, model)
        model.train(True)


def _loss_record(step: int, logs: Mapping[str, Any]) -> LossRecord:
    norm = logs.get("grad_norm")
    return LossRecord(
        step=step,
        loss=float(logs["loss"]),
        learning_rate=float(logs["learning_rate"]),
        grad_norm=None if norm is None else float(norm),
    )
