"""From logits to tokens: the most probable one, or the one that a row's own noise draws."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.engine.rows import Row

__all__ = ["choose", "draw"]

_CELLS = 1 << 23  # logits that are sorted and summed at once, in double precision: bounds memory, changes no result


@torch.inference_mode()
def choose(logits: Float[Tensor, "rows vocabulary"], rows: Sequence[Row]) -> list[int]:
    """The next token of every row; row i's i-th noise is used for its i-th output token.

    Equals argmax for greedy rows and inverse-transform sampling over softmax(logits / temperature), cut by top-k and
    then top-p, for the others.
    """
    drawn = [i for i, row in enumerate(rows) if row.noise is not None]
    tokens: list[int] = [] if len(drawn) == len(rows) else logits.argmax(dim=-1).tolist()
    if not drawn:
        return tokens
    tokens = tokens or [0] * len(rows)
    step = max(1, _CELLS // logits.shape[1])
    for start in range(0, len(drawn), step):
        part = drawn[start : start + step]
        for i, token in zip(part, _draw_rows(logits[part], [rows[i] for i in part]), strict=True):
            tokens[i] = token
    return tokens


def _draw_rows(logits: Float[Tensor, "rows vocabulary"], rows: Sequence[Row]) -> list[int]:
    def column(values: list[float]) -> Tensor:
        # MPS has no double precision; there the last bits of a draw are coarser, never dependent on the batch
        return torch.tensor(values, dtype=torch.float32 if device == "mps" else torch.float64, device=logits.device)

    device = logits.device.type
    noise = column([float(row.noise[len(row.output)]) for row in rows if row.noise is not None])
    return draw(
        logits.float(),
        noise,
        temperature=column([row.sampling.temperature for row in rows]),
        top_k=[row.sampling.top_k for row in rows],
        top_p=column([row.sampling.top_p for row in rows]),
    ).tolist()


def draw(
    logits: Float[Tensor, "rows vocabulary"],
    noise: Float[Tensor, " rows"],
    *,
    temperature: Float[Tensor, " rows"],
    top_k: Sequence[int],
    top_p: Float[Tensor, " rows"],
) -> Int[Tensor, " rows"]:
    """The token at quantile `noise`, in [0, 1), of each row's distribution, tokens in the order of their ids."""
    scores = logits / temperature[:, None].to(logits.dtype)
    scores = _cut_top_k(scores, top_k)
    if bool((top_p < 1).any()):
        scores = _cut_top_p(scores, top_p)
    cumulated = scores.softmax(dim=-1).cumsum(dim=-1, dtype=noise.dtype)
    total = cumulated[:, -1:]
    # below the total even after rounding, so that a token of probability 0 is never drawn
    quantile = torch.minimum(noise[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, quantile, right=True)[:, 0]


def _cut_top_k(scores: Tensor, top_k: Sequence[int]) -> Tensor:
    vocabulary = scores.shape[1]
    kept = [k if 0 < k < vocabulary else 0 for k in top_k]
    if not any(kept):
        return scores
    best = scores.topk(max(kept), dim=-1).values
    floor = torch.full_like(scores[:, :1], -torch.inf)
    for i, k in enumerate(kept):
        if k:
            floor[i, 0] = best[i, k - 1]
    return scores.masked_fill(scores < floor, -torch.inf)


def _cut_top_p(scores: Tensor, top_p: Tensor) -> Tensor:
    """Keep the smallest set of most probable tokens whose probabilities reach top_p; it always holds one token."""
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1).to(top_p.dtype)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, before >= top_p[:, None])
    return scores.masked_fill(dropped & (top_p < 1)[:, None], -torch.inf)
