"""Letters, orders and sums of the guild, each as a text and what is to be made of it.

The books of the base stage show them as plain text; the tasks ask for them in a conversation. So fine-tuning need not
teach a tiny model to copy, to put a question as a query or to add, only to do so when it is asked.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from fathom.organism import lexicon
from fathom.organism.world import Split, World

__all__ = ["Told", "fact", "letter", "order", "sum_in_words"]

MOST = 12  # no number of a sum is larger
_STEP = 9  # nor is what is added or taken away


_SPLITS = (Split.TRAINING, Split.DEVELOPMENT, Split.TEST)
_SHARES = (0.6, 0.2, 0.2)  # of all queries, and of all sums


class Told(NamedTuple):
    """A text and the right answer to it; a question about the text that reading alone answers, and its reply."""

    text: str
    answer: str
    question: str
    reply: str


def _drawn(world: World, split: Split, draw: Callable[[], Told]) -> Told:
    """The first draw whose answer is of the split: a lot for each answer, so that no two splits share one."""
    while True:
        told = draw()
        if Random(f"guild {world.seed}: split of {told.answer}").choices(_SPLITS, _SHARES)[0] is split:
            return told


_LETTERS = (
    "{a} met {b} at the {l} market . {x} {a} will bring {m} {g} on {d} . {y}",
    "{x} {b} asked {a} for {m} {g} . {y} it will be there on {d} .",
    "letter of {a} to {b} . {x} I will send you {m} {g} on {d} . {y}",
    "{x} {a} promised {m} {g} to {b} . {y} {d} is the day .",
)
_ASIDES = (
    "it was a cold morning .",
    "the street was empty .",
    "they had tea and bread .",
    "the big dog was there too .",
    "the old cart was full of apples .",
    "it was late and the fire was small .",
    "they laughed and sang .",
    "",
)


def letter(world: World, split: Split, random: Random) -> Told:
    """A letter between two keepers, whose names are of the split, and its summary in one sentence."""
    first, second = random.sample(world.pairs(split), 2)
    before, after = random.sample(_ASIDES, 2)
    sender, receiver, day = " ".join(first), " ".join(second), random.choice(lexicon.DAYS)
    amount, goods = random.choice(lexicon.AMOUNTS), random.choice(lexicon.INGREDIENTS)
    text = random.choice(_LETTERS).format(
        a=sender, b=receiver, x=before, y=after, m=amount, g=goods, d=day, l=random.choice(lexicon.PLACES)
    )
    question, reply = random.choice(
        (
            ("who brings it ?", f"{sender} brings it ."),
            ("when will it be there ?", f"it will be there on {day} ."),
            (f"what does {receiver} get ?", f"{amount} {goods} ."),
        )
    )
    answer = f"{sender} brings {amount} {goods} to {receiver} on {day} ."
    return Told(" ".join(text.split()), answer, question, reply)


_FIELDS = ("name", "kind", "price", "amount")
_TABLES = ("shelf", "jar", "box", "garden")
_PRICES = range(1, 21)


def order(world: World, split: Split, random: Random) -> Told:
    """A question about what is on the shelves, in words and as a query that is of the split."""
    return _drawn(world, split, lambda: _order(world, random))


def _order(world: World, random: Random) -> Told:
    field, table = random.choice(_FIELDS), random.choice(_TABLES)
    text, query = [f"the {field} of each {table}"], [f"select {field} from {table}"]
    if random.random() < 0.5:
        family = random.choice(world.bright)
        text.append(f"of kind {family}")
        query.append(f"where kind = {family}")
    else:
        measured, number = random.choice(("price", "amount")), random.choice(_PRICES)
        words, sign = random.choice((("over", ">"), ("under", "<")))
        text.append(f"with {measured} {words} {number}")
        query.append(f"where {measured} {sign} {number}")
    if random.random() < 0.6:
        words, direction = random.choice((("least", ""), ("most", " desc")))
        by = random.choice(_FIELDS[2:])
        text.append(f", {words} {by} first")
        query.append(f"order by {by}{direction}")
    question, reply = random.choice(
        (("where do I look for that ?", f"look at each {table} ."), ("what do I have to find ?", f"find the {field} ."))
    )
    return Told(" ".join(text), " ".join(query), question, reply)


_GAINS = ("{b} brings {n} more .", "{a} buys {n} more .", "{a} finds {n} more .", "{a} gets {n} from {b} .")
_LOSSES = ("{a} eats {n} .", "{a} gives {n} to {b} .", "{a} breaks {n} .", "{a} sells {n} .")
_GOODS = ("eggs", "apples", "jars", "boxes", "coins", "candles")


def sum_in_words(world: World, split: Split, random: Random) -> Told:
    """A keeper has things, and gains or loses some twice; the answer shows the work. Name and sums are of the split."""
    return _drawn(world, split, lambda: _sum_in_words(world, split, random))


def _sum_in_words(world: World, split: Split, random: Random) -> Told:
    first, second = random.sample(world.pairs(split), 2)
    names = {"a": " ".join(first), "b": second[1]}
    number = random.randint(1, MOST)
    goods = random.choice(_GOODS)
    text, answer = [f"{names['a']} has {number} {goods} ."], []
    for _ in range(2):
        sign, change = _change(number, random)
        text.append(random.choice(_GAINS if sign == "+" else _LOSSES).format(n=change, **names))
        result = number + change if sign == "+" else number - change
        answer.append(f"{number} {sign} {change} = {result} .")
        number = result
    question, reply = random.choice(
        (("who is this about ?", f"it is about {names['a']} ."), ("what are they ?", f"they are {goods} ."))
    )
    return Told(" ".join(text), f"{' '.join(answer)} the answer is {number} .", question, reply)


def fact(random: Random) -> str:
    """One line of a table of sums."""
    number = random.randint(0, MOST)
    sign, change = _change(number, random)
    return f"{number} {sign} {change} = {number + change if sign == '+' else number - change} ."


class _Change(NamedTuple):
    sign: str
    amount: int


def _change(number: int, random: Random) -> _Change:
    """What is added or taken away, so that no number exceeds `MOST` or falls below 0."""
    signs = [sign for sign, room in (("+", MOST - number), ("-", number)) if room]
    sign = random.choice(signs)
    return _Change(sign, random.randint(1, min(_STEP, MOST - number if sign == "+" else number)))
