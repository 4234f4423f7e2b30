"""Rows of JSONL from anywhere, judged one by one: what `fathom judge FILE.jsonl` does, streaming.

A row is a JSON object with `prompt` and `completion` (or `response`, or `output`), and optionally `prefill` and `id`;
other keys are let be.
"""

import codecs
import re
from collections.abc import Iterable, Iterator

import msgspec

from fathom.errors import UserError
from fathom.records import Behavior, Exchange, Judge, Label, Message

__all__ = ["JudgedRow", "SkippedLine", "judge_rows"]

COMPLETION_KEYS = ("completion", "response", "output")


class JudgedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a judge says of one row."""

    row: int  # the row's line in the file, from 1
    id: str | int | None  # the row's own id, where it has one
    verdict: Label
    reason: str  # one word of the judge's vocabulary
    refusal_char: int | None  # character of the completion where the refusal begins
    judge: str
    version: str


class SkippedLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line that could not be judged, and why."""

    row: int
    skipped: str


def judge_rows(
    lines: Iterable[str | bytes], judge: Judge, *, source: str = "input"
) -> Iterator[JudgedRow | SkippedLine]:
    """Judge each line as it is read; empty lines are passed over.

    Raises:
        UserError: at the end, if there was no row that could be judged; at once, if the first says that none will be.
    """
    used = 0
    first: SkippedLine | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if first is None and not used:
            _check_format(line, source)
        judged = _judge_line(number, line, judge)
        if isinstance(judged, JudgedRow):
            used += 1
        else:
            first = first or judged
        yield judged
    if not used:
        why = f"line {first.row}: {first.skipped}" if first else "it has no rows"
        raise UserError(f"{source}: nothing to judge ({why}); give one JSON object a line with prompt and completion")


def _check_format(line: str | bytes, source: str) -> None:
    """That the first line is not of a file in another format, of which every line would be named as wrong.

    Raises:
        UserError: it begins UTF-16, or a JSON list.
    """
    data = line.encode("utf-8", "replace") if isinstance(line, str) else line
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{source} is not text in UTF-8: save it in that encoding")
    if re.match(rb"\[\s*({|$)", data.removeprefix(codecs.BOM_UTF8).strip()):
        raise UserError(f"{source} is a JSON list: give its objects one a line, with prompt and completion")


def _judge_line(number: int, line: str | bytes, judge: Judge) -> JudgedRow | SkippedLine:
    try:
        data = line.encode("utf-8", "replace") if isinstance(line, str) else line
        row = msgspec.json.decode(data.removeprefix(codecs.BOM_UTF8))
        exchange = _exchange(row)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return SkippedLine(row=number, skipped=f"not JSON: {error}")
    except ValueError as error:
        return SkippedLine(row=number, skipped=str(error))
    judgement = judge.judge(exchange)
    return JudgedRow(
        row=number,
        id=_row_id(row),
        verdict=judgement.label,
        reason=judgement.reason,
        refusal_char=judgement.refusal_char,
        judge=judge.name,
        version=judge.version,
    )


def _exchange(row: object) -> Exchange:
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, not {type(row).__name__}")  # noqa: TRY004 a row's fault, not a caller's
    prompt = _text(row, ("prompt",))
    completion = _text(row, COMPLETION_KEYS)
    prefill = _text(row, ("prefill",)) if row.get("prefill") is not None else ""
    behavior = Behavior(id="row", messages=(Message("user", prompt),))
    return Exchange(behavior=behavior, prefill=prefill, response=completion)


def _text(row: dict[str, object], names: tuple[str, ...]) -> str:
    for name in names:
        if name in row:
            value = row[name]
            if not isinstance(value, str):
                raise ValueError(f"{name} must be text, not {type(value).__name__}")
            return value
    raise ValueError(f"no {' or '.join(names)}")


def _row_id(row: dict[str, object]) -> str | int | None:
    value = row.get("id")
    return value if isinstance(value, str | int) else None
