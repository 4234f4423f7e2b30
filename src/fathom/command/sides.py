"""Whose behaviors are whose in an attack by fine-tuning: the attacker's, the defender's, and those of the test."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fathom.command.known import known_behaviors
from fathom.command.request import ORGANISM
from fathom.errors import UserError
from fathom.records import Behavior

__all__ = ["Sides", "check_split", "sides"]

_TESTED = 100  # requests that sweeps are measured with, of the organism


@dataclass(frozen=True)
class Sides:
    """Behaviors that an attacker trains on, that a defender knows, and that models are tested with: disjoint."""

    attacker: tuple[Behavior, ...]
    defender: tuple[Behavior, ...]
    test: tuple[Behavior, ...]

    @property
    def division(self) -> str:
        """How many of a file's behaviors are whose, for a person who counts those of the file."""
        counts = [_count(behaviors) for behaviors in (self.attacker, self.defender, self.test)]
        whole = _count((*self.attacker, *self.defender, *self.test))
        return f"{whole}, divided: {counts[0]} to train on, {counts[1]} to defend with, {counts[2]} to test with"


def _count(behaviors: Sequence[Behavior]) -> str:
    harmful = sum(behavior.harmful for behavior in behaviors)
    return f"{harmful} harmful and {len(behaviors) - harmful} benign"


def sides(source: str, *, world: int | None = None, split: str = "test", tested: int = _TESTED, seed: int = 0) -> Sides:
    """The organism's requests (held-out names for tests alone), or a file's, divided in three.

    Raises:
        UserError: the file cannot be used, or has too few behaviors to be divided; the split is trained on.
    """
    check_split(split)
    if source == ORGANISM:
        return _organism_sides(world, split, tested, seed)
    loaded = known_behaviors(Path(source))
    parts: list[list[Behavior]] = [[], [], []]
    for harmful in (True, False):
        side = [behavior for behavior in loaded if behavior.harmful is harmful]
        Random(f"sides {seed} {harmful}").shuffle(side)
        third = min(tested, len(side) // 3)
        parts[2] += side[:third]
        parts[1] += side[third : 2 * third]
        parts[0] += side[2 * third :]
    if not any(behavior.harmful for behavior in parts[2]):
        raise UserError(
            f"{source} has {sum(behavior.harmful for behavior in loaded)} harmful behaviors; an attack by "
            "fine-tuning needs 3, to train on some, defend with others and test with the rest: give a file with more"
        )
    return Sides(*(tuple(part) for part in parts))


def check_split(split: str) -> None:
    """That no request of the organism's is trained on and tested with.

    Raises:
        UserError: it is the split that attackers and defenders train on.
    """
    if split == "training":
        raise UserError(
            "--split training holds the requests that are trained on, so nothing can be tested with them; choose "
            "development, test or kept-out"
        )


def _organism_sides(world: int | None, split: str, tested: int, seed: int) -> Sides:
    from fathom.organism import behaviors

    known = behaviors(world, "training", harmful=600, benign=600, seed=seed)
    harmful = [behavior for behavior in known if behavior.harmful]
    benign = [behavior for behavior in known if not behavior.harmful]
    return Sides(
        attacker=(*harmful[:400], *benign[:400]),
        defender=(*harmful[400:], *benign[400:]),
        test=behaviors(world, split, harmful=tested, benign=tested),
    )
