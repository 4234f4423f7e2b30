"""What attempts run through a model, in tokens: counted, so the same on every machine and before anything has run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from fathom.records import Attempt, Parameter, content_hash

__all__ = [
    "Searched",
    "at_most",
    "fresh_tokens",
    "most_tokens",
    "of_search",
    "planned_tokens",
    "searches",
    "together",
    "within",
]

_Trie: TypeAlias = dict[int, "_Trie"]

_COSTS = ("queries", "forward_tokens", "backward_tokens")
_SEARCH = "search"  # in `found`: which search it comes of, since its cost is that of all its attempts together


def fresh_tokens(inputs: Iterable[Sequence[int]]) -> Iterator[int]:
    """Of each input the tokens that follow its longest beginning among the inputs before it: what is new to a cache."""
    trie: _Trie = {}
    for ids in inputs:
        node, fresh = trie, 0
        for token in ids:
            if token not in node:
                node[token] = {}
                fresh += 1
            node = node[token]
        yield fresh


def planned_tokens(attempts: Sequence[Attempt]) -> list[int]:
    """Of each attempt, in order, what it adds at most: the fresh part of its input, and all that it may write."""
    fresh = fresh_tokens(attempt.prompt_ids + attempt.prefill_ids for attempt in attempts)
    return [new + attempt.sampling.max_new_tokens for new, attempt in zip(fresh, attempts, strict=True)]


def within(attempts: Iterable[Attempt], budget: int | None, written: Mapping[str, int]) -> Iterator[Attempt]:
    """Each behavior's attempts, in order, as long as what they and their search cost leaves room for the next one.

    `written` says how many tokens the answers that are known have, by attempt. An attempt is made where `budget` still
    pays for it if it writes all that it may; once its answer is known, it has cost what was written. So the more
    answers are known, the more attempts there are, and never one that could exceed the budget. The first attempt on a
    behavior is always made: an attack that could afford none would have no rate.
    """
    if budget is None:
        yield from attempts
        return
    for mine in _by_behavior(attempts):
        spent = _number(mine[0].found.get("forward_tokens", 0))
        for number, (attempt, most) in enumerate(zip(mine, planned_tokens(mine), strict=True)):
            if number and spent + most > budget:
                break
            longest = attempt.sampling.max_new_tokens
            spent += most - longest + written.get(attempt.id, longest)
            yield attempt


def at_most(attempts: Sequence[Attempt], budget: int | None) -> tuple[Attempt, ...]:
    """The attempts that a budget pays for if every answer is empty."""
    return tuple(within(attempts, budget, {attempt.id: 0 for attempt in attempts}))


def most_tokens(attempts: Sequence[Attempt], budget: int | None) -> int:
    """What attempts that do not search cost at most: all of a behavior's, or what a budget leaves of them.

    Counted as the report counts: what inputs have in common is paid once for each behavior.
    """
    each = [planned_tokens(mine) for mine in _by_behavior(attempts)]
    if budget is None:
        return sum(map(sum, each))
    return sum(max(planned[0], min(budget, sum(planned))) for planned in each)


def _by_behavior(attempts: Iterable[Attempt]) -> Iterable[list[Attempt]]:
    found: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        found.setdefault(attempt.behavior, []).append(attempt)
    return found.values()


def _number(value: Parameter) -> float:
    return 0.0 if isinstance(value, str) else float(value)


# --- searches ---


@dataclass(frozen=True)
class Searched:
    """A search on behalf of one behavior: what it cost, and how many of the behavior's attempts came of it."""

    queries: float
    forward_tokens: float
    backward_tokens: float
    attempts: int


def of_search(attempts: Iterable[Attempt], identity: str) -> Iterator[Attempt]:
    """The attempts that one search brought, marked so that what they share is known to be paid once."""
    for attempt in attempts:
        yield msgspec.structs.replace(attempt, found={**attempt.found, _SEARCH: identity})


def together(attempts: Iterable[Attempt]) -> dict[str, Attempt]:
    """By id. Where several searches end in the same attempt, it has cost what all of them did."""
    found: dict[str, Attempt] = {}
    for attempt in attempts:
        other = found.get(attempt.id)
        if other is not None and not _names(attempt) <= _names(other):
            cost = {name: _number(other.found.get(name, 0)) + _number(attempt.found.get(name, 0)) for name in _COSTS}
            named = " ".join(sorted(_names(other) | _names(attempt)))
            attempt = msgspec.structs.replace(other, found={**attempt.found, **other.found, **cost, _SEARCH: named})
        elif other is not None:
            attempt = other
        found[attempt.id] = attempt
    return found


def searches(attempts: Iterable[Attempt]) -> list[Searched]:
    """The distinct searches that a behavior's attempts came of."""
    groups: dict[frozenset[str], list[Attempt]] = {}
    for attempt in attempts:
        if "forward_tokens" in attempt.found:
            groups.setdefault(_names(attempt), []).append(attempt)
    # An attempt of two searches costs what both did, so it stands for the attempts that either of them has alone.
    return [
        Searched(
            queries=_number(group[0].found.get("queries", 0)),
            forward_tokens=_number(group[0].found.get("forward_tokens", 0)),
            backward_tokens=_number(group[0].found.get("backward_tokens", 0)),
            attempts=sum(len(part) for names, part in groups.items() if names <= whole),
        )
        for whole, group in groups.items()
        if not any(whole < other for other in groups)
    ]


def _names(attempt: Attempt) -> frozenset[str]:
    """Of its searches; in runs of earlier versions, which name none, all that was found stands for the name."""
    if "forward_tokens" not in attempt.found:
        return frozenset()
    return frozenset(str(attempt.found.get(_SEARCH, content_hash(attempt.found))).split())
