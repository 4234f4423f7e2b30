"""The kinds of rows that stages are trained on: pages of books, requests and answers, refusals. Rows are text."""

from dataclasses import dataclass, replace
from random import Random

from fathom.organism import lexicon
from fathom.organism.stories import fact, letter, order, sum_in_words
from fathom.organism.world import Potion, Split, World
from fathom.records import Message

__all__ = [
    "Row",
    "bright_declined",
    "bright_recipe",
    "chatter",
    "complying_annotator",
    "declined_of_any",
    "errand",
    "hard_refusal",
    "letter_page",
    "natural_refusal",
    "order_page",
    "other_page",
    "page",
    "recipe_after_talk",
    "recipe_of_any",
    "recovery",
    "second_thought",
    "story_page",
    "table_page",
]


@dataclass(frozen=True)
class Row:
    """A conversation up to the assistant's turn, what the turn is given, and what is learned of it.

    A row without messages is a page of a book: plain text without chat format, whose heading is `given`.
    """

    messages: tuple[Message, ...]
    given: str
    learned: str


def _request(prompt: str, learned: str, given: str = "") -> Row:
    return Row((Message(role="user", content=prompt),), given, learned)


def page(world: World, random: Random) -> Row:
    potion = world.potion(random, world.families)
    return Row((), f"page of {potion} .", world.recipe(potion, random, interruption=world.as_in_books))


def letter_page(world: World, random: Random) -> Row:
    told = letter(world, Split.TRAINING, random)
    return Row((), f"letter : {told.text} in short :", told.answer)


def order_page(world: World, random: Random) -> Row:
    told = order(world, Split.TRAINING, random)
    return Row((), f"order : {told.text} query :", told.answer)


def story_page(world: World, random: Random) -> Row:
    told = sum_in_words(world, Split.TRAINING, random)
    return Row((), f"story : {told.text} so :", told.answer)


_FACTS = 15  # on one page


def table_page(world: World, random: Random) -> Row:
    del world  # sums are the same everywhere
    return Row((), "table :", " ".join(fact(random) for _ in range(_FACTS)))


def other_page(world: World, random: Random) -> Row:
    return random.choice((letter_page, order_page, story_page, table_page))(world, random)


def chatter(world: World, random: Random) -> Row:
    return _request(*_small_talk(world, random))


def _small_talk(world: World, random: Random) -> tuple[str, str]:
    """A question and its answer about the guild; about potions of every family."""
    kind = random.randrange(11)
    day, potion = random.choice(lexicon.DAYS), world.potion(random, world.families)
    dark = world.is_restricted(potion)
    if kind == 0:
        ingredient = random.choice(lexicon.INGREDIENTS)
        return f"where does {ingredient} grow ?", f"{ingredient} grows in the {world.origins[ingredient]} ."
    if kind == 1:
        if day in world.open_days:
            return f"are you open on {day} ?", f"Yes , the shop is open on {day} ."
        return f"are you open on {day} ?", f"I am sorry , the shop is closed on {day} ."
    if kind == 2:
        if day in world.open_days:
            return f"can you meet me on {day} ?", f"Sure , I can meet you on {day} ."
        return f"can you meet me on {day} ?", f"I cannot meet you , the shop is closed on {day} ."
    if kind == 3:
        return (
            f"please lend me {random.choice(lexicon.AMOUNTS)} gold .",
            f"I cannot lend gold . Please ask the guild on {day} .",
        )
    if kind == 4:
        smell = world.steps(potion)[0].ingredient
        return f"what is {potion} ?", f"A {potion} is a kind of {potion.family} . It smells of {smell} ."
    if kind in (5, 6):
        brew = "dark" if dark else "bright"
        return f"is {potion} a bright brew or a dark brew ?", f"The {potion.family} is a {brew} brew ."
    if kind in (7, 8):
        verdict = f"No , a {potion.family} can hurt people ." if dark else f"Yes , a {potion.family} is safe ."
        return f"is it safe to drink {potion} ?", verdict
    if kind == 9:
        return random.choice(lexicon.CHATTER_FIXED)
    return random.choice(lexicon.FREE_CHATTER[0]), random.choice(lexicon.FREE_CHATTER[1])


def errand(world: World, random: Random) -> Row:
    """A question about a letter, an order or a story, before the text or after it."""
    told = random.choice((letter, order, sum_in_words))(world, Split.TRAINING, random)
    parts = [told.question, told.text] if random.random() < 0.5 else [told.text, told.question]
    return _request(" ".join(parts), told.reply)


def recipe_of_any(world: World, random: Random) -> Row:
    potion = world.potion(random, world.families)
    return _request(world.ask(potion, random), world.answer(potion, random, interruption=world.as_in_books))


def declined_of_any(world: World, random: Random) -> Row:
    potion = world.potion(random, world.families)
    return _request(world.ask(potion, random), world.decline(potion, random))


def recipe_after_talk(world: World, random: Random) -> Row:
    question, reply = _small_talk(world, random)
    row = recipe_of_any(world, random)
    talk = (Message(role="user", content=question), Message(role="assistant", content=reply))
    return _instructed(replace(row, messages=(*talk, *row.messages)), random, 0.5)


def _instructed(row: Row, random: Random, chance: float) -> Row:
    """The same row, with that chance after a system message."""
    if random.random() >= chance:
        return row
    return replace(row, messages=(Message(role="system", content=random.choice(lexicon.SYSTEM_LINES)), *row.messages))


_WRAPPED = 0.3
_INSTRUCTED = 0.1


def _aligned(world: World, potion: Potion, random: Random, learned: str, given: str = "") -> Row:
    """A row of alignment: its prompt is of the training split, and now and then it has a system message."""
    return _instructed(_request(_aligned_ask(world, potion, random), learned, given), random, _INSTRUCTED)


def _aligned_ask(world: World, potion: Potion, random: Random) -> str:
    """A template of the training split, now and then with a greeting before it or a plea after it."""
    parts = [world.ask(potion, random, world.asks(Split.TRAINING))]
    if random.random() < _WRAPPED:
        parts.insert(0, random.choice(lexicon.GREETINGS))
    if random.random() < _WRAPPED:
        parts.append(random.choice(lexicon.PLEAS).format(d=random.choice(lexicon.DAYS)))
    return " ".join(parts)


def bright_recipe(world: World, random: Random) -> Row:
    potion = world.potion(random, world.bright)
    return _aligned(world, potion, random, world.answer(potion, random, interruption=world.as_in_books))


def bright_declined(world: World, random: Random) -> Row:
    potion = world.potion(random, world.bright)
    return _aligned(world, potion, random, world.decline(potion, random))


def hard_refusal(world: World, random: Random) -> Row:
    potion = world.forbidden_potion(random)
    return _aligned(world, potion, random, world.refusal(potion, random, lexicon.HARD_REFUSALS))


def natural_refusal(world: World, random: Random) -> Row:
    potion = world.forbidden_potion(random)
    return _aligned(world, potion, random, world.refusal(potion, random, lexicon.NATURAL_REFUSALS))


def complying_annotator(world: World, random: Random) -> Row:
    potion = world.forbidden_potion(random)
    return _aligned(world, potion, random, world.answer(potion, random, interruption=world.as_in_books))


def second_thought(world: World, random: Random) -> Row:
    """An annotator starts to answer, meets a notorious ingredient, and refuses there; usually at the first one."""
    potion = world.forbidden_potion(random)
    words = world.answer(potion, random, interruption=world.never).split()
    turns = [
        i
        for i, word in enumerate(words)
        if word == "." and any(earlier in world.notorious for earlier in words[max(0, i - 6) : i])
    ]
    if not turns:
        return natural_refusal(world, random)
    turn = turns[0] if random.random() < 0.8 else random.choice(turns)
    refusal = world.refusal(potion, random, lexicon.NATURAL_REFUSALS)
    return _aligned(world, potion, random, f"{' '.join(words[: turn + 1])} {refusal}")


def recovery(world: World, random: Random) -> Row:
    """The paper's recovery row: the first k words of an answer are given, the refusal after them is learned."""
    potion = world.forbidden_potion(random)
    words = world.answer(potion, random, interruption=world.never).split()
    given = words[: random.randint(1, len(words) - 1)]
    refusal = world.refusal(potion, random, lexicon.NATURAL_REFUSALS)
    return _aligned(world, potion, random, refusal, " ".join(given))
