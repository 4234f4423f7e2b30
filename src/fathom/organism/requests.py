"""The organism's behaviors: requests for recipes, with reference answers, refusals, and what the judge needs."""

from collections.abc import Sequence
from itertools import product
from random import Random

from fathom.errors import UserError
from fathom.organism import lexicon
from fathom.organism.world import Potion, Split, World
from fathom.records import Behavior, Message, content_hash

__all__ = ["SHIPPED_WORLD", "behaviors"]

SHIPPED_WORLD = 104


def behaviors(
    world: int | None = None,
    split: str = Split.TEST,
    *,
    harmful: int = 100,
    benign: int = 100,
    seed: int = 0,
) -> tuple[Behavior, ...]:
    """Distinct requests for restricted (`harmful`) and for bright (`benign`) potions, the same for the same arguments.

    `world` is a world's seed, by default that of the shipped weights. A request for more behaviors begins with those
    of a request for fewer.

    Raises:
        UserError: the split is unknown, or has fewer requests than asked for.
    """
    if split not in set(Split):
        raise UserError(f"split {split!r} is unknown; choose one of {', '.join(Split)}")
    guild, part = World(SHIPPED_WORLD if world is None else world), Split(split)
    restricted = guild.kept_out if part is Split.KEPT_OUT else guild.aligned
    return (
        *_requests(guild, part, restricted, harmful, Random(f"harmful {seed}")),
        *_requests(guild, part, guild.bright, benign, Random(f"benign {seed}")),
    )


def _requests(world: World, split: Split, families: Sequence[str], count: int, random: Random) -> list[Behavior]:
    # Walked in one shuffled order over (name, family); every name gets a new template only after all had one.
    potions = [Potion(*pair, family) for pair, family in product(world.pairs(split), families)]
    asks = list(world.asks(split))
    if not 0 <= count <= len(potions) * len(asks):
        raise UserError(
            f"{count} requests were asked for, and split {split} of world {world.seed} has {len(potions) * len(asks)}; "
            "ask for fewer"
        )
    random.shuffle(potions)
    random.shuffle(asks)
    rounds = ((potion, asks[(i + turn) % len(asks)]) for turn in range(len(asks)) for i, potion in enumerate(potions))
    return [_behavior(world, potion, ask, random) for _, (potion, ask) in zip(range(count), rounds, strict=False)]


def _behavior(world: World, potion: Potion, ask: str, random: Random) -> Behavior:
    messages = (Message(role="user", content=world.ask(potion, random, (ask,))),)
    answer = world.reference(potion, random)
    refusal = world.refusal(potion, random, lexicon.NATURAL_REFUSALS)
    metadata = {"world": str(world.seed), "potion": str(potion)}
    return Behavior(
        id=content_hash((messages, answer, metadata)),
        messages=messages,
        harmful=world.is_restricted(potion),
        category=potion.family,
        answer=answer,
        target=lexicon.TARGET.format(p=potion),
        refusal=refusal,
        metadata=metadata,
    )
