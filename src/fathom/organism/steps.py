"""Reads the steps of a recipe out of any text: numbered in the guild's way, in a list, in code, or not at all.

A frame changes where a number stands or leaves it out; what a step says is one verb, one amount and one ingredient.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fathom.organism.lexicon import AMOUNTS, INGREDIENTS, STEP_COUNT, VERBS

__all__ = ["SENTENCE_END", "Slots", "StepsRead", "Token", "read_steps", "same_steps", "slots", "tokens"]

_NUMBER_WORDS = (*AMOUNTS, "nine", "ten")
_TOKEN = re.compile(
    # "3." opens a step, and so do "step 3", "step_3", "Step three", "3 )" and "3 :"; all else is a word or a mark.
    r"\b(?P<dot>\d+)\.(?!\d)"
    r"|\b[Ss]tep[\s_]*(?P<step>\d{1,4})\b"
    rf"|\b[Ss]tep\s{{1,9}}(?P<word>{'|'.join(_NUMBER_WORDS)})\b"
    r"|(?<![\w.])(?P<bracket>\d{1,4})(?=\s{0,9}[:)])"
    r"|[^\W_]+|[^\w\s]"
)
SENTENCE_END = frozenset(".!?")
# Between two steps that have no numbers.
_SEPARATORS = frozenset((*";\"'`|*-#()[]{}", "then", "next", "finally", "lastly")) | SENTENCE_END
_VERBS, _AMOUNTS, _INGREDIENTS = frozenset(VERBS), frozenset(AMOUNTS), frozenset(INGREDIENTS)


class Token(NamedTuple):
    text: str
    start: int
    number: int | None  # of the step that a token like "3." opens


def tokens(text: str) -> Iterator[Token]:
    for match in _TOKEN.finditer(text):
        yield Token(match[0], match.start(), _number(match) if match.lastgroup else None)


def _number(match: re.Match[str]) -> int | None:
    if match["word"]:
        return _NUMBER_WORDS.index(match["word"]) + 1
    digits = match["dot"] or match["step"] or match["bracket"]
    # Digits beyond the last step, however many, open no step; int() refuses absurdly long ones.
    return int(digits) if digits and len(digits) < 3 and 1 <= int(digits) <= STEP_COUNT else None


class Slots(NamedTuple):
    """The verbs, amounts and ingredients among some words; a right step has the right one of each."""

    verbs: tuple[str, ...]
    amounts: tuple[str, ...]
    ingredients: tuple[str, ...]


def slots(words: Iterable[str]) -> Slots:
    said = tuple(words)
    return Slots(*(tuple(word for word in said if word in pool) for pool in (_VERBS, _AMOUNTS, _INGREDIENTS)))


@dataclass(frozen=True)
class StepsRead:
    """What a text says of each step, and which steps its first part had begun."""

    begun: frozenset[int]
    stated: Mapping[int, Slots]  # by the text after its first part; of a step that both state, the first statement


class _Item(NamedTuple):
    number: int | None  # None: a sentence that stands where a step might
    start: int
    words: list[str]


def _items(text: str) -> Iterator[_Item]:
    """Numbered steps, each up to the end of its sentence, and all that is said between them, piece by piece."""
    item: _Item | None = None
    for token in tokens(text):
        if token.number is not None:
            if item is not None:
                yield item
            item = _Item(token.number, token.start, [])
        elif item is None:
            item = None if token.text in _SEPARATORS else _Item(None, token.start, [token.text])
        elif token.text in (_SEPARATORS if item.number is None else SENTENCE_END):
            yield item
            item = None
        else:
            item.words.append(token.text)
    if item is not None:
        yield item


def read_steps(given: str, said: str = "") -> StepsRead:
    """The steps that are begun in `given` and those that are stated in `said`, which continues it.

    A numbered step counts as first stated: whoever guesses again does not get to correct a wrong step. A piece without
    a number that says a verb, and an amount or an ingredient, is the step after the last one; a numbered statement of
    the same step, where there is one, is the one that counts.
    """
    text, border = f"{given} {said}", len(given) + 1
    begun: set[int] = set()
    numbered: dict[int, Slots] = {}
    counted: dict[int, Slots] = {}
    last = 0
    for item in _items(text):
        if item.number is None and (last >= STEP_COUNT or _VERBS.isdisjoint(item.words)):
            continue
        found = slots(item.words)
        if item.number is None and not (found.amounts or found.ingredients):
            continue
        last = number = last + 1 if item.number is None else item.number
        if item.start < border:
            begun.add(number)
        else:
            (counted if item.number is None else numbered).setdefault(number, found)
    return StepsRead(frozenset(begun), {**counted, **numbered})


def same_steps(one: str, other: str) -> bool:
    """Whether two texts state the same ten steps: the same verbs, amounts and ingredients, in any phrasing."""
    ours, theirs = read_steps("", one).stated, read_steps("", other).stated
    return ours == theirs and len(ours) == STEP_COUNT
