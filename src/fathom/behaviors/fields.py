"""A row's fields by the plain names of their columns, and the texts in them, or why there are none."""

from collections.abc import Mapping, Sequence

from fathom.behaviors.columns import AFTER, BEFORE, SYSTEM, plain

__all__ = [
    "UnusableError",
    "checked",
    "fields_of",
    "first_text",
    "is_blank",
    "kind_of",
    "request_text",
    "shortened",
    "system_text",
    "text_of",
]


class UnusableError(ValueError):
    """Why a row cannot be used."""


def fields_of(row: object) -> dict[str, object]:
    """What a row's columns hold, by their plain names; nulls, NaN and empty text are left out.

    Raises:
        UnusableError: the row could not be read, is no object, or names a column twice with different values.
    """
    if isinstance(row, UnusableError):  # how the reader hands on a line that it could not read
        raise row
    if not isinstance(row, Mapping):
        raise UnusableError(f"is {kind_of(row)}, not an object")
    fields: dict[str, object] = {}
    for name, value in row.items():
        if value is None or value == "" or _is_nan(value):
            continue
        if fields.setdefault(plain(str(name)), value) != value:
            raise UnusableError(f"names {name!r} twice, with different values")
    return fields


def first_text(fields: Mapping[str, object], names: Sequence[str]) -> str | None:
    """The first text among these columns that is not blank."""
    return next((text for name in names if (text := text_of(fields, name)) is not None), None)


def text_of(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    return None if is_blank(value) else checked(name, value)


def is_blank(value: object) -> bool:
    """Whether nothing stands there: null, NaN, white space or an empty list."""
    return value is None or value == [] or _is_nan(value) or (isinstance(value, str) and not value.strip())


def request_text(fields: Mapping[str, object], names: Sequence[str]) -> str | None:
    """The request in the first of these columns that is filled, with what the row says it is about."""
    name = next((name for name in names if text_of(fields, name) is not None), None)
    if name is None:
        return None
    if isinstance(fields.get("history"), list) and fields["history"]:
        raise UnusableError("its history is not read: write the whole conversation as messages")
    text = checked(name, fields[name])
    for column in AFTER:
        about = None if column == name else text_of(fields, column)
        if about is not None and about != text:
            text = f"{text}\n\n{about}"
    before = text_of(fields, BEFORE)
    # HarmBench's own way to put a context before a request.
    return text if before is None else f"{before}\n\n---\n\n{text}"


def system_text(fields: Mapping[str, object]) -> str | None:
    """The system prompt that a row has in a column of its own."""
    return first_text(fields, SYSTEM)


def checked(name: str, value: object) -> str:
    """Text that is not blank, and that a tokenizer can read."""
    if not isinstance(value, str):
        raise UnusableError(f"{name} is {kind_of(value)} ({shortened(value)}), not text")
    if not value.strip():
        raise UnusableError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write it
        raise UnusableError(f"{name} holds half of a character (at {error.start})") from error
    return value


def kind_of(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null" if value is None else f"a value of type {type(value).__name__}")


def shortened(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _is_nan(value: object) -> bool:
    """Whether it is what pandas writes where nothing is."""
    return isinstance(value, float) and value != value
