"""What something that is called before an optimizer step adds to the gradients."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fathom.tuning.head import response_head


def flat(parts: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([part.detach().flatten() for part in parts if part is not None])


def added(before_step: Callable[[PreTrainedModel, int], None], model: PreTrainedModel, step: int = 0) -> Tensor:
    """To gradients of 1, at a step; weights must stay to the bit."""
    before = flat(model.parameters()).clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with response_head(model):
        before_step(model, step)
    assert torch.equal(flat(model.parameters()), before)
    return flat(parameter.grad for parameter in model.parameters()) - 1
