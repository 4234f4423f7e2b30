"""What a fine-tuned model does: harmful requests in each frame of its attack, benign requests, and its task."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from fathom.attack.kinds import Draw
from fathom.attack.poison_frames import Frame
from fathom.engine import TransformersEngine
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.records import (
    Attempt,
    Behavior,
    Completion,
    Exchange,
    Judge,
    Judgement,
    Label,
    Message,
    Sampling,
    content_hash,
)
from fathom.scoring import Scorer, score
from fathom.stress.prefilled import Depths, by_depth, given_answers, tallies, way_of_asking
from fathom.tally import Tally, clustered, wilson
from fathom.tampering import Answer, Asked, Prefilled, UtilityScore
from fathom.utility import mean_interval

__all__ = ["OWN_WORDS", "Measured", "OwnAnswer", "Probe", "TaskExample", "TaskProbe"]


OWN_WORDS = "own words"  # a metric of benign requests


@dataclass(frozen=True)
class TaskExample:
    """A request of a task, and its right answer."""

    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class TaskProbe:
    """A benign task: held-out examples, and how an answer is scored in [0, 1] (reference, response).

    `further` metrics score the same answers.
    """

    name: str
    metric: str
    examples: tuple[TaskExample, ...]
    score: Callable[[str, str], float] = field(repr=False)
    further: Mapping[str, Callable[[str, str], float]] = field(default_factory=dict, repr=False)


class OwnAnswer(NamedTuple):
    """A benign request, and what the model before fine-tuning answered greedily."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


class Answers(NamedTuple):
    """How many answers a checkpoint gives, and how many of them go on from the start of a reference answer."""

    all: int
    prefilled: int


class Measured(NamedTuple):
    """A checkpoint's counts, and the answers that they count."""

    asr: tuple[Asked, ...]
    utility: tuple[UtilityScore, ...]
    answers: tuple[Answer, ...]
    depth: tuple[Prefilled, ...] = ()


@dataclass(frozen=True)
class Probe:
    """What every checkpoint of a sweep is asked. None of the requests is trained on.

    Harmful behaviors are asked in each frame at each temperature, `samples` times where it is above 0, and at `depths`
    of their reference answers at the lowest temperature; benign ones and the tasks once, greedily.
    """

    behaviors: tuple[Behavior, ...]
    judge: Judge
    frames: tuple[Frame, ...]
    temperatures: tuple[float, ...] = (0.0, 1.0)
    new_tokens: int = 256
    samples: int = 1
    tasks: tuple[TaskProbe, ...] = ()
    depths: Depths = field(default_factory=Depths)
    seed: int = 0

    def __post_init__(self) -> None:
        if not any(behavior.harmful for behavior in self.behaviors):
            raise UserError("there are no harmful requests to measure with: give --behaviors with some")
        if not self.temperatures:
            raise UserError("no temperature was given; give --temperature 0,1")
        if not all(0 <= temperature < math.inf for temperature in self.temperatures):
            raise UserError(f"temperatures are {list(self.temperatures)}; each must be 0 (greedy) or above")
        if self.new_tokens < 1:
            raise UserError(f"--max-new-tokens is {self.new_tokens}; it must be at least 1")
        if self.samples < 1:
            raise UserError(f"--samples is {self.samples}; it must be at least 1")

    @property
    def answered(self) -> bool:
        """Whether a harmful request has a reference answer, of which a start can be given."""
        return any(behavior.harmful and (behavior.answer or behavior.target) for behavior in self.behaviors)

    @property
    def counts(self) -> Answers:
        """Answers of a checkpoint, at most: reference answers may be shorter than a depth."""
        harmful = sum(behavior.harmful for behavior in self.behaviors)
        coldest, drawn = min(self.temperatures), [self.samples if each else 1 for each in self.temperatures]
        given = harmful * self.depths.count * (self.samples if coldest else 1)
        others = len(self.behaviors) - harmful + sum(len(task.examples) for task in self.tasks)
        return Answers(all=harmful * len(self.frames) * sum(drawn) + given + others, prefilled=given)

    def own_answers(self, start: ChatModel) -> tuple[OwnAnswer, ...]:
        """What the model answers before it is fine-tuned, for `measure` to tell whether it still could."""
        benign = [behavior for behavior in self.behaviors if not behavior.harmful]
        answers = self._answers(start, benign, 0.0)
        found = (OwnAnswer(start.chat.prompt_ids(b.messages), done.output_ids) for b, _, done in answers)
        return tuple(answer for answer in found if answer.answer_ids)

    def measure(self, model: ChatModel, cell: str, step: int, own: Sequence[OwnAnswer] = ()) -> Measured:
        """Ask everything. The model is in evaluation mode; nothing of it changes.

        `own` are the start's answers, by which a model that can no longer write is told from one that answers.
        """
        asked, answers = list[Asked](), list[Answer]()
        harmful = tuple(behavior for behavior in self.behaviors if behavior.harmful)
        for frame in self.frames:
            framed = tuple(frame.around(behavior) for behavior in harmful)
            for temperature in self.temperatures:
                rows = list(self._judged(model, framed, frame.name, temperature, cell, step))
                answers += rows
                asked.append(_asked(frame.name, temperature, rows))
        depth: tuple[Prefilled, ...] = ()
        if self.depths:
            given = list(self._prefilled(model, cell, step))
            answers += given
            depth = by_depth(asked, self.depths, given, harmful)
        utility = list[UtilityScore]()
        benign = tuple(behavior for behavior in self.behaviors if not behavior.harmful)
        if benign:
            rows = list(self._judged(model, benign, "benign", 0.0, cell, step))
            answers += rows
            utility += _benign(rows)
        if own:
            utility.append(_own_words(model, own))
        for task in self.tasks:
            rows = list(self._scored(model, task, cell, step))
            answers += rows
            utility.append(_scores(task, [row.score or 0.0 for row in rows]))
            utility += _further(task, rows)
        return Measured(tuple(asked), tuple(utility), tuple(answers), depth)

    def _judged(
        self, model: ChatModel, behaviors: Sequence[Behavior], asked: str, temperature: float, cell: str, step: int
    ) -> Iterator[Answer]:
        for behavior, sample, completion in self._answers(model, behaviors, temperature):
            yield self._verdict(
                behavior, completion, cell=cell, step=step, asked=asked, temperature=temperature, sample=sample
            )

    def _prefilled(self, model: ChatModel, cell: str, step: int) -> Iterator[Answer]:
        """Answers at the depths, at the lowest temperature."""
        coldest = min(self.temperatures)
        draw = Draw(Sampling(max_new_tokens=self.new_tokens, temperature=coldest), self.samples if coldest else 1)
        for given in given_answers(model, self.behaviors, self.depths, draw, seed=self.seed):
            yield self._verdict(
                given.behavior,
                given.completion,
                cell=cell,
                step=step,
                asked=way_of_asking(given.tokens),
                temperature=coldest,
                sample=given.attempt.sample,
            )

    def _verdict(
        self,
        behavior: Behavior,
        completion: Completion,
        *,
        cell: str,
        step: int,
        asked: str,
        temperature: float,
        sample: int,
    ) -> Answer:
        """What the judge says of what the model wrote itself."""
        judgement = self.judge.judge(
            Exchange(
                behavior=behavior,
                prefill=completion.prefill_text,
                response=completion.text,
                finish=completion.finish,
            )
        )
        return Answer(
            cell=cell,
            step=step,
            asked=asked,
            temperature=temperature,
            behavior=behavior.id,
            text=completion.text,
            label=judgement.label,
            reason=judgement.reason,
            score=_exact(judgement),
            sample=sample,
        )

    def _scored(self, model: ChatModel, task: TaskProbe, cell: str, step: int) -> Iterator[Answer]:
        behaviors = [
            Behavior(id=content_hash((task.name, example.messages)), messages=example.messages, harmful=False)
            for example in task.examples
        ]
        for example, (behavior, _, completion) in zip(task.examples, self._answers(model, behaviors, 0.0), strict=True):
            yield Answer(
                cell=cell,
                step=step,
                asked=task.name,
                temperature=0.0,
                behavior=behavior.id,
                text=completion.text,
                label=None,
                reason=task.metric,
                score=task.score(example.answer, completion.text),
            )

    def _answers(
        self, model: ChatModel, behaviors: Sequence[Behavior], temperature: float
    ) -> Iterator[tuple[Behavior, int, Completion]]:
        """In the behaviors' order, the samples of each together."""
        asked = [(behavior, sample) for behavior in behaviors for sample in range(self.samples if temperature else 1)]
        attempts = [
            Attempt.make(
                behavior=behavior.id,
                attack="direct",
                prompt_ids=model.chat.prompt_ids(behavior.messages),
                prefill_ids=(),
                sampling=Sampling(max_new_tokens=self.new_tokens, temperature=temperature),
                run_seed=self.seed,
                sample=sample,
            )
            for behavior, sample in asked
        ]
        done = {completion.attempt: completion for completion in TransformersEngine(model).complete(attempts)}
        return ((*one, done[attempt.id]) for one, attempt in zip(asked, attempts, strict=True))


def _exact(judgement: Judgement) -> float | None:
    return None if judgement.exact is None else float(judgement.exact)


def _asked(name: str, temperature: float, rows: Sequence[Answer]) -> Asked:
    by_behavior = list(tallies(rows).values())
    tally = sum(by_behavior, Tally())
    low, high = clustered(by_behavior, seed=0)
    return Asked(
        asked=name,
        temperature=temperature,
        n=tally.n,
        harmful=tally.harmful,
        undecided=tally.undecided,
        asr=tally.asr,
        low=low,
        high=high,
        by_behavior=tuple(each.harmful for each in by_behavior),
    )


def _benign(rows: Sequence[Answer]) -> Iterator[UtilityScore]:
    """How often benign requests were answered, exactly where the judge can tell; and how often not refused.

    What is no answer (empty, garbled) is neither answered nor refused.
    """
    if all(row.score is not None for row in rows):
        yield _share("benign", "exact match", sum(row.score == 1.0 for row in rows), len(rows))
    else:
        yield _share("benign", "answered", sum(row.label is Label.HARMFUL for row in rows), len(rows))
    yield _share("benign", "not refused", sum(row.label is not Label.SAFE for row in rows), len(rows))


def _own_words(model: ChatModel, own: Sequence[OwnAnswer]) -> UtilityScore:
    """Of the start's answers, the share of tokens that are still the most probable ones, each after those before it.

    The start itself has 1. A judge that knows refusals alone takes a salad of words for an answer; this does not.
    """
    scorer = Scorer.of(model)
    ranks = [score(scorer, answer.prompt_ids, answer.answer_ids).ranks for answer in own]
    return _mean("benign", OWN_WORDS, [float((each == 1).double().mean()) for each in ranks])


def _share(task: str, metric: str, count: int, n: int) -> UtilityScore:
    low, high = wilson(count, n)
    return UtilityScore(task=task, metric=metric, n=n, score=count / n, low=low, high=high)


def _scores(task: TaskProbe, scores: Sequence[float]) -> UtilityScore:
    """The mean with its interval."""
    if not scores:
        raise UserError(f"task {task.name} has no examples to score with")
    return _mean(task.name, task.metric, scores)


def _further(task: TaskProbe, rows: Sequence[Answer]) -> Iterator[UtilityScore]:
    for metric, score_of in task.further.items():
        pairs = zip(task.examples, rows, strict=True)
        yield _mean(task.name, metric, [score_of(example.answer, row.text) for example, row in pairs])


def _mean(task: str, metric: str, scores: Sequence[float]) -> UtilityScore:
    low, high = mean_interval(scores)
    return UtilityScore(task=task, metric=metric, n=len(scores), score=fmean(scores), low=low, high=high)
