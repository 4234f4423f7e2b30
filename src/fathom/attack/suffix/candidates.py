"""Candidates of a step: drawn from the gradient, without duplicates, and merged."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.errors import UserError
from fathom.records import content_hash

__all__ = ["best_ids", "distinct", "draw", "generator", "merged"]


def generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step: they depend on seed and step alone, so a search can go on from any of its states."""
    return torch.Generator().manual_seed(int(content_hash((seed, step)), 16) % 2**63)


def best_ids(
    gradient: Float[Tensor, "suffix vocabulary"], allowed: Bool[Tensor, "vocabulary"], count: int
) -> Int[Tensor, "suffix count"]:
    """At each position, the allowed ids whose exchange lowers the loss most to first order; fewer if fewer are allowed.

    Raises:
        UserError: no id is allowed.
    """
    count = min(count, int(allowed.sum()))
    if count == 0:
        raise UserError("no token of the vocabulary may be used in a suffix: allow more than ASCII")
    masked = gradient.masked_fill(~allowed.to(gradient.device), torch.inf)
    return masked.topk(count, dim=1, largest=False).indices.cpu()


def draw(
    suffix: Sequence[int], best: Int[Tensor, "suffix count"], width: int, replace: int, random: torch.Generator
) -> Int[Tensor, "distinct suffix"]:
    """`width` copies of the suffix with `replace` positions each exchanged for one of the best ids there, drawn
    uniformly; equal ones only once, in the order of their first drawing.

    Source: Zou et al. 2307.15043, Algorithm 1, in nanoGCG's form (positions drawn, not dealt out evenly).
    """
    length, count = best.shape
    replace = min(replace, length)
    places = torch.rand(width, length, generator=random).argsort(dim=1)[:, :replace]
    picks = torch.randint(count, (width, replace), generator=random)
    drawn = torch.tensor(suffix).repeat(width, 1).scatter_(1, places, best[places, picks])
    return distinct(drawn)


def distinct(candidates: Int[Tensor, "width suffix"]) -> Int[Tensor, "distinct suffix"]:
    """Each row once, in the order of first appearance."""
    first: dict[tuple[int, ...], int] = {}
    for place, row in enumerate(candidates.tolist()):
        first.setdefault(tuple(row), place)
    return candidates[list(first.values())]


def merged(suffix: Sequence[int], ranked: Int[Tensor, "candidates suffix"], count: int) -> Int[Tensor, "merged suffix"]:
    """The best candidate with the exchanges of the second best added, then of the third, … up to `count` together.

    An exchange at a position that a better one has taken is passed over.

    Source: Jia et al. 2405.21018, section 3.3 (multi-coordinate updating).
    """
    current = torch.tensor(suffix)
    together, found = ranked[0].clone(), []
    for candidate in ranked[1:count]:
        fresh = (together == current) & (candidate != current)
        if fresh.any():
            together = torch.where(fresh, candidate, together)
            found.append(together)
    return torch.stack(found) if found else ranked[:0]
