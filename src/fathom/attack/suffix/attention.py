"""Attention of a suffix search: one trunk (conversation up to the suffix, and the current suffix), many candidates.

- `BasePlan`: the tokens from the suffix on, of one sequence, behind the fixed part's keys; differentiable, and keeps
  the keys of the suffix, so that candidates find them.
- `CandidatePlan`: candidates packed into one sequence without padding. A candidate that differs from the current suffix
  from position p on computes its tokens from p alone, and sees the trunk up to p: no cache is copied for it.

Both are read by the attention of `fathom.engine.attention` and need what that needs of an architecture.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fathom.engine.attention import UnsupportedError

__all__ = ["BasePlan", "CandidatePlan", "Keys", "Run"]


class Keys(NamedTuple):
    """Keys and values of one layer, of tokens that all candidates share."""

    key: Float[Tensor, "1 kv_heads tokens width"]
    value: Float[Tensor, "1 kv_heads tokens value_width"]


@dataclass(frozen=True, eq=False)
class BasePlan:
    """A single sequence behind `past` (empty: from the first token on); its own keys are left in `own`."""

    past: dict[int, Keys]
    own: dict[int, Keys] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        self.own[layer] = Keys(key.detach(), value.detach())
        if layer in self.past:
            key = torch.cat([self.past[layer].key, key], dim=2)
            value = torch.cat([self.past[layer].value, value], dim=2)
        _check_window(window, key.shape[2])
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
        rows, columns = query.shape[2], key.shape[2]
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)


class Run(NamedTuple):
    """Candidates that begin to differ at one place: `blocks` pieces of `length` tokens, seeing `seen` of the trunk."""

    start: int  # in the packed sequence
    blocks: int
    length: int
    seen: int

    @property
    def stop(self) -> int:
        return self.start + self.blocks * self.length


@dataclass(frozen=True, eq=False)
class CandidatePlan:
    """Runs of candidates over one trunk."""

    trunk: dict[int, Keys]
    runs: tuple[Run, ...]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        trunk = self.trunk[layer]
        heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[3]
        out = query.new_empty(1, query.shape[2], heads, value.shape[3])
        for run in self.runs:
            _check_window(window, run.seen + run.length)
            place = slice(run.start, run.stop)
            q, k, v = (_blocks(x[:, :, place], run) for x in (query, key, value))
            if heads != kv_heads:
                k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
            own = _attention(q, k, v, scale, causal=True)
            values = own.values.transpose(1, 2).reshape(-1, heads, out.shape[3])
            if not run.seen:
                out[0, place] = values
                continue
            over = _attention(
                query[:, :, place].reshape(1, kv_heads, -1, width),
                trunk.key[:, :, : run.seen],
                trunk.value[:, :, : run.seen],
                scale,
                causal=False,
            )
            folded = over.values.reshape(heads, len(values), -1).transpose(0, 1)
            log_over = over.log_total.reshape(heads, -1).T
            log_own = own.log_total.transpose(1, 2).reshape(-1, heads)
            share = torch.sigmoid(log_over - log_own)[..., None].to(out.dtype)
            torch.lerp(values, folded, share, out=out[0, place])
        return out


class _Attended(NamedTuple):
    values: Float[Tensor, "batch heads rows value_width"]
    log_total: Float[Tensor, "batch heads rows"]  # logarithm of the softmax's normaliser


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool) -> _Attended:
    if query.device.type == "cpu" and query.shape[3] == value.shape[3]:
        return _Attended(
            *torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
        )
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores.masked_fill_(hidden, -torch.inf)
    log_total = scores.logsumexp(dim=-1)
    return _Attended(scores.sub_(log_total[..., None]).exp_().to(value.dtype) @ value, log_total)


def _blocks(x: Float[Tensor, "1 heads packed width"], run: Run) -> Float[Tensor, "count heads length width"]:
    return x[0].reshape(x.shape[1], run.blocks, run.length, x.shape[3]).transpose(0, 1)


def _check_window(window: int | None, tokens: int) -> None:
    if window is not None and tokens > window:
        raise UnsupportedError(f"its attention sees {window} tokens only, and the conversation is longer")
