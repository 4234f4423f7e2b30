"""What fine-tuning does at each response position: cross-entropy, KL to the start, and the norm of the gradient.

The naive norm takes one backward pass for every position of every row. Here none is taken. A Gaussian direction v in
parameter space turns the gradient g_t of position t's loss into the number v·g_t ~ N(0, ‖g_t‖²), and forward-mode
differentiation gives v·g_t of *all* positions of *all* rows in a batch from one pass over it. From m directions

    ‖g_t‖ ≈ sqrt(mean (v·g_t)²) / c_m,      c_m = E sqrt(χ²_m / m)

is unbiased; its relative standard deviation is about 1/sqrt(2m) for one row. A mean of rows is nearer, but not by the
root of their number: all rows share their directions, and the more alike their gradients are, the more alike they err.

Parameters are those that are trained: all weights, or an adapter's. Nothing here knows what a layer is: a LoRA's two
factors and its scaling are followed by differentiation alone.

Source: Fig. 3 and Fig. 5 of the paper (gradient norms, cross-entropy and KL by position).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import functional_call, jvp
from transformers import PreTrainedModel

from fathom.engine.memory import is_out_of_memory
from fathom.errors import UserError
from fathom.model.quantised import plain_products

__all__ = ["ExactNorms", "Norms", "Positions", "ProjectedNorms", "TrainedRow", "position_losses", "positions"]


class TrainedRow(NamedTuple):
    """A row's ids: what is given, and the response that is learned."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


class Positions(NamedTuple):
    """One row's response positions, first to last; float64 on the CPU."""

    cross_entropy: Float[Tensor, "response"]  # nats
    kl: Float[Tensor, "response"]  # KL(model ‖ start), nats
    gradient_norm: Float[Tensor, "response"]  # of the position's loss, over the parameters that are trained


class _Padded(NamedTuple):
    """Right-padded rows. Column t of the logits predicts id t + 1; `learned` says where that is a response."""

    ids: Int[Tensor, "rows width"]
    learned: Bool[Tensor, "rows width-1"]


class Norms(Protocol):
    """A way to find the norm of each position's gradient by the parameters that are trained."""

    def __call__(self, model: PreTrainedModel, batch: _Padded, /) -> Float[Tensor, "rows width-1"]: ...


def positions(
    model: PreTrainedModel, start: Callable[..., object], rows: Sequence[TrainedRow], norms: Norms, *, batch: int = 25
) -> Iterator[Positions]:
    """Measure each row under `model`, with KL to `start`; in evaluation mode, without changing either model.

    `start` is called as a model is, and answers with `logits`. Where `batch` rows do not fit into memory, fewer are
    measured at once; what is measured of a row is the same.

    Raises:
        UserError: a row has no prompt or no response.
    """
    first = 0
    while first < len(rows):
        try:
            found = _measured(model, start, rows[first : first + batch], norms)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch == 1:
                raise
            batch = -(-min(batch, len(rows) - first) // 2)
            continue
        yield from found
        first += batch


def _measured(
    model: PreTrainedModel, start: Callable[..., object], rows: Sequence[TrainedRow], norms: Norms
) -> list[Positions]:
    """A batch of rows."""
    padded = _pad(rows, _device(model))
    with torch.no_grad():
        now, before = (_log_probs(each, padded) for each in (model, start))
        losses = _losses(now, padded)
        kl = (now.exp() * (now - before)).sum(-1)
    del now, before
    found = norms(model, padded)
    return [
        Positions(*(values[i][learned].cpu().double() for values in (losses, kl, found)))
        for i, learned in enumerate(padded.learned)
    ]


def position_losses(model: PreTrainedModel, rows: Sequence[TrainedRow]) -> Float[Tensor, "rows width-1"]:
    """Cross-entropy of every next id in nats, differentiable; columns count from the second id of each row."""
    padded = _pad(rows, _device(model))
    return _losses(_log_probs(model, padded), padded)


@dataclass(frozen=True)
class ProjectedNorms:
    """Unbiased estimates from `directions` forward-mode passes over each batch; no backward pass at all.

    Raises:
        UserError: there are no directions, or, when called, the model has parts that forward mode cannot follow.
    """

    directions: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise UserError(f"{self.directions} directions were asked for; give 1 or more, or exact norms")

    def __call__(self, model: PreTrainedModel, batch: _Padded) -> Float[Tensor, "rows width-1"]:
        m = self.directions
        parameters = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
        generator = torch.Generator().manual_seed(self.seed)

        def losses(values: dict[str, Tensor]) -> Tensor:
            return _losses(_log_probs(_Called(model, values), batch), batch)

        total = torch.zeros(batch.learned.shape, device=batch.ids.device)
        with _differentiable(model):
            for _ in range(m):
                direction = {name: _gaussian(value, generator) for name, value in parameters.items()}
                total += _along(losses, parameters, direction).float().square()
        # c_m = sqrt(2/m) Γ((m+1)/2) / Γ(m/2): the mean of a χ over that of its square, rooted.
        bias = math.sqrt(2 / m) * math.exp(math.lgamma((m + 1) / 2) - math.lgamma(m / 2))
        return (total / m).sqrt() / bias


@dataclass(frozen=True)
class ExactNorms:
    """One backward pass for every position of every row: slow, and what `ProjectedNorms` is checked against."""

    def __call__(self, model: PreTrainedModel, batch: _Padded) -> Float[Tensor, "rows width-1"]:
        parameters = [value for value in model.parameters() if value.requires_grad]
        norms = torch.zeros(batch.learned.shape, device=batch.ids.device)
        for i, (ids, learned) in enumerate(zip(batch.ids, batch.learned, strict=True)):
            row = _Padded(ids[None], learned[None])
            losses = _losses(_log_probs(model, row), row)[0]
            for t in learned.nonzero()[:, 0].tolist():
                gradients = torch.autograd.grad(losses[t], parameters, retain_graph=True, allow_unused=True)
                squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
                norms[i, t] = torch.stack(squares).sum().sqrt()
        return norms


def _along(
    losses: Callable[[dict[str, Tensor]], Tensor], values: dict[str, Tensor], direction: dict[str, Tensor]
) -> Tensor:
    """The derivative of the losses in a direction."""
    try:
        found: Tensor = jvp(losses, (values,), (direction,))[1]
    except (NotImplementedError, RuntimeError) as error:
        if not any(sign in str(error) for sign in ("forward AD", "functorch transforms")):
            raise
        raise UserError(
            "gradient norms of this model cannot be estimated by forward passes, as some of its operations have no "
            f"forward-mode derivative ({' '.join(str(error).split())[:80]}…): give --directions 0, a backward pass for "
            "every position, and fewer --measured rows"
        ) from error
    return found


@dataclass(frozen=True)
class _Called:
    """A model called with other values of some of its parameters."""

    model: PreTrainedModel
    values: dict[str, Tensor]

    def __call__(self, **inputs: object) -> object:
        return functional_call(self.model, self.values, kwargs=inputs)


def _log_probs(model: Callable[..., object], batch: _Padded) -> Float[Tensor, "rows width-1 vocabulary"]:
    # No attention mask: padding is on the right, and attention is causal.
    logits: Tensor = model(input_ids=batch.ids, use_cache=False).logits  # type: ignore[attr-defined]
    return logits[:, :-1].float().log_softmax(-1)


def _losses(log_probs: Float[Tensor, "rows width-1 vocabulary"], batch: _Padded) -> Float[Tensor, "rows width-1"]:
    return -log_probs.gather(-1, batch.ids[:, 1:, None])[..., 0]


def _pad(rows: Sequence[TrainedRow], device: torch.device) -> _Padded:
    if any(not row.prompt_ids or not row.response_ids for row in rows):
        raise UserError("a training row has an empty prompt or response; give rows with both")
    width = max(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    learned = torch.zeros((len(rows), width - 1), dtype=torch.bool)
    for i, (prompt, response) in enumerate(rows):
        ids[i, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        learned[i, len(prompt) - 1 : len(prompt) + len(response) - 1] = True
    return _Padded(ids.to(device), learned.to(device))


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that a seed means the same direction on every device."""
    return torch.randn(like.shape, generator=generator).to(device=like.device, dtype=like.dtype)


def _device(model: PreTrainedModel) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, all is written in plain operations, which forward mode can follow.

    It can follow neither fused kernels of attention and of experts nor bitsandbytes' products.
    """
    attention: str | None = model.config._attn_implementation
    experts: str | None = model.config._experts_implementation
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    try:
        with plain_products(model):
            yield
    finally:
        model.set_attn_implementation(attention or "eager")
        if experts is not None:
            model.set_experts_implementation(experts)
