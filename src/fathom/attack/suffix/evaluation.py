"""What is asked of an evaluator of candidates, and what every one needs of a model."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from fathom.attack.suffix.objective import Reading, loss_of
from fathom.attack.suffix.options import Objective
from fathom.attack.suffix.problem import Case
from fathom.engine.memory import is_out_of_memory
from fathom.errors import UserError
from fathom.scoring import Scorer

__all__ = ["Common", "Evaluator", "Gradient", "Scores", "Spent"]


class Spent(NamedTuple):
    """What was run: inputs scored, tokens through the model, and tokens through which a gradient was taken.

    A case's fixed beginning is not in it: how often that is computed depends on how often a search is taken up again.
    """

    queries: int = 0
    forward_tokens: int = 0
    backward_tokens: int = 0

    def plus(self, other: "Spent") -> "Spent":
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))


class Gradient(NamedTuple):
    """At one suffix: how it reads, and the loss's gradient with respect to the one-hot vectors of its ids."""

    reading: Reading
    loss: float
    slope: Float[Tensor, "suffix vocabulary"]
    spent: Spent


class Scores(NamedTuple):
    reading: Reading
    spent: Spent


class Evaluator(Protocol):
    """Of one case."""

    @property
    def case(self) -> Case: ...
    def gradient(self, suffix: Sequence[int], objective: Objective) -> Gradient: ...
    def settle(self, suffix: Sequence[int]) -> Spent:
        """Make this suffix the one that candidates are compared with, as a gradient does, by a forward pass alone."""
        ...

    def scores(self, candidates: Int[Tensor, "candidates suffix"], tokens: int | None = None) -> Scores:
        """How the first `tokens` target tokens read (None: all) behind each candidate."""
        ...


# Tokens at once, of models whose memory ran out: other cases and searches need not run out of it again.
_lowered: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


@dataclass(eq=False)
class Common:
    """What both ways need of a model."""

    scorer: Scorer
    case: Case
    notify: Callable[[str], None]
    packed: int  # tokens at once, as long as memory does not run out

    @property
    def device(self) -> torch.device:
        return self.scorer.model.device

    def embed(self, ids: Tensor) -> Tensor:
        embeddings: nn.Module = self.scorer.plain.get_input_embeddings()
        vectors: Tensor = embeddings(ids)
        return vectors

    def slope(self, gradient: Float[Tensor, "suffix width"]) -> Float[Tensor, "suffix vocabulary"]:
        """Gradient of embeddings → of one-hot vectors: one product with the (scaled) embedding matrix, in blocks."""
        embeddings = self.scorer.plain.get_input_embeddings()
        if type(embeddings) is nn.Embedding:  # a subclass may scale
            slope: Tensor = gradient @ embeddings.weight.detach().T
            return slope[:, : self.scorer.vocabulary].float()
        size, block = self.scorer.vocabulary, 1 << 15
        parts = [
            gradient @ self.embed(torch.arange(start, min(start + block, size), device=self.device)).T
            for start in range(0, size, block)
        ]
        return torch.cat(parts, dim=1).float()

    @property
    def at_once(self) -> int:
        """Tokens of candidates in one forward pass."""
        return min(self.packed, _lowered.get(self.scorer.plain, self.packed))

    @contextmanager
    def alone(self, tokens: int) -> Iterator[None]:
        """For what cannot be run in smaller parts: one sequence of so many tokens, with its gradient or without.

        Raises:
            UserError: it does not fit into memory.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(self._too_large(tokens)) from error

    def halve(self, error: BaseException, single: int) -> None:
        """Go on with half as much at once, and say so; all further evaluators of this model do, too.

        Raises:
            UserError: a single candidate does not fit.
        """
        if not is_out_of_memory(error):
            raise error
        if self.at_once <= single:
            raise UserError(self._too_large(single)) from error
        _lowered[self.scorer.plain] = max(single, self.at_once // 2)
        self.notify(f"out of memory: going on with {max(1, self.at_once // single)} candidates at once")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _too_large(self, tokens: int) -> str:
        return (
            f"out of memory with a single candidate of {tokens} tokens on {self.device}: load the model in a smaller "
            "dtype or quantised, or give a shorter prompt or target"
        )

    def gradient_of(self, vectors: Tensor, rows: Callable[[Tensor], Tensor], objective: Objective) -> Gradient:
        """Loss and slope, where `rows` gives the logits of the target rows from the suffix's embeddings."""
        target = torch.tensor(self.case.target.ids, device=self.device)
        with torch.enable_grad():
            leaf = vectors.detach().requires_grad_()
            logits = rows(leaf).float()
            own = logits.gather(1, target[:, None])[:, 0]
            nll = torch.logsumexp(logits, 1) - own
            reading = Reading(own[None], nll[None], (own >= logits.amax(1))[None])
            loss = loss_of(reading, self.case.target, objective)[0]
            (slope,) = torch.autograd.grad(loss, leaf)
        detached = Reading(*(part.detach() for part in reading))
        return Gradient(detached, float(loss.detach()), self.slope(slope[0]), Spent())
