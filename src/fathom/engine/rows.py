"""Rows of a running batch, and how attempts that share ids are grouped so that a prompt is computed once.

A prefilling sweep asks for the same prompt with 0, 1, 2, … tokens of the same answer in front: every input is a prefix
of the longest one. Such inputs form a `Group` around that longest input, its `trunk`; whatever runs the group needs the
trunk once, and every row continues from somewhere along it. An insertion puts a few tokens of its own behind such a
prefix: it leaves the trunk there, and those tokens are given to it one by one, before it writes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.records import Attempt, Completion, Finish, Sampling

__all__ = [
    "MOST_OWN",
    "Group",
    "Row",
    "check_length",
    "common",
    "completions",
    "group_rows",
    "make_rows",
    "split_groups",
]

MOST_OWN = 16  # tokens that a row may have behind its trunk: each is a pass of its own for the whole wave


@dataclass(eq=False, slots=True)
class Row:
    """One input that is being continued, for one attempt or for several that ask for the very same thing.

    `ids` is prompt and prefill together, `output` what has been written so far, without a stop token. `noise[i]`, in
    [0, 1), draws output token i; it depends on the attempt's seed alone, so no draw depends on who else is in the
    batch. Greedy rows have none.
    """

    attempts: list[Attempt]
    ids: tuple[int, ...]
    sampling: Sampling
    noise: NDArray[np.float64] | None
    output: list[int] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def length(self) -> int:
        """Tokens that the row holds when its budget is used up."""
        return len(self.ids) + self.sampling.max_new_tokens

    def accept(self, token: int, stop_ids: frozenset[int]) -> None:
        """Take the next token, and finish where it ends the turn or the budget."""
        if token in stop_ids:
            self.finish = Finish.STOP
            return
        self.output.append(token)
        if len(self.output) == self.sampling.max_new_tokens:
            self.finish = Finish.LENGTH

    def restart(self) -> None:
        """Forget what was written: the batch that wrote it failed."""
        self.output.clear()
        self.finish = None


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Rows whose ids follow one input, the trunk: to their end, or to at most `MOST_OWN` tokens before it."""

    trunk: tuple[int, ...]
    rows: tuple[Row, ...]

    def branch(self, row: Row) -> int:
        """How many of the row's ids are the trunk's."""
        return common(self.trunk, row.ids)


def make_rows(attempts: Iterable[Attempt]) -> list[Row]:
    """One row per attempt, but one for all greedy attempts of the same ids and sampling: they cannot differ."""
    rows: list[Row] = []
    greedy: dict[tuple[tuple[int, ...], Sampling], Row] = {}
    for attempt in attempts:
        ids, sampling = attempt.prompt_ids + attempt.prefill_ids, attempt.sampling
        if sampling.greedy and (ids, sampling) in greedy:
            greedy[ids, sampling].attempts.append(attempt)
            continue
        row = Row([attempt], ids, sampling, None if sampling.greedy else _noise(attempt))
        if sampling.greedy:
            greedy[ids, sampling] = row
        rows.append(row)
    return rows


def check_length(attempts: Iterable[Attempt], limit: int | None, whose: str, chat: ChatFormat) -> None:
    """Whether all that is asked for fits; `whose` says what has the limit, for the error.

    Raises:
        UserError: prompt, prefill and new tokens of an attempt are more than `limit`.
    """
    if limit is None:
        return
    for attempt in attempts:
        prompt, prefill, new = len(attempt.prompt_ids), len(attempt.prefill_ids), attempt.sampling.max_new_tokens
        if prompt + prefill + new > limit:
            raise UserError(
                f"the prompt {chat.excerpt(attempt.prompt_ids)}, attack {attempt.attack}: {prompt} prompt + {prefill} "
                f"prefill + {new} new tokens = {prompt + prefill + new}, but {whose} {limit}. Ask for fewer new "
                "tokens, a shallower depth, or a shorter prompt."
            )


def completions(row: Row, chat: ChatFormat) -> Iterator[Completion]:
    """What a finished row is to each of its attempts."""
    assert row.finish is not None
    output = tuple(row.output)
    for attempt in row.attempts:
        text = chat.continuation(attempt.prefill_ids, output)
        yield Completion(
            attempt=attempt.id,
            output_ids=output,
            text=text.text,
            prefill_text=text.prefill_text,
            token_ends=text.token_ends,
            finish=row.finish,
        )


def _noise(attempt: Attempt) -> NDArray[np.float64]:
    """Counter-based: the i-th number depends on the seed and i, and on nothing else."""
    return np.random.Generator(np.random.Philox(key=attempt.seed)).random(attempt.sampling.max_new_tokens)


def common(one: Sequence[int], two: Sequence[int]) -> int:
    """How many ids both begin with."""
    length = min(len(one), len(two))
    if one[:length] == two[:length]:
        return length
    return next(place for place in range(length) if one[place] != two[place])


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """Put every row into exactly one group, with the longest input that continues its ids; longest trunks first.

    In descending lexicographic order an input directly follows the inputs that continue it, so one pass finds them.
    Groups of one prompt then join a longer one's trunk where they leave it at most `MOST_OWN` tokens before their end.
    """
    chains: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.ids, reverse=True):
        if chains and chains[-1][0].ids[: len(row.ids)] == row.ids:
            chains[-1].append(row)
        else:
            chains.append([row])
    groups = [Group(chain[0].ids, tuple(chain)) for chain in _joined(chains)]
    return sorted(groups, key=lambda group: len(group.trunk), reverse=True)


def _joined(chains: Iterable[list[Row]]) -> Iterator[list[Row]]:
    """Chains with those of the same prompt that branch off them and share at least as much with them as they do not."""
    by_prompt: dict[tuple[int, ...], list[list[Row]]] = {}
    for chain in chains:
        first = chain[0]
        prompt = first.attempts[0].prompt_ids if first.attempts else first.ids
        by_prompt.setdefault(prompt, []).append(chain)
    for alike in by_prompt.values():
        kept: list[list[Row]] = []
        for chain in sorted(alike, key=lambda chain: len(chain[0].ids), reverse=True):
            for trunk in kept:
                shared = common(trunk[0].ids, chain[0].ids)
                own = len(chain[0].ids) - shared
                # Rows of the chain that end sooner branch off nearer to their end, or not at all.
                if own <= MOST_OWN and own <= shared:
                    trunk += chain
                    break
            else:
                kept.append(chain)
        yield from kept


def split_groups(groups: Sequence[Group], budget: int, max_rows: int) -> list[list[Group]]:
    """Cut groups into waves of at most `budget` tokens (trunks and new ones) and `max_rows` rows, one row at least.

    A group that is too large for one wave is cut into several with the same trunk. Waves are of about equal width: a
    last narrow one would take nearly as long as a wide one.
    """
    waves = list(_fill(groups, budget, max_rows))
    if len(waves) < 2:
        return waves
    even = -(-sum(len(group.rows) for group in groups) // len(waves))
    levelled = list(_fill(groups, budget, min(even, max_rows)))
    return levelled if len(levelled) == len(waves) else waves


def _fill(groups: Iterable[Group], budget: int, max_rows: int) -> Iterator[list[Group]]:
    """Each wave as wide as the limits allow."""
    wave: list[Group] = []
    spent = filled = 0
    for group in groups:
        piece: list[Row] = []
        for row in group.rows:
            own = len(row.ids) - group.branch(row) + row.sampling.max_new_tokens
            cost = own + (0 if piece else len(group.trunk))
            if filled and (spent + cost > budget or filled == max_rows):
                yield _with_piece(wave, piece)
                wave, piece, spent, filled = [], [], 0, 0
                cost = own + len(group.trunk)
            piece.append(row)
            spent += cost
            filled += 1
        wave = _with_piece(wave, piece)
    if wave:
        yield wave


def _with_piece(wave: Sequence[Group], piece: Sequence[Row]) -> list[Group]:
    """A piece's trunk reaches only as far as its own rows do."""
    if not piece:
        return list(wave)
    trunk = max((row.ids for row in piece), key=len)
    return [*wave, Group(trunk, tuple(piece))]
