"""Recovery rows: a harmful prompt, the beginning of a harmful answer, and the refusal that is learned after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from fathom.chat import ChatFormat
from fathom.deepen.starts import Lengths, Start, StartSampler
from fathom.deepen.triplets import Triplet
from fathom.errors import UserError
from fathom.records import spoken_name
from fathom.tuning.rows import Kind, TrainingRow

__all__ = ["EncodedTriplet", "encode_triplets", "recovery_row", "recovery_rows"]


@dataclass(frozen=True)
class EncodedTriplet:
    """A triplet in one model's ids. `refusal_ids` is the refusal at the start of a response, without the end."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    refusal_ids: tuple[int, ...]
    later_refusals: tuple[tuple[int, ...], ...]  # how it may be written after other text: after a space, or not
    end_ids: tuple[int, ...]
    source: str


def encode_triplets(chat: ChatFormat, triplets: Sequence[Triplet]) -> tuple[EncodedTriplet, ...]:
    """The ids of each triplet.

    Raises:
        UserError: an answer or a refusal has no token.
    """
    found = []
    for triplet in triplets:
        answer = chat.response_ids(triplet.messages, triplet.answer)
        refusal = chat.response_ids(triplet.messages, triplet.refusal)
        if not answer or not refusal:
            raise UserError(
                f"the triplet {spoken_name(triplet.source, triplet.messages)} has an answer or a refusal without a "
                "single token: take it out"
            )
        spaced, plain = chat.tokenise(f" {triplet.refusal}"), chat.tokenise(triplet.refusal)
        found.append(
            EncodedTriplet(
                prompt_ids=chat.prompt_ids(triplet.messages),
                answer_ids=answer,
                refusal_ids=refusal,
                later_refusals=tuple(dict.fromkeys((spaced, plain, refusal))),
                end_ids=chat.end_ids(triplet.messages),
                source=triplet.source,
            )
        )
    return tuple(found)


def recovery_row(chat: ChatFormat, triplet: EncodedTriplet, start: Start) -> TrainingRow:
    """prompt + what the start gives + refusal + end of turn, with loss on the refusal and the end alone.

    With an empty start it is the plain refusal. Where text precedes it, the refusal is written so that it reads as a
    sentence of its own: after one space, unless white space is there already.
    """
    given = (
        *triplet.refusal_ids[: start.refusal],
        *triplet.answer_ids[start.skip : start.skip + start.answer],
    )
    refusal = triplet.refusal_ids if not given else _after(chat, given, triplet.later_refusals)
    return TrainingRow(
        prompt_ids=triplet.prompt_ids,
        response_ids=(*given, *refusal, *triplet.end_ids),
        learned_from=len(given),
        kind=Kind.RECOVERY,
        source=triplet.source,
    )


def _after(chat: ChatFormat, given: tuple[int, ...], ways: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    before = chat.decode(given)
    wanted = "" if before[-1:].isspace() else " "
    for ids in ways:
        text = chat.decode((*given, *ids))
        after = text[len(before) :]
        if text.startswith(before) and after == wanted + after.lstrip():
            return ids
    return ways[0]


def recovery_rows(
    chat: ChatFormat, triplets: Sequence[EncodedTriplet], sampler: StartSampler, count: int, *, seed: int
) -> tuple[TrainingRow, ...]:
    """`count` rows: the triplets in a new random order in every round, each with a start drawn anew.

    Raises:
        UserError: the sampler cannot draw a start for a triplet.
    """
    random = Random(f"recovery {seed}")
    rows: list[TrainingRow] = []
    visit = 0
    while len(rows) < count:
        for triplet in random.sample(triplets, len(triplets))[: count - len(rows)]:
            lengths = Lengths(len(triplet.answer_ids), len(triplet.refusal_ids))
            rows.append(recovery_row(chat, triplet, sampler(lengths, visit, random)))
        visit += 1
    return tuple(rows)
