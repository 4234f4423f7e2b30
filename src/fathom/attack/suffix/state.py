"""Where a search stands: plain, frozen data, a line of JSON in the run directory after each step."""

import msgspec

from fathom.attack.suffix.problem import Joined

__all__ = ["Entry", "State"]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A suffix and its loss over the cases that were in use when it was scored."""

    loss: float
    ids: tuple[int, ...]
    reached: tuple[bool, ...] = ()  # of each case in use: the target is the model's greedy choice


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One search after `step` steps. Everything that a further step depends on is here, but for problem and options."""

    step: int
    buffer: tuple[Entry, ...]  # best first; the first is the current suffix
    best: Entry  # of all so far, over as many cases as are in use
    chosen: Entry  # of this step's candidates
    active: int  # cases in use, the first of the problem's
    cases: int | None = None  # the problem's; None in states of earlier versions
    joined: tuple[Joined | None, ...] = ()  # how each case has the suffix behind its request, which typing it repeats
    queries: int  # inputs scored, one for each candidate and case
    forward_tokens: int
    backward_tokens: int
    verified: bool = False  # the best suffix's greedy answer was judged to do what is asked
    tried: tuple[tuple[int, ...], ...] = ()  # the suffixes whose answers were judged, in that order
    looked: int | None = None  # the step at which the last one was
    reaching: Entry | None = None  # of this step's candidates, the best untried one that reaches every target
    # Since the search began, or began anew:
    lowest: float | None = None  # loss of a step's choice; None: no step was taken
    stale: int = 0  # steps since that loss was reached
    missed: int = 0  # answers behind a reached target that were not what was asked for

    @property
    def current(self) -> Entry:
        return self.buffer[0]
