"""The turns of a conversation, as OpenAI and TRL write them (role, content) and as ShareGPT does (from, value)."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fathom.behaviors.columns import CONVERSATION
from fathom.behaviors.fields import UnusableError, is_blank, kind_of, shortened
from fathom.behaviors.file import reason

__all__ = ["Turn", "conversation", "turns_of"]

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant"),
}


class Turn(NamedTuple):
    """Who says what; the text may be blank."""

    role: str  # system, user or assistant
    content: str
    learned: bool = True  # whether its `weight` (OpenAI's) lets it be learned


def conversation(fields: Mapping[str, object]) -> tuple[Turn, ...] | None:
    """The conversation in a row's columns, if it has one.

    Raises:
        UnusableError: what stands there is none.
    """
    name = next((name for name in CONVERSATION if name in fields), None)
    if name is None:
        return None
    given = fields[name]
    if isinstance(given, str):  # a field of CSV
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"{name} are not JSON: {reason(error)}") from error
    if not isinstance(given, list):
        raise UnusableError(f"{name} are {kind_of(given)}, not a list")
    return turns_of(given)


def turns_of(given: Sequence[object]) -> tuple[Turn, ...]:
    """Turns as data sets write them.

    Raises:
        UnusableError: one has another role, calls a tool, or holds something other than text.
    """
    return tuple(_turn(item) for item in given)


def _turn(item: object) -> Turn:
    if not isinstance(item, Mapping):
        raise UnusableError(f"messages need a role and a content each, and one is {kind_of(item)}")
    if not is_blank(item.get("tool_calls")) or not is_blank(item.get("function_call")):
        raise UnusableError("a message calls a tool, and tools are not read: take such conversations out")
    said = next((item[name] for name in ("role", "from") if item.get(name) is not None), None)
    name = next((name for name in ("content", "value") if name in item), None)
    if said is None or name is None:
        raise UnusableError("messages need a role and a content each")
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise UnusableError(f"a message has the role {shortened(said)}; roles are system, user and assistant")
    content = _content(item[name])
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UnusableError(f"a message's content holds half of a character (at {error.start})") from error
    return Turn(role, content, learned=not _is_zero(item.get("weight")))


def _content(value: object) -> str:
    """Text, or parts of text (OpenAI's), or nothing."""
    if is_blank(value):
        return ""
    if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        for part in value:
            if not isinstance(part.get("text"), str):
                raise UnusableError(
                    f"a message's content has a part of type {shortened(part.get('type'))}: text alone is read"
                )
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise UnusableError(f"a message's content is {kind_of(value)} ({shortened(value)}), not text")
    return value


def _is_zero(value: object) -> bool:
    return isinstance(value, int | float) and value == 0
