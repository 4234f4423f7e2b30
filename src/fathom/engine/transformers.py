"""Run attempts on a Hugging Face causal language model in this process.

Which completion an attempt gets depends on the attempt and the model alone: not on batch, order, or what an earlier,
interrupted run had done (exactly so in fp32; lower precisions round differently in batches of another size). Two ways
lead there, and the engine picks one per model:

- `shared.py` computes a prompt and its longest prefill once and lets every depth of the sweep read that cache;
- `plain.py` is `generate` on unpadded batches, for architectures whose attention cannot be shared that way.
"""

import gc
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from fathom.engine.memory import Budget, is_out_of_memory
from fathom.engine.plain import equal_lengths, generate_rows
from fathom.engine.rows import Row, check_length, completions, group_rows, make_rows, split_groups
from fathom.engine.shared import SharedDecoder, obstacle
from fathom.errors import UserError
from fathom.records import Attempt, Completion

if TYPE_CHECKING:
    from fathom.model import ChatModel

__all__ = ["TransformersEngine"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TransformersEngine:
    """Completes attempts with a loaded model.

    `max_rows` bounds how many rows run at once (None: as many as memory allows). `notify` is told, in one line, when
    the engine had to leave the fast way or halve its batches; by default that goes to the log.
    """

    model: "ChatModel"
    max_rows: int | None = None
    notify: Callable[[str], None] = _log.warning
    _state: "_State" = field(init=False, repr=False, default_factory=lambda: _State())

    def complete(self, attempts: Sequence[Attempt]) -> Iterator[Completion]:
        """Yield one completion per attempt, each as soon as it is written, in no particular order.

        Raises:
            UserError: an attempt does not fit into the model's context (before anything runs), the model is not a
                causal language model, or a single row does not fit into memory.
        """
        self._check(attempts)
        rows = make_rows(attempts)
        return self._complete(rows)

    def _check(self, attempts: Iterable[Attempt]) -> None:
        config = self.model.model.config
        if getattr(config, "is_encoder_decoder", False):
            raise UserError(
                f"{type(self.model.model).__name__} is an encoder-decoder; a prefill needs a causal language model. "
                "Give a decoder-only chat model."
            )
        check_length(attempts, self.model.context, "the model's context is", self.model.chat)

    def _complete(self, rows: list[Row]) -> Iterator[Completion]:
        if not rows:
            return
        self.model.model.eval()  # type: ignore[no-untyped-call]
        reason = self._obstacle(rows)
        finished = self._plain(rows) if reason else self._shared(rows)
        for row in finished:
            yield from completions(row, self.model.chat)

    def _obstacle(self, rows: Sequence[Row]) -> str | None:
        """Why the shared way does not apply to these rows, checked against a plain forward once per length."""
        longest = max(rows, key=lambda row: row.length)
        state = self._state
        if state.verified is None or (state.obstacle is None and longest.length > state.verified):
            try:
                state.obstacle = obstacle(self.model.model, longest.ids, longest.length)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                state.obstacle = "out of memory while trying to share them"
            state.verified = longest.length
            if state.obstacle:
                self.notify(f"prompts are computed anew for every depth, which is slower: {state.obstacle}")
        return state.obstacle

    def _shared(self, rows: list[Row]) -> Iterator[Row]:
        decoder = SharedDecoder(self.model.model, self.model.chat.stop_ids)
        budget = Budget.of(self.model.model)
        pending = group_rows(rows)
        while pending:
            limit = self._limit(budget.max_rows)
            for wave in split_groups(pending, budget.tokens, limit):
                failed = yield from self._run(decoder.run(wave), [row for group in wave for row in group.rows])
                if failed:
                    break
            pending = group_rows(row for row in rows if row.finish is None)

    def _plain(self, rows: list[Row]) -> Iterator[Row]:
        budget = Budget.of(self.model.model)
        pending = rows
        while pending:
            limit = self._limit(max(1, min(budget.max_rows, budget.tokens // max(row.length for row in pending))))
            for batch in equal_lengths(pending, limit):
                failed = yield from self._run(self._generate(batch), batch)
                if failed:
                    break
            pending = [row for row in rows if row.finish is None]

    def _generate(self, batch: list[Row]) -> Iterator[Row]:
        generate_rows(self.model.model, batch, self.model.chat.stop_ids)
        yield from batch

    def _run(self, finished: Iterator[Row], rows: Sequence[Row]) -> Generator[Row, None, bool]:
        """Pass finished rows on; on out-of-memory, reset the others, halve the batch and answer True."""
        waiting = set(rows)
        try:
            for row in finished:
                waiting.discard(row)
                yield row
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return False
        for row in waiting:
            row.restart()
        self._halve(rows)
        return True

    def _halve(self, rows: Sequence[Row]) -> None:
        if len(rows) == 1:
            raise UserError(_too_large(rows[0], self.model))
        self._state.max_rows = len(rows) // 2
        self.notify(f"out of memory with {len(rows)} rows at once; going on with {self._state.max_rows}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _limit(self, budget: int) -> int:
        return min(limit for limit in (budget, self.max_rows, self._state.max_rows) if limit is not None)


@dataclass
class _State:
    """What an engine has learned about its model and its machine; it changes how fast rows run, never their tokens."""

    max_rows: int | None = None  # after an out-of-memory
    verified: int | None = None  # the longest row for which `obstacle` was decided
    obstacle: str | None = None


def _too_large(row: Row, model: "ChatModel") -> str:
    return (
        f"out of memory with a single row of {len(row.ids)} + {row.sampling.max_new_tokens} tokens on {model.device}. "
        "Load the model in a smaller dtype or quantised, ask for fewer new tokens, or use a larger device."
    )
