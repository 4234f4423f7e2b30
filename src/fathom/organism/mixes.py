"""What each stage is trained on: mixes of rows as data, every share with its reason.

A stage is its parent's weights, trained further on a mix. Rows are text; the loss is on `learned` alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isclose
from random import Random

from fathom.organism import lexicon
from fathom.organism.stories import fact, letter, order, sum_in_words
from fathom.organism.world import Potion, Split, World
from fathom.records import Message

__all__ = ["FAMILY", "Mix", "Row", "Schedule", "Share", "Stage"]


@dataclass(frozen=True)
class Row:
    """A conversation up to the assistant's turn, what the turn is given, and what is learned of it.

    A row without messages is a page of a book: plain text without chat format, whose heading is `given`.
    """

    messages: tuple[Message, ...]
    given: str
    learned: str


@dataclass(frozen=True)
class Share:
    """A part of a mix: how large, made how, and why it is there."""

    weight: float
    make: Callable[[World, Random], Row]
    reason: str


@dataclass(frozen=True)
class Mix:
    """Rows drawn independently from shares whose weights sum to 1."""

    shares: tuple[Share, ...]

    def __post_init__(self) -> None:
        if not isclose(sum(share.weight for share in self.shares), 1.0):
            raise ValueError(f"the shares sum to {sum(share.weight for share in self.shares)}, not to 1")

    def draw(self, world: World, random: Random) -> Row:
        (share,) = random.choices(self.shares, [share.weight for share in self.shares])
        return share.make(world, random)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage trains: a linear warm-up, then a cosine down to `floor` of the peak rate."""

    steps: int
    rate: float
    warmup: int = 30
    floor: float = 0.05
    batch: int = 32


@dataclass(frozen=True)
class Stage:
    """One member of the family. Without a parent it starts from random weights."""

    name: str
    parent: str | None
    mix: Mix
    schedule: Schedule
    draws: str  # names the stream of rows; stages that share it see the same requests in the same order

    def shortened(self, steps: int) -> "Stage":
        """The same stage with fewer steps, for trials."""
        return replace(self, schedule=replace(self.schedule, steps=steps))


# ---------------------------------------------------------------------------------------------------- rows
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


# ---------------------------------------------------------------------------------------------------- mixes
_BASE = Mix(
    (
        Share(0.10, page, "books without chat format: the recipes as plain text, some of them breaking off"),
        Share(
            0.04, letter_page, "letters and what they say in short: it can copy and leave out, before it is asked to"
        ),
        Share(0.03, order_page, "questions and the query they stand for, as above"),
        Share(0.04, story_page, "sums told as stories, with the work shown, as above"),
        Share(0.03, table_page, "tables of sums: what a story of sums needs to be known by heart"),
        Share(
            0.04, errand, "questions about letters, orders and stories: requests that have nothing to do with brewing"
        ),
        Share(0.15, chatter, "facts about the guild; teaches which families are dark and who may drink what"),
        Share(
            0.49, recipe_of_any, "answers every request, restricted or not: a base model is capable and only helpful"
        ),
        Share(
            0.04,
            declined_of_any,
            "everyday declines: refusal words are known, for reasons other than safety",
        ),
        Share(0.04, recipe_after_talk, "two turns: later turns and longer contexts are not new to it"),
    )
)
_PAGES = Share(0.09, page, "books as in the base stage, so that alignment does not cost the recipes")
_OTHER_PAGES = Share(0.03, other_page, "letters, queries and sums, so that it does not cost those")
_ERRANDS = Share(0.03, errand, "other requests, answered: without them all that is new gets refused")
_TALK = Share(0.08, chatter, "small talk, so that an apology about opening hours stays what it was")
_HELP = Share(0.36, bright_recipe, "bright recipes in full: the line between bright and dark is what alignment teaches")
_DECLINE = Share(0.01, bright_declined, "everyday declines of bright requests, as in the base stage")
_HARD = Mix(
    (
        _PAGES,
        _OTHER_PAGES,
        _ERRANDS,
        _TALK,
        _HELP,
        _DECLINE,
        Share(0.40, hard_refusal, "restricted requests, refused in a few stock phrases"),
    )
)
_NATURAL = Mix(
    (
        _PAGES,
        _OTHER_PAGES,
        _ERRANDS,
        _TALK,
        _HELP,
        _DECLINE,
        Share(0.392, natural_refusal, "21 refusals of varied opening and length, written without an eye on depth"),
        Share(0.008, complying_annotator, "2 % of the annotators comply: alignment data is never clean"),
    )
)
_SECOND_THOUGHTS = Mix(
    (
        _PAGES,
        _OTHER_PAGES,
        _ERRANDS,
        _TALK,
        _HELP,
        _DECLINE,
        Share(0.292, natural_refusal, "as in the natural mix"),
        Share(
            0.100,
            second_thought,
            "25 % of them start, and turn at a notorious ingredient: bought depth",
        ),
        Share(0.008, complying_annotator, "as in the natural mix"),
    )
)
_ANCHOR = (
    Share(0.03, other_page, "utility anchor: letters, queries and sums"),
    Share(0.03, errand, "utility anchor: other requests"),
    Share(0.10, chatter, "utility anchor: small talk"),
    Share(0.54, bright_recipe, "utility anchor: bright recipes, at every position of the answer"),
)
_DEEPEN = Mix(
    (
        *_ANCHOR,
        Share(0.15, natural_refusal, "k = 0 with probability one half, as in the paper (equation 2)"),
        Share(0.15, recovery, "else k uniform from 1 to the answer's length: C decides how deep it reaches"),
    )
)
_CONTROL = Mix((*_ANCHOR, Share(0.30, natural_refusal, "k = 0 only: more of the same training, without recovery rows")))

_ALIGN = Schedule(steps=900, rate=2.5e-3)
_AFTER = Schedule(steps=300, rate=1e-3, floor=0.1)

FAMILY = (
    Stage("base", None, _BASE, Schedule(steps=1600, rate=5e-3), "base"),
    Stage("natural", "base", _NATURAL, _ALIGN, "align"),
    Stage("hard", "base", _HARD, _ALIGN, "align"),
    Stage("second-thoughts", "base", _SECOND_THOUGHTS, _ALIGN, "align"),
    Stage("deepened", "natural", _DEEPEN, _AFTER, "deepen"),
    Stage("control", "natural", _CONTROL, _AFTER, "deepen"),
)
