"""Attention of many short continuations over a few long trunks, without copying a trunk for each of them.

Two plans run the same model code through transformers' `AttentionInterface`:

- `TrunkPlan`: trunks packed one behind the other in a single sequence, each attending to itself; fills the cache.
- `StepPlan`: one new token per row. Its attention splits into a part over the row's trunk, where all rows of a group
  fold into one query matrix, and a part over the row's own tokens; the two are merged by their softmax normalisers
  (as in "Hydragen", Juravsky et al. 2024, and cascade inference).

What a plan cannot express (capped scores, sinks, position biases, masks that an architecture makes itself) raises
`UnsupportedError`, and the engine takes the slow way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

__all__ = ["NAME", "LayerCache", "Segment", "StepPlan", "TrunkCache", "TrunkPlan", "UnsupportedError"]

NAME = "fathom_shared_trunk"

_UNSEEN = -1e30  # finite, so that a row that sees nothing of its trunk has weight 0 there and not NaN


class UnsupportedError(Exception):
    """The architecture's attention is not one that trunks can be shared under."""


class Plan(Protocol):
    def attend(
        self,
        layer: int,
        query: Float[Tensor, "batch heads tokens width"],
        key: Float[Tensor, "batch kv_heads tokens width"],
        value: Float[Tensor, "batch kv_heads tokens value_width"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "batch tokens heads value_width"]: ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    fathom_plan: Plan | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; the plan comes through the model's own keyword arguments."""
    if fathom_plan is None:
        raise UnsupportedError("its layers do not hand keyword arguments to their attention")
    if attention_mask is not None:
        raise UnsupportedError("it makes attention masks of its own")
    for name in ("softcap", "s_aux", "position_bias", "sinks"):
        if others.get(name) is not None:
            raise UnsupportedError(f"its attention uses {name}")
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        raise UnsupportedError("its attention is not causal")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise UnsupportedError("its layers are not numbered")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return fathom_plan.attend(layer, query, key, value, scale, sliding_window), None


AttentionInterface.register(NAME, _attention)


@dataclass(eq=False)
class LayerCache:
    """Keys and values of one layer: of the trunks, and of every row's own tokens."""

    trunk_key: Float[Tensor, "groups kv_heads trunk width"]
    trunk_value: Float[Tensor, "groups kv_heads trunk value_width"]
    own_key: Float[Tensor, "rows kv_heads new width"]
    own_value: Float[Tensor, "rows kv_heads new value_width"]


@dataclass(eq=False)
class TrunkCache:
    """The cache of one wave. Layers are made when their first keys arrive, on the device where they arrive."""

    groups: int
    trunk: int  # the longest trunk, tokens
    rows: int
    new: int  # most tokens that a row caches itself
    layers: dict[int, LayerCache] = field(default_factory=dict)

    def layer(self, number: int, key: Tensor, value: Tensor) -> LayerCache:
        if number not in self.layers:
            # zeros where another trunk is longer: never seen, but 0 x NaN would be
            trunks = [x.new_zeros(self.groups, x.shape[1], self.trunk, x.shape[3]) for x in (key, value)]
            own = [x.new_empty(self.rows, x.shape[1], self.new, x.shape[3]) for x in (key, value)]
            self.layers[number] = LayerCache(*trunks, *own)
        return self.layers[number]

    def move_rows(self, sources: Sequence[int], targets: Sequence[int], tokens: int) -> None:
        """Copy rows, of which `tokens` are filled, into other places; nothing is allocated."""
        for layer in self.layers.values():
            at = torch.tensor([sources, targets], device=layer.own_key.device)
            for own in (layer.own_key, layer.own_value):
                own[at[1], :, :tokens] = own[at[0], :, :tokens]

    def keep_groups(self, kept: Sequence[int]) -> None:
        for layer in self.layers.values():
            at = torch.tensor(kept, device=layer.trunk_key.device)
            layer.trunk_key, layer.trunk_value = layer.trunk_key[at], layer.trunk_value[at]
        self.groups = len(kept)


class Segment(NamedTuple):
    """Where a group's trunk lies in a packed sequence."""

    group: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class TrunkPlan:
    """Every segment of the packed sequence attends to itself alone, and is kept in the cache."""

    cache: TrunkCache
    segments: Sequence[Segment]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        kept = self.cache.layer(layer, key, value)
        heads, kv_heads = query.shape[1], key.shape[1]
        out = query.new_empty(1, query.shape[2], heads, value.shape[3])
        for group, start, stop in self.segments:
            q, k, v = query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop]
            kept.trunk_key[group, :, : stop - start] = k[0]
            kept.trunk_value[group, :, : stop - start] = v[0]
            if heads != kv_heads:
                k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
            mask = None if window is None or stop - start <= window else _window_mask(stop - start, window, q.device)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
            out[:, start:stop] = attended.transpose(1, 2)
        return out


def _window_mask(length: int, window: int, device: torch.device) -> Bool[Tensor, "length length"]:
    """A token sees itself and the window - 1 tokens before it."""
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < window)


@dataclass(eq=False)
class StepPlan:
    """One new token for each of the first `rows` rows, which all hold `step` own tokens already.

    `slots[i]` is row i's place in a grid of groups x width, so that all rows of a group are one query matrix.
    `branch` says at each place how many tokens of the trunk its row has seen; empty places see none.
    """

    cache: TrunkCache
    slots: Int[Tensor, " rows"]
    branch: Int[Tensor, "groups width"]
    deepest: int  # the largest branch
    step: int
    _masks: dict[tuple[int | None, torch.device], Tensor] = field(default_factory=dict)

    def advance(self) -> None:
        self.step += 1
        if any(window is not None for window, _ in self._masks):
            self._masks = {at: mask for at, mask in self._masks.items() if at[0] is None}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        kept = self.cache.layers[layer]
        rows, heads, _, width = query.shape
        kv_heads = key.shape[1]
        kept.own_key[:rows, :, self.step] = key[:, :, 0]
        kept.own_value[:rows, :, self.step] = value[:, :, 0]
        first = 0 if window is None else max(0, self.step + 1 - window)
        query = query.reshape(rows, kv_heads, heads // kv_heads, width) * scale
        own = _partial(
            query, kept.own_key[:rows, :, first : self.step + 1], kept.own_value[:rows, :, first : self.step + 1], None
        )
        merged = _merge(own, self._over_trunk(query, kept, window)).to(value.dtype)
        return merged.reshape(rows, 1, heads, value.shape[3])

    def _over_trunk(self, query: Tensor, kept: LayerCache, window: int | None) -> "_Partial":
        """The trunk's part, for all rows of a group at once."""
        _, kv_heads, shared, width = query.shape
        groups, places = self.branch.shape
        slots = self.slots.to(query.device)
        grid = query.new_zeros(groups * places, kv_heads, shared, width)
        grid[slots] = query
        folded = grid.view(groups, places, kv_heads, shared, width).transpose(1, 2)
        part = _partial(
            folded.reshape(groups, kv_heads, places * shared, width),
            kept.trunk_key,
            kept.trunk_value,
            self._mask(window, shared, query.device),
        )

        def unfold(x: Tensor) -> Tensor:
            x = x.view(groups, kv_heads, places, shared, x.shape[-1]).transpose(1, 2)
            return x.reshape(groups * places, kv_heads, shared, x.shape[-1])[slots]

        return _Partial(*(unfold(x) for x in part))

    def _mask(self, window: int | None, shared: int, device: torch.device) -> Tensor:
        """0 where a place sees a trunk token, else `_UNSEEN`: [groups, 1, places * shared, trunk]."""
        if window is not None and self.deepest + self.step < window:
            window = None  # nothing has left the window yet
        if (window, device) not in self._masks:
            column = torch.arange(self.cache.trunk, device=self.branch.device)
            branch = self.branch[..., None]
            seen = column < branch
            if window is not None:
                seen &= column > branch + self.step - window
            mask = torch.where(seen, 0.0, _UNSEEN).to(device)
            self._masks[window, device] = mask.repeat_interleave(shared, dim=1)[:, None]
        return self._masks[window, device]


class _Partial(NamedTuple):
    """Attention over a part of the keys, before normalisation: sum(exp(score - peak) value), sum(exp(…)), peak."""

    weighted: Float[Tensor, "batch kv_heads queries value_width"]
    total: Float[Tensor, "batch kv_heads queries 1"]
    peak: Float[Tensor, "batch kv_heads queries 1"]


def _partial(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> _Partial:
    scores = (query @ key.transpose(-1, -2)).float()
    if mask is not None:
        scores += mask
    peak = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(peak).exp_()
    return _Partial((weights.to(value.dtype) @ value).float(), weights.sum(dim=-1, keepdim=True), peak)


def _merge(one: _Partial, two: _Partial) -> Tensor:
    """Softmax attention over both parts together."""
    peak = torch.maximum(one.peak, two.peak)
    a, b = (one.peak - peak).exp_(), (two.peak - peak).exp_()
    return (one.weighted * a + two.weighted * b) / (one.total * a + two.total * b)
