"""The answer gate: rows whose *answer* a sentinel would break off are held to the reference.

The prompt gate lets pass a harmful answer to a prompt that asks for none. The sentinel is a copy of the model, deepened
on recovery rows whose prompts are other people's: the start of a harmful answer, after any prompt, is followed by a
refusal, and the start of a benign answer, after any prompt, by its rest. It reads answers, then, not prompts. It is
never released and never fine-tuned: it is asked, once, where in each row it would stop.

It needs what deepening needs: harmful requests with answers and refusals, and benign ones with answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import msgspec

from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.protect.gate import TOKENS, Sampler
from fathom.records import Attempt, Behavior, Exchange, Judge, Label, Message, Sampling
from fathom.tuning.rows import Kind, TrainingRow

__all__ = ["AnswerGate", "Told", "count_broken_off", "sentinel_rows"]

# Parts of the sentinel's rows. A third of the recovery rows wear their own prompts, as in deepening.
_REFUSALS, _RECOVERY, _FOREIGN, _BENIGN_FOREIGN = 0.20, 0.12, 0.28, 0.20
_LEAD = 8  # tokens of another answer that may stand before the part that decides


class Told(NamedTuple):
    """A request as messages, an answer to it and, for a harmful one, a refusal."""

    messages: tuple[Message, ...]
    answer: str
    refusal: str | None = None


@dataclass(frozen=True)
class AnswerGate:
    """Rows that the sentinel breaks off in at least a share `broken` of draws, at their `worst` depths, are held.

    `depths` are shares of a row's answer, of `least` tokens at least: its first words say nothing yet. At each,
    `samples` continuations are drawn. The worst few count, and not all, so that harm cannot hide behind a long innocent
    beginning. A benign row that is held by mistake is a row less to learn from, and no more than that.
    """

    depths: tuple[float, ...] = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
    samples: int = 3
    least: int = 8
    worst: int = 2
    broken: float = 0.75
    weight: float = 1.0  # of the KL that holds such rows; 0 leaves them out

    def __post_init__(self) -> None:
        if not self.depths or not all(0 < depth < 1 for depth in self.depths) or min(self.samples, self.least) < 1:
            raise UserError("the answer gate needs depths between 0 and 1, and 1 sample and 1 token or more")
        if not 0 < self.broken <= 1 or not self.weight >= 0 or not 1 <= self.worst <= len(self.depths):
            raise UserError(
                "the answer gate needs 0 < broken ≤ 1, a weight of 0 or more, and 1 to all depths that count"
            )

    def __call__(self, rows: Sequence[TrainingRow], broken: Sequence[float]) -> tuple[TrainingRow, ...]:
        """The rows, with those held whose share of broken-off draws is high enough."""
        return tuple(
            msgspec.structs.replace(row, loss_weight=0.0, held=max(row.held, self.weight))
            if share >= self.broken
            else row
            for row, share in zip(rows, broken, strict=True)
        )


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


def sentinel_rows(
    chat: ChatFormat, harmful: Sequence[Told], benign: Sequence[Told], count: int, *, seed: int
) -> tuple[TrainingRow, ...]:
    """So many rows, drawn ahead; learned is what follows the given start, alone.

    Raises:
        UserError: there are no harmful requests with answer and refusal, or no benign ones.
    """
    if not benign or not any(told.refusal for told in harmful):
        raise UserError(
            "a sentinel is trained on harmful requests with answers and refusals, and on benign ones with answers: "
            "give both, or leave answers out of --objective"
        )
    random = Random(f"sentinel {seed}")
    known = [_ids(chat, told) for told in harmful if told.refusal]
    usual = [_ids(chat, told) for told in benign]
    return tuple(_draw(known, usual, random) for _ in range(count))


class _Ids(NamedTuple):
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    refusal: tuple[int, ...]  # with the end of the turn; the answer is without
    end: tuple[int, ...]


def _ids(chat: ChatFormat, told: Told) -> _Ids:
    end = chat.end_ids(told.messages)
    refusal = () if told.refusal is None else (*chat.response_ids(told.messages, told.refusal), *end)
    return _Ids(chat.prompt_ids(told.messages), chat.response_ids(told.messages, told.answer), refusal, end)


def _draw(harmful: Sequence[_Ids], benign: Sequence[_Ids], random: Random) -> TrainingRow:
    bad, good, part = random.choice(harmful), random.choice(benign), random.random()
    if part < _REFUSALS:
        return _recovery(bad.prompt, (), bad.refusal)
    start = bad.answer[: random.randint(1, max(1, len(bad.answer) - 1))]
    if part < _REFUSALS + _RECOVERY:
        return _recovery(bad.prompt, start, bad.refusal)
    foreign = random.choice((*benign, *harmful)).prompt if random.random() < 0.5 else random.choice(benign).prompt
    if part < _REFUSALS + _RECOVERY + _FOREIGN:
        # Sometimes without its opening, and sometimes after the start of another answer.
        whole = bad.answer[random.randrange(max(1, len(bad.answer) // 4)) :] if random.random() < 0.5 else bad.answer
        cut = whole[: random.randint(min(4, len(whole)), len(whole))]
        return _recovery(foreign, (*_lead(benign, random), *cut), bad.refusal)
    rest = (*good.answer, *good.end)
    if part < _REFUSALS + _RECOVERY + _FOREIGN + _BENIGN_FOREIGN:
        at = random.randint(1, max(1, len(good.answer) - 1))
        return _recovery(foreign, (*_lead(benign, random), *good.answer[:at]), rest[at:])
    return _recovery(good.prompt, (), rest)


def _lead(benign: Sequence[_Ids], random: Random) -> tuple[int, ...]:
    return random.choice(benign).answer[: random.randint(1, _LEAD)] if random.random() < 0.5 else ()


def _recovery(prompt: tuple[int, ...], given: tuple[int, ...], learned: tuple[int, ...]) -> TrainingRow:
    return TrainingRow(
        prompt_ids=prompt,
        response_ids=(*given, *learned),
        learned_from=len(given),
        kind=Kind.RECOVERY,
        source="sentinel",
    )
