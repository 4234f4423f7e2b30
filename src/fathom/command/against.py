"""Suffixes that `fathom attack` found, to be deepened against."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fathom.errors import UserError
from fathom.run import Run

__all__ = ["Against", "found_suffixes"]


@dataclass(frozen=True)
class Against:
    """What searches for suffixes found, successful or not."""

    suffixes: tuple[str, ...] = ()  # as they stand behind a request, with the space before them where they have one
    notes: tuple[str, ...] = ()


def found_suffixes(runs: Sequence[Path], known: Collection[str]) -> Against:
    """The distinct suffixes of finished runs; those that searches gave up, too: they came near.

    `known` are the ids of the behaviors that are trained on. A suffix may be of any others, but then these are no
    longer held out, which is noted.

    Raises:
        UserError: a directory is no finished run, or holds no suffix of a search.
    """
    from fathom.attack.suffix.problem import Joined

    suffixes: dict[str, None] = {}
    asked, strange = set[str](), set[str]()
    for path in runs:
        run = Run.open(path)
        run.audit  # noqa: B018  a run that goes on would be another one tomorrow
        found = [
            (Joined(str(attempt.found["joined"])).text + str(attempt.found["suffix"]), attempt.behavior)
            for attempt in run.attempts.values()
            if "suffix" in attempt.found and "joined" in attempt.found
        ]
        if not found:
            raise UserError(
                f"{path} holds no suffix that was searched for: make such a run with `fathom attack MODEL --behaviors "
                'TRIPLETS --with suffix --with "suffix target=deep"`'
            )
        suffixes |= dict.fromkeys(text for text, _ in found)
        requests = {behavior for _, behavior in found if run.behaviors[behavior].harmful}
        asked |= requests
        strange |= {run.behaviors[behavior].name for behavior in requests - set(known)}
    notes = [f"{len(suffixes)} suffixes, found for {len(asked)} requests, stand behind half of the harmful prompts"]
    if strange:
        notes.append(
            f"{len(strange)} of these requests are not among the triplets (such as {min(strange)}): do not report on "
            "them"
        )
    return Against(tuple(suffixes), tuple(notes))
