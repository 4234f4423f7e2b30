"""Which tokens mark a refusal, from the reference's own answers: no list of words, in any language."""

from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["safety_tokens"]

_BEGIN, _BEGIN_RATIO = 0.02, 10.0
_WITHIN, _WITHIN_RATIO = 0.10, 25.0


def safety_tokens(
    refusals: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    ignored: Iterable[int] = (),
) -> tuple[int, ...]:
    """Ids by which at least 2 % of refusals begin, ten times as often as other answers do, or that at least 10 % of
    refusals hold, twenty-five times as often as other answers; but for `ignored` ones (those of the prompts).
    """
    if not refusals:
        return ()
    held_back = set(ignored)
    begin, other_begin = _shares([row[:1] for row in refusals]), _shares([row[:1] for row in answers])
    within, other_within = _shares(refusals), _shares(answers)
    found = {id_ for id_, share in begin.items() if share >= _BEGIN and share > _BEGIN_RATIO * other_begin[id_]}
    found |= {
        id_
        for id_, share in within.items()
        if share >= _WITHIN and share > _WITHIN_RATIO * other_within[id_] and id_ not in held_back
    }
    return tuple(sorted(found))


def _shares(rows: Sequence[Sequence[int]]) -> Counter[int]:
    """The share of rows that hold each id."""
    counts = Counter(id_ for row in rows for id_ in set(row))
    return Counter({id_: count / len(rows) for id_, count in counts.items()})
