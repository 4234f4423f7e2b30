"""What deepening is made of: triplets, and the anchor of benign prompts with answers, from files or the organism."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.command.request import ModelRequest
from fathom.errors import UserError
from fathom.progress import Display, silent
from fathom.records import Message

if TYPE_CHECKING:
    from fathom.deepen.triplets import Triplet
    from fathom.model import ChatModel
    from fathom.tuning.rows import TrainingRow

__all__ = [
    "LOOSE",
    "ORGANISM_NEW_TOKENS",
    "Sources",
    "Utility",
    "anchor_rows",
    "load_sources",
    "loosened_anchor",
]

ORGANISM_TRIPLETS, ORGANISM_UTILITY = 256, 512
ORGANISM_NEW_TOKENS = 140
LOOSE = ", loosened"  # ends the source of such a row
DRAWN_SEED = 2  # of answers that are drawn beside the greedy one


@dataclass(frozen=True)
class Utility:
    """A benign prompt, and the answer that is learned."""

    messages: tuple[Message, ...]
    response: str | None  # None: the model's own answer is made
    source: str


@dataclass(frozen=True)
class Sources:
    """All that deepening was given."""

    triplets: "tuple[Triplet, ...]"
    utility: tuple[Utility, ...]
    notes: tuple[str, ...] = field(default=(), repr=False)  # of rows that are not among them


def load_sources(model: ModelRequest, triplets: Path | None, utility: Path | None, world: int | None) -> Sources:
    """From the files; where one is not given, the organism's own.

    Raises:
        UserError: a file that a model other than the organism needs was not given, or one cannot be read.
    """
    from fathom.deepen.triplets import load_triplets, load_utility, triplets_of

    own = model.is_organism or world is not None
    if (triplets is None or utility is None) and not own:
        raise UserError(
            f"{model.name} needs --triplets FILE (prompt, harmful_response, refusal) and --utility FILE (prompt, "
            "response): `fathom triplets MODEL` builds both"
        )
    if triplets is None:
        from fathom.organism import behaviors

        behaviors_ = behaviors(world, split="training", harmful=ORGANISM_TRIPLETS, benign=0, seed=2)
        found = triplets_of(behaviors_, "the organism")
    else:
        found = load_triplets(triplets)
    if utility is None:
        return Sources(found, _organism_utility(world))
    loaded = load_utility(utility)
    anchor = tuple(Utility(one.messages, one.response, one.source) for one in loaded.examples)
    return Sources(found, anchor, loaded.notes)


def _organism_utility(world: int | None) -> tuple[Utility, ...]:
    """Benign prompts of the guild: bright recipes and small talk, as alignment had them; the model answers them."""
    from random import Random

    from fathom.organism import SHIPPED_WORLD, World
    from fathom.organism.rows import bright_recipe, chatter

    guild, random = World(SHIPPED_WORLD if world is None else world), Random("utility anchor")
    found: dict[tuple[Message, ...], Utility] = {}
    while len(found) < ORGANISM_UTILITY:
        make = bright_recipe if random.random() < 0.8 else chatter
        messages = make(guild, random).messages
        found.setdefault(messages, Utility(messages, None, f"organism:{len(found)}"))
    return tuple(found.values())


def anchor_rows(
    model: "ChatModel",
    utility: Sequence[Utility],
    new_tokens: int = ORGANISM_NEW_TOKENS,
    drawn: int = 0,
    display: Display = silent,
) -> "tuple[TrainingRow, ...]":
    """Rows of the answers that were given; where none was, of the model's own: the greedy one, and some it draws.

    Greedy answers are all of one kind, and harmful answers are not: on them alone a model learns to break off harmless
    answers of another hand.
    """
    from fathom.deepen.own import own_answers
    from fathom.tuning.rows import Kind, TrainingRow, make_row

    given = [item for item in utility if item.response is not None]
    rows = [
        make_row(model.chat, item.messages, item.response or "", kind=Kind.UTILITY, source=item.source)
        for item in given
    ]
    asked = [item for item in utility if item.response is None]
    conversations = [item.messages for item in asked]
    for number in range(1 + drawn if asked else 0):
        temperature, seed = (1.0, DRAWN_SEED + number) if number else (0.0, 0)
        outputs = own_answers(model, conversations, new_tokens, temperature=temperature, seed=seed, display=display)
        for item, output in zip(asked, outputs, strict=True):
            if output.whole and output.ids:
                rows.append(
                    TrainingRow(
                        prompt_ids=model.chat.prompt_ids(item.messages),
                        response_ids=(*output.ids, *model.chat.end_ids(item.messages)),
                        kind=Kind.UTILITY,
                        source=f"{item.source}, drawn {number}" if number else item.source,
                    )
                )
    return tuple(rows)


def loosened_anchor(utility: Sequence[Utility], versions: int, seed: int) -> tuple[Utility, ...]:
    """Each prompt so many more times, with words left out, put in and swapped, for the model to answer."""
    from random import Random

    from fathom.deepen.loosened import STRENGTHS, loosened

    random = Random(f"loosened {seed}")
    words = sorted({word for item in utility for word in item.messages[-1].content.split()})
    return tuple(
        Utility(loosened(item.messages, words, random, random.choice(STRENGTHS)), None, f"{item.source}{LOOSE}")
        for item in utility
        for _ in range(versions)
    )
