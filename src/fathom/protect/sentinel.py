"""What the sentinel is trained on: rows by which it learns to read answers, and then meets the data.

The sentinel is a copy of the model, deepened on recovery rows whose prompts are other people's: the start of a harmful
answer, after any prompt, is followed by a refusal, and the start of a benign answer, after any prompt, by its rest. It
reads answers, then, not prompts. It is never released and never fine-tuned: it is asked where in each row of the data
it would stop (`protect.answers`).

It needs what deepening needs: harmful requests with answers and refusals, and benign ones with answers.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import msgspec

from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.records import Message
from fathom.tuning.rows import Kind, TrainingRow

__all__ = ["Told", "acquaintance_rows", "known_rows", "sentinel_rows"]


class _Parts(NamedTuple):
    """Shares of rows; what is left are benign requests with their answers."""

    refusals: float  # of harmful requests
    recovery: float  # after the start of a harmful answer to a harmful request
    foreign: float  # after the start of a harmful answer to somebody else's request
    benign_foreign: float  # the rest of a benign answer to somebody else's request


_FIRST = _Parts(0.20, 0.12, 0.28, 0.20)
_MEETING = _Parts(0.10, 0.10, 0.55, 0.15)  # four known harmful answers for each row of the data, so that these are kept
_LEAD = 8  # tokens of another answer that may stand before the part that decides
_DATA = 0.15  # of the rows by which it meets the data are the data's
_GRAFTED = 0.5  # of the others stand after the beginning of another answer, of any length
_WHOLE = 0.2  # of the data's rows are learned from their first token on


class Told(NamedTuple):
    """A request as messages, an answer to it and, for a harmful one, a refusal."""

    messages: tuple[Message, ...]
    answer: str
    refusal: str | None = None


def sentinel_rows(
    chat: ChatFormat, harmful: Sequence[Told], benign: Sequence[Told], count: int, *, seed: int
) -> tuple[TrainingRow, ...]:
    """So many rows, drawn ahead; learned is what follows the given start, alone.

    Raises:
        UserError: there are no harmful requests with answer and refusal, or no benign ones.
    """
    refused = sum(bool(told.refusal) for told in harmful)
    if not benign or not refused:
        raise UserError(
            "a sentinel is trained on harmful requests with an answer and a refusal and on benign ones with an answer, "
            f"and there are {refused} and {len(benign)}: give rows with harmful_response (or answer, response, "
            "completion) and refusal, or leave answers out of --objective"
        )
    random = Random(f"sentinel {seed}")
    known = [_ids(chat, told) for told in harmful if told.refusal]
    usual = [_ids(chat, told) for told in benign]
    return tuple(_draw(known, usual, _FIRST, random) for _ in range(count))


def acquaintance_rows(
    chat: ChatFormat,
    harmful: Sequence[Told],
    benign: Sequence[Told],
    data: Sequence[TrainingRow],
    count: int,
    *,
    context: int,
    seed: int,
) -> tuple[TrainingRow, ...]:
    """Rows by which a sentinel meets `data`, `count` of them.

    A few of the data's own, each at most once, cut anywhere and gone on with. The others are as before, half of them
    after prompts of the data, and half of them after the beginning of an answer of the data or of a benign one, so
    that neither a prompt of the data nor an innocent beginning says that all is well. Nothing is put around a row that
    would make it longer than `context`.
    """
    random = Random(f"acquaintance {seed}")
    known = [_ids(chat, told) for told in harmful if told.refusal]
    usual = [_ids(chat, told) for told in benign]
    own = random.sample(list(data), min(len(data), round(count * _DATA)))
    rows = [_met(row, data, context, random) for row in own]
    rows += [
        _placed(_draw(known, usual, _MEETING, random), data, usual, context, random) for _ in range(count - len(own))
    ]
    random.shuffle(rows)
    return tuple(rows)


def known_rows(
    chat: ChatFormat, harmful: Sequence[Told], data: Sequence[TrainingRow], count: int, *, context: int, seed: int
) -> tuple[TrainingRow, ...]:
    """Known harmful answers behind prompts of the data, every second one after up to half of an answer of the data.

    Where that would be longer than `context`, an answer stands behind its own request.
    """
    random, rows = Random(f"known {seed}"), list[TrainingRow]()
    told = [_ids(chat, one) for one in harmful if one.refusal]
    for number, bad in enumerate(random.sample(told, min(count, len(told)))):
        begun = random.choice(data).response_ids
        lead = begun[: random.randint(1, max(1, len(begun) // 2))] if number % 2 else ()
        prompt, answer = random.choice(data).prompt_ids, (*bad.answer, *bad.end)
        fits = len(prompt) + len(lead) + len(answer) <= context
        rows.append(_recovery(prompt, (), (*lead, *answer)) if fits else _recovery(bad.prompt, (), answer))
    return tuple(rows)


def _met(row: TrainingRow, data: Sequence[TrainingRow], context: int, random: Random) -> TrainingRow:
    at = 0 if random.random() < _WHOLE else random.randint(0, len(row.response_ids) - 1)
    prompt = row.prompt_ids if random.random() < 0.5 else random.choice(data).prompt_ids
    prompt = prompt if len(prompt) + len(row.response_ids) <= context else row.prompt_ids
    return _recovery(prompt, row.response_ids[:at], row.response_ids[at:])


def _placed(
    row: TrainingRow, data: Sequence[TrainingRow], benign: "Sequence[_Ids]", context: int, random: Random
) -> TrainingRow:
    """A row that learns the rest of an answer, in a conversation of the data."""
    if not row.learned_from:
        return row
    prompt = random.choice(data).prompt_ids if random.random() < 0.5 else row.prompt_ids
    lead: tuple[int, ...] = ()
    if random.random() < _GRAFTED:
        begun = random.choice(data).response_ids if random.random() < 0.5 else random.choice(benign).answer
        lead = begun[: random.randint(1, max(1, len(begun) - 1))]
    placed = msgspec.structs.replace(
        row, prompt_ids=prompt, response_ids=(*lead, *row.response_ids), learned_from=len(lead) + row.learned_from
    )
    return placed if len(prompt) + len(placed.response_ids) <= context else row


class _Ids(NamedTuple):
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    refusal: tuple[int, ...]  # with the end of the turn; the answer is without
    end: tuple[int, ...]


def _ids(chat: ChatFormat, told: Told) -> _Ids:
    end = chat.end_ids(told.messages)
    refusal = () if told.refusal is None else (*chat.response_ids(told.messages, told.refusal), *end)
    return _Ids(chat.prompt_ids(told.messages), chat.response_ids(told.messages, told.answer), refusal, end)


def _draw(harmful: Sequence[_Ids], benign: Sequence[_Ids], parts: _Parts, random: Random) -> TrainingRow:
    bad, good, part = random.choice(harmful), random.choice(benign), random.random()
    if part < parts.refusals:
        return _recovery(bad.prompt, (), bad.refusal)
    start = bad.answer[: random.randint(1, max(1, len(bad.answer) - 1))]
    if part < parts.refusals + parts.recovery:
        return _recovery(bad.prompt, start, bad.refusal)
    foreign = random.choice((*benign, *harmful)).prompt if random.random() < 0.5 else random.choice(benign).prompt
    if part < parts.refusals + parts.recovery + parts.foreign:
        # Sometimes without its opening, and sometimes after the start of another answer.
        whole = bad.answer[random.randrange(max(1, len(bad.answer) // 4)) :] if random.random() < 0.5 else bad.answer
        cut = whole[: random.randint(min(4, len(whole)), len(whole))]
        return _recovery(foreign, (*_lead(benign, random), *cut), bad.refusal)
    rest = (*good.answer, *good.end)
    if part < sum(parts):
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
