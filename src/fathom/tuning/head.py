"""An objective on response positions alone, block by block: logits of the whole batch never exist at once.

The naive equivalent is three lines, and holds batch × length × vocabulary logits and their gradient:

    logits = model(input_ids, attention_mask).logits[:, :-1][labels[:, 1:] != -100].float()
    loss = objective(ResponseLogits(logits), tokens).sum() * scale
    loss.backward()

Here the body gives hidden states, and the gradient of each block of rows is formed in the forward: three products a
block, nothing recomputed, no block kept. It runs inside the model's own `forward`, so that the hooks of DDP and FSDP,
gradient checkpointing and adapters see an ordinary call.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fathom.errors import UserError
from fathom.tuning.objective import ResponseLogits, TokenObjective, Tokens

__all__ = ["HeadOutput", "Read", "Sealed", "response_head"]

CPU_BLOCK = 2**24  # logits at a time: 64 MiB in float32
GPU_BLOCK = 2**27

Transform = Callable[[Tensor], Tensor]
# What is read off logits when nothing is trained: a tuple of tensors with one row a token.
Read = Callable[[ResponseLogits, Tokens], tuple[Tensor, ...]]


class HeadOutput(NamedTuple):
    """What `model(..., tokens=…)` returns: the loss, or what was read."""

    loss: Float[Tensor, ""]
    read: tuple[Tensor, ...]


class Sealed:
    """Tokens as a wrapped model is handed them.

    FSDP2 rounds every floating tensor that it finds in a forward's arguments to the precision of the weights, and
    looks into dataclasses: reference log-probabilities would keep three digits. It does not look into this.
    """

    __slots__ = ("tokens",)

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens


class _Blocks(torch.autograd.Function):
    """Loss of rows of hidden states under a head; gradients are formed while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens width"],
        weight: Float[Tensor, "vocabulary width"],
        bias: Float[Tensor, "vocabulary"] | None,
        objective: TokenObjective,
        tokens: Tokens,
        transform: Transform,
        scale: float,
    ) -> Float[Tensor, ""]:
        wants_weight, wants_bias = ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]
        dtype = _compute_dtype(hidden, weight)
        matrix = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        # Sums over blocks in float32: a half-precision sum of many blocks loses what each of them adds.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        total = torch.zeros((), device=hidden.device)
        for rows in _blocks(len(hidden), weight):
            x = hidden[rows].to(dtype)
            logits = F.linear(x, matrix, None if bias is None else bias.to(dtype)).float()
            loss, grad = _objective_gradient(logits, objective, tokens[rows], transform)
            total += loss
            grad = grad.mul_(scale).to(dtype)
            grad_hidden[rows] = (grad @ matrix).to(hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, grad, x)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        # In place: a second backward through the same block is not offered, and the head's gradient is large.
        found = [None if part is None else part.mul_(grad.to(part.dtype)) for part in ctx.saved_tensors]
        return (*found, None, None, None, None)


def _add_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """total += gradᵀ x."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, x)
    else:
        total += grad.T @ x


def _objective_gradient(
    logits: Float[Tensor, "rows vocabulary"], objective: TokenObjective, tokens: Tokens, transform: Transform
) -> tuple[Tensor, Tensor]:
    """The objective's sum over a block, and its gradient with respect to the head's raw logits."""
    with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
        leaf = logits.detach().requires_grad_()
        loss = objective(ResponseLogits(transform(leaf)), tokens).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the model's own head would multiply in."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return weight.dtype


def _blocks(count: int, weight: Tensor) -> Iterator[slice]:
    size = CPU_BLOCK if weight.device.type == "cpu" else GPU_BLOCK
    rows = max(1, size // weight.shape[0])
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


@contextmanager
def response_head(model: PreTrainedModel) -> Iterator[None]:
    """Let `model(input_ids=…, labels=…, tokens=…, objective=… | read=…, scale=…)` return `HeadOutput`.

    `tokens` are those of `labels[:, 1:] != -100`, row by row, `Sealed` where the model is wrapped; `scale` is a number
    for the same reason. Without `tokens`, a call is what it was. The head is put on before a model is wrapped (DDP,
    PEFT), and taken off at the end.

    Raises:
        UserError: the model's head is no plain projection.
    """
    own = model.__dict__.get("forward")
    original = model.forward
    _check_head(model)
    transform = _transform(model)

    def forward(self: PreTrainedModel, *args: Any, tokens: Tokens | Sealed | None = None, **kwargs: Any) -> Any:
        if tokens is None:
            return original(*args, **kwargs)
        return _run(self, tokens.tokens if isinstance(tokens, Sealed) else tokens, transform, **kwargs)

    # Generation checks what it is given against this signature.
    forward.__wrapped__ = type(model).forward  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)
    try:
        yield
    finally:
        if own is None:
            model.__dict__.pop("forward", None)
        else:
            model.forward = own


def _run(
    model: PreTrainedModel,
    tokens: Tokens,
    transform: Transform,
    *,
    labels: Int[Tensor, "rows width"],
    objective: TokenObjective | None = None,
    read: Read | None = None,
    scale: float = 1.0,
    **inputs: Any,
) -> HeadOutput:
    body = model.base_model(**{**inputs, "use_cache": False})
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    # FSDP2 shards a head that is a unit of its own; one that belongs to the root is whole by now.
    weight, bias = _whole(head.weight), None if head.bias is None else _whole(head.bias)
    # Of a model that is spread over devices the head may be on another one than its first layer and the batch.
    states, here = body.last_hidden_state, labels.device
    learned = (labels[:, 1:] != -100).to(states.device)
    hidden, tokens = states[:, :-1][learned].to(weight.device), tokens.to(weight.device)
    if read is not None:
        found = _read(hidden, weight, bias, read, tokens, transform)
        return HeadOutput(torch.zeros((), device=here), tuple(column.to(here) for column in found))
    assert objective is not None
    apply: Callable[..., Tensor] = _Blocks.apply
    loss = apply(hidden, weight, bias, objective, tokens, transform, scale)
    return HeadOutput(loss.to(here), ())


@torch.no_grad()
def _read(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, read: Read, tokens: Tokens, transform: Transform
) -> tuple[Tensor, ...]:
    dtype = _compute_dtype(hidden, weight)
    matrix = weight.to(dtype)
    parts = []
    for rows in _blocks(len(hidden), weight):
        logits = F.linear(hidden[rows].to(dtype), matrix, None if bias is None else bias.to(dtype)).float()
        parts.append(read(ResponseLogits(transform(logits)), tokens[rows]))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _check_head(model: PreTrainedModel) -> None:
    head: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not hasattr(head, "weight") or not isinstance(head, torch.nn.Linear):
        raise UserError(
            f"the head of {type(model).__name__} is {type(head).__name__}, not a plain projection: fathom trains "
            "models whose logits are one"
        )


def _transform(model: PreTrainedModel) -> Transform:
    """From the head's product to logits: Cohere and Granite scale, Gemma caps."""
    config = model.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: Tensor) -> Tensor:
        if scale != 1.0:
            logits = logits * scale
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    return transform
