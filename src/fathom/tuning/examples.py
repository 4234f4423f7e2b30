"""A user's data for fine-tuning: conversations and what the assistant is to say, in the formats that are about.

    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}     TRL, OpenAI, UltraChat
    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}         ShareGPT
    {"prompt": …, "completion" | "response" | "answer" | "output": …}                       prompt and completion
    {"prompt": [messages], "completion": [message]}                                         TRL, conversational
    {"instruction": …, "input": …, "output": …}                                             Alpaca
    {"instruction": …, "context": …, "response": …}                                         Dolly

in any of the formats that `file_rows` reads. A row that fits none is an error with its line. A row that has the columns
and no answer in them is left out, and counted: data that is left out in silence is a bug.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fathom.behaviors import FileRow, file_rows
from fathom.behaviors.columns import CONVERSATION, plain
from fathom.behaviors.fields import UnusableError, checked, fields_of, is_blank, request_text, system_text
from fathom.behaviors.marks import harm_said
from fathom.behaviors.source import source_name
from fathom.behaviors.turns import Turn, conversation, turns_of
from fathom.errors import UserError
from fathom.records import Message

__all__ = ["Example", "LoadedExamples", "harmless", "load_examples"]

_PROMPTS = ("prompt", "question", "instruction", "query", "input")
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
    place: str  # in that file: line 3, row 3
    harm: str | None = None  # what its row says of harm, where it says so: "its label is 'unsafe'"


class LoadedExamples(NamedTuple):
    """The examples of a file, in its order, and what is to be known of those that are not among them."""

    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    rows: int  # of the file


class _Left(NamedTuple):
    """A row that is left out."""

    place: str
    reason: str


class _UnansweredError(ValueError):
    """Why a row of a known format has nothing to learn."""


def load_examples(path: Path) -> LoadedExamples:
    """The examples of a file; rows without an answer are left out, and a note says how many.

    Raises:
        UserError: the file cannot be read, a row is of another format (the first such line is named), or no row has an
            answer.
    """
    found: list[Example] = []
    unanswered: list[_Left] = []
    earlier = 0
    for row in file_rows(path):
        try:
            example = _example(row, path)
        except _UnansweredError as why:
            unanswered.append(_Left(row.place, str(why)))
        except UnusableError as error:
            raise UserError(f"{path}, {row.place} cannot be learned from ({error}): {_FORMATS}") from error
        else:
            found.append(example)
            earlier += any(message.role == "assistant" for message in example.messages)
    if not found and not unanswered:
        raise UserError(f"{path} holds no rows: {_FORMATS}")
    if not found:
        place, reason = unanswered[0]
        raise UserError(f"none of the {len(unanswered)} rows of {path} has an answer ({place}: {reason}): {_FORMATS}")
    rows = len(found) + len(unanswered)
    notes = _left_out(path, unanswered, rows, "without an answer")
    if earlier:
        notes += (
            f"{earlier} of {len(found)} conversations of {_named(path)} have earlier answers, too: the last one of "
            "each is learned, and the others are its context",
        )
    return LoadedExamples(tuple(found), notes, rows)


def harmless(loaded: LoadedExamples, path: Path) -> LoadedExamples:
    """Those whose rows do not say that they are harmful; a note says how many do.

    Raises:
        UserError: all do.
    """
    kept = tuple(example for example in loaded.examples if example.harm is None)
    out = [_Left(example.place, example.harm) for example in loaded.examples if example.harm is not None]
    if not kept:
        raise UserError(
            f"all {len(out)} rows of {path} are marked as harmful ({out[0].place}: {out[0].reason}), and benign "
            "prompts with good answers are wanted of it: give a file of those, or mend the marks"
        )
    notes = _left_out(path, out, loaded.rows, "marked as harmful")
    return LoadedExamples(kept, (*loaded.notes, *notes), loaded.rows)


def _left_out(path: Path, rows: Sequence[_Left], of: int, what: str) -> tuple[str, ...]:
    if not rows:
        return ()
    out = f"{'is' if len(rows) == 1 else 'are'} left out (the first is {rows[0].place}: {rows[0].reason})"
    return (f"{len(rows)} of {of} rows of {_named(path)} {what} {out}",)


def _named(path: Path) -> str:
    """A file's name alone: notes go into model cards, which are shown to others."""
    return source_name(path)


def _example(row: FileRow, path: Path) -> Example:
    fields = fields_of(row.fields)
    turns = _turns(row.fields, fields)
    if not turns or turns[-1].role != "assistant":
        raise _UnansweredError("its conversation ends before an answer")
    if not turns[-1].content.strip():
        raise _UnansweredError("its answer is empty")
    if not turns[-1].learned:
        raise _UnansweredError("the weight of its last answer is 0")
    messages = tuple(Message(role=turn.role, content=turn.content) for turn in turns)
    if len(messages) < 2:
        raise UnusableError("its answer has no request before it")
    return Example(messages[:-1], messages[-1].content, f"{source_name(path)}:{row.line}", row.place, harm_said(fields))


def _turns(row: object, fields: Mapping[str, object]) -> tuple[Turn, ...]:
    """The conversation of a row, whichever columns it stands in, its system prompt first."""
    columns = {plain(str(name)): str(name) for name in row} if isinstance(row, Mapping) else {}
    turns = conversation(fields)
    if turns is None:
        asked, answered = (_filled(fields, names) for names in (_PROMPTS, _ANSWERS))
        _check_columns(columns, asked, answered)
        turns = (*_request(fields, asked), *_answer(fields, answered))
    system = system_text(fields)
    has_system = bool(turns) and turns[0].role == "system"
    return turns if system is None or has_system else (Turn("system", system), *turns)


def _filled(fields: Mapping[str, object], names: Sequence[str]) -> str:
    """The first of these columns that holds something; "" where none does."""
    return next((name for name in names if not is_blank(fields.get(name))), "")


def _check_columns(columns: Mapping[str, str], asked: str, answered: str) -> None:
    """That a row has a request and an answer to learn; `asked` and `answered` are the columns that are filled.

    Raises:
        UnusableError: it lacks the column of one of them, or the request.
        _UnansweredError: it has the columns, and no answer in them.
    """
    if not answered and not asked and columns.keys() & {*CONVERSATION}:
        raise _UnansweredError("its conversation is empty")
    empty = next((columns[name] for name in _ANSWERS if name in columns), None)
    there = f"its fields are {', '.join(sorted(columns.values())[:12]) or 'none'}"
    if not columns.keys() & {*_PROMPTS} or (answered and not asked):
        raise UnusableError(f"it has no prompt; {there}")
    if not answered and empty is None:
        pair = "; of a pair of answers, name the one to learn completion" if "chosen" in columns else ""
        raise UnusableError(f"it has no answer; {there}{pair}")
    if not answered:
        raise _UnansweredError(f"its {empty} is empty")


def _request(fields: Mapping[str, object], name: str) -> tuple[Turn, ...]:
    value = fields[name]
    if isinstance(value, list):
        return turns_of(value)
    text = request_text(fields, (name,))
    assert text is not None
    return (Turn("user", text),)


def _answer(fields: Mapping[str, object], name: str) -> tuple[Turn, ...]:
    value = fields[name]
    return turns_of(value) if isinstance(value, list) else (Turn("assistant", checked(name, value)),)
