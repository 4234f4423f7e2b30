"""Behaviors from a user's file: JSONL, CSV or JSON, with the column names of the public benchmarks.

A row that cannot be used is named with its line and the reason; none is dropped in silence. Text is data: nothing in a
file is executed, and any text may be in it.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from fathom.behaviors.file import FORMATS, FileRow, UnusableError, file_rows
from fathom.behaviors.row import behavior_id, behavior_of
from fathom.errors import UserError
from fathom.records import Behavior
from fathom.schema import SkippedRow

__all__ = ["FileRow", "LoadedBehaviors", "behavior_id", "file_rows", "load_behaviors"]


class LoadedBehaviors(NamedTuple):
    """What a file holds: behaviors in its order, and the rows that could not be used."""

    behaviors: tuple[Behavior, ...]
    skipped: tuple[SkippedRow, ...]


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
            behavior, given = behavior_of(fields)
            if (first := found.get(behavior.id)) is not None:
                raise UnusableError(f"the same as line {first[2]}")
            found[behavior.id] = (behavior, given, line)
        except UnusableError as reason:
            skipped.append(SkippedRow(source=path.name, line=line, reason=str(reason)))
    if not rows:
        raise UserError(f"{path} holds no behaviors: give rows with at least a prompt, as {FORMATS}")
    if not found:
        first_reason = f"line {skipped[0].line}: {skipped[0].reason}"
        raise UserError(f"none of the {len(rows)} rows of {path} can be used ({first_reason})")
    return LoadedBehaviors(_with_ids(found), tuple(skipped))


def _with_ids(found: Mapping[str, tuple[Behavior, str | None, int]]) -> tuple[Behavior, ...]:
    """Ids of the file where no other row has the same; an id that two rows share names neither."""
    counts = Counter(given for _, given, _ in found.values())
    return tuple(
        behavior
        if given is None or counts[given] > 1 or given in found
        else msgspec.structs.replace(behavior, id=given)
        for behavior, given, _ in found.values()
    )
