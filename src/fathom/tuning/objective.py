"""What a trainer asks of an objective: a pure function from response logits and constants to nats a token."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Needs", "PlainNll", "ResponseLogits", "TokenObjective", "Tokens"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """The learned tokens of a batch, row after row, and what is known of each before training.

    `reference_*` are columns of constants, None where the objective needs none: the reference's log-probability of the
    label; its most probable ids and their log-probabilities, of held rows (elsewhere log-probability is hugely
    negative); its probability of the safety tokens.
    """

    labels: Int[Tensor, "tokens"]
    positions: Int[Tensor, "tokens"]  # in the response, from 1
    loss_weight: Float[Tensor, "tokens"]
    held: Float[Tensor, "tokens"]
    reference_logprobs: Float[Tensor, "tokens"] | None = None
    reference_ids: Int[Tensor, "tokens top"] | None = None
    reference_top: Float[Tensor, "tokens top"] | None = None
    reference_mass: Float[Tensor, "tokens"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: "slice | Tensor") -> Self:
        return self._each(lambda column: column[index])

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return self._each(lambda column: column.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {}
        for name, column in columns.items():
            changed[name] = None if column is None else change(column)
        return type(self)(**changed)


class ResponseLogits:
    """Logits of some response positions, in float32, with gradients; what objectives share is computed once."""

    def __init__(self, values: Float[Tensor, "tokens vocabulary"]) -> None:
        self.values = values

    @cached_property
    def normaliser(self) -> Float[Tensor, "tokens"]:
        """Log-sum-exp."""
        return self.values.logsumexp(-1)

    def logprobs(self, ids: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
        """Log-probability of one id at each position."""
        return self.values.gather(-1, ids[:, None])[:, 0] - self.normaliser

    def logprobs_of(self, ids: Int[Tensor, "tokens some"]) -> Float[Tensor, "tokens some"]:
        """Log-probabilities of several ids at each position."""
        return self.values.gather(-1, ids) - self.normaliser[:, None]

    def mass(self, ids: Int[Tensor, "some"]) -> Float[Tensor, "tokens"]:
        """Log of the probability that a set of ids has together."""
        return self.values[:, ids].logsumexp(-1) - self.normaliser

    def at(self, index: Tensor) -> "ResponseLogits":
        """The same at some of the positions."""
        return ResponseLogits(self.values[index])


@dataclass(frozen=True)
class Needs:
    """Which reference columns an objective reads. `top` is how many of the reference's most probable ids; 0 is none."""

    logprobs: int = 0  # 1 where the label's log-probability is needed
    top: int = 0
    mass: tuple[int, ...] = ()  # the safety tokens

    @property
    def any(self) -> int:
        """Whether anything is needed."""
        return self.logprobs + self.top + len(self.mass)

    @classmethod
    def union(cls, needs: Iterable["Needs"]) -> "Needs":
        found = tuple(needs)
        return cls(
            logprobs=max((need.logprobs for need in found), default=0),
            top=max((need.top for need in found), default=0),
            mass=tuple(dict.fromkeys(id_ for need in found for id_ in need.mass)),
        )


class TokenObjective(Protocol):
    """A pure function of logits and constants. Frozen: its fields are its hyper-parameters."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> Float[Tensor, "tokens"]:
        """Nats a token, each already multiplied by the row's weight; the trainer sums and divides."""
        ...


@dataclass(frozen=True)
class PlainNll:
    """Cross-entropy: plain supervised fine-tuning."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> Float[Tensor, "tokens"]:
        return -tokens.loss_weight * logits.logprobs(tokens.labels)
