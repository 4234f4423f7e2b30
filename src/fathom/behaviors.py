"""Behaviors from a user's file: JSONL, CSV or JSON, with the column names of the public benchmarks.

A row that cannot be used is named with its line and the reason; none is dropped in silence. Text is data: nothing in a
file is executed, and any text may be in it.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fathom.errors import UserError
from fathom.records import Behavior, Message, content_hash
from fathom.schema import SkippedRow

__all__ = ["FileRow", "LoadedBehaviors", "behavior_id", "file_rows", "load_behaviors"]

# Names in lower case without spaces, dashes and underscores; the first that a row fills counts. JailbreakBench's
# request is its Goal, and its Behavior a short title; HarmBench's request is its Behavior.
_REQUEST = ("prompt", "goal", "question", "instruction", "request", "behavior")
_ANSWER = ("harmfulresponse", "answer", "response", "referenceanswer")
_TARGET = ("target", "targetstr", "targetprefix")
_REFUSAL = ("refusal", "refusalresponse", "saferesponse")
_CATEGORY = ("category", "semanticcategory", "functionalcategory", "type")
_ID = ("id", "behaviorid")
_CONTEXT = "contextstring"

_HARMFUL_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_LABEL_WORDS = {
    **dict.fromkeys(("unsafe", "harmful"), True),
    **dict.fromkeys(("safe", "benign", "harmless"), False),
}
_CONTAINERS = ("behaviors", "rows", "data")  # of a JSON object that holds the list
_SPACE = re.compile(r"[ \t\n\r]*")  # what JSON takes for white space
_ROLES = ("system", "user", "assistant")
_FORMATS = "JSONL (.jsonl), CSV (.csv, .tsv) or JSON (.json)"


class LoadedBehaviors(NamedTuple):
    """What a file holds: behaviors in its order, and the rows that could not be used."""

    behaviors: tuple[Behavior, ...]
    skipped: tuple[SkippedRow, ...]


class FileRow(NamedTuple):
    line: int
    fields: object  # whatever the file has there, or an `_UnusableError`


class _UnusableError(ValueError):
    """Why a row cannot be used."""


def load_behaviors(path: Path) -> LoadedBehaviors:
    """The behaviors in a file, with ids from it where they are unique there, else hashes of their content.

    Raises:
        UserError: the file cannot be read, is of another format, or holds no row that can be used.
    """
    rows = list(file_rows(path))
    found: dict[str, tuple[Behavior, str | None, int]] = {}  # by content
    skipped = []
    for line, fields in rows:
        try:
            behavior, given = _behavior(fields)
            if (first := found.get(behavior.id)) is not None:
                raise _UnusableError(f"the same as line {first[2]}")
            found[behavior.id] = (behavior, given, line)
        except _UnusableError as reason:
            skipped.append(SkippedRow(source=path.name, line=line, reason=str(reason)))
    if not rows:
        raise UserError(f"{path} holds no behaviors: give rows with at least a prompt, as {_FORMATS}")
    if not found:
        first_reason = f"line {skipped[0].line}: {skipped[0].reason}"
        raise UserError(f"none of the {len(rows)} rows of {path} can be used ({first_reason})")
    return LoadedBehaviors(_with_ids(found), tuple(skipped))


def behavior_id(
    messages: Sequence[Message],
    *,
    harmful: bool = True,
    category: str | None = None,
    answer: str | None = None,
    target: str | None = None,
    refusal: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """A hash of a behavior's content: the same in every file, at every place in it."""
    return content_hash((tuple(messages), harmful, category, answer, target, refusal, metadata or {}))


def _with_ids(found: Mapping[str, tuple[Behavior, str | None, int]]) -> tuple[Behavior, ...]:
    """Ids of the file where no other row has the same; an id that two rows share names neither."""
    counts = Counter(given for _, given, _ in found.values())
    return tuple(
        Behavior(
            id=given if given is not None and counts[given] == 1 and given not in found else behavior.id,
            messages=behavior.messages,
            harmful=behavior.harmful,
            category=behavior.category,
            answer=behavior.answer,
            target=behavior.target,
            refusal=behavior.refusal,
            metadata=behavior.metadata,
        )
        for behavior, given, _ in found.values()
    )


# --- a file's rows ---


def file_rows(path: Path) -> Iterator[FileRow]:
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _csv}
    reader = readers.get(path.suffix.lower())
    text = _text(path)
    if reader is None:
        raise UserError(f"{path} has none of the extensions of {_FORMATS}: name it as what it is")
    return reader(path, text)


def _text(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path} is a directory: give a file of rows, as {_FORMATS}")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: give a file of rows, as {_FORMATS}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}): give a file of rows") from error
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not text in UTF-8 (line {line}): save it in that encoding") from error
    if not text.strip():
        raise UserError(f"{path} is empty: give rows with at least a prompt")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path} is not a text file (a zero byte on line {line}): give {_FORMATS}")
    return text


def _json_lines(path: Path, text: str) -> Iterator[FileRow]:
    del path
    # Not splitlines(): JSON strings may hold other characters that it takes for ends of lines.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield FileRow(number, json.loads(line))
        except (ValueError, RecursionError) as error:
            yield FileRow(number, _UnusableError(f"not JSON: {_reason(error)}"))


def _json(path: Path, text: str) -> Iterator[FileRow]:
    """The objects of a list, or of the list that an object holds as `behaviors`, `rows` or `data`."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "; one object a line is .jsonl" if "Extra data" in str(error) else ""
        raise UserError(f"{path} is not JSON ({_reason(error)}){hint}: mend it there") from error
    start = 0
    if isinstance(whole, dict):
        name = next((key for key in _CONTAINERS if isinstance(whole.get(key), list)), None)
        if name is None:
            yield FileRow(_line(text, text.index("{")), whole)
            return
        whole, start = whole[name], _member(text, name)
    if not isinstance(whole, list):
        raise UserError(f"{path} holds one JSON value, not a list of objects: give [{{…}}, {{…}}]")
    # Parsed again item by item, since only so is it known where each begins.
    decode, at = json.JSONDecoder().raw_decode, text.index("[", start) + 1
    for _ in whole:
        at = _past_space(text, at)
        item, end = decode(text, at)
        yield FileRow(_line(text, at), item)
        at = _past_space(text, end) + 1  # past the comma


def _member(text: str, name: str) -> int:
    """Where the value of an object's last member of this name begins; the text is known to be valid JSON."""
    decode, at, found = json.JSONDecoder().raw_decode, text.index("{") + 1, 0
    while True:
        at = _past_space(text, at)
        key, at = decode(text, at)
        at = _past_space(text, _past_space(text, at) + 1)
        if key == name:
            found = at
        _, at = decode(text, at)
        at = _past_space(text, at)
        if text[at] == "}":
            return found
        at += 1


def _past_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches nothing, too
    return match.end()


def _csv(path: Path, text: str) -> Iterator[FileRow]:
    limit = csv.field_size_limit(2**31 - 1)  # a long answer is not an error
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header: list[str] = []
        line = 1
        for row in reader:
            first, line = line, reader.line_num + 1
            if not any(field.strip() for field in row):
                continue
            if not header:
                header = _header(path, row)
            elif len(row) != len(header):
                yield FileRow(first, _UnusableError(f"has {len(row)} fields, where the header has {len(header)}"))
            else:
                yield FileRow(first, {key: value or None for key, value in zip(header, row, strict=True)})
    except csv.Error as error:
        raise UserError(f"{path} is not CSV (line {reader.line_num}: {error}): mend its quotes there") from error
    finally:
        csv.field_size_limit(limit)


def _header(path: Path, row: Sequence[str]) -> list[str]:
    if not {_plain(name) for name in row} & {*_REQUEST, "messages"}:
        raise UserError(
            f"{path} has no column of requests among {', '.join(map(repr, row[:8]))}: its first line must name the "
            "columns, one of them prompt (or goal, behavior, …)"
        )
    return list(row)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return (
            f"{error.msg}, line {error.lineno}, column {error.colno}"
            if error.lineno > 1
            else (f"{error.msg}, column {error.colno}")
        )
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


# --- a row's behavior ---


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character not in " _-")


def _behavior(row: object) -> tuple[Behavior, str | None]:
    """A row's behavior, its id a hash of its content, and the id that the file gives it."""
    if isinstance(row, _UnusableError):
        raise row
    if not isinstance(row, dict):
        raise _UnusableError(f"is {_kind(row)}, not an object")
    fields: dict[str, object] = {}
    for name, value in row.items():
        if value is None or value == "":
            continue
        if fields.setdefault(_plain(name), value) != value:
            raise _UnusableError(f"names {name!r} twice, with different values")
    answer = _first(fields, _ANSWER)
    messages, last_answer = _messages(fields)
    harmful = _harmful(fields)
    target, refusal, category = (_first(fields, names) for names in (_TARGET, _REFUSAL, _CATEGORY))
    answer = last_answer if answer is None else answer
    metadata = _metadata(fields.get("metadata"))
    identity = behavior_id(
        messages,
        harmful=harmful,
        category=category,
        answer=answer,
        target=target,
        refusal=refusal,
        metadata=metadata,
    )
    behavior = Behavior(
        id=identity,
        messages=messages,
        harmful=harmful,
        category=category,
        answer=answer,
        target=target,
        refusal=refusal,
        metadata=metadata,
    )
    return behavior, _given_id(fields)


def _messages(fields: Mapping[str, object]) -> tuple[tuple[Message, ...], str | None]:
    """The conversation up to the request, and an assistant's message after it, which is a reference answer."""
    if "messages" not in fields:
        prompt = _first(fields, _REQUEST)
        if prompt is None:
            known = ", ".join(sorted(str(name) for name in fields)[:8])
            raise _UnusableError(f"has no prompt (it has: {known})" if known else "is empty")
        context = _text_of(fields, _CONTEXT)
        # HarmBench's own way to put a context before a request.
        text = prompt if context is None else f"{context}\n\n---\n\n{prompt}"
        return (Message(role="user", content=text),), None
    given = fields["messages"]
    if isinstance(given, str):  # a field of CSV
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise _UnusableError(f"messages are not JSON: {_reason(error)}") from error
    if not isinstance(given, list):
        raise _UnusableError(f"messages are {_kind(given)}, not a list")
    messages = [_message(item) for item in given]
    answer = messages.pop().content if messages and messages[-1].role == "assistant" else None
    if not messages or messages[-1].role != "user":
        raise _UnusableError("messages do not end with the user's request")
    return tuple(messages), answer


def _message(item: object) -> Message:
    if not isinstance(item, dict) or not item.keys() >= {"role", "content"}:
        raise _UnusableError("messages need a role and a content each")
    role, content = item["role"], item["content"]
    if role not in _ROLES:
        raise _UnusableError(f"a message has the role {_short(role)}; roles are {', '.join(_ROLES)}")
    return Message(role=role, content=_checked("a message's content", content))


def _harmful(fields: Mapping[str, object]) -> bool:
    for name, words in (("harmful", _HARMFUL_WORDS), ("label", _LABEL_WORDS)):
        value = fields.get(name)
        if value is None:
            continue
        word = str(value).strip().lower() if isinstance(value, str | bool | int) else ""
        if word not in words:
            raise _UnusableError(f"{name} is {_short(value)}; it must be one of {', '.join(words)}")
        return words[word]
    return True


def _given_id(fields: Mapping[str, object]) -> str | None:
    for name in _ID:
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
        raise _UnusableError(f"metadata is {_kind(value)}, not an object")
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
        raise _UnusableError(f"{name} is {_kind(value)} ({_short(value)}), not text")
    if not value.strip():
        raise _UnusableError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _UnusableError(f"{name} holds half of a character (at {error.start})") from error
    return value


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:39] + "…"
