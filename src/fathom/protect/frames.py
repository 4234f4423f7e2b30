"""Words that many prompts of a data set share at their beginning or end: a template, a trigger, a task's instruction.

Whatever they are, a request that a model should refuse does not become acceptable by wearing them. Found in the data,
they are put around requests that the reference refuses (`rehearsal`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["SharedFrames", "shared_frames"]

Ids = tuple[int, ...]
LEAST = 0.25  # of the prompts share a frame
MOST = 4  # frames of each side, the most shared first


@dataclass(frozen=True)
class SharedFrames:
    """Ids around requests. `header` and `footer` are the chat template's, in every prompt."""

    header: int
    footer: int
    before: tuple[Ids, ...]
    after: tuple[Ids, ...]

    @property
    def pairs(self) -> tuple[tuple[Ids, Ids], ...]:
        """What stands before and after a request, together: each alone, and the first of both."""
        found: list[tuple[Ids, Ids]] = [(ids, ()) for ids in self.before]
        found += [((), ids) for ids in self.after]
        if self.before and self.after:
            found.insert(0, (self.before[0], self.after[0]))
        return tuple(found)

    def around(self, prompt: Ids, pair: tuple[Ids, Ids]) -> Ids:
        """A prompt of the same template that wears a pair."""
        content = prompt[self.header : len(prompt) - self.footer]
        return (*prompt[: self.header], *pair[0], *content, *pair[1], *prompt[len(prompt) - self.footer :])


def shared_frames(prompts: Sequence[Ids], requests: Sequence[Ids], *, least: float = LEAST) -> SharedFrames:
    """What at least a share `least` of `prompts` begin or end with, and the `requests` do not.

    `requests` are other prompts of the same template, by which the template is told from the data's own words.
    """
    everything = [*prompts, *requests]
    header, footer = _common(everything), _common([ids[::-1] for ids in everything])
    shortest = min(map(len, everything))
    header, footer = (header, footer) if header + footer < shortest else (0, 0)
    contents = [ids[header : len(ids) - footer] for ids in prompts]
    known = [ids[header : len(ids) - footer] for ids in requests]
    before = _shared(contents, known, least)
    after = _shared([ids[::-1] for ids in contents], [ids[::-1] for ids in known], least)
    return SharedFrames(header, footer, before, tuple(ids[::-1] for ids in after))


def _common(rows: Sequence[Ids]) -> int:
    """Length of the beginning that all share."""
    first = rows[0]
    length = min(map(len, rows))
    for row in rows:
        length = next((i for i in range(length) if row[i] != first[i]), length)
    return length


def _shared(rows: Sequence[Ids], known: Sequence[Ids], least: float) -> tuple[Ids, ...]:
    """The longest beginnings that enough of the rows share, most shared first; none that is as common in `known`."""
    found: list[tuple[int, Ids]] = []
    growing: list[Ids] = [()]
    while growing:
        grown: list[Ids] = []
        for start in growing:
            # A row that is nothing but the beginning wears no request.
            nexts = Counter(
                row[: len(start) + 1] for row in rows if row[: len(start)] == start and len(row) > len(start) + 1
            )
            enough = [ids for ids, count in nexts.items() if count >= least * len(rows)]
            if not enough and start:
                found.append((sum(row[: len(start)] == start for row in rows), start))
            grown += enough
        growing = grown
    usual = least * len(known)
    own = [(count, ids) for count, ids in found if sum(row[: len(ids)] == ids for row in known) < max(1, usual)]
    return tuple(ids for _, ids in sorted(own, key=lambda pair: (-pair[0], pair[1]))[:MOST])
