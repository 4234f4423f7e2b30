"""Behaviors from a user's file or a data set of the hub, with the column names of the public benchmarks.

A row that cannot be used is named with its line and the reason; none is dropped in silence. Text is data: nothing in a
file is executed, and any text may be in it.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from fathom.behaviors.fields import UnusableError
from fathom.behaviors.file import FORMATS, FileRow, file_rows
from fathom.behaviors.row import ReadRow, behavior_id, behavior_of
from fathom.errors import UserError
from fathom.records import Behavior
from fathom.schema import SkippedRow

__all__ = ["FileRow", "LoadedBehaviors", "behavior_id", "file_rows", "load_behaviors"]


class LoadedBehaviors(NamedTuple):
    """What a file holds: behaviors in its order, and the rows that could not be used.

    `marked` are the ids of those of which the file itself says whether they are harmful; the others count as harmful.
    """

    behaviors: tuple[Behavior, ...]
    skipped: tuple[SkippedRow, ...]
    marked: frozenset[str] = frozenset()


def load_behaviors(path: Path) -> LoadedBehaviors:
    """The behaviors in a file, with ids from it where they are unique there, else hashes of their content.

    Raises:
        UserError: the file cannot be read, is of another format, or holds no row that can be used.
    """
    rows = list(file_rows(path))
    found: dict[str, ReadRow] = {}  # by content
    places: dict[str, str] = {}
    marked: set[str] = set()
    skipped, first = [], ""
    for row in rows:
        try:
            read = behavior_of(row.fields)
            content = read.behavior.id
            marked |= {content} if read.marked else set()
            if content in found:
                raise UnusableError(f"the same as {places[content]}")
            found[content], places[content] = read, row.place
        except UnusableError as reason:
            skipped.append(SkippedRow(source=path.name, line=row.line, reason=str(reason)))
            first = first or f"{row.place}: {reason}"
    if not rows:
        raise UserError(f"{path} holds no behaviors: give rows with at least a prompt, as {FORMATS}")
    if not found:
        raise UserError(f"none of the {len(rows)} rows of {path} can be used ({first})")
    named = _with_ids(found)
    told = frozenset(item.id for content, item in zip(found, named, strict=True) if content in marked)
    return LoadedBehaviors(named, tuple(skipped), told)


def _with_ids(found: Mapping[str, ReadRow]) -> tuple[Behavior, ...]:
    """Ids of the file where no other row has the same; an id that two rows share names neither."""
    counts = Counter(read.given_id for read in found.values())
    return tuple(
        read.behavior
        if read.given_id is None or counts[read.given_id] > 1 or read.given_id in found
        else msgspec.structs.replace(read.behavior, id=read.given_id)
        for read in found.values()
    )
