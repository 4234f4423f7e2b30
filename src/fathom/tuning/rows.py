"""What is learned from: rows of exact ids with a known response boundary, made and hashed before training begins.

No randomness is left for a loss or a collator: what a row holds is learned, in every epoch and on every process.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.journal import read_journal, write_whole
from fathom.records import Message, content_hash, encode_line, is_made_id

__all__ = ["FittedRows", "Kind", "TrainingRow", "fit_length", "make_row", "read_rows", "rows_hash", "write_rows"]

IGNORED = -100


class Kind(StrEnum):
    """Where a row comes from."""

    TASK = "task"  # the user's data
    RECOVERY = "recovery"  # a harmful prompt, the start of a harmful answer, and a refusal
    UTILITY = "utility"  # a benign prompt and the model's own answer
    REPLAY = "replay"  # a harmful prompt and the reference's own refusal of it


class TrainingRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One conversation as ids. Response tokens before `learned_from` are given; the others are learned.

    `loss_weight` multiplies the row's loss. `held` is the weight with which the row's learned positions are held to the
    reference by KL; a row with `loss_weight` 0 and `held` 1 teaches nothing new.

    The reference is asked what it says after the row's own prompt, or after `reference_prompt_ids` where there are
    some: so a model is held to what it said without the words that were put around a request. Below 1,
    `reference_temperature` sharpens what a row is held to.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    learned_from: int = 0
    loss_weight: float = 1.0
    held: float = 0.0
    kind: Kind = Kind.TASK
    source: str = ""  # the example that it was made of: an id, or a line of a file
    reference_prompt_ids: tuple[int, ...] = ()
    reference_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("prompt_ids is empty; the first response token would be predicted from nothing")
        if not 0 <= self.learned_from < len(self.response_ids):
            raise ValueError(
                f"learned_from is {self.learned_from} of {len(self.response_ids)} response tokens; nothing is learned"
            )
        if not 0 < self.reference_temperature < float("inf"):
            raise ValueError(f"reference_temperature is {self.reference_temperature}; it must be above 0")

    @property
    def input_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.response_ids]

    @property
    def labels(self) -> list[int]:
        """The ids that are learned, -100 elsewhere; `labels[t]` is predicted from `input_ids[:t]`."""
        given = len(self.prompt_ids) + self.learned_from
        return [IGNORED] * given + list(self.response_ids[self.learned_from :])

    @property
    def positions(self) -> list[int]:
        """The response positions that are learned, counted from 1 (the paper's t)."""
        return list(range(self.learned_from + 1, len(self.response_ids) + 1))


def make_row(
    chat: ChatFormat, messages: Sequence[Message], response: str, *, kind: Kind = Kind.TASK, source: str = ""
) -> TrainingRow:
    """A conversation whose response is learned in full, the end of the turn included.

    Raises:
        UserError: the template refuses the messages.
    """
    return TrainingRow(
        prompt_ids=chat.prompt_ids(messages),
        response_ids=(*chat.response_ids(messages, response), *chat.end_ids(messages)),
        kind=kind,
        source=source,
    )


class FittedRows(NamedTuple):
    """Rows that fit, and how many of them were cut."""

    rows: tuple[TrainingRow, ...]
    cut: int


def fit_length(
    rows: Iterable[TrainingRow],
    *,
    context: int | None,
    max_length: int | None,
    chat: ChatFormat | None = None,
) -> FittedRows:
    """Cut rows at their end to `max_length` tokens; without it, rows must fit into the model's context.

    Cut before anything is annotated: a column made for a longer row would not belong to it. With `chat`, errors name a
    row by its prompt where its source would not be found in any file.

    Raises:
        UserError: a row is longer than the context, or nothing of it that is learned would be left.
    """
    if max_length is not None and context is not None and max_length > context:
        raise UserError(f"max_length is {max_length}, but the model's context is {context} tokens: give at most that")
    kept, cut = [], 0
    for row in rows:
        length = len(row.prompt_ids) + len(row.response_ids)
        if max_length is not None and length > max_length:
            keep = max_length - len(row.prompt_ids)
            if keep <= row.learned_from:
                raise UserError(
                    f"{_named(row, chat)} has {len(row.prompt_ids) + row.learned_from} tokens before the first one "
                    f"that is learned, and max_length is {max_length}: raise it, or leave the row out"
                )
            row, cut = msgspec.structs.replace(row, response_ids=row.response_ids[:keep]), cut + 1
        elif context is not None and length > context:
            raise UserError(
                f"{_named(row, chat)} has {length} tokens, and the model's context is {context}: leave the row out, or "
                f"cut long rows with --set max_length={context}"
            )
        kept.append(row)
    return FittedRows(tuple(kept), cut)


def _named(row: TrainingRow, chat: ChatFormat | None) -> str:
    if chat is not None and (not row.source or is_made_id(row.source)):
        return f"the {row.kind} row with the prompt {chat.excerpt(row.prompt_ids)}"
    return f"the {row.kind} row made of {row.source}" if row.source else f"a {row.kind} row"


def rows_hash(rows: Sequence[TrainingRow]) -> str:
    """A hash of what is learned, in its order."""
    return content_hash(tuple(rows))


def write_rows(path: Path, rows: Sequence[TrainingRow]) -> None:
    """One row a line, wholly or not at all."""
    write_whole(path, b"".join(encode_line(row) for row in rows))


def read_rows(path: Path) -> tuple[TrainingRow, ...]:
    """The rows of a file that `write_rows` wrote."""
    return tuple(read_journal(path, TrainingRow))
