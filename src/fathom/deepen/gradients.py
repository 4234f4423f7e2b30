"""What adds to the gradients of a step of deepening: losses of rows of its own, clipped by themselves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fathom.errors import UserError
from fathom.tuning.adapter import in_parts
from fathom.tuning.batches import collate
from fathom.tuning.objective import TokenObjective
from fathom.tuning.rows import TrainingRow

__all__ = ["add_clipped", "check_whole", "mean_loss", "trained_weights", "without_words", "word_weights"]


def check_whole(model: PreTrainedModel, what: str, option: str) -> None:
    """That a process holds whole weights, which `what` ("resistance moves") speaks of.

    Raises:
        UserError: it holds parts of them; names the option to leave out.
    """
    if in_parts(model) or any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise UserError(
            f"{what} whole weights, and FSDP or DeepSpeed keeps parts of them: train with DDP or one process, "
            f"or leave {option} out"
        )


def trained_weights(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """Those that training moves."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def word_weights(model: PreTrainedModel) -> list[Tensor]:
    """The weights by which ids are read and written."""
    layers: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    return [layer.weight for layer in layers if layer is not None]


def without_words(model: PreTrainedModel, weights: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Weights without those of ids: what is added for some words would move what holds rarer ones little or not."""
    words = {id(weight) for weight in word_weights(model)}
    return [weight for weight in weights if id(weight) not in words]


def mean_loss(
    model: PreTrainedModel, rows: Sequence[TrainingRow], objective: TokenObjective, *, tokens: int | None = None
) -> Tensor:
    """The objective's token mean over rows, in nats; where they are some of a batch, over its number of `tokens`."""
    batch = collate(rows, model.device)
    scale = 1.0 / max(1, len(batch.tokens) if tokens is None else tokens)
    loss: Tensor = model(
        **batch.inputs, labels=batch.labels, tokens=batch.tokens, objective=objective, scale=scale
    ).loss
    return loss


def add_clipped(
    weights: Sequence[torch.nn.Parameter],
    gradient: Sequence[Tensor],
    strength: float,
    clip: float,
    *,
    shares: int = 1,
) -> None:
    """Add a gradient to the weights', scaled to a norm of at most `clip` and by strength / shares."""
    norm = float(torch.linalg.vector_norm(torch.stack([part.norm() for part in gradient])))
    scale = strength * min(1.0, clip / (norm + 1e-12)) / shares
    for weight, part in zip(weights, gradient, strict=True):
        weight.grad = part * scale if weight.grad is None else weight.grad.add_(part, alpha=scale)
