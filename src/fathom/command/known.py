"""Behaviors of a user's file, for verbs that write no audit: what cannot be used is said all the same."""

from collections.abc import Iterable
from pathlib import Path

from fathom.behaviors import LoadedBehaviors, file_rows, load_behaviors
from fathom.behaviors.source import is_hub, row_source
from fathom.command.training import say
from fathom.errors import UserError
from fathom.records import Behavior, content_hash

__all__ = ["benign_behaviors", "benign_of", "check_told", "file_hash", "known_behaviors"]

ANSWERS = "harmful_response (or answer, response, completion)"


def file_hash(path: Path) -> str:
    """A hash of a file's content, in whatever encoding: what is gone on with is told by it, and not by a name.

    Of what is no file (a data set of the hub, a saved one), and where its columns were named, it is that of the rows.

    Raises:
        UserError: it cannot be read.
    """
    source = row_source(path)
    if is_hub(path) or source.columns or path.is_dir():
        return content_hash([[row.line, str(row.fields)] for row in file_rows(path)])
    try:
        return content_hash(path.read_text(encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give another file") from error


def known_behaviors(path: Path) -> tuple[Behavior, ...]:
    """The behaviors of a file; a line on standard error where some of its rows are none.

    Raises:
        UserError: as `load_behaviors`.
    """
    return _loaded(path).behaviors


def benign_behaviors(path: Path) -> tuple[Behavior, ...]:
    """Those of a file of benign prompts: what it does not mark counts as benign; what it marks as harmful is left out.

    Raises:
        UserError: as `load_behaviors`, or none is left.
    """
    loaded = _loaded(path)
    left = benign_of(loaded)
    out = len(loaded.behaviors) - len(left)
    if not left:
        raise UserError(
            f"all of {path} is marked as harmful, and benign prompts are wanted of it: give a file of those, or rows "
            "with `harmful: false`"
        )
    if out:
        say(f"{out} row{'s' * (out > 1)} of {path} marked as harmful left out: benign prompts are wanted of it")
    return left


def benign_of(loaded: LoadedBehaviors) -> tuple[Behavior, ...]:
    """What a file of benign prompts does not mark as harmful."""
    return tuple(item for item in loaded.behaviors if not (item.harmful and item.id in loaded.marked))


def check_told(behaviors: Iterable[Behavior], harmful: Path | None, benign: Path | None) -> None:
    """That a sentinel can be trained on them, which come from these files.

    Raises:
        UserError: no harmful one has an answer and a refusal, or no benign one an answer.
    """
    answered = [item for item in behaviors if item.answer]
    if not any(item.harmful and item.refusal for item in answered):
        raise UserError(
            f"the part answers of --objective trains a sentinel on harmful requests with an answer and a refusal, and "
            f"no row of {harmful} has both: its columns are {ANSWERS}, and refusal"
        )
    if not any(not item.harmful for item in answered):
        lacking = (
            f"no row of {benign} has one that can be read"
            if benign is not None
            else f"{harmful} has none that is marked `harmful: false`, and there is no --benign FILE"
        )
        raise UserError(
            f"the part answers of --objective trains a sentinel on benign requests with an answer, too, and {lacking}: "
            f"its column is {ANSWERS}"
        )


def _loaded(path: Path) -> LoadedBehaviors:
    loaded = load_behaviors(path)
    if loaded.skipped:
        first, count = loaded.skipped[0], len(loaded.skipped)
        say(
            f"warning: {count} row{'s' * (count > 1)} of {path} could not be used; the first is line {first.line}: "
            f"{first.reason}"
        )
    return loaded
