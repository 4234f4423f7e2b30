"""How the models of a sweep are trained: in memory, or by TRL; all weights of a copy, or an adapter on the start."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from fathom.model import ChatModel
from fathom.stress.apart import apart, load_trained, trained_weights
from fathom.stress.light import LightState, order_of
from fathom.stress.plan import Learnt, Track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fathom.tuning.settings import Settings

__all__ = ["Fit", "Light", "Stop", "Trainer", "fit_settings"]


@dataclass(frozen=True, eq=False)
class Stop:
    """A model after so many steps, in evaluation mode. It is trained on once it has been looked at."""

    step: int
    loss: float | None  # the objective's, where the trainer knows it by then
    model: ChatModel


class Trainer(Protocol):
    """Trains a copy of the start along a track, and shows it at each step that is still to be measured."""

    def __call__(
        self,
        start: ChatModel,
        learnt: Learnt,
        track: Track,
        scratch: Path,
        pending: frozenset[int],
        visit: Callable[[Stop], None],
        /,
    ) -> None: ...


@dataclass(frozen=True, eq=False)
class Light:
    """`LightFit`, with the state kept at every step that is measured."""

    def __call__(
        self,
        start: ChatModel,
        learnt: Learnt,
        track: Track,
        scratch: Path,
        pending: frozenset[int],
        visit: Callable[[Stop], None],
    ) -> None:
        order = order_of(len(learnt.rows), track.optimiser.batch, max(pending), track.seed)
        kept = scratch / "state.pt"
        done, state = 0, None
        with apart(start, track.adapter, track.seed) as (model, _):
            fit = learnt.training(model.model, track.optimiser)
            if kept.exists():
                found = torch.load(kept, map_location=model.device, weights_only=True)
                load_trained(model.model, found["model"])
                done, state = int(found["step"]), found["optimiser"]
                if done in pending:
                    visit(Stop(done, float(found["loss"]), model))
            for after in fit.run(order, done=done, state=state):
                if after.step in pending:
                    _save(kept, model.model, after)
                    visit(Stop(after.step, after.loss, model))


@dataclass(frozen=True, eq=False)
class Fit:
    """`tuning.fit`, with its own checkpoints: for models of any size, with all that TRL offers.

    The order of rows is TRL's own. `overrides` are TRL's settings as `name=value`.
    """

    overrides: tuple[str, ...] = ()

    def __call__(
        self,
        start: ChatModel,
        learnt: Learnt,
        track: Track,
        scratch: Path,
        pending: frozenset[int],
        visit: Callable[[Stop], None],
    ) -> None:
        from fathom.tuning.fit import fit
        from fathom.tuning.watching import Watch

        with apart(start, track.adapter, track.seed) as (model, adapted):
            fit(
                model,
                learnt.rows,
                learnt.per_token,
                fit_settings(track, max(pending), self.overrides),
                output=scratch,
                calm=learnt.calm,
                adapted=adapted,
                watch=Watch(pending, lambda step, _: visit(Stop(step, None, model))),
                before_step=None if learnt.before_step is None else learnt.before_step(),
            )


def fit_settings(track: Track, steps: int, overrides: Sequence[str] = ()) -> "Settings":
    """TRL's settings of a track: those that `Light` follows, and then `overrides`, such as a batch in smaller parts."""
    from fathom.tuning.settings import read_settings

    optimiser = track.optimiser
    ours = (
        f"learning_rate={optimiser.rate}",
        f"warmup_steps={optimiser.warmup}",
        f"lr_scheduler_type={'constant_with_warmup' if optimiser.until is None else 'linear'}",
        f"adam_beta1={optimiser.beta1}",
        f"adam_beta2={optimiser.beta2}",
        f"max_grad_norm={optimiser.clip}",
        f"max_steps={steps}",
        f"seed={track.seed}",
        f"per_device_train_batch_size={optimiser.batch}",
        "gradient_accumulation_steps=1",
    )
    return read_settings(None, (*ours, *overrides))


def _save(path: Path, model: "PreTrainedModel", after: LightState) -> None:
    """What is trained, and the optimiser; wholly or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    weights = trained_weights(model)
    torch.save({"model": weights, "step": after.step, "loss": after.loss, "optimiser": after.optimiser}, beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)
