"""A user's data for fine-tuning: conversations and what the assistant is to say, in the formats that are about.

    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}     TRL, OpenAI
    {"prompt": …, "completion" | "response" | "answer" | "output": …}                       prompt and completion
    {"prompt": [messages], "completion": [message]}                                         TRL, conversational
    {"instruction": …, "input": …, "output": …}                                             Alpaca

in any of the formats that `file_rows` reads. A row that fits none is an error with its line: data that is left out in
silence is a bug.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fathom.behaviors import file_rows
from fathom.behaviors.source import source_name
from fathom.errors import UserError
from fathom.records import Message

__all__ = ["Example", "load_examples"]

_PROMPTS = ("prompt", "question", "instruction", "input")
_ANSWERS = ("completion", "response", "answer", "output", "target")
_FORMATS = (
    "give rows with messages (the last one the assistant's), with prompt and completion (or response), or with "
    "instruction and output"
)


@dataclass(frozen=True)
class Example:
    """A conversation up to the assistant's turn, and that turn."""

    messages: tuple[Message, ...]
    response: str
    source: str  # the file and the line that it came from


class _UnusableError(ValueError):
    """Why a row cannot be learned from."""


def load_examples(path: Path) -> tuple[Example, ...]:
    """The examples of a file, in its order.

    Raises:
        UserError: the file cannot be read, or a row is of another format; the first such line is named.
    """
    found, name = [], source_name(path)
    for row in file_rows(path):
        try:
            found.append(_example(row.fields, f"{name}:{row.line}"))
        except _UnusableError as error:
            raise UserError(f"{path}, line {row.line} cannot be learned from ({error}): {_FORMATS}") from error
    if not found:
        raise UserError(f"{path} holds no rows: {_FORMATS}")
    return tuple(found)


def _example(fields: object, source: str) -> Example:
    if isinstance(fields, ValueError):  # how the reader hands on a line that it could not read
        raise _UnusableError(str(fields))
    if not isinstance(fields, Mapping):
        raise _UnusableError("it is no object")
    named = {str(name).strip().lower(): value for name, value in fields.items()}
    turns = named.get("messages", named.get("conversations"))
    if turns is not None:
        return _conversation(_turns(turns), source)
    prompt, answer = _first(named, _PROMPTS), _first(named, _ANSWERS)
    if answer is None or prompt is None:
        missing = "prompt" if prompt is None else "answer"
        raise _UnusableError(f"it has no {missing}; its fields are {', '.join(sorted(named)) or 'none'}")
    if isinstance(prompt, list) or isinstance(answer, list):
        before = _turns(prompt) if isinstance(prompt, list) else (Message(role="user", content=_text(prompt)),)
        after = _turns(answer) if isinstance(answer, list) else (Message(role="assistant", content=_text(answer)),)
        return _conversation((*before, *after), source)
    asked = _text(prompt)
    context = named.get("input")
    if "instruction" in named and isinstance(context, str) and context.strip() and asked != context:
        asked = f"{asked}\n\n{context}"
    system = named.get("system")
    first = (Message(role="system", content=_text(system)),) if isinstance(system, str) and system.strip() else ()
    return _conversation(
        (*first, Message(role="user", content=asked), Message(role="assistant", content=_text(answer))), source
    )


def _first(fields: Mapping[str, object], names: tuple[str, ...]) -> object | None:
    return next((fields[name] for name in names if fields.get(name) not in (None, "", [])), None)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _UnusableError(f"{type(value).__name__} stands where text should")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write it, and no tokenizer can read it
        raise _UnusableError(f"its text holds half of a character (at {error.start})") from error
    return value


def _turns(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise _UnusableError("its messages are no list")
    found = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise _UnusableError("one of its messages is no object")
        role = {"human": "user", "gpt": "assistant"}.get(str(turn.get("from")), turn.get("role"))
        content = turn.get("content", turn.get("value"))
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise _UnusableError("a message needs a role (system, user or assistant) and a content of text")
        found.append(Message(role=role, content=_text(content)))
    return tuple(found)


def _conversation(turns: tuple[Message, ...], source: str) -> Example:
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise _UnusableError("its last message is not the assistant's, after at least one of the user's")
    if not turns[-1].content.strip():
        raise _UnusableError("the assistant's last message is empty")
    return Example(turns[:-1], turns[-1].content, source)
