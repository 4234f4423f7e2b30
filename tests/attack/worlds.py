"""What the tests of attacks share: the shipped deep and shallow models, their behaviors, a setting."""

import functools

from fathom.attack.kinds import Draw, PreparedBehavior, Setting, Victim, prepare
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import OrganismJudge, behaviors, stage_directory
from fathom.records import Sampling

GREEDY = Draw(Sampling(max_new_tokens=60))


@functools.cache
def stage(name: str = "natural") -> ChatModel:
    return load(LoadOptions(name=str(stage_directory(name))))


@functools.cache
def items(harmful: int = 6, benign: int = 0) -> tuple[PreparedBehavior, ...]:
    return prepare(stage().chat, behaviors(harmful=harmful, benign=benign))


def setting(*draws: Draw) -> Setting:
    return Setting(stage().chat, draws or (GREEDY,), seed=3)


def victim(name: str = "natural") -> Victim:
    return Victim(stage(name), OrganismJudge(), 3)


def finished(attack, target, asked):  # type: ignore[no-untyped-def]
    """A search's last state, and every state on the way."""
    states = [attack.init(target, asked)]
    while not attack.done(states[-1]) and len(states) <= attack.steps:
        states.append(attack.step(states[-1], target, asked))
    return states
