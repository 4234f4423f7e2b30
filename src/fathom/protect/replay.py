"""Replay: while it learns, the model repeats what the reference says to prompts that the reference refuses.

The rows are the reference's own sampled refusals, held to it by KL; some of them begin in the middle of an answer, so
that refusals later than the first token are repeated, too. The beginnings are the reference's own answers to benign
prompts: no harmful text is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from fathom.errors import UserError
from fathom.protect.gate import Prompt, Sampler
from fathom.records import Attempt, Behavior, Completion, Exchange, Finish, Judge, Label, Sampling
from fathom.tuning.rows import Kind, TrainingRow

__all__ = ["Replay", "interleave", "replay_rows", "spread"]


@dataclass(frozen=True)
class Replay:
    """`share` of all rows repeat the reference's refusals; `deep` of those begin after up to `longest` answer tokens.

    `weight` is the weight of their KL. A prompt that the reference does not refuse gives no row.
    """

    share: float = 0.125
    weight: float = 1.0
    deep: float = 0.5
    longest: int = 20
    tokens: int = 64  # of a refusal, at most

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"the share of replayed rows is {self.share}: give a number between 0 and 1")
        if not 0 <= self.deep <= 1 or self.longest < 1 or not self.weight > 0 or self.tokens < 1:
            raise UserError("replay needs 0 ≤ deep ≤ 1, longest ≥ 1, tokens ≥ 1 and a weight above 0")


def replay_rows(
    replay: Replay,
    sampler: Sampler,
    judge: Judge,
    prompts: Sequence[Prompt],
    answers: Sequence[tuple[int, ...]],
    end_ids: tuple[int, ...],
    *,
    seed: int,
) -> tuple[TrainingRow, ...]:
    """One row for each prompt that the reference refuses, in the prompts' order.

    `answers` are ids of the reference's own answers to benign prompts; without any, every row begins at the start.
    """
    random = Random(f"replay {seed}")
    attempts = [
        Attempt.make(
            behavior="replay",
            attack="replay",
            prompt_ids=prompt.ids,
            prefill_ids=_beginning(replay, answers, random),
            sampling=Sampling(max_new_tokens=replay.tokens, temperature=1.0),
            run_seed=seed,
            sample=number,
        )
        for number, prompt in enumerate(prompts)
    ]
    done = {completion.attempt: completion for completion in sampler.complete(attempts)}
    return tuple(
        _row(replay, attempt, done[attempt.id], end_ids)
        for prompt, attempt in zip(prompts, attempts, strict=True)
        if _is_refusal(judge, prompt, done[attempt.id])
    )


def _beginning(replay: Replay, answers: Sequence[tuple[int, ...]], random: Random) -> tuple[int, ...]:
    """What a refusal is to follow: nothing, or the first tokens of one of the answers."""
    if not answers or random.random() >= replay.deep:
        return ()
    answer = random.choice(answers)
    return answer[: random.randint(1, min(replay.longest, len(answer)))]


def _is_refusal(judge: Judge, prompt: Prompt, completion: Completion) -> bool:
    behavior = Behavior(id="replay", messages=prompt.messages)
    exchange = Exchange(behavior=behavior, prefill=completion.prefill_text, response=completion.text)
    return judge.judge(exchange).label is Label.SAFE and bool(completion.output_ids)


def _row(replay: Replay, attempt: Attempt, completion: Completion, end_ids: tuple[int, ...]) -> TrainingRow:
    ending = end_ids if completion.finish is Finish.STOP else ()
    return TrainingRow(
        prompt_ids=attempt.prompt_ids,
        response_ids=(*attempt.prefill_ids, *completion.output_ids, *ending),
        learned_from=len(attempt.prefill_ids),
        loss_weight=0.0,
        held=replay.weight,
        kind=Kind.REPLAY,
        source=attempt.id,
    )


def interleave(replay: Replay, rows: Sequence[TrainingRow], replayed: Sequence[TrainingRow]) -> tuple[TrainingRow, ...]:
    """The rows and, after every few of them, one that is replayed, so that those make up `share` of all.

    Raises:
        UserError: there is nothing to replay.
    """
    if not replayed:
        raise UserError(
            "replay found no refusal to repeat: the reference refuses none of the harmful prompts; give others with "
            "--harmful FILE, or leave replay out of --objective"
        )
    wanted = max(1, round(len(rows) * replay.share / (1 - replay.share)))
    return spread(rows, [replayed[number % len(replayed)] for number in range(wanted)])


def spread(rows: Sequence[TrainingRow], others: Sequence[TrainingRow]) -> tuple[TrainingRow, ...]:
    """The rows in their order with the others, in theirs, evenly among them; the last one of them comes last."""
    found, used = list[TrainingRow](), 0
    for number, row in enumerate(rows, start=1):
        found.append(row)
        upto = number * len(others) // len(rows)
        found += others[used:upto]
        used = upto
    return tuple(found)
