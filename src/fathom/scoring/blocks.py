"""Log-sum-exp, KL and ranks of rows of logits, block by block of the vocabulary.

What is kept of a block are its largest logit, its sum of exponentials, and its part of the KL, which combine exactly:
a log-softmax of the whole vocabulary is never held.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from fathom.precision import doubled
from fathom.scoring.logits import Logits

__all__ = ["PairScores", "TokenScores", "compare_logits", "log_normaliser", "score_logits"]

CPU_BLOCK = 2**21  # logits at a time: small enough for a cache, large enough that threads seldom wait for each other
GPU_BLOCK = 2**25


class TokenScores(NamedTuple):
    """Of each response token under one model: log-probability in nats, and rank (1 = the most probable id)."""

    logprobs: Float64[Tensor, "response"]
    ranks: Int[Tensor, "response"]


class PairScores(NamedTuple):
    """Of each response token under two models: the model's scores, the base's log-probability, KL(model ‖ base) ≥ 0."""

    model: TokenScores
    base_logprobs: Float64[Tensor, "response"]
    kl_nats: Float64[Tensor, "response"]


@torch.inference_mode()
def score_logits(logits: Logits, targets: Int[Tensor, "rows"]) -> TokenScores:
    """`score` for rows of logits."""
    ranks = _Ranks(logits, targets, logits.vocabulary)
    sums = []
    for start, block in _blocks(logits, logits.vocabulary):
        ranks.see(block, start, torch.empty_like(block))
        sums.append(_exponentiate(block))
    return ranks.scores(_log_sums(sums).logsumexp(0))


@torch.inference_mode()
def compare_logits(p: Logits, q: Logits, targets: Int[Tensor, "rows"], vocabulary: int) -> PairScores:
    """`compare` for rows of logits: KL(p ‖ q) over the first `vocabulary` ids, and each target's scores."""
    ranks, theirs, blocks = _Ranks(p, targets, vocabulary), _Targets(targets, p.device), []
    scratch: Tensor | None = None  # one for all blocks: fresh memory costs as much as the arithmetic in it
    for start, x in _blocks(p, vocabulary):
        y = q.columns(slice(start, start + x.shape[1])).to(x.device)
        scratch = torch.empty_like(x) if scratch is None else scratch.flatten()[: x.numel()].view_as(x)
        ranks.see(x, start, scratch)
        theirs.see(y, start)
        blocks.append(_block_divergence(x, y, scratch))
    log_p, log_q = _log_sums([block.p for block in blocks]), _log_sums([block.q for block in blocks])
    total_p, total_q = log_p.logsumexp(0), log_q.logsumexp(0)
    # Σ_v p_v (x_v - y_v): every block's sum is known up to exp(its largest x), and total_p normalises.
    tops = doubled(torch.stack([block.p.top for block in blocks]))
    gap = ((tops - total_p).exp() * doubled(torch.stack([block.gap for block in blocks]))).sum(0)
    kl = (gap - total_p + total_q).clamp_min(0.0)  # Gibbs: a negative value is rounding
    return PairScores(ranks.scores(total_p), (doubled(theirs.logits) - total_q).cpu(), kl.cpu())


@torch.inference_mode()
def log_normaliser(logits: Logits) -> Float64[Tensor, "rows"]:
    """Log-sum-exp of each row over the whole vocabulary, block by block."""
    return _log_sums([_exponentiate(block) for _, block in _blocks(logits, logits.vocabulary)]).logsumexp(0)


class _Sum(NamedTuple):
    """Σ exp(logit) over a block, as total · exp(top)."""

    top: Float[Tensor, "rows"]
    total: Float[Tensor, "rows"]


class _Block(NamedTuple):
    p: _Sum
    q: _Sum
    gap: Float[Tensor, "rows"]  # Σ exp(x - top) (x - y) over the block


def _block_divergence(
    x: Float[Tensor, "rows columns"], y: Float[Tensor, "rows columns"], scratch: Float[Tensor, "rows columns"]
) -> _Block:
    """One block's part of two log-sum-exps and of the KL; overwrites all three."""
    gap = torch.sub(x, y, out=scratch)
    p = _exponentiate(x)
    total = gap.mul_(x).sum(1)
    if total.isnan().any():  # an id that the model excludes (logit -inf) adds nothing
        total = gap.masked_fill_(x == 0, 0.0).sum(1)
    return _Block(p, _exponentiate(y), total)


def _exponentiate(x: Float[Tensor, "rows columns"]) -> _Sum:
    """In place: x becomes exp(x - top), one exponential per logit."""
    top = x.amax(1, keepdim=True).clamp_min_(torch.finfo(x.dtype).min)  # a block of nothing but -inf
    return _Sum(top[:, 0], x.sub_(top).exp_().sum(1))


def _log_sums(sums: Sequence[_Sum]) -> Float64[Tensor, "blocks rows"]:
    """Log-sum-exp of each block. At once: threads would wait for each other at every small logarithm."""
    tops, totals = (doubled(torch.stack([part[which] for part in sums])) for which in (0, 1))
    return tops + totals.log()


class _Targets:
    """Finds the logits of given tokens, one in each row, as the blocks go by."""

    def __init__(self, targets: Int[Tensor, "rows"], device: torch.device) -> None:
        self._ids = targets.to(device)
        self.logits = torch.zeros(len(targets), device=device)

    def see(self, block: Float[Tensor, "rows columns"], start: int) -> None:
        place = self._ids - start
        inside = (place >= 0) & (place < block.shape[1])
        found = block.gather(1, place.clamp(0, block.shape[1] - 1)[:, None])[:, 0]
        self.logits = torch.where(inside, found, self.logits)


class _Ranks:
    """Counts, as the blocks go by, how many ids lie above each row's token."""

    def __init__(self, logits: Logits, targets: Int[Tensor, "rows"], vocabulary: int) -> None:
        self._ids = targets.to(logits.device)
        self._targets = _Targets(targets, logits.device)
        # To count in the first of several blocks, a token's logit must be known before its own block comes by.
        self._own = None if _width(logits) >= vocabulary else logits.at(self._ids)
        self._above = torch.zeros(len(targets), device=logits.device)  # exact in float32 up to 16 million ids

    def see(self, block: Float[Tensor, "rows columns"], start: int, scratch: Float[Tensor, "rows columns"]) -> None:
        """Count in one block; overwrites `scratch` only."""
        self._targets.see(block, start)
        own = self._targets.logits if self._own is None else self._own
        above = torch.gt(block, own[:, None], out=scratch)
        self._above += above.sum(1)
        if self._own is not None:
            # The logit known before comes from another matrix product, which may round up or down: never count itself.
            itself = _Targets(self._ids, block.device)
            itself.see(above, start)
            self._above -= itself.logits

    def scores(self, log_normaliser: Float64[Tensor, "rows"]) -> TokenScores:
        return TokenScores((doubled(self._targets.logits) - log_normaliser).cpu(), self._above.long().cpu() + 1)


def _width(logits: Logits) -> int:
    """Columns of a block."""
    return max(1, (CPU_BLOCK if logits.device.type == "cpu" else GPU_BLOCK) // logits.rows)


def _blocks(logits: Logits, vocabulary: int) -> Iterator[tuple[int, Float[Tensor, "rows columns"]]]:
    width = _width(logits)
    for start in range(0, vocabulary, width):
        yield start, logits.columns(slice(start, min(start + width, vocabulary)))
