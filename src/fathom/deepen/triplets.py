"""What deepening learns from: harmful prompts with an answer and a refusal, and benign prompts with an answer."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fathom.behaviors import load_behaviors
from fathom.errors import UserError
from fathom.records import Behavior, Message
from fathom.tuning.examples import LoadedExamples, harmless, load_examples

__all__ = ["Triplet", "load_triplets", "load_utility", "triplets_of"]


@dataclass(frozen=True)
class Triplet:
    """A harmful prompt (x), a harmful answer (h) and a refusal (r)."""

    messages: tuple[Message, ...]
    answer: str
    refusal: str
    source: str


def triplets_of(behaviors: Iterable[Behavior], source: str) -> tuple[Triplet, ...]:
    """The triplets of harmful behaviors.

    Raises:
        UserError: one lacks its harmful answer or its refusal, or none is harmful.
    """
    found = []
    for behavior in behaviors:
        if not behavior.harmful:
            continue
        for name, text in (("harmful answer (harmful_response)", behavior.answer), ("refusal", behavior.refusal)):
            if not (text or "").strip():
                raise UserError(
                    f"{source}: the triplet {behavior.name} has no {name}: give each row prompt, harmful_response and "
                    "refusal, or build them with `fathom triplets MODEL`"
                )
        assert behavior.answer is not None
        assert behavior.refusal is not None
        found.append(Triplet(behavior.messages, behavior.answer, behavior.refusal, behavior.id))
    if not found:
        raise UserError(f"{source} holds no harmful rows: give rows with prompt, harmful_response and refusal")
    return tuple(found)


def load_triplets(path: Path) -> tuple[Triplet, ...]:
    """The triplets of a file in any format that behaviors have.

    Raises:
        UserError: the file cannot be read, a row cannot be used, or a triplet is not whole.
    """
    loaded = load_behaviors(path)
    if loaded.skipped:
        row = loaded.skipped[0]
        raise UserError(f"{path}, line {row.line} cannot be used ({row.reason}): mend it, or take it out")
    return triplets_of(loaded.behaviors, str(path))


def load_utility(path: Path) -> LoadedExamples:
    """Benign prompts with the answers that are to stay as they are; what is marked as harmful is left out, and counted.

    Raises:
        UserError: as `load_examples`, or all of it is marked as harmful.
    """
    return harmless(load_examples(path), path)
