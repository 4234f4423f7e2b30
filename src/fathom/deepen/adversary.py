"""An adversary inside deepening: vectors behind a request that undo its refusal, and a recovery learned all the same.

Recovery rows teach a model to turn back from answers that were begun for it. A suffix that is searched for does not
begin an answer: it makes the model not see what it is asked. So at each step, for some requests,

    vectors  ← the embeddings of random tokens, behind the request's text
    `steps` × vectors ← vectors - rate × size × sign(∇ cross-entropy of the harmful answer's first tokens)
    gradient += strength × clip(∇ cross-entropy of the refusal after h_≤k, the request followed by these vectors)
    gradient += strength × clip(∇ cross-entropy of the model's own answers to benign requests, followed by them, too)

with k ≥ 1: what is learned is to turn back from a harmful answer, whatever the request looked like. Refusals of the
plain request (k = 0) behind vectors were learned as "what looks strange is refused", and so were benign requests in
phrasings that training lacks; for the same reason benign requests stand before the same vectors, and are answered.

Whatever tokens stand there are vectors too, so what holds against these is asked of suffixes that nobody has searched
for yet.

Source: continuous adversarial training (Xhonneux et al., arXiv 2405.15589), whose attack moves the embeddings of the
request itself; here vectors stand where a suffix would (Schwinn et al., arXiv 2402.09063), and what is learned behind
them is a recovery from anywhere in the answer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from fathom.chat import FIRST_VECTOR, ChatFormat
from fathom.deepen.gradients import add_clipped, check_whole, mean_loss, trained_weights, without_words
from fathom.deepen.recovery import EncodedTriplet, recovery_row
from fathom.deepen.starts import Lengths, StartSampler
from fathom.errors import UserError
from fathom.model.vectors import embedded, reading, size
from fathom.tuning.objective import PlainNll
from fathom.tuning.rows import TrainingRow

__all__ = ["Adversary", "Answerable", "Attackable", "Hardening", "answerable", "with_room"]


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """How much refusals behind vectors weigh, and how hard these are searched for.

    `rows` requests a step; between `fewest` and `most` vectors each, moved `steps` times by `rate` times the size of
    the model's own embeddings, towards the first `tokens` of the harmful answer. Behind them at least one token of it
    is given before the refusal, but with probability `p0`.
    """

    strength: float
    rows: int = 8
    steps: int = 8
    rate: float = 0.2
    fewest: int = 4
    most: int = 20
    tokens: int = 24
    p0: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise UserError(f"the strength of the adversary is {self.strength}: give a finite number above 0")
        if not 1 <= self.fewest <= self.most or min(self.rows, self.steps, self.tokens) < 1:
            raise UserError("an adversary needs 1 or more vectors, rows, steps and tokens")

    def __str__(self) -> str:
        return f"an adversary of weight {self.strength:g}: {self.fewest} to {self.most} vectors, {self.steps} steps"


class Attackable(NamedTuple):
    """A triplet, and its prompt's ids on both sides of where vectors stand."""

    triplet: EncodedTriplet
    before: tuple[int, ...]
    after: tuple[int, ...]


def with_room(items: Sequence[Attackable], adversary: Adversary, limit: int | None) -> tuple[Attackable, ...]:
    """Those whose longest row, vectors included, fits into `limit` tokens.

    Raises:
        UserError: none does.
    """

    def length(item: Attackable) -> int:
        triplet = item.triplet
        longest = max(len(ids) for ids in (triplet.refusal_ids, *triplet.later_refusals))
        written = len(triplet.answer_ids) + longest + len(triplet.end_ids)
        return len(item.before) + adversary.most + len(item.after) + written

    found = tuple(item for item in items if limit is None or length(item) <= limit)
    if not found:
        raise UserError(
            f"no triplet leaves room for the adversary's {adversary.most} vectors in {limit} tokens: leave it out with "
            "--adversary 0, or give shorter answers"
        )
    return found


class _Drawn(NamedTuple):
    """A request of a step with its vectors' ids, the tokens these begin as, and what is learned behind them."""

    item: Attackable
    prompt_ids: tuple[int, ...]
    begin: tuple[int, ...]
    row: TrainingRow  # the recovery
    benign: TrainingRow


class Answerable(NamedTuple):
    """A benign prompt's ids on both sides of where vectors stand, and the answer that is kept."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    response_ids: tuple[int, ...]

    def behind(self, vectors: tuple[int, ...]) -> TrainingRow:
        """The row with vectors behind its request; its answer is learned."""
        return TrainingRow(prompt_ids=(*self.before, *vectors, *self.after), response_ids=self.response_ids)


def answerable(
    rows: Iterable[TrainingRow], items: Sequence[Attackable], adversary: Adversary, limit: int | None
) -> tuple[Answerable, ...]:
    """Of the anchor's rows those, each once, behind whose request the template goes on as it does behind most `items`'.

    Raises:
        UserError: there are none, or vectors make all of them longer than `limit` tokens.
    """
    after = Counter(item.after for item in items).most_common(1)[0][0]
    found = dict.fromkeys(
        Answerable(row.prompt_ids[: len(row.prompt_ids) - len(after)], after, row.response_ids)
        for row in rows
        if row.prompt_ids[len(row.prompt_ids) - len(after) :] == after
        and (limit is None or len(row.prompt_ids) + adversary.most + len(row.response_ids) <= limit)
    )
    if not found:
        raise UserError(
            f"no utility row leaves room for the adversary's {adversary.most} vectors in {limit} tokens, or the chat "
            "template ends its request as those of the triplets: leave the adversary out with --adversary 0"
        )
    return tuple(found)


@dataclass(eq=False)
class Hardening:
    """Adds an `Adversary`'s gradient before each optimizer step.

    What a step draws depends on its number and the seed alone, so a run that goes on is the run that was not
    interrupted; on several processes each computes the same. Embeddings are left to deepening alone. `batch` rows are
    run at once, which changes nothing but memory. The model is one whose head is `response_head`'s.
    """

    adversary: Adversary
    chat: ChatFormat
    items: Sequence[Attackable]
    benign: Sequence[Answerable]
    starts: StartSampler
    seed: int = 0
    batch: int = 8

    def __call__(self, model: PreTrainedModel, step: int) -> None:
        """Add to the gradients of step `step`, from 0."""
        check_whole(model, "an adversary adds to the gradients of", "--adversary")
        wanted, weights = self.adversary, without_words(model, trained_weights(model))
        drawn = self._draw(Random(f"adversary {self.seed} {step}"))
        wholes = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
        totals = [sum(map(_learned, rows)) for rows in _sides(drawn)]
        for at in range(0, len(drawn), self.batch):
            part = drawn[at : at + self.batch]
            with reading(model, self._searched(model, part)):
                for whole, rows, total in zip(wholes, _sides(part), totals, strict=True):
                    loss = mean_loss(model, rows, PlainNll(), tokens=total)
                    for sum_, found in zip(whole, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                        if found is not None:
                            sum_.add_(found)
        for whole in wholes:
            add_clipped(weights, whole, wanted.strength, wanted.clip)

    def _draw(self, random: Random) -> list[_Drawn]:
        wanted, vocabulary, drawn, named = self.adversary, len(self.chat.tokenizer), list[_Drawn](), FIRST_VECTOR
        for _ in range(wanted.rows):
            item = random.choice(self.items)
            count = random.randint(wanted.fewest, wanted.most)
            prompt_ids = (*item.before, *range(named, named + count), *item.after)
            named += count
            begin = tuple(random.randrange(vocabulary) for _ in range(count))
            start = self.starts(Lengths(len(item.triplet.answer_ids), len(item.triplet.refusal_ids)), 0, random)
            row = recovery_row(self.chat, replace(item.triplet, prompt_ids=prompt_ids), start)
            vectors = prompt_ids[len(item.before) : len(prompt_ids) - len(item.after)]
            drawn.append(_Drawn(item, prompt_ids, begin, row, random.choice(self.benign).behind(vectors)))
        return drawn

    def _searched(self, model: PreTrainedModel, drawn: Sequence[_Drawn]) -> dict[int, Float[Tensor, " width"]]:
        """The vectors by their ids, after all steps towards the harmful answers."""
        wanted = self.adversary
        ids = [id_ for one in drawn for id_ in one.prompt_ids if id_ >= FIRST_VECTOR]
        vectors = embedded(model, torch.tensor([id_ for one in drawn for id_ in one.begin]))
        distance = wanted.rate * size(model, len(self.chat.tokenizer))
        rows = [
            TrainingRow(prompt_ids=one.prompt_ids, response_ids=one.item.triplet.answer_ids[: wanted.tokens])
            for one in drawn
        ]
        for _ in range(wanted.steps):
            leaf = vectors.requires_grad_()
            with reading(model, dict(zip(ids, leaf.unbind(0), strict=True))):
                loss = mean_loss(model, rows, PlainNll())
                (slope,) = torch.autograd.grad(loss, leaf)
            vectors = (leaf - distance * slope.sign()).detach()
        return dict(zip(ids, vectors.unbind(0), strict=True))


def _sides(drawn: Sequence[_Drawn]) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """Recoveries and benign answers."""
    return [one.row for one in drawn], [one.benign for one in drawn]


def _learned(row: TrainingRow) -> int:
    return len(row.response_ids) - row.learned_from
