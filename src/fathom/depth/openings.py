"""How a model's refusals begin: the share of refusals of the direct request that open with the same few tokens."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fathom.schema import OpeningRow
from fathom.tally import clustered_share

__all__ = ["Refusal", "opening_rows"]

LENGTHS = (1, 2, 3)  # tokens


class Refusal(NamedTuple):
    """A refusal in ids and text; `token_ends[i]` is the number of characters that the first i + 1 ids make."""

    behavior: str  # of several refusals of one request, all may begin alike
    ids: Sequence[int]
    text: str
    token_ends: Sequence[int]


def opening_rows(refusals: Iterable[Refusal], *, seed: int, most: int = 10) -> tuple[OpeningRow, ...]:
    """The `most` frequent openings of 1, 2 and 3 tokens, with their shares of all refusals.

    Openings are told apart by ids, so two rows may read the same. A refusal shorter than an opening counts in `of`.
    `seed` is that of the bootstraps over behaviors, where some were drawn several times.

    Source: section 2 of the paper ("96.1 % of refusals open with …").
    """
    refusals = [refusal for refusal in refusals if refusal.ids]
    return tuple(row for length in LENGTHS for row in _rows(refusals, length, most, seed))


def _rows(refusals: Sequence[Refusal], length: int, most: int, seed: int) -> Iterable[OpeningRow]:
    counts: Counter[tuple[int, ...]] = Counter()
    texts: dict[tuple[int, ...], str] = {}
    by_behavior: dict[tuple[int, ...], Counter[str]] = defaultdict(Counter)
    for refusal in refusals:
        if len(refusal.ids) < length:
            continue
        opening = tuple(refusal.ids[:length])
        counts[opening] += 1
        by_behavior[opening][refusal.behavior] += 1
        texts.setdefault(opening, refusal.text[: refusal.token_ends[length - 1]])
    refused = Counter(refusal.behavior for refusal in refusals)
    behaviors = sorted(refused)  # so that a draw means the same ones whatever the order of the refusals
    for opening, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]:
        found = [by_behavior[opening][behavior] for behavior in behaviors]
        interval = clustered_share(found, [refused[behavior] for behavior in behaviors], seed=seed)
        yield OpeningRow(
            opening=texts[opening],
            tokens=length,
            n=n,
            of=len(refusals),
            share=n / len(refusals),
            low=interval.low,
            high=interval.high,
        )
