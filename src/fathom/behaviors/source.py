"""What a user gives for rows: a file or a data set, which part of it, and which of its columns are what.

    F                                                               a file, or a directory that `save_to_disk` wrote
    F,prompt=dialogue,answer=summary                                with names of its own for its columns
    hf:org/name,config=C,split=S,revision=R,prompt=dialogue         a data set of the hub
    F,prompt=Summarise this: {dialogue},answer=summary              a prompt put together from columns

What is named so is read alone: other columns that would have been read for the same are left out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fathom.behaviors.columns import (
    AFTER,
    ANSWER,
    BEFORE,
    CATEGORY,
    CONVERSATION,
    ID,
    REFUSAL,
    REQUEST,
    SYSTEM,
    TARGET,
    plain,
)
from fathom.errors import UserError

__all__ = ["FileRow", "RowSource", "is_hub", "named_rows", "row_source", "source_name"]

_HUB = "hf:"
_PARTS = ("config", "split", "revision")  # of a data set of the hub
# What a column can be named as, and the plain names that are then left out.
_READ: Mapping[str, tuple[str, ...]] = {
    "prompt": (*REQUEST, BEFORE, *AFTER, *CONVERSATION),
    "answer": ANSWER,
    "messages": (*REQUEST, *CONVERSATION),
    "target": TARGET,
    "refusal": REFUSAL,
    "harmful": ("harmful", "label"),
    "system": SYSTEM,
    "category": CATEGORY,
    "id": ID,
}
_OPTION = re.compile(rf",({'|'.join((*_PARTS, *_READ))})=")
_OTHER = re.compile(r",\s*\w+=.*", re.DOTALL)  # of a name that is none of a file, such as a misspelt option
_PLACE = re.compile(r"\{([^{}]+)\}")


class FileRow(NamedTuple):
    """What stands on a line, or in a row, of a file: a mapping, or why it could not be read."""

    line: int
    fields: object  # whatever the file has there, or an `UnusableError`
    unit: str = "line"  # what `line` counts

    @property
    def place(self) -> str:
        """Where it stands, for a person who looks for it."""
        return f"{self.unit} {self.line}"


class RowSource(NamedTuple):
    """Where rows are, and what was said of them."""

    place: Path  # without what follows its name
    parts: Mapping[str, str]  # of a data set of the hub: config, split, revision
    columns: Mapping[str, str]  # what a row's column is to be: the name of one, or text with names in braces


def is_hub(path: Path) -> bool:
    """Whether this names a data set of the hub and no file."""
    return str(path).startswith(_HUB)


def row_source(given: Path) -> RowSource:
    """What was given, in its parts. A file of that very name is meant as it is.

    Raises:
        UserError: an option is empty or there twice, or of the hub and given for a file.
    """
    if _exists(given):
        return RowSource(given, {}, {})
    name, *options = _OPTION.split(str(given))
    found = dict[str, str]()
    for key, value in zip(options[::2], options[1::2], strict=True):
        if not value.strip() or key in found:
            raise UserError(f"{given} names no rows ({f'{key}={value}'!r} is not understood): {_how(given)}")
        found[key] = value
    parts = {key: found.pop(key) for key in _PARTS if key in found}
    if parts and not is_hub(given):
        raise UserError(
            f"{given} names no rows: config, split and revision are of data sets of the hub (hf:ORG/NAME), and {name} "
            "is none"
        )
    if (other := _OTHER.search(name)) is not None:
        raise UserError(f"{given} names no rows ({other[0][1:]!r} is not understood): {_how(given)}")
    return RowSource(Path(name), parts, found)


def source_name(given: Path) -> str:
    """How a report names it: a file by its name alone, a data set of the hub with its parts."""
    if not is_hub(given):
        return row_source(given).place.name
    source = row_source(given)
    return ",".join((str(source.place), *(f"{key}={value}" for key, value in source.parts.items())))


def named_rows(rows: Iterable[FileRow], source: RowSource) -> Iterator[FileRow]:
    """The rows with their columns named as the source says; lines that could not be read stay as they are.

    Raises:
        UserError: no row has a column that was named.
    """
    if not source.columns:
        return iter(rows)
    found = list(rows)
    known = dict.fromkeys(str(name) for row in found if isinstance(row.fields, Mapping) for name in row.fields)
    by_plain = {plain(name) for name in known}
    for key, wanted in source.columns.items():
        for column in _columns(wanted):
            if known and plain(column) not in by_plain:
                raise UserError(
                    f"{source.place} has no column {column!r} to be its {key}: its columns are "
                    f"{', '.join(ascii(name) for name in [*known][:12])}"
                )
    return (row._replace(fields=_renamed(row.fields, source.columns)) for row in found)


def _renamed(fields: object, columns: Mapping[str, str]) -> object:
    if not isinstance(fields, Mapping):
        return fields
    by_plain = {plain(str(name)): value for name, value in fields.items()}
    left_out = {name for key in columns for name in _READ[key]}
    kept = {name: value for name, value in fields.items() if plain(str(name)) not in left_out}
    return kept | {key: _value(by_plain, wanted) for key, wanted in columns.items()}


def _value(by_plain: Mapping[str, object], wanted: str) -> object:
    """A column's value as it is, or a text with those of columns in it."""
    if not _PLACE.search(wanted):
        return by_plain.get(plain(wanted))
    return _PLACE.sub(lambda place: _shown(by_plain.get(plain(place[1]))), wanted)


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _columns(wanted: str) -> tuple[str, ...]:
    return tuple(_PLACE.findall(wanted)) or (wanted,)


def _how(given: Path) -> str:
    columns = f"its columns are named as in F,prompt=COLUMN,answer=COLUMN ({', '.join(_READ)})"
    if is_hub(given):
        return (
            "a data set of the hub is hf:ORG/NAME,config=C,split=S,revision=R, of which all but the name can be left "
            f"out; {columns}"
        )
    return columns


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or a zero byte: no file's name
        return False
