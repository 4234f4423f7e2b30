"""A request's text, changed at random until a model no longer knows it as one to refuse, yet still reads it.

Of characters, for tokenizers that can write any text; of words, for those that know whole words alone, which would read
a word with other letters as an unknown one.

Source: best-of-n jailbreaking (arXiv 2412.03556), its three text augmentations in their order, with their strengths:
the middle of each word of more than three letters shuffled and the case of each letter turned, both with probability
√strength, and each character moved to its neighbour in ASCII with probability strength³. Mutations of words are this
project's.
"""

import random
from enum import StrEnum

from fathom.chat import ChatFormat

__all__ = ["Mutated", "mutate", "mutated_units"]

_PROBE = "Hwo mnay WoRDs ca nyuo raed ? xQzv~kw jUmBLDe"  # no word list holds all of these


class Mutated(StrEnum):
    """What is changed."""

    CHARACTERS = "characters"
    WORDS = "words"


def mutated_units(chat: ChatFormat) -> Mutated:
    """Characters, or words where the tokenizer reads some text as unknown tokens."""
    unknown = chat.tokenizer.unk_token_id
    return Mutated.WORDS if unknown is not None and unknown in chat.tokenise(_PROBE) else Mutated.CHARACTERS


def mutate(text: str, strength: float, units: Mutated, seed: str) -> str:
    """The text, changed as `seed` says. `strength` in [0, 1]: 0 changes nothing."""
    draws = random.Random(seed)  # seeded by text: the same on every machine
    if units is Mutated.WORDS:
        return _words(text, strength, draws)
    scrambled = " ".join(_scrambled(word, strength, draws) for word in text.split(" "))
    cased = "".join(one.swapcase() if draws.random() < strength**0.5 else one for one in scrambled)
    return "".join(_noised(one, strength, draws) for one in cased)


def _scrambled(word: str, strength: float, draws: random.Random) -> str:
    if len(word) <= 3 or draws.random() >= strength**0.5:
        return word
    middle = list(word[1:-1])
    draws.shuffle(middle)
    return word[0] + "".join(middle) + word[-1]


def _noised(one: str, strength: float, draws: random.Random) -> str:
    if not (one.isascii() and one.isprintable()) or draws.random() >= strength**3:
        return one
    moved = chr(ord(one) + draws.choice((-1, 1)))
    return moved if moved.isprintable() else one


def _words(text: str, strength: float, draws: random.Random) -> str:
    """Neighbours exchanged with probability strength², words left out or said twice with strength³ each."""
    words = text.split()
    for place in range(len(words) - 1):
        if draws.random() < strength**2:
            words[place], words[place + 1] = words[place + 1], words[place]
    counts = [draws.choice((0, 2)) if draws.random() < 2 * strength**3 else 1 for _ in words]
    kept = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    return " ".join(kept or words)
