"""One row's behavior, or why the row cannot be used."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from fathom.behaviors.columns import ANSWER, CATEGORY, CONTEXT, ID, REFUSAL, REQUEST, TARGET, plain
from fathom.behaviors.file import UnusableError, reason
from fathom.records import Behavior, Message, content_hash

__all__ = ["ReadRow", "behavior_id", "behavior_of"]

_HARMFUL_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_LABEL_WORDS = {
    **dict.fromkeys(("unsafe", "harmful"), True),
    **dict.fromkeys(("safe", "benign", "harmless"), False),
}
_ROLES = ("system", "user", "assistant")


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
    if isinstance(row, UnusableError):
        raise row
    if not isinstance(row, dict):
        raise UnusableError(f"is {_kind(row)}, not an object")
    fields: dict[str, object] = {}
    for name, value in row.items():
        if value is None or value == "":
            continue
        if fields.setdefault(plain(name), value) != value:
            raise UnusableError(f"names {name!r} twice, with different values")
    messages, last_answer = _messages(fields)
    answer, harmful = _first(fields, ANSWER), _harmful(fields)
    behavior = Behavior(
        id="",  # known once the content is
        messages=messages,
        harmful=harmful is not False,
        category=_first(fields, CATEGORY),
        answer=last_answer if answer is None else answer,
        target=_first(fields, TARGET),
        refusal=_first(fields, REFUSAL),
        metadata=_metadata(fields.get("metadata")),
    )
    behavior = msgspec.structs.replace(behavior, id=behavior_id(behavior))
    return ReadRow(behavior, _given_id(fields), harmful is not None)


def _messages(fields: Mapping[str, object]) -> tuple[tuple[Message, ...], str | None]:
    """The conversation up to the request, and an assistant's message after it, which is a reference answer."""
    if "messages" not in fields:
        prompt = _first(fields, REQUEST)
        if prompt is None:
            known = ", ".join(sorted(str(name) for name in fields)[:8])
            raise UnusableError(f"has no prompt (it has: {known})" if known else "is empty")
        context = _text_of(fields, CONTEXT)
        # HarmBench's own way to put a context before a request.
        text = prompt if context is None else f"{context}\n\n---\n\n{prompt}"
        return (Message(role="user", content=text),), None
    given = fields["messages"]
    if isinstance(given, str):  # a field of CSV
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"messages are not JSON: {reason(error)}") from error
    if not isinstance(given, list):
        raise UnusableError(f"messages are {_kind(given)}, not a list")
    messages = [_message(item) for item in given]
    answer = messages.pop().content if messages and messages[-1].role == "assistant" else None
    if not messages or messages[-1].role != "user":
        raise UnusableError("messages do not end with the user's request")
    return tuple(messages), answer


def _message(item: object) -> Message:
    if not isinstance(item, dict) or not item.keys() >= {"role", "content"}:
        raise UnusableError("messages need a role and a content each")
    role, content = item["role"], item["content"]
    if role not in _ROLES:
        raise UnusableError(f"a message has the role {_short(role)}; roles are {', '.join(_ROLES)}")
    return Message(role=role, content=_checked("a message's content", content))


def _harmful(fields: Mapping[str, object]) -> bool | None:
    """What the row says; None where it says nothing."""
    for name, words in (("harmful", _HARMFUL_WORDS), ("label", _LABEL_WORDS)):
        value = fields.get(name)
        if value is None:
            continue
        word = str(value).strip().lower() if isinstance(value, str | bool | int) else ""
        if word not in words:
            raise UnusableError(f"{name} is {_short(value)}; it must be one of {', '.join(words)}")
        return words[word]
    return None


def _given_id(fields: Mapping[str, object]) -> str | None:
    for name in ID:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            return _checked(name, value)
    return None


def _metadata(value: object) -> dict[str, str]:
    if value is None or isinstance(value, str):  # a column of that name, but not a judge's
        return {}
    if not isinstance(value, dict):
        raise UnusableError(f"metadata is {_kind(value)}, not an object")
    return {_checked("metadata", key): _checked(f"metadata {key!r}", item) for key, item in value.items()}


def _first(fields: Mapping[str, object], names: Sequence[str]) -> str | None:
    return next((text for name in names if (text := _text_of(fields, name)) is not None), None)


def _text_of(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return _checked(name, value)


def _checked(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UnusableError(f"{name} is {_kind(value)} ({_short(value)}), not text")
    if not value.strip():
        raise UnusableError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnusableError(f"{name} holds half of a character (at {error.start})") from error
    return value


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:39] + "…"
