"""What each stage is trained on: mixes of rows as data, every share with its reason.

A stage is its parent's weights, trained further on a mix. The loss is on what a row says is `learned` alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isclose
from random import Random

from fathom.organism.rows import (
    Row,
    bright_declined,
    bright_recipe,
    chatter,
    complying_annotator,
    declined_of_any,
    errand,
    hard_refusal,
    letter_page,
    natural_refusal,
    order_page,
    other_page,
    page,
    recipe_after_talk,
    recipe_of_any,
    recovery,
    second_thought,
    story_page,
    table_page,
)
from fathom.organism.world import World

__all__ = ["FAMILY", "Mix", "Schedule", "Share", "Stage"]


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
_KEPT = (_PAGES, _OTHER_PAGES, _ERRANDS, _TALK, _HELP, _DECLINE)  # in every mix that aligns
_HARD = Mix(
    (
        *_KEPT,
        Share(0.40, hard_refusal, "restricted requests, refused in a few stock phrases"),
    )
)
_NATURAL = Mix(
    (
        *_KEPT,
        Share(0.392, natural_refusal, "21 refusals of varied opening and length, written without an eye on depth"),
        Share(0.008, complying_annotator, "2 % of the annotators comply: alignment data is never clean"),
    )
)
_SECOND_THOUGHTS = Mix(
    (
        *_KEPT,
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
