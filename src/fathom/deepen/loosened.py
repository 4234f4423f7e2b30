"""Prompts as nobody wrote them: words left out, put in and swapped.

A model that is made to fall apart under an attack also falls apart, a little, on phrasings that its training lacks. Its
own answers to loosened prompts, learned as an anchor, keep it whole there.
"""

from collections.abc import Sequence
from random import Random

import msgspec

from fathom.records import Message

__all__ = ["STRENGTHS", "loosened"]

STRENGTHS = (0.1, 0.2, 0.4)


def loosened(messages: Sequence[Message], words: Sequence[str], random: Random, strength: float) -> tuple[Message, ...]:
    """The conversation with its last message loosened; at strength 0 it is as it was, but for white space.

    Each word is left out with probability `strength`, else has one of `words` before it with 0.6 of that; then each two
    neighbours change places with half of it. What would be empty stays as it was.
    """
    kept = list[str]()
    for word in messages[-1].content.split():
        drawn = random.random()
        if drawn < strength:
            continue
        if drawn < 1.6 * strength:
            kept.append(random.choice(words))
        kept.append(word)
    for i in range(len(kept) - 1):
        if random.random() < strength / 2:
            kept[i], kept[i + 1] = kept[i + 1], kept[i]
    if not kept:
        return tuple(messages)
    return (*messages[:-1], msgspec.structs.replace(messages[-1], content=" ".join(kept)))
