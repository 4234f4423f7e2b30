"""Protection by the weights themselves: a pull towards where they began, and a projection of where they went."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fathom.errors import UserError

__all__ = ["Anchor", "Proximal", "SafeLora", "project_update"]


@dataclass(frozen=True)
class Proximal:
    """A pull towards the weights before training: the gradient of (ρ/2)·‖θ - θ₀‖² is added to each step's.

    It is added after gradients are clipped, so that clipping does not weaken it.

    Source: Lisa (arXiv 2405.18641), its proximal term alone, without the alternation of data.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise UserError(f"the proximal term's strength is {self.strength}: give a number above 0")


@dataclass(eq=False)
class Anchor:
    """Applies a `Proximal` before each optimizer step; holds a copy of the weights that are trained."""

    proximal: Proximal
    start: dict[str, Tensor] = field(default_factory=dict)

    def remember(self, model: torch.nn.Module) -> None:
        """Copy the trained weights, once: a run that goes on from a checkpoint gives the first ones."""
        self.start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def __call__(self, model: torch.nn.Module, step: int = 0) -> None:
        """Add the pull to the gradients, whatever the step."""
        del step
        if not self.start:
            self.remember(model)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - self.start[name], alpha=self.proximal.strength)


@dataclass(frozen=True)
class SafeLora:
    """After training, the update of each layer is projected on the direction of alignment where it leads away from it.

    That direction is W_aligned - W_base, so a base model is needed. `threshold` is the cosine between an update and its
    projection below which the layer's update is projected.

    Source: Safe LoRA (arXiv 2405.16833), with C = V Vᵀ / ‖V‖_F.
    """

    threshold: float = 0.35

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise UserError(f"safe-lora's threshold is {self.threshold}: a cosine lies between -1 and 1")

    def __call__(
        self, tuned: Mapping[str, Tensor], aligned: Mapping[str, Tensor], base: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The tuned weights, with the updates of matrices projected where their direction asks for it."""
        found = {}
        for name, weight in tuned.items():
            if weight.dim() != 2 or name not in aligned or name not in base or torch.equal(weight, aligned[name]):
                found[name] = weight
                continue
            direction = (aligned[name] - base[name]).float()
            update = (weight - aligned[name]).float()
            projected = project_update(update, direction)
            cosine = torch.nn.functional.cosine_similarity(projected.flatten(), update.flatten(), dim=0)
            found[name] = (aligned[name].float() + projected).to(weight.dtype) if cosine < self.threshold else weight
        return found


def project_update(update: Float[Tensor, "out in_"], direction: Float[Tensor, "out in_"]) -> Float[Tensor, "out in_"]:
    """C · update with C = V Vᵀ / ‖V‖_F for the direction V; zero where the direction is."""
    norm = direction.norm()
    if norm == 0:
        return torch.zeros_like(update)
    projected: Tensor = direction @ (direction.T @ update) / norm
    return projected
