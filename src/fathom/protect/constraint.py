"""The token-wise constraint: a loss that is cross-entropy at the start and lets go of a token once it has risen enough.

    loss_t = -(2/β_t) · log σ(β_t · Δ_t),   Δ_t = log π_θ(y_t) - log π_reference(y_t)

Its gradient is that of cross-entropy times 2·σ(-β_t · Δ_t): 1 where the model still is the reference, towards 0 as it
gives the token more probability than the reference did. β → 0 is plain cross-entropy.

Source: the paper's Eq. 3. The released code multiplies cross-entropy by that weight, detached and floored at 1e-3; here
the weight has no floor.
"""

from dataclasses import dataclass
from math import log
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fathom.errors import UserError

__all__ = ["BetaSchedule", "anchored_nll", "constrained_nll", "token_weights"]

_SMALL = 1e-4  # below this β the difference from its limit is smaller than rounding


def constrained_nll(
    logprobs: Float[Tensor, "*tokens"], reference: Float[Tensor, "*tokens"], beta: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """(2/β)·softplus(-β·(logprobs - reference)), in nats a token; β > 0.

    `reference` are constants. At logprobs = reference it is (2/β)·log 2, whatever the token: see `anchored_nll`.

    Source: the paper's Eq. 3.
    """
    return -2.0 / beta * F.logsigmoid(beta * (logprobs - reference))


def anchored_nll(
    logprobs: Float[Tensor, "*tokens"], reference: Float[Tensor, "*tokens"], beta: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """`constrained_nll` less a constant, so that it equals -logprobs at the reference and for β → 0; β ≥ 0.

    The same gradient, and a number that can be read beside plain training's loss. The constant is
    (2/β)·log 2 + reference.
    """
    change = logprobs - reference
    # log((1 + e^-x) / 2) = log cosh(x/2) - x/2, which does not cancel for small x.
    half = beta * change / 2
    log_cosh = half.abs() + F.softplus(-2 * half.abs()) - log(2.0)
    curved = torch.where(beta > _SMALL, 2.0 / beta.clamp_min(_SMALL) * log_cosh, beta * change.square() / 4)
    return curved - change - reference


def token_weights(
    logprobs: Float[Tensor, "*tokens"], reference: Float[Tensor, "*tokens"], beta: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """2·σ(-β·Δ) in (0, 2): what the gradient of cross-entropy is multiplied by at each token."""
    return 2.0 * torch.sigmoid(-beta * (logprobs - reference))


@dataclass(frozen=True)
class BetaSchedule:
    """β by response position: the first token, the next four, and the rest. 0 is no constraint; large holds on tightly.

    Source: the paper's section 4: β₁ = 0.5, β₂..₅ = 2, β after that 0.1.
    """

    first: float = 0.5
    next4: float = 2.0
    rest: float = 0.1

    def __post_init__(self) -> None:
        for name in ("first", "next4", "rest"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UserError(f"beta of {name} is {value}: give a number of 0 (no constraint) or above")

    @classmethod
    def uniform(cls, beta: float) -> Self:
        """The same β everywhere (the paper's T8)."""
        return cls(beta, beta, beta)

    def __call__(self, positions: Int[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
        """β of each response position; positions count from 1 (the paper's t)."""
        rest = torch.full(positions.shape, self.rest, device=positions.device)
        return torch.where(positions == 1, self.first, torch.where(positions <= 5, self.next4, rest))
