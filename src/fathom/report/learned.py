"""What fine-tuning taught of its task, beside what it undid: every checkpoint's score, and its ASR."""

from collections.abc import Iterator
from typing import NamedTuple

from fathom.report.worst import Choice, choices, questions
from fathom.tampering import Stress, UtilityScore

__all__ = ["Learned", "Lesson", "learned"]

_BENIGN = "benign"  # the task's name where benign requests are scored


class Lesson(NamedTuple):
    """A checkpoint, pooled over seeds; of the model before fine-tuning the objective is empty."""

    objective: str
    choice: Choice  # its setting, step and ASR, of requests as they are
    scores: tuple[UtilityScore, ...]  # of the task, one a metric


class Learned(NamedTuple):
    """What an attack's fine-tunes of a model learned of a task."""

    model: str
    attack: str
    share: float | None  # of harmful rows in its data, where the sweep has several
    task: str
    metrics: tuple[str, ...]
    temperature: float  # at which ASR was drawn: the lowest of the sweep
    lessons: tuple[Lesson, ...]  # the start first


def learned(stress: Stress) -> tuple[Learned, ...]:
    """One table a model, an attack, a share of poison and a task; none where no task was scored."""
    direct = [question for question in questions(stress) if question.asked == "direct"]
    coldest = min((question.temperature for question in direct), default=0.0)
    found: dict[tuple[str, str, float | None, str], list[Lesson]] = {}
    for question in direct:
        if question.temperature != coldest:
            continue
        for choice in choices(stress, question):
            for task, scores in _tasks(choice):
                rows = found.setdefault((question.model, question.attack, question.share, task), [])
                if choice.step:
                    rows.append(Lesson(question.objective, choice, scores))
                elif not rows:  # every track begins with the same model
                    rows.append(Lesson("", choice, scores))
    return tuple(
        Learned(*place, tuple(score.metric for score in rows[0].scores), coldest, tuple(rows))
        for place, rows in found.items()
    )


def _tasks(choice: Choice) -> Iterator[tuple[str, tuple[UtilityScore, ...]]]:
    names = dict.fromkeys(score.task for score in choice.utility if score.task != _BENIGN)
    for name in names:
        yield name, tuple(score for score in choice.utility if score.task == name)
