"""Rehearsal: while it learns, the model repeats what the reference said, to requests that it refused and to others.

Refusals are held to the reference *sharpened*, so that what it refused with nine chances in ten is refused more surely;
some of them wear the words that the data puts around its own prompts, and are held to what the reference said without
these. Answers to benign requests are held as they were, so that refusing does not spread. All by KL: at the reference
there is no gradient, and none of the noise of repeating samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from fathom.errors import UserError
from fathom.protect.frames import SharedFrames, shared_frames
from fathom.protect.gate import Prompt, Sampler
from fathom.protect.replay import spread
from fathom.records import Attempt, Behavior, Completion, Exchange, Finish, Judge, Label, Sampling
from fathom.tuning.rows import Kind, TrainingRow

__all__ = ["Rehearsal", "is_refusal", "rehearse", "sampled"]


@dataclass(frozen=True)
class Rehearsal:
    """How much is rehearsed, and how strongly.

    For every `every` rows of data there are one refusal and `benign` answers. All refusals together weigh
    `refusal_weight` times what the data weighs, all answers `benign_weight` times. `framed` is the share of refusals
    that wear a frame of the data, where it has one. Where gates have read the data and hold none of it, refusals weigh
    `unsuspected` times as much: what is left to guard against is erosion, and refusals cost a task. Between none and a
    share of `suspected` that is held the weight grows evenly.
    """

    refusal_weight: float = 0.5
    benign_weight: float = 1.0
    every: int = 8
    benign: int = 4
    temperature: float = 0.5
    framed: float = 0.6
    unsuspected: float = 0.3
    suspected: float = 0.1
    tokens: int = 160  # of an answer, at most

    def __post_init__(self) -> None:
        if not (self.refusal_weight > 0 and self.benign_weight >= 0 and 0 < self.temperature <= 1):
            raise UserError("rehearsal needs a refusal weight above 0, a benign one of 0 or more, 0 < temperature ≤ 1")
        if self.every < 1 or self.benign < 0 or not 0 <= self.framed <= 1 or self.tokens < 1:
            raise UserError("rehearsal needs every ≥ 1, benign ≥ 0, 0 ≤ framed ≤ 1 and tokens ≥ 1")
        if not (0 < self.unsuspected <= 1 and 0 < self.suspected <= 1):
            raise UserError("rehearsal needs 0 < unsuspected ≤ 1 and 0 < suspected ≤ 1")

    def suspicion(self, held: float) -> float:
        """From 0, where gates hold nothing, to 1, where they hold a share `held` that says what the data is."""
        return min(1.0, held / self.suspected)

    def refusals_weigh(self, held: float) -> float:
        """All refusals together, of what the data weighs, where gates hold a share `held` of the data."""
        return self.refusal_weight * (self.unsuspected + (1 - self.unsuspected) * self.suspicion(held))


def rehearse(
    rehearsal: Rehearsal,
    rows: Sequence[TrainingRow],
    sampler: Sampler,
    judge: Judge,
    harmful: Sequence[Prompt],
    benign: Sequence[Prompt],
    end_ids: tuple[int, ...],
    *,
    seed: int,
    held: float = 1.0,
) -> tuple[TrainingRow, ...]:
    """The rows, with rehearsed ones among them at equal distances; the reference is what `sampler` samples.

    `held` is the share of the rows that gates hold, 1 where none have read them.

    Raises:
        UserError: the reference refuses none of the harmful prompts.
    """
    random = Random(f"rehearsal {seed}")
    refused = [
        (prompt, done)
        for prompt, done in sampled(sampler, harmful, rehearsal.tokens, seed)
        if is_refusal(judge, prompt, done)
    ]
    if not refused:
        raise UserError(
            "rehearsal found no refusal to repeat: the reference refuses none of the harmful prompts; give others with "
            "--harmful FILE, or leave rehearse out of --objective"
        )
    wanted = max(1, round(len(rows) / rehearsal.every))
    frames = shared_frames([row.prompt_ids for row in rows], [prompt.ids for prompt in harmful])
    refusals = [_refusal(rehearsal, *one, frames, end_ids, random) for one in _in_turn(refused, wanted, random)]
    told = [(prompt, done) for prompt, done in sampled(sampler, benign, rehearsal.tokens, seed) if done.output_ids]
    answers = [_held(*one, end_ids) for one in _in_turn(told, wanted * rehearsal.benign, random)]
    mass = sum(len(row.positions) for row in rows)
    heavy, light = rehearsal.refusals_weigh(held) * mass, rehearsal.benign_weight * mass
    rehearsed = _weighed(refusals, heavy) + _weighed(answers, light)
    random.shuffle(rehearsed)
    return spread(rows, rehearsed)


Told = tuple[Prompt, Completion]


def _in_turn(pool: Sequence[Told], count: int, random: Random) -> list[Told]:
    """So many of a pool in random order; none comes a second time before each has come once."""
    found = list[Told]()
    while pool and len(found) < count:
        found += random.sample(pool, len(pool))
    return found[:count]


def sampled(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    tokens: int,
    seed: int,
    *,
    behavior: str = "own",
    attack: str = "rehearsal",
) -> list[tuple[Prompt, Completion]]:
    """One answer to each prompt at T = 1, of so many tokens at most; other names draw others."""
    attempts = [
        Attempt.make(
            behavior=behavior,
            attack=attack,
            prompt_ids=prompt.ids,
            prefill_ids=(),
            sampling=Sampling(max_new_tokens=tokens, temperature=1.0),
            run_seed=seed,
            sample=number,
        )
        for number, prompt in enumerate(prompts)
    ]
    done = {completion.attempt: completion for completion in sampler.complete(attempts)}
    return [(prompt, done[attempt.id]) for prompt, attempt in zip(prompts, attempts, strict=True)]


def is_refusal(judge: Judge, prompt: Prompt, completion: Completion) -> bool:
    """Whether the judge reads a refusal; an empty answer is none."""
    behavior = Behavior(id="own", messages=prompt.messages)
    exchange = Exchange(behavior=behavior, prefill="", response=completion.text, finish=completion.finish)
    return bool(completion.output_ids) and judge.judge(exchange).label is Label.SAFE


def _held(prompt: Prompt, completion: Completion, end_ids: tuple[int, ...]) -> TrainingRow:
    ending = end_ids if completion.finish is Finish.STOP else ()
    return TrainingRow(
        prompt_ids=prompt.ids,
        response_ids=(*completion.output_ids, *ending),
        loss_weight=0.0,
        held=1.0,
        kind=Kind.REPLAY,
        source=completion.attempt,
    )


def _refusal(
    rehearsal: Rehearsal,
    prompt: Prompt,
    completion: Completion,
    frames: SharedFrames,
    end_ids: tuple[int, ...],
    random: Random,
) -> TrainingRow:
    row = msgspec.structs.replace(_held(prompt, completion, end_ids), reference_temperature=rehearsal.temperature)
    if not frames.pairs or random.random() >= rehearsal.framed:
        return row
    framed = frames.around(prompt.ids, random.choice(frames.pairs))
    return msgspec.structs.replace(row, prompt_ids=framed, reference_prompt_ids=prompt.ids)


def _weighed(rows: Sequence[TrainingRow], mass: float) -> list[TrainingRow]:
    """Held so strongly that all of them weigh `mass` tokens."""
    tokens = sum(len(row.positions) for row in rows)
    return [msgspec.structs.replace(row, held=mass / tokens) for row in rows] if mass > 0 and tokens else []
