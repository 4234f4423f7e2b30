"""Many suffix searches at once: each in a thread of its own, what all of them ask of the model in common batches.

On a model as small as the organism a step of one search is nearly all overhead, so a hundred searches side by side take
little longer than a few. The searches are the library's own; what is put in the place of its parts is the evaluator of
candidates and the engine that writes answers. Tokens are counted as the library counts them, with what the candidates
of a step share computed once, though here each is computed whole.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, NamedTuple, TypeVar
from unittest.mock import patch

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fathom.attack.kinds import Target, Victim
from fathom.attack.suffix import attack, base, search
from fathom.attack.suffix.evaluation import Gradient, Scores, Spent
from fathom.attack.suffix.objective import Reading, loss_of, read_targets
from fathom.attack.suffix.options import Objective
from fathom.attack.suffix.problem import Case
from fathom.attack.suffix.search import SuffixSearch
from fathom.engine import TransformersEngine
from fathom.model import ChatModel
from fathom.records import Attempt, Completion
from fathom.scoring import Scorer

__all__ = ["together"]

ROWS = 512  # sequences in one forward pass
_T = TypeVar("_T")
_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


class Latest(threading.local):
    """A thread's search, as `base.search_of` keeps the one of the process."""

    key: tuple[str, str] | None = None
    search: SuffixSearch | None = None


def together(model: ChatModel, jobs: Sequence[Callable[[], _T]]) -> list[_T]:
    """What the jobs return, run side by side; the suffix searches in them share the model's passes."""
    hub, latest = Hub(model, alive=len(jobs)), Latest()

    def made(suffixes: base.Suffixes, target: Target, victim: Victim) -> SuffixSearch:
        key = (repr(suffixes), target.key)  # of this one model
        if latest.search is None or latest.key != key:
            latest.key, latest.search = key, base._made(suffixes, target, victim)
        return latest.search

    with ExitStack() as stack, ThreadPoolExecutor(len(jobs)) as pool:
        stack.enter_context(patch.object(search, "evaluator", lambda scorer, case, *_: Evaluator(hub, scorer, case)))
        stack.enter_context(patch.object(Victim, "engine", property(lambda _: Engine(hub))))
        for module in (attack, base):
            stack.enter_context(patch.object(module, "search_of", made))
        futures = [pool.submit(hub.attended, job) for job in jobs]
        hub.serve()
        return [future.result() for future in futures]


class Scoring(NamedTuple):
    case: Case
    candidates: Int[Tensor, "candidates suffix"]
    targets: tuple[int, ...]


class Slope(NamedTuple):
    case: Case
    suffix: tuple[int, ...]
    objective: Objective


@dataclass(eq=False)
class Queue(Generic[_Asked, _Answer]):
    """The questions of one kind that wait, and what answers them all at once."""

    answers: Callable[[Sequence[_Asked]], Sequence[_Answer]]
    waiting: list[tuple[_Asked, Future[_Answer]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, question: _Asked) -> Future[_Answer]:
        answer: Future[_Answer] = Future()
        self.waiting.append((question, answer))
        return answer

    def taken(self) -> Callable[[], None]:
        """What answers those that wait now; they are in the queue no longer."""
        now, self.waiting = self.waiting, []
        return partial(self._answer, now)

    def _answer(self, now: Sequence[tuple[_Asked, Future[_Answer]]]) -> None:
        try:
            for (_, future), answer in zip(now, self.answers([one for one, _ in now]), strict=True):
                future.set_result(answer)
        except Exception as error:  # the searches that asked end with it, and are reported with their jobs
            for _, future in now:
                if not future.done():
                    future.set_exception(error)


class Hub:
    """Takes questions until every job that still runs waits for an answer; then answers all of one kind at once."""

    def __init__(self, model: ChatModel, alive: int) -> None:
        self.model, self.alive = model, alive
        self.scorings, self.slopes = Queue(self._scores), Queue(self._slopes)
        self.attempts = Queue(self._completions)
        self._changed = threading.Condition()

    def attended(self, job: Callable[[], _T]) -> _T:
        try:
            return job()
        finally:
            with self._changed:
                self.alive -= 1
                self._changed.notify()

    def ask(self, queue: Queue[_Asked, _Answer], question: _Asked) -> _Answer:
        with self._changed:
            answer = queue.add(question)
            self._changed.notify()
        return answer.result()

    def serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting >= self.alive)
                if not self.alive:
                    return
                answer = self._next()
            answer()

    @property
    def _waiting(self) -> int:
        return len(self.scorings) + len(self.slopes) + len(self.attempts)

    def _next(self) -> Callable[[], None]:
        """Answers last: each of their tokens is a pass of its own, so that they pay by the batch."""
        if len(self.scorings) + len(self.slopes) <= self._waiting // 3:
            return self.attempts.taken()
        return self.scorings.taken() if len(self.scorings) >= len(self.slopes) else self.slopes.taken()

    def _completions(self, attempts: Sequence[Attempt]) -> list[Completion]:
        distinct = list({attempt.id: attempt for attempt in attempts}.values())
        written = {one.attempt: one for one in TransformersEngine(self.model).complete(distinct)}
        return [written[attempt.id] for attempt in attempts]

    @torch.inference_mode()
    def _scores(self, asked: Sequence[Scoring]) -> list[Reading]:
        rows = [
            ((*one.case.before_ids, *suffix, *one.case.after_ids, *one.targets[:-1]), one.targets)
            for one in asked
            for suffix in one.candidates.tolist()
        ]
        parts = [self._read(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
        own, nll, greedy = (torch.cat(part).clone() for part in zip(*parts, strict=True))
        found, at = [], 0
        for one in asked:
            shape = (len(one.candidates), len(one.targets))
            place = slice(at, at + shape[0] * shape[1])
            found.append(Reading(own[place].view(shape), nll[place].view(shape), greedy[place].view(shape)))
            at = place.stop
        return found

    def _read(self, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[Tensor, Tensor, Tensor]:
        """Logit, negative log-probability and greedy choice of every target token, row by row."""
        scorer = Scorer.of(self.model)
        hidden = scorer.plain.base_model(input_ids=_padded([ids for ids, _ in rows]), use_cache=False).last_hidden_state
        kept = [hidden[place, len(ids) - len(targets) : len(ids)] for place, (ids, targets) in enumerate(rows)]
        labels = torch.tensor([id_ for _, targets in rows for id_ in targets])
        return read_targets(scorer.head_logits(torch.cat(kept)), labels)

    def _slopes(self, asked: Sequence[Slope]) -> list[Gradient]:
        plain = Scorer.of(self.model).plain
        embed: object = plain.get_input_embeddings()
        head: object = plain.get_output_embeddings()  # type: ignore[no-untyped-call]
        assert isinstance(embed, nn.Embedding)  # the organism's
        assert isinstance(head, nn.Linear)
        rows = [(*one.case.before_ids, *one.suffix, *one.case.after_ids, *one.case.target.ids[:-1]) for one in asked]
        with torch.enable_grad():
            vectors = embed(_padded(rows)).detach().requires_grad_()
            hidden = plain.base_model(inputs_embeds=vectors, use_cache=False).last_hidden_state
            losses, readings = [], []
            for place, (one, ids) in enumerate(zip(asked, rows, strict=True)):
                target = torch.tensor(one.case.target.ids)
                logits = head(hidden[place, len(ids) - len(target) : len(ids)]).float()
                own = logits.gather(1, target[:, None])[:, 0]
                reading = Reading(own[None], (torch.logsumexp(logits, 1) - own)[None], (own >= logits.amax(1))[None])
                losses.append(loss_of(reading, one.case.target, one.objective)[0])
                readings.append(Reading(*(part.detach() for part in reading)))
            (slopes,) = torch.autograd.grad(torch.stack(losses).sum(), vectors)
        return [
            Gradient(
                readings[place],
                float(losses[place].detach()),
                slopes[place, len(one.case.before_ids) :][: len(one.suffix)] @ embed.weight.detach().T,
                Spent(),
            )
            for place, one in enumerate(asked)
        ]


def _padded(rows: Sequence[tuple[int, ...]]) -> Int[Tensor, "rows longest"]:
    """Behind their ends, where no token of a row looks."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *(0,) * (longest - len(row))] for row in rows])


@dataclass(eq=False)
class Evaluator:
    """`SharedEvaluator`, as the hub answers it."""

    hub: Hub
    scorer: Scorer
    case: Case
    _current: tuple[int, ...] = ()

    def gradient(self, suffix: Sequence[int], objective: Objective) -> Gradient:
        self._current = tuple(suffix)
        length = len(suffix) + len(self.case.after_ids) + len(self.case.target.ids) - 1
        found = self.hub.ask(self.hub.slopes, Slope(self.case, self._current, objective))
        return found._replace(spent=Spent(1, length, length))

    def settle(self, suffix: Sequence[int]) -> Spent:
        self._current = tuple(suffix)
        return Spent(1, len(suffix), 0)

    def scores(self, candidates: Int[Tensor, "candidates suffix"], tokens: int | None = None) -> Scores:
        targets = self.case.target.ids[:tokens]
        count, size = candidates.shape
        differs = candidates != torch.tensor(self._current)
        first = torch.where(differs.any(1), differs.int().argmax(1), size - 1)
        spent = int((size - first).sum()) + count * (len(self.case.after_ids) + len(targets) - 1)
        reading = self.hub.ask(self.hub.scorings, Scoring(self.case, candidates, targets))
        return Scores(reading, Spent(count, spent, 0))


@dataclass(frozen=True)
class Engine:
    hub: Hub

    def complete(self, attempts: Sequence[Attempt]) -> list[Completion]:
        return [self.hub.ask(self.hub.attempts, attempt) for attempt in attempts]
