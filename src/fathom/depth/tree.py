"""A set of openings as a tree of ids: what follows what, level by level."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Level", "OpeningTree"]

Prefix = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Level:
    """All inner prefixes of one length, and where each next id leads: to a whole opening, or to the next level."""

    prefixes: tuple[Prefix, ...]
    parents: Int[Tensor, "prefixes"]  # place of prefix[:-1] in the level above
    ids: Int[Tensor, "ids"]  # every id that follows some prefix
    opens: Bool[Tensor, "prefixes ids"]  # prefix + id is an opening
    inner: Int[Tensor, "next 2"]  # (prefix, id) places of the next level's prefixes, in order

    def last_ids(self) -> Int[Tensor, "prefixes"]:
        return torch.tensor([prefix[-1] for prefix in self.prefixes])


class OpeningTree:
    """A prefix-free set of openings, level by level; an opening that begins with another one is implied by it."""

    def __init__(self, openings: Sequence[Sequence[int]]) -> None:
        kept: set[Prefix] = set()
        for opening in sorted({tuple(opening) for opening in openings if opening}, key=lambda ids: (len(ids), ids)):
            if not any(opening[:length] in kept for length in range(1, len(opening))):
                kept.add(opening)
        self.openings = frozenset(kept)
        children: dict[Prefix, set[int]] = {}
        for opening in kept:
            for length in range(len(opening)):
                children.setdefault(opening[:length], set()).add(opening[length])
        self.levels = tuple(self._levels(children))

    def _levels(self, children: Mapping[Prefix, set[int]]) -> Iterator[Level]:
        above: list[Prefix] = []
        for length in range(max(map(len, children), default=-1) + 1):
            prefixes = sorted(prefix for prefix in children if len(prefix) == length)
            ids = sorted(set().union(*(children[prefix] for prefix in prefixes)))
            below = sorted(prefix for prefix in children if len(prefix) == length + 1)
            yield Level(
                prefixes=tuple(prefixes),
                parents=torch.tensor([above.index(prefix[:-1]) if prefix else 0 for prefix in prefixes]),
                ids=torch.tensor(ids),
                opens=torch.tensor([[(*prefix, token) in self.openings for token in ids] for prefix in prefixes]),
                inner=torch.tensor(
                    [(prefixes.index(p[:-1]), ids.index(p[-1])) for p in below], dtype=torch.int64
                ).reshape(-1, 2),
            )
            above = prefixes
