"""From hidden states of target rows to a candidate's loss, without ever holding a softmax over the vocabulary."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.attack.suffix.options import CrossEntropy, Objective
from fathom.attack.suffix.problem import Target
from fathom.precision import finest
from fathom.scoring import Logits

__all__ = ["Reading", "loss_of", "read_targets"]

CPU_BLOCK = 2**19  # logits at a time: they stay in the processor's cache
GPU_BLOCK = 2**25


class Reading(NamedTuple):
    """Of each target token of each candidate: its logit, its negative log-probability in nats, and whether the model
    would choose it greedily."""

    logits: Float[Tensor, "candidates target"]
    nll: Float[Tensor, "candidates target"]
    greedy: Bool[Tensor, "candidates target"]


def read_targets(logits: Logits, targets: Int[Tensor, "rows"]) -> tuple[Tensor, Tensor, Tensor]:
    """Logit, negative log-probability and greedy choice of one id in each row, block by block of the vocabulary.

    Naive equivalent: `x = logits.columns(slice(None))`, then gather, cross-entropy and `argmax`.
    """
    rows, device = logits.rows, logits.device
    targets = targets.to(device)
    width = max(1, (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // rows)
    peaks, totals, own = [], [], torch.full((rows,), -torch.inf, device=device)
    for start in range(0, logits.vocabulary, width):
        block = logits.columns(slice(start, min(start + width, logits.vocabulary)))
        place = targets - start
        inside = (place >= 0) & (place < block.shape[1])
        found = block.gather(1, place.clamp(0, block.shape[1] - 1)[:, None])[:, 0]
        own = torch.where(inside, found, own)
        peak = block.amax(1, keepdim=True).clamp_min_(torch.finfo(block.dtype).min)
        peaks.append(peak[:, 0])
        totals.append(block.sub_(peak).exp_().sum(1))
    peak = torch.stack(peaks)
    top = peak.amax(0)
    fine = finest(device)
    total = (torch.stack(totals).to(fine) * (peak - top).to(fine).exp()).sum(0)
    nll = top.to(fine) + total.log() - own.to(fine)
    return own, nll.float(), own >= top


def loss_of(reading: Reading, target: Target, objective: Objective, tokens: int | None = None) -> Tensor:
    """The loss of each candidate: [candidates]. `tokens`: of the first so many, at their weight in the whole."""
    fine = finest(reading.nll.device)
    shares = torch.tensor(target.shares[:tokens], dtype=fine, device=reading.nll.device)
    if isinstance(objective, CrossEntropy):
        return (reading.nll.to(fine) @ shares).float()
    alpha = objective.alpha
    return ((-alpha * reading.logits.to(fine) + shares.log()).logsumexp(1) / alpha).float()
