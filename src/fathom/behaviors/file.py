"""The rows of a file, each with its line: JSONL, CSV, JSON, a table or lines of prompts.

Text is data: nothing in a file is executed.
"""

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from fathom.behaviors.columns import ANSWER, CONVERSATION, REFUSAL, REQUEST, TARGET, plain
from fathom.behaviors.fields import UnusableError, shortened
from fathom.behaviors.source import FileRow, RowSource, is_hub, named_rows, row_source
from fathom.behaviors.tables import hub_rows, is_saved, parquet_rows, saved_rows
from fathom.errors import UserError

__all__ = ["FORMATS", "FileRow", "file_rows", "reason"]

FORMATS = "JSONL (.jsonl), CSV (.csv, .tsv), JSON (.json), Parquet (.parquet) or one prompt a line (.txt)"
_CONTAINERS = ("behaviors", "rows", "data")  # of a JSON object that holds the list
_REQUESTED = {*REQUEST, *CONVERSATION}
_READ = {*_REQUESTED, *ANSWER, *TARGET, *REFUSAL}
_Reader = Callable[[Path, str], Iterator[FileRow]]
_SPACE = re.compile(r"[ \t\n\r]*")  # what JSON takes for white space


def file_rows(path: Path) -> Iterator[FileRow]:
    """The rows of a file, of a saved data set's directory, or of a data set of the hub (`hf:org/name`).

    JSONL, CSV and JSON may be compressed by gzip (`.jsonl.gz`). What follows the name says which columns are what: see
    `source`.

    Raises:
        UserError: it cannot be read, is of another format, or has no such columns.
    """
    source = row_source(path)
    return named_rows(_read(source), source)


def _read(source: RowSource) -> Iterator[FileRow]:
    path = source.place
    if is_hub(path):
        return hub_rows(source)
    if is_saved(path):
        return saved_rows(path)
    csv_rows: _Reader = partial(_csv, named=bool(source.columns))
    readers: dict[str, _Reader] = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json,
        ".csv": csv_rows,
        ".tsv": csv_rows,
        ".txt": _lines,
    }
    packed = path.suffix.lower() == ".gz"
    kind = path.with_suffix("").suffix.lower() if packed else path.suffix.lower()
    if kind == ".parquet" and not packed and path.is_file():
        return parquet_rows(path)
    content = _content(path)  # first, so that a file that is not there is not said to have a wrong name
    reader = readers.get(kind)
    if reader is None:
        raise UserError(
            f"{path} has none of the extensions of the formats that are read: give {FORMATS}, named as what it is"
        )
    return reader(path, _text(path, _unpacked(path, content) if packed else content))


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a directory: give a file of rows, as {FORMATS}")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: give a file of rows, as {FORMATS}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({why}): give a file of rows") from error


def _unpacked(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not compressed by gzip, or broken ({error}): write it again") from error


def _text(path: Path, content: bytes) -> str:
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        if encoding != "utf-16" and b"\0" in content:  # Parquet, an archive, a spreadsheet
            raise UserError(f"{path} is not a text file, whatever its name says: give {FORMATS}") from error
        raise UserError(f"{path} is not text in UTF-8 (line {line}): save it in that encoding") from error
    if not text.strip():
        raise UserError(f"{path} is empty: give rows with at least a prompt")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path} is not a text file (a zero byte on line {line}): give {FORMATS}")
    return text


def _json_lines(path: Path, text: str) -> Iterator[FileRow]:
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            if any(isinstance(item, dict) for item in json.loads(text)):
                raise UserError(f"{path} is one JSON list, and .jsonl means one object a line: name it .json")
    # Not splitlines(): JSON strings may hold other characters that it takes for ends of lines.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield FileRow(number, json.loads(line))
        except (ValueError, RecursionError) as error:
            yield FileRow(number, UnusableError(f"not JSON: {reason(error)}"))


def _json(path: Path, text: str) -> Iterator[FileRow]:
    """The objects of a list, or of the list that an object holds as `behaviors`, `rows` or `data`."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "; one object a line is .jsonl" if "Extra data" in str(error) else ""
        raise UserError(f"{path} is not JSON ({reason(error)}){hint}: mend it there") from error
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
    line, counted = 1, 0  # the lines up to there: counted from the start for each item, they took minutes
    flat = "\n" not in text.strip()  # then all is on one line, by which no row is found
    for number, _ in enumerate(whole, start=1):
        at = _past_space(text, at)
        item, end = decode(text, at)
        line, counted = line + text.count("\n", counted, at), at
        yield FileRow(number, item, "row") if flat else FileRow(line, item)
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


def _csv(path: Path, text: str, *, named: bool) -> Iterator[FileRow]:
    """`named`: the user says which column is the request, so that none has to be known by its name."""
    limit = csv.field_size_limit(2**31 - 1)  # a long answer is not an error
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]] else ","
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header: list[str] = []
        line = 1
        for row in reader:
            first, line = line, reader.line_num + 1
            if not any(field.strip() for field in row):
                continue
            if not header:
                header = list(row) if named else _header(path, row)
            elif len(row) != len(header):
                yield FileRow(first, UnusableError(f"has {len(row)} fields, where the header has {len(header)}"))
            else:
                yield FileRow(first, {key: value or None for key, value in zip(header, row, strict=True)})
    except csv.Error as error:
        raise UserError(f"{path} is not CSV (line {reader.line_num}: {error}): mend its quotes there") from error
    finally:
        csv.field_size_limit(limit)


def _header(path: Path, row: Sequence[str]) -> list[str]:
    names = [plain(name) for name in row]
    if not {*names} & _REQUESTED:
        other = next((sign for sign in (";", "\t") if len(row) == 1 and sign in row[0]), None)
        hint = "" if other is None else "; columns are parted by commas in .csv, by tabs in .tsv"
        raise UserError(
            f"{path} has no column of requests among {', '.join(map(shortened, row[:8]))}: its first line must name "
            f"the columns, one of them prompt (or goal, behavior, …){hint}"
        )
    twice = next((name for name, named in zip(row, names, strict=True) if named in _READ and row.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has the column {shortened(twice)} twice: rename one of the two on its first line")
    return list(row)


def _lines(path: Path, text: str) -> Iterator[FileRow]:
    """A prompt on each line that is not blank.

    Raises:
        UserError: the first line shows that the file is of another format; all of it would be taken for prompts.
    """
    head = text.lstrip().partition("\n")[0].strip()
    columns = {plain(cell.strip('" ')) for cell in re.split("[,\t]", head)}
    if head.startswith(("{", "[")) or columns & _REQUESTED:
        kind = "JSON: name it .jsonl or .json" if head.startswith(("{", "[")) else "columns: name it .csv or .tsv"
        raise UserError(f"{path} begins with {kind}; .txt means one prompt a line")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield FileRow(number, {"prompt": line.strip()})


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return (
            f"{error.msg}, line {error.lineno}, column {error.colno}"
            if error.lineno > 1
            else (f"{error.msg}, column {error.colno}")
        )
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
