"""Behaviors of a user's file, for verbs that write no audit: what cannot be used is said all the same."""

from pathlib import Path

from fathom.behaviors import load_behaviors
from fathom.command.training import say
from fathom.errors import UserError
from fathom.records import Behavior, content_hash

__all__ = ["file_hash", "known_behaviors"]


def file_hash(path: Path) -> str:
    """A hash of a file's content, in whatever encoding: what is gone on with is told by it, and not by a name.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return content_hash(path.read_text(encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give another file") from error


def known_behaviors(path: Path) -> tuple[Behavior, ...]:
    """The behaviors of a file; a line on standard error where some of its rows are none.

    Raises:
        UserError: as `load_behaviors`.
    """
    loaded = load_behaviors(path)
    if loaded.skipped:
        first, count = loaded.skipped[0], len(loaded.skipped)
        say(
            f"warning: {count} row{'s' * (count > 1)} of {path} could not be used; the first is line {first.line}: "
            f"{first.reason}"
        )
    return loaded.behaviors
