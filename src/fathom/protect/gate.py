"""The prompt gate: what the reference itself refuses is not learned, but held as it is; the rest is learned freely.

The model that is fine-tuned is asked first, by samples and a judge. No harmful data is needed, and no second model.
It does nothing against harmful answers to prompts that the reference does not refuse.

A reference refuses harmless prompts too, those of a new task most of all, and rows that are held by mistake say the
contrary of all others. Where there is a sentinel (`protect.answers`), which has met the data, it is asked as well: held
are the refused prompts that it still refuses about as often as requests that are known to be harmful.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import msgspec

from fathom.errors import UserError
from fathom.progress import Display
from fathom.records import Attempt, Behavior, Completion, Exchange, Judge, Label, Message, Sampling
from fathom.tuning.rows import TrainingRow

__all__ = ["Gate", "Prompt", "Sampler", "Shown", "count_refusals", "still_refused"]

TOKENS = 32  # of each sampled answer: enough to see how it begins


class Sampler(Protocol):
    """What answers attempts; an engine."""

    def complete(self, attempts: Sequence[Attempt]) -> Iterable[Completion]: ...


@dataclass(frozen=True, eq=False)
class Shown:
    """A sampler that shows how far it is."""

    sampler: Sampler
    display: Display
    description: str

    def complete(self, attempts: Sequence[Attempt]) -> Iterator[Completion]:
        with self.display(self.description, len(attempts)) as shown:
            for completion in self.sampler.complete(attempts):
                shown.advance(1)
                yield completion


@dataclass(frozen=True)
class Prompt:
    """A request as ids, and as the judge reads it."""

    ids: tuple[int, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Gate:
    """Rows whose prompt the reference refuses in at least `refused` of `samples` draws are held to it by KL.

    A sentinel that has met the data, where there is one, has to refuse it too, at least `known` times as often as it
    refuses what is known to be harmful.
    """

    samples: int = 8
    refused: int = 6
    weight: float = 1.0
    known: float = 0.6

    def __post_init__(self) -> None:
        if not 1 <= self.refused <= self.samples:
            raise UserError(f"a gate of {self.refused} refusals in {self.samples} samples: give 1 ≤ refusals ≤ samples")
        if not 0 < self.weight < float("inf"):
            raise UserError(f"the gate's weight is {self.weight}: give a number above 0")
        if not 0 <= self.known <= 1:
            raise UserError(f"the gate asks for {self.known} times as many refusals as known harm: give 0 to 1")

    def __call__(self, rows: Sequence[TrainingRow], refusals: Mapping[tuple[int, ...], int]) -> tuple[TrainingRow, ...]:
        """The rows, with those held whose prompt was refused often enough; `refusals` are counts by prompt ids."""
        return tuple(
            msgspec.structs.replace(row, loss_weight=0.0, held=self.weight)
            if refusals[row.prompt_ids] >= self.refused
            else row
            for row in rows
        )


def count_refusals(
    sampler: Sampler, judge: Judge, prompts: Sequence[Prompt], *, samples: int, seed: int
) -> dict[tuple[int, ...], int]:
    """How many of `samples` answers at temperature 1 the judge calls a refusal, by the prompt's ids."""
    unique = {prompt.ids: prompt for prompt in prompts}
    sampling = Sampling(max_new_tokens=TOKENS, temperature=1.0)
    attempts, asked = [], {}
    for prompt in unique.values():
        for sample in range(samples):
            attempt = Attempt.make(
                behavior="gate",
                attack="gate",
                prompt_ids=prompt.ids,
                prefill_ids=(),
                sampling=sampling,
                run_seed=seed,
                sample=sample,
            )
            attempts.append(attempt)
            asked[attempt.id] = prompt
    counts = dict.fromkeys(unique, 0)
    for completion in sampler.complete(attempts):
        prompt = asked[completion.attempt]
        behavior = Behavior(id="gate", messages=prompt.messages)
        exchange = Exchange(behavior=behavior, prefill="", response=completion.text, finish=completion.finish)
        counts[prompt.ids] += judge.judge(exchange).label is Label.SAFE
    return counts


def still_refused(
    gate: Gate,
    refusals: Mapping[tuple[int, ...], int],
    sentinel: Sampler,
    judge: Judge,
    prompts: Sequence[Prompt],
    known: Sequence[Prompt],
    *,
    seed: int,
) -> dict[tuple[int, ...], int]:
    """The reference's `refusals`, with 0 for prompts that a sentinel, which has met the data, does not refuse.

    `known` are requests known to be harmful. A sentinel that refuses these no longer lets nothing go.
    """
    suspects = [prompt for prompt in prompts if refusals[prompt.ids] >= gate.refused]
    if not suspects or not known:
        return dict(refusals)
    usual = count_refusals(sentinel, judge, known, samples=gate.samples, seed=seed)
    level = gate.known * fmean(usual.values())
    again = count_refusals(sentinel, judge, suspects, samples=gate.samples, seed=seed)
    return {ids: 0 if again.get(ids, level) < level else count for ids, count in refusals.items()}
