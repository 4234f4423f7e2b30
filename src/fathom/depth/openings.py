"""How a model's refusals begin: the share of refusals of the direct request that open with the same few tokens."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fathom.schema import OpeningRow
from fathom.tally import wilson

__all__ = ["Refusal", "opening_rows"]

LENGTHS = (1, 2, 3)  # tokens


class Refusal(NamedTuple):
    """A refusal in ids and text; `token_ends[i]` is the number of characters that the first i + 1 ids make."""

    ids: Sequence[int]
    text: str
    token_ends: Sequence[int]


def opening_rows(refusals: Iterable[Refusal], *, most: int = 10) -> tuple[OpeningRow, ...]:
    """The `most` frequent openings of 1, 2 and 3 tokens, with their shares of all refusals.

    Openings are told apart by ids, so two rows may read the same. A refusal shorter than an opening counts in `of`.

    Source: section 2 of the paper ("96.1 % of refusals open with …").
    """
    refusals = [refusal for refusal in refusals if refusal.ids]
    return tuple(row for length in LENGTHS for row in _rows(refusals, length, most))


def _rows(refusals: Sequence[Refusal], length: int, most: int) -> Iterable[OpeningRow]:
    counts: Counter[tuple[int, ...]] = Counter()
    texts: dict[tuple[int, ...], str] = {}
    for refusal in refusals:
        if len(refusal.ids) < length:
            continue
        opening = tuple(refusal.ids[:length])
        counts[opening] += 1
        texts.setdefault(opening, refusal.text[: refusal.token_ends[length - 1]])
    for opening, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]:
        interval = wilson(n, len(refusals))
        yield OpeningRow(
            opening=texts[opening],
            tokens=length,
            n=n,
            of=len(refusals),
            share=n / len(refusals),
            low=interval.low,
            high=interval.high,
        )
