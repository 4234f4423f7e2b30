"""What attempts run through a model, in tokens: counted, so the same on every machine and before anything has run."""

from collections.abc import Iterable, Iterator, Sequence

from fathom.records import Attempt, Parameter

__all__ = ["fresh_tokens", "planned_tokens", "within"]


def fresh_tokens(inputs: Iterable[Sequence[int]]) -> Iterator[int]:
    """Of each input the tokens that follow its longest beginning among the inputs before it: what is new to a cache."""
    trie: dict[int, object] = {}
    for ids in inputs:
        node, fresh = trie, 0
        for token in ids:
            if token not in node:
                node[token] = {}
                fresh += 1
            node = node[token]  # type: ignore[assignment]
        yield fresh


def planned_tokens(attempts: Sequence[Attempt]) -> list[int]:
    """Of each attempt, in order, what it adds at most: the fresh part of its input, and all that it may write."""
    fresh = fresh_tokens(attempt.prompt_ids + attempt.prefill_ids for attempt in attempts)
    return [new + attempt.sampling.max_new_tokens for new, attempt in zip(fresh, attempts, strict=True)]


def within(attempts: Iterable[Attempt], budget: int | None) -> Iterator[Attempt]:
    """Each behavior's attempts as long as they, with what was searched for them, cost `budget` tokens at most.

    The first attempt on a behavior is always made: an attack that could afford none would have no rate.
    """
    if budget is None:
        yield from attempts
        return
    by_behavior: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_behavior.setdefault(attempt.behavior, []).append(attempt)
    for mine in by_behavior.values():
        spent = _number(mine[0].found.get("forward_tokens", 0))
        for number, (attempt, tokens) in enumerate(zip(mine, planned_tokens(mine), strict=True)):
            spent += tokens
            if number and spent > budget:
                break
            yield attempt


def _number(value: Parameter) -> float:
    return 0.0 if isinstance(value, str) else float(value)
