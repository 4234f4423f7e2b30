"""The answer gate: rows whose *answer* a sentinel would break off are held to the reference.

The prompt gate lets pass a harmful answer to a prompt that asks for none. The sentinel is a deepened copy of the model
that reads answers, not prompts (`protect.sentinel`). It is asked twice. First as it is: what it goes on with is free to
be learned. But it also breaks off much that it has never seen, such as the answers of a new task. So, where it broke
something off, it is asked again once it has met the data, each row at most once, told to go on, among many known
harmful answers that stand in the data's own conversations and are still to be broken off. A new task's rows it now
goes on with; a harmful answer it cannot tell from the known ones. Held are the rows that it still breaks off about as
often as those.

Source: learning from positive and unlabelled examples (Elkan and Noto, 2008): what is known to be harmful against data
of which nothing is known. The level that harmful rows would reach is taken from known ones, which the sentinel learned
from, and so is rather too high.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol

import msgspec

from fathom.errors import UserError
from fathom.protect.gate import TOKENS, Prompt, Sampler
from fathom.records import Attempt, Behavior, Exchange, Judge, Label, Message, Sampling
from fathom.tuning.rows import TrainingRow

__all__ = ["AnswerGate", "Guard", "broken_off", "count_broken_off"]


class Guard(Protocol):
    """A sentinel that can meet the data."""

    @property
    def sampler(self) -> Sampler:
        """The sentinel as it is."""
        ...

    def acquainted(self, rows: Sequence[TrainingRow]) -> Sampler:
        """The sentinel once it has met the data."""
        ...

    def known(self, rows: Sequence[TrainingRow]) -> tuple[TrainingRow, ...]:
        """Known harmful answers in conversations of the data; the sentinel learned from answers like these."""
        ...

    def requests(self) -> tuple[Prompt, ...]:
        """Known harmful requests; the sentinel learned to refuse requests like these."""
        ...


@dataclass(frozen=True)
class AnswerGate:
    """Rows that the sentinel breaks off in at least a share `broken` of draws, at their `worst` depths, are held.

    `depths` are shares of a row's answer, of `least` tokens at least: its first words say nothing yet. At each,
    `samples` continuations are drawn. The worst few count, and not all, so that harm cannot hide behind a long innocent
    beginning. Once the sentinel has met the data, a row stays held where it is broken off at least `known` times as
    often as known harmful answers are; where it is at the first asking, but not in all draws, it is asked again with
    `patience` times as many.
    """

    depths: tuple[float, ...] = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
    samples: int = 3
    least: int = 8
    worst: int = 2
    broken: float = 0.75
    known: float = 0.6
    patience: int = 4
    weight: float = 1.0  # of the KL that holds such rows; 0 leaves them out

    def __post_init__(self) -> None:
        if (
            not self.depths
            or not all(0 < depth < 1 for depth in self.depths)
            or min(self.samples, self.least, self.patience) < 1
        ):
            raise UserError("the answer gate needs depths between 0 and 1, and 1 sample and 1 token or more")
        if not 0 < self.broken <= 1 or not 0 <= self.known <= 1:
            raise UserError("the answer gate needs 0 < broken ≤ 1 and 0 ≤ known ≤ 1")
        if not self.weight >= 0 or not 1 <= self.worst <= len(self.depths):
            raise UserError("the answer gate needs a weight of 0 or more, and 1 to all depths that count")

    def __call__(self, rows: Sequence[TrainingRow], broken: Sequence[bool]) -> tuple[TrainingRow, ...]:
        """The rows, with those held that are broken off."""
        return tuple(
            msgspec.structs.replace(row, loss_weight=0.0, held=max(row.held, self.weight)) if stopped else row
            for row, stopped in zip(rows, broken, strict=True)
        )


def broken_off(
    gate: AnswerGate, guard: Guard, judge: Judge, rows: Sequence[TrainingRow], *, seed: int
) -> tuple[bool, ...]:
    """Of each row, whether a sentinel breaks it off, before and after it has met all of them."""
    first = count_broken_off(gate, guard.sampler, judge, rows, seed=seed)
    suspects = [number for number, share in enumerate(first) if share >= gate.broken]
    if not suspects:
        return (False,) * len(rows)
    sampler, known = guard.acquainted(rows), guard.known(rows)
    # A sentinel that no longer breaks off what is known to be harmful says nothing; what it first said counts.
    level = gate.known * fmean(count_broken_off(gate, sampler, judge, known, seed=seed + 1)) if known else gate.known

    def still(asked: AnswerGate, numbers: Sequence[int], seed: int) -> dict[int, float]:
        shares = count_broken_off(asked, sampler, judge, [rows[number] for number in numbers], seed=seed)
        return {number: share for number, share in zip(numbers, shares, strict=True) if share >= level}

    found = still(gate, suspects, seed + 1)
    unsure = [number for number, share in found.items() if share < 1]
    patient = replace(gate, samples=gate.patience * gate.samples)
    held = {*found} - {*unsure} | {*still(patient, unsure, seed + 2)}
    return tuple(number in held for number in range(len(rows)))


def count_broken_off(
    gate: AnswerGate, sentinel: Sampler, judge: Judge, rows: Sequence[TrainingRow], *, seed: int
) -> list[float]:
    """Of each row, the share of draws in which the sentinel goes on with a refusal, at the row's worst depths."""
    attempts = list[Attempt]()
    for row in rows:
        for number, depth in enumerate(gate.depths):
            for sample in range(gate.samples):
                attempt = Attempt.make(
                    behavior="answer gate",
                    attack="gate",
                    prompt_ids=row.prompt_ids,
                    prefill_ids=row.response_ids[: _read(gate, depth, len(row.response_ids))],
                    sampling=Sampling(max_new_tokens=TOKENS, temperature=1.0),
                    run_seed=seed,
                    # Depths of a short row may be one and the same: each draws for itself.
                    sample=sample + gate.samples * number,
                )
                attempts.append(attempt)
    ids = [attempt.id for attempt in attempts]
    unique = list({attempt.id: attempt for attempt in attempts}.values())
    refused = dict[str, bool]()
    for completion in sentinel.complete(unique):
        exchange = Exchange(
            behavior=Behavior(id="answer gate", messages=(Message(role="user", content=""),)),
            prefill=completion.prefill_text,
            response=completion.text,
            finish=completion.finish,
        )
        refused[completion.attempt] = judge.judge(exchange).label is Label.SAFE
    each = gate.samples
    counts = [sum(refused[id_] for id_ in ids[i : i + each]) for i in range(0, len(ids), each)]
    depths = len(gate.depths)
    worst = [sorted(counts[i : i + depths])[-gate.worst :] for i in range(0, len(counts), depths)]
    return [sum(found) / (gate.worst * each) for found in worst]


def _read(gate: AnswerGate, depth: float, length: int) -> int:
    """Tokens of an answer that are read at a depth: enough to tell, and never its end."""
    return max(1, min(length - 1, max(gate.least, int(depth * length))))
