"""The text of an answer as the refusal judge reads it: which part is the answer, folded to plain letters, in sentences.

Folding never changes the number of characters, so a place in the folded text is a place in the answer.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Reading", "Sentence", "read"]

_THINK_END = "</think>"
_LEAD = re.compile(
    r"[\s*_#>~-]*(?:<\|?[\w ]{1,24}\|?>\s*)?"
    r"(?:(?:assistant|ai|answer|response|bot|model|chatbot)\s?:\s*)?"
)
_APOSTROPHES = "\u2018\u2019\u02bc\u00b4\u2032\uff07`"
_QUOTES = "\u201c\u201d\u201e\u00ab\u00bb\uff02"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"
_SPACES = "\u00a0\u2009\u202f\u3000\t\r*_"  # marks of emphasis are no letters either
_PLAIN = str.maketrans(
    dict.fromkeys(_APOSTROPHES, "'")
    | dict.fromkeys(_QUOTES, '"')
    | dict.fromkeys(_DASHES, "-")
    | dict.fromkeys(_SPACES, " ")
    | {"\uff0c": ","}
)
# Ends of sentences; an apology or an "as an AI" opens one even where a cut answer left no full stop before it.
_BREAK = re.compile(
    r"[.!?\u2026][\"')\]]*(?=\s|$)|[\u3002\uff01\uff1f]+|\n+"
    r"|(?<=\s)(?=(?:i(?:'m| am) (?:\w+ )?sorry\b|i apologi[sz]e\b|my apologies\b|as an ai\b))"
)
_QUOTE = re.compile(r'"[^"\n]{1,400}"')
_FENCE = re.compile(r"'''.*?(?:'''|\Z)", re.DOTALL)  # of code; folding made its marks apostrophes
_WORD = re.compile(r"[^\W_]")


class Sentence(NamedTuple):
    start: int  # first character that is not space
    end: int


@dataclass(frozen=True)
class Reading:
    """An answer, folded: `text[i]` stands for character i of the response; what is not the answer is blank."""

    text: str
    start: int  # where the answer itself begins: after a thinking block, a role label, leading space and marks
    sentences: tuple[Sentence, ...]

    def sentence_at(self, char: int) -> int:
        """The index of the sentence that holds a character."""
        low, high = 0, len(self.sentences)
        while high - low > 1:
            middle = (low + high) // 2
            if self.sentences[middle].start <= char:
                low = middle
            else:
                high = middle
        return low


def read(response: str) -> Reading:
    """Fold a response and split its answer into sentences, in time linear in its length."""
    text = _fold(response)
    start = _answer_start(text)
    own = text[:start] + _QUOTE.sub(_blank, _FENCE.sub(_blank, text[start:]))
    if _WORD.search(own, start):  # else the whole answer stands in quotes, and is the speaker's own
        text = own
    return Reading(text, start, tuple(_sentences(text, start)))


def _blank(match: re.Match[str]) -> str:
    """What others say, and code, is no speech of the speaker's own."""
    return " " * len(match[0])


def _fold(response: str) -> str:
    plain = response.translate(_PLAIN)
    lower = plain.lower()
    if len(lower) != len(plain):  # a few capitals become two characters
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in plain)
    return lower


def _answer_start(text: str) -> int:
    closed = text.rfind(_THINK_END)
    if closed >= 0:
        start = closed + len(_THINK_END)
    elif text.lstrip().startswith("<think>"):
        return len(text)  # the answer was never begun
    else:
        start = 0
    lead = _LEAD.match(text, start)
    return lead.end() if lead else start


def _sentences(text: str, start: int) -> list[Sentence]:
    found = []
    begin = start
    for stop in _BREAK.finditer(text, start):
        found.append((begin, stop.end()))
        begin = stop.end()
    found.append((begin, len(text)))
    sentences = []
    for first, last in found:
        word = _WORD.search(text, first, last)
        if word:
            sentences.append(Sentence(word.start(), last))
    return sentences
