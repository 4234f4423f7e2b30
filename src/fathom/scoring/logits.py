"""Rows of logits of which no column exists before it is asked for."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Head", "HeadLogits", "LogitTable", "Logits"]


@runtime_checkable
class Logits(Protocol):
    """Rows of logits that are computed column by column, when asked for."""

    @property
    def rows(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def columns(self, index: slice | Int[Tensor, "columns"]) -> Float[Tensor, "rows columns"]:
        """Logits of some ids in float32, in memory of their own: the caller may overwrite them."""
        ...

    def at(self, ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """Logit of one id in each row, in float32."""
        ...


@dataclass(frozen=True, eq=False)
class Head:
    """A model's last step, from hidden states to logits: softcap(scale · (h Wᵀ + b))."""

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, "vocabulary"] | None
    scale: float  # Cohere's logit_scale, one over Granite's logits_scaling; 1 elsewhere
    softcap: float | None  # Gemma's final_logit_softcapping

    def logits(
        self, hidden: Float[Tensor, "rows width"], index: slice | Int[Tensor, "columns"]
    ) -> Float[Tensor, "rows columns"]:
        """Logits of some ids, computed in the head's own dtype and returned in float32."""
        return self._transformed(F.linear(hidden, self.weight[index], None if self.bias is None else self.bias[index]))

    def at(self, hidden: Float[Tensor, "rows width"], ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """Logit of one id in each row."""
        logits = torch.linalg.vecdot(hidden, self.weight[ids])
        return self._transformed(logits if self.bias is None else logits + self.bias[ids])

    def _transformed(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()


@dataclass(frozen=True, eq=False)
class HeadLogits:
    """`Logits` from hidden states and a head: no column exists before it is asked for."""

    hidden: Float[Tensor, "rows width"]
    head: Head

    @property
    def rows(self) -> int:
        return self.hidden.shape[0]

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def columns(self, index: slice | Int[Tensor, "columns"]) -> Float[Tensor, "rows columns"]:
        return self.head.logits(self.hidden, index)

    def at(self, ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        return self.head.at(self.hidden, ids)


@dataclass(frozen=True, eq=False)
class LogitTable:
    """`Logits` that a model computed itself, for models whose head is no plain projection."""

    table: Float[Tensor, "rows vocabulary"]

    @property
    def rows(self) -> int:
        return self.table.shape[0]

    @property
    def vocabulary(self) -> int:
        return self.table.shape[1]

    @property
    def device(self) -> torch.device:
        return self.table.device

    def columns(self, index: slice | Int[Tensor, "columns"]) -> Float[Tensor, "rows columns"]:
        return self.table[:, index].to(torch.float32, copy=True)

    def at(self, ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        return self.table.gather(1, ids[:, None])[:, 0].float()
