"""The feed-forward blocks of a scoring pass: in pieces that stay in the processor's cache, and in the last layer only
for the rows that are read.

These blocks work row by row, so neither changes a result. What a piece needs beside it is allocated again and again in
the same place; for a whole pack the system would hand out, clear and take back pages in every layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["lean_feed_forward"]

PIECE_CPU, PIECE_GPU = 272, 1 << 20  # rows

Forward = Callable[..., object]  # nearly always from one tensor to one tensor


@contextmanager
def lean_feed_forward(body: nn.Module, read: Int[Tensor, "rows"]) -> Iterator[None]:
    """Let the `mlp` of every layer work so, for one forward pass of a packed sequence of which `read` is read.

    What an architecture calls otherwise, or hands more than hidden states, is run as it is.
    """
    blocks = [block for layer in body.modules() if isinstance(block := getattr(layer, "mlp", None), nn.Module)]
    own = [block.__dict__.get("forward") for block in blocks]  # offloading puts one there
    try:
        for block in blocks:
            block.forward = partial(_in_pieces, block.forward, read if block is blocks[-1] else None)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def _in_pieces(
    forward: Forward, read: Int[Tensor, "rows"] | None, hidden: Float[Tensor, "1 packed width"], *more: object
) -> object:
    """Of all rows, or of those that are read: the others are zero."""
    piece = PIECE_CPU if hidden.device.type == "cpu" else PIECE_GPU
    if more or hidden.dim() != 3:
        return forward(hidden, *more)
    rows = hidden if read is None else hidden[:, read.to(hidden.device)]
    found = [forward(part) for part in torch.split(rows, piece, dim=1)]
    parts = [part for part in found if isinstance(part, Tensor)]
    if len(parts) < len(found):  # some hand back more than hidden states
        return forward(hidden)
    whole = torch.cat(parts, dim=1)
    return whole if read is None else whole.new_zeros(hidden.shape).index_copy_(1, read.to(hidden.device), whole)
