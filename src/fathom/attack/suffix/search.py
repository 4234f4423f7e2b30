"""Greedy coordinate gradient (GCG), as a pure `init` and `step` over a frozen state.

    init    a start that can be typed, or the best of those that are known, and its loss
    step    gradient of the loss with respect to the one-hot suffix
            → the best `topk` exchanges at each position
            → `width` candidates with some positions exchanged, those that can be typed
            → the loss of each (all of it, or with early rejection, or as a draft model ranks them)
            → the best one, alone or merged with the next best, becomes the current suffix (or enters the buffer)

The random numbers of a step come from the seed and the step's number, so a search that is stopped after any step and
continued from its state goes on as if it had never stopped.

Source: Zou et al. 2307.15043; options of nanoGCG 0.3.0.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fathom.attack.suffix.candidates import best_ids, distinct, draw, generator, merged
from fathom.attack.suffix.evaluate import Evaluator, Spent, evaluator
from fathom.attack.suffix.options import Options
from fathom.attack.suffix.problem import Problem
from fathom.attack.suffix.selection import Ranked, Scored, Scorers, check_draft, select
from fathom.attack.suffix.state import Entry, State
from fathom.attack.suffix.text import Typist, allowed_ids
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.records import content_hash
from fathom.scoring import Scorer

__all__ = ["Known", "SuffixSearch"]

_log = logging.getLogger(__name__)
_DRAWS = 32  # of a step's candidates, until one can be typed
_KICKS = 16  # draws of a kicked suffix, until one can be typed


class Known(NamedTuple):
    """Known suffixes as they do here, best first, and what it took to see that."""

    entries: tuple[Entry, ...]
    spent: Spent


@dataclass(frozen=True, eq=False)
class SuffixSearch:
    """A problem on a model; make one with `SuffixSearch.of`. What it holds beside them is only a cache."""

    problem: Problem
    options: Options
    start: tuple[int, ...]
    scorers: Scorers
    typist: Typist
    allowed: Bool[Tensor, "vocabulary"]

    @classmethod
    def of(
        cls,
        model: ChatModel,
        problem: Problem,
        options: Options,
        start: Sequence[int],
        *,
        draft: ChatModel | None = None,
        notify: Callable[[str], None] = _log.warning,
    ) -> "SuffixSearch":
        """`start` are the ids that the search begins with (see `text.start_ids`); `draft` is for probe sampling.

        `notify` is told, in one line, when candidates cannot share what they have in common, or memory runs out.

        Raises:
            UserError: a case does not fit into the model's context, no token may be used, or the draft knows other
                tokens.
        """
        scorer = Scorer.of(model)
        whole = [evaluator(scorer, case, start, options.objective, notify) for case in problem.cases]
        drafts: list[Evaluator] = []
        if draft is not None:
            check_draft(model, draft)
            small = Scorer.of(draft)
            drafts = [evaluator(small, case, start, options.objective, notify) for case in problem.cases]
        allowed = allowed_ids(model.chat, scorer.vocabulary, options.allowed)
        typist = Typist(model.chat, problem.cases, start)
        return cls(problem, options, tuple(start), Scorers(whole, drafts, options), typist, allowed)

    @property
    def identity(self) -> str:
        """A hash of what determines the search, but for the model: the key of its lines in a journal."""
        return content_hash((self.problem, repr(self.options), self.start))

    def init(self, active: int | None = None, known: Sequence[tuple[int, ...]] = ()) -> State:
        """The best of the `known` suffixes on the first `active` cases (None: all), or the start where none fits."""
        return self.begin(self.ranked(known, active), active)

    def ranked(self, known: Sequence[tuple[int, ...]], active: int | None = None) -> Known:
        """How known suffixes do on the first `active` cases (None: all of them), best first.

        Those are left out that have not the start's length or cannot be typed in every case.
        """
        active = len(self.problem.cases) if active is None else active
        fitting = [ids for ids in known if len(ids) == len(self.start) and self.typist.typed_everywhere(ids)]
        if not fitting:
            return Known((), Spent())
        found, spent = self._whole(torch.tensor(fitting), fitting[0], active)
        return Known(tuple(sorted((_entry(found, place) for place in range(len(fitting))), key=_rank)), spent)

    def begin(self, known: Known, active: int | None = None) -> State:
        """At the best of what is known, or at the start where nothing is.

        Raises:
            UserError: nothing is known, and the start cannot be typed.
        """
        active = len(self.problem.cases) if active is None else active
        if not known.entries:
            known = self.ranked([self.start], active)
        if not known.entries:
            raise UserError("the start of the suffix does not keep its ids when it is typed; give another one")
        entry = known.entries[0]
        fixed = sum(len(case.before_ids) for case in self.problem.cases[:active])
        # Weights come of one pass over the request and the target.
        fixed += sum(case.length(0) for case in self.problem.cases if case.target.weights)
        return State(
            step=0,
            buffer=(entry,),
            best=entry,
            chosen=entry,
            reaching=entry if all(entry.reached) else None,
            active=active,
            cases=len(self.problem.cases),
            joined=tuple(case.joined for case in self.problem.cases),
            queries=known.spent.queries,
            forward_tokens=known.spent.forward_tokens + fixed,
            backward_tokens=known.spent.backward_tokens,
        )

    def step(self, state: State) -> State:
        """One step on. A pure function of the state: the same state always gives the same next one.

        Raises:
            UserError: not one of many candidates can be typed.
        """
        options, current = self.options, state.current.ids
        random = generator(options.seed, state.step)
        slope, spent = self.scorers.gradient(current, state.active)
        best = best_ids(slope, self.allowed, options.topk)
        candidates = self._drawn(current, best, options.exchanges(state.step), random)
        ranked = select(self.scorers, candidates, state.active, random)
        spent = spent.plus(ranked.spent)
        if options.merge > 1:
            ranked = self._merge(current, ranked, state.active)
            spent = spent.plus(ranked.spent)
        chosen, reaching = self._first_typed(ranked), self._reaching(ranked, state.tried)
        buffer = _buffered(state.buffer, chosen, options.buffer)
        lower = state.lowest is None or chosen.loss < state.lowest
        return msgspec.structs.replace(
            state,
            step=state.step + 1,
            buffer=buffer,
            best=min((*([reaching] if reaching else []), chosen, state.best), key=_rank),
            chosen=chosen,
            reaching=reaching,
            lowest=chosen.loss if lower else state.lowest,
            stale=0 if lower else state.stale + 1,
            queries=state.queries + spent.queries,
            forward_tokens=state.forward_tokens + spent.forward_tokens,
            backward_tokens=state.backward_tokens + spent.backward_tokens,
        )

    def join(self, state: State, known: Known) -> State:
        """Go on from the best of what is known, where it is better than the current suffix."""
        entry = min((state.current, *known.entries[:1]), key=_rank)
        return self._moved(state, entry, known.spent)

    def anew(self, state: State, start: Sequence[int]) -> State:
        """Begin again with another suffix; the best one so far stays what it is."""
        found, spent = self._whole(torch.tensor([list(start)]), tuple(start), state.active)
        return self._moved(state, _entry(found, 0), spent)

    def _moved(self, state: State, entry: Entry, spent: Spent) -> State:
        return msgspec.structs.replace(
            state,
            buffer=(entry,),
            best=min(entry, state.best, key=_rank),
            reaching=None,
            lowest=None,
            stale=0,
            missed=0,
            queries=state.queries + spent.queries,
            forward_tokens=state.forward_tokens + spent.forward_tokens,
        )

    def kicked(self, ids: tuple[int, ...], count: int, step: int) -> tuple[int, ...] | None:
        """The suffix with `count` of its tokens exchanged for any, so that it can be typed; None where that is hard."""
        random, allowed = generator(self.options.seed, -1 - step), self.allowed.nonzero()[:, 0].cpu()
        for _ in range(_KICKS):
            drawn = torch.tensor(ids)
            places = torch.randperm(len(ids), generator=random)[:count]
            drawn[places] = allowed[torch.randint(len(allowed), (len(places),), generator=random)]
            found = tuple(drawn.tolist())
            if self.typist.typed_everywhere(found):
                return found
        return None

    def widen(self, state: State) -> State:
        """One more case in use, and the buffer scored on all of them anew.

        Source: progressive addition of behaviors, Zou et al. 2307.15043, Algorithm 2.
        """
        active = min(state.active + 1, len(self.problem.cases))
        ids = torch.tensor(sorted({entry.ids for entry in (*state.buffer, state.best)}))
        found, spent = self._whole(ids, state.current.ids, active)
        spent = spent.plus(Spent(0, sum(len(case.before_ids) for case in self.problem.cases[state.active : active]), 0))
        entries = {tuple(row): _entry(found, i) for i, row in enumerate(ids.tolist())}
        best = min(entries.values(), key=_rank)
        rest = sorted((entries[ids] for ids in entries if ids != best.ids), key=lambda entry: entry.loss)
        buffer = (best, *rest)[: max(1, self.options.buffer)]
        return msgspec.structs.replace(
            state,
            active=active,
            buffer=buffer,
            best=best,
            chosen=buffer[0],
            lowest=None,
            stale=0,
            queries=state.queries + spent.queries,
            forward_tokens=state.forward_tokens + spent.forward_tokens,
            backward_tokens=state.backward_tokens + spent.backward_tokens,
        )

    def states(self, state: State) -> Iterator[State]:
        """Further states, up to the last step: each case in turn joins in as soon as those before it are reached.

        Ends early where all cases are in use and reached. The caller decides whether such a state is good enough.
        """
        while state.step < self.options.steps:
            state = self.step(state)
            while all(state.best.reached) and state.active < len(self.problem.cases):
                state = self.widen(state)
            yield state

    def _whole(self, candidates: Tensor, current: tuple[int, ...], active: int) -> tuple[Scored, Spent]:
        spent = self.scorers.settle(current, active)
        found = self.scorers.scored(candidates, active)
        return found, spent.plus(found.spent)

    def _drawn(
        self, current: Sequence[int], best: Int[Tensor, "suffix count"], replace: int, random: torch.Generator
    ) -> Int[Tensor, "candidates suffix"]:
        """A step's candidates that can be typed. Where a draw has none, as narrow ones of some tokenizers, another."""
        for _ in range(_DRAWS):
            candidates = draw(current, best, self.options.width, replace, random)
            kept = candidates[self.typist.typeable(candidates)]
            if len(kept):
                return kept
        raise UserError(
            f"not one of {_DRAWS} × {self.options.width} candidates keeps its ids when it is typed: the tokenizer does "
            "not tokenise its own output back; give a larger topk, another start, or other allowed tokens"
        )

    def _merge(self, current: tuple[int, ...], ranked: Ranked, active: int) -> Ranked:
        together = merged(current, ranked.scored.candidates, self.options.merge)
        together = together[self.typist.typeable(together)]
        if not len(together):
            return ranked._replace(spent=Spent())
        more = self.scorers.scored(distinct(together), active)
        return Ranked(ranked.scored.joined(more), more.spent)

    def _reaching(self, ranked: Ranked, tried: Sequence[tuple[int, ...]]) -> Entry | None:
        """The best candidate that reaches every target, keeps its ids and was not tried, if there is one."""
        for place in ranked.scored.reached.all(1).nonzero()[:, 0].tolist():
            entry = _entry(ranked.scored, place)
            if entry.ids not in tried and self.typist.typed_everywhere(entry.ids):
                return entry
        return None

    def _first_typed(self, ranked: Ranked) -> Entry:
        """The best candidate that keeps its ids in every whole conversation; nearly always the very best."""
        for place in range(len(ranked.scored.candidates)):
            entry = _entry(ranked.scored, place)
            if self.typist.typed_everywhere(entry.ids):
                return entry
        raise UserError("not one candidate keeps its ids in the whole conversation: give another start or place")


def _entry(found: Scored, place: int) -> Entry:
    return Entry(
        loss=float(found.losses[place]),
        ids=tuple(found.candidates[place].tolist()),
        reached=tuple(found.reached[place].tolist()),
    )


def _rank(entry: Entry) -> tuple[bool, float]:
    """What has reached every target is better than what has not, whatever its loss."""
    return not all(entry.reached), entry.loss


def _buffered(buffer: tuple[Entry, ...], chosen: Entry, size: int) -> tuple[Entry, ...]:
    """nanoGCG's buffer: size 0 moves on to the candidate, better or not; else it takes the worst one's place."""
    if size == 0:
        return (chosen,)
    if len(buffer) < size:
        kept = (*buffer, chosen)
    elif chosen.loss < buffer[-1].loss:
        kept = (*buffer[:-1], chosen)
    else:
        return buffer
    return tuple(sorted(kept, key=lambda entry: entry.loss))
