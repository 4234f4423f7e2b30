"""The half depth of fine-tuned models, from what a sweep keeps of them."""

from collections.abc import Iterable, Sequence

from fathom.depth.number import depth_numbers
from fathom.schema import HalfDepth
from fathom.tally import Tally
from fathom.tampering import Prefilled

__all__ = ["half_depth"]


def half_depth(checkpoints: Iterable[Sequence[Prefilled]]) -> HalfDepth | None:
    """Of checkpoints under the same requests, such as those of several seeds: all answers to a request cling together.

    None where nothing was given at any depth. The whole answer is left out, whose length differs between requests.
    """
    sweep: dict[int, dict[str, Tally]] = {}
    for rows in checkpoints:
        for row in rows:
            if row.tokens is None:
                continue
            found, drawn = sweep.setdefault(row.tokens, {}), row.drawn
            for place, harmful in enumerate(row.by_behavior):
                if harmful is not None:
                    tally = Tally(harmful=harmful, safe=drawn - harmful)
                    found[str(place)] = found.get(str(place), Tally()) + tally
    return depth_numbers(sweep, (), seed=0).half_depth if len(sweep) > 1 else None
