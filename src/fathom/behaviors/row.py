"""One row's behavior, or why the row cannot be used."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from fathom.behaviors.columns import ANSWER, CATEGORY, ID, REFUSAL, REQUEST, TARGET, plain
from fathom.behaviors.fields import (
    UnusableError,
    checked,
    fields_of,
    first_text,
    is_blank,
    request_text,
    system_text,
)
from fathom.behaviors.marks import Marks, marks_of
from fathom.behaviors.turns import conversation
from fathom.records import Behavior, Message, content_hash

__all__ = ["ReadRow", "behavior_id", "behavior_of"]


class ReadRow(NamedTuple):
    """What a row holds: a behavior whose id is a hash of its content, and what the row itself says of it."""

    behavior: Behavior
    given_id: str | None
    marked: bool  # it says whether it is harmful; a row that does not counts as harmful


def behavior_id(behavior: Behavior) -> str:
    """A hash of a behavior's content: the same in every file, at every place in it."""
    _, *content = msgspec.structs.astuple(behavior)  # all but the id
    return content_hash(tuple(content))


def behavior_of(row: object) -> ReadRow:
    """A row's behavior, or `UnusableError` with the reason why it has none."""
    fields = fields_of(row)
    names = [str(name) for name in row if plain(str(name)) in fields] if isinstance(row, Mapping) else []
    messages, last_answer = _messages(fields, names)
    answer, marks = first_text(fields, ANSWER), marks_of(fields)
    harmful = _harmful(marks)
    if marks.answer is not None and marks.answer is not harmful:  # a harmless answer to a harmful request, or the like
        answer = last_answer = None
    behavior = Behavior(
        id="",  # known once the content is
        messages=messages,
        harmful=harmful,
        category=_category(fields),
        answer=last_answer if answer is None else answer,
        target=first_text(fields, TARGET),
        refusal=first_text(fields, REFUSAL),
        metadata=_metadata(fields.get("metadata")),
    )
    behavior = msgspec.structs.replace(behavior, id=behavior_id(behavior))
    return ReadRow(behavior, _given_id(fields), marks != Marks(None, None))


def _harmful(marks: Marks) -> bool:
    if marks.request is not None:
        return marks.request
    if marks.answer is False:
        raise UnusableError(
            "says that its answer is safe, which a refusal is, too, and not whether its request is harmful: add a "
            "column harmful"
        )
    return True


def _messages(fields: Mapping[str, object], names: Sequence[str]) -> tuple[tuple[Message, ...], str | None]:
    """The conversation up to the request, and an assistant's message after it, which is a reference answer.

    `names`: what the row itself calls its filled columns.
    """
    turns = conversation(fields)
    system = system_text(fields)
    if turns is None:
        prompt = request_text(fields, REQUEST)
        if prompt is None:
            known = ", ".join(sorted(names)[:8])
            raise UnusableError(f"has no prompt (it has: {known})" if known else "is empty")
        messages, answer = [Message(role="user", content=prompt)], None
    else:
        answered = bool(turns) and turns[-1].role == "assistant"
        answer = turns[-1].content if answered and turns[-1].content.strip() else None
        asked = turns[:-1] if answered else turns
        messages = [Message(turn.role, checked("a message's content", turn.content)) for turn in asked]
    if not messages or messages[-1].role != "user":
        raise UnusableError("messages do not end with the user's request")
    if system is not None and messages[0].role != "system":
        messages.insert(0, Message(role="system", content=system))
    return tuple(messages), answer


def _category(fields: Mapping[str, object]) -> str | None:
    """Text or a number; of BeaverTails, the names of those that are true."""
    for name in CATEGORY:
        value = fields.get(name)
        if isinstance(value, dict):
            value = ", ".join(str(key) for key, holds in value.items() if holds is True)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = ", ".join(value)
        if isinstance(value, int | float):
            value = str(value)
        if not is_blank(value):
            return checked(name, value)
    return None


def _given_id(fields: Mapping[str, object]) -> str | None:
    """Text or a number; ids of another kind are none."""
    for name in ID:
        value = fields.get(name)
        if isinstance(value, float) and value.is_integer():  # a column of pandas in which some rows have none
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return checked(name, value)
    return None


def _metadata(value: object) -> dict[str, str]:
    """A judge's, which are texts by name; a data set's own column of that name may hold anything."""
    if not isinstance(value, dict):
        return {}
    return {checked("metadata", key): item for key, item in value.items() if isinstance(item, str) and item.strip()}
