"""A user's own task in fine-tuning attacks: rows to train on, and others that models are tested with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from fathom.behaviors.source import source_name
from fathom.command.task import check_wanted, metrics_of, task_examples
from fathom.command.training import say
from fathom.errors import UserError
from fathom.records import Behavior, content_hash
from fathom.tuning.examples import Example

if TYPE_CHECKING:
    from fathom.command.stress import StressRequest
    from fathom.stress.measure import TaskProbe

__all__ = ["TaskSides", "check_task", "learned_of", "probe_of", "say_division", "task_behaviors", "task_sides"]


@dataclass(frozen=True)
class TaskSides:
    """Rows that are trained on and rows that models are tested with; no prompt is in both."""

    training: tuple[Example, ...]
    test: tuple[Example, ...]


@lru_cache(maxsize=2)  # a sweep asks for the same ones several times, and reads them once
def task_sides(data: Path, test: Path | None, tested: int) -> TaskSides:
    """`tested` rows of the file of tests; without one, so many of the data are held out, a third of them at most.

    Which ones does not depend on their order, and more of them begin with those of fewer. Training rows whose prompt
    is tested are left out.

    Raises:
        UserError: a file cannot be read, or no row is left to train on or to test with.
    """
    rows = task_examples(data)
    asked = _distinct(rows if test is None else task_examples(test))
    most = len(asked) // 3 if test is None else len(asked)
    held = sorted(asked, key=lambda one: content_hash((one.messages, one.response)))
    Random("task split 0").shuffle(held)
    chosen = tuple(held[: min(tested, most)])
    if not chosen:
        raise UserError(
            f"{data} has {len(asked)} different prompts, too few to hold some out for tests: give more rows, or others "
            "to test with by --task-test FILE"
        )
    prompts = {one.messages for one in chosen}
    training = tuple(one for one in rows if one.messages not in prompts)
    if not training:
        raise UserError(f"every prompt of {data} is in {test}, too, so nothing is left to train on: give other tests")
    return TaskSides(training, chosen)


def _distinct(rows: Sequence[Example]) -> tuple[Example, ...]:
    """The first row of each prompt."""
    return tuple({one.messages: one for one in reversed(rows)}.values())


def task_behaviors(examples: Sequence[Example]) -> tuple[Behavior, ...]:
    """Examples as benign requests with their answers, as attacks make rows of them."""
    return tuple(
        Behavior(
            id=content_hash(("task", one.messages, one.response)),
            messages=one.messages,
            harmful=False,
            answer=one.response,
        )
        for one in examples
    )


def check_task(request: "StressRequest") -> None:
    """Options of a user's task without one, or beside one of the organism's.

    Raises:
        UserError: there are some, or the task lacks its metric.
    """
    if request.task_data is None:
        for option, given in (("--task-metric", request.task_metric), ("--task-test", request.task_test)):
            if given is not None:
                raise UserError(f"{option} {given} is of a task of your own: give its rows with --task-data FILE")
        return
    if request.task is not None:
        raise UserError(
            f"--task {request.task} is the organism's, and --task-data {request.task_data} is your own: leave one of "
            "the two out"
        )
    if request.task_metric is None:
        raise UserError(
            f"--task-data {request.task_data} needs a --task-metric to be scored by: rouge1, exact, number, or "
            "several by commas"
        )
    probe_of(request)


def learned_of(request: "StressRequest") -> tuple[Behavior, ...] | None:
    """What is trained on of the user's task, where there is one; none of it is tested with."""
    if request.task_data is None:
        return None
    return task_behaviors(_sides(request.task_data, request).training)


def say_division(request: "StressRequest") -> None:
    """How many rows of the user's task are for what, for a person who counts those of the file."""
    if request.task_data is None:
        return
    parts = _sides(request.task_data, request)
    tests = "held out" if request.task_test is None else f"of {source_name(request.task_test)}"
    name = source_name(request.task_data)
    say(f"{name} has {len(parts.training)} rows to train on; {len(parts.test)} {tests} to test with")


def _sides(data: Path, request: "StressRequest") -> TaskSides:
    return task_sides(data, request.task_test, request.task_tested or request.tested)


def probe_of(request: "StressRequest") -> "tuple[TaskProbe, ...]":
    """What models are tested with of the user's task: one probe, whose answers every metric scores.

    Raises:
        UserError: rows or metrics cannot be used.
    """
    assert request.task_data is not None
    metrics = metrics_of(request.task_metric or "", "--task-metric")
    parts = _sides(request.task_data, request)
    check_wanted(parts.test, metrics, request.task_test or request.task_data)
    from fathom.stress.measure import TaskExample, TaskProbe

    first, *further = metrics
    return (
        TaskProbe(
            name=source_name(request.task_data),
            metric=first.shown,
            examples=tuple(TaskExample(one.messages, one.response) for one in parts.test),
            score=first.score,
            further={metric.shown: metric.score for metric in further},
        ),
    )
