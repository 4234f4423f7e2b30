"""Scores of whole responses: one model's, or two models' side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fathom.errors import UserError
from fathom.scoring.blocks import PairScores, TokenScores, compare_logits, score_logits
from fathom.scoring.scorer import Scorer

__all__ = ["ReferenceAnswer", "compare", "score"]


@dataclass(frozen=True, kw_only=True)
class ReferenceAnswer:
    """The ids of a request and of a reference answer to it; `base_prompt_ids` is the request as the base is given it.

    `base_prompt_ids` None: the base is given the same ids as the model.
    """

    behavior: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    base_prompt_ids: tuple[int, ...] | None = None


@torch.inference_mode()
def score(scorer: Scorer, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> TokenScores:
    """Log-probability and rank of each response token under one model."""
    parts, start = [], 0
    for logits in scorer.response_logits(prompt_ids, response_ids):
        parts.append(score_logits(logits, torch.tensor(response_ids[start : start + logits.rows])))
        start += logits.rows
    return _join(parts)


@torch.inference_mode()
def compare(model: Scorer, base: Scorer, answer: ReferenceAnswer) -> PairScores:
    """Per-token KL(model ‖ base) of an answer, with both models' log-probabilities and the model's ranks.

    Where the two heads have different sizes (embeddings padded differently), both distributions are restricted to the
    ids that both heads have and renormalised there; with equal sizes nothing is left out.

    Raises:
        UserError: the base has no embedding for an id, or a context is exceeded.

    Source: Fig. 1, D_t = KL(π_aligned(·|x, y_<t) ‖ π_base(·|x, y_<t)).
    """
    vocabulary = _shared_vocabulary(model, base, answer)
    base_prompt = answer.prompt_ids if answer.base_prompt_ids is None else answer.base_prompt_ids
    pairs = zip(
        model.response_logits(answer.prompt_ids, answer.answer_ids),
        base.response_logits(base_prompt, answer.answer_ids),
        strict=True,
    )
    parts, start = [], 0
    for p, q in pairs:
        parts.append(compare_logits(p, q, torch.tensor(answer.answer_ids[start : start + p.rows]), vocabulary))
        start += p.rows
    return PairScores(
        model=_join([part.model for part in parts]),
        base_logprobs=torch.cat([part.base_logprobs for part in parts]),
        kl_nats=torch.cat([part.kl_nats for part in parts]),
    )


def _join(parts: Sequence[TokenScores]) -> TokenScores:
    return TokenScores(torch.cat([part.logprobs for part in parts]), torch.cat([part.ranks for part in parts]))


def _shared_vocabulary(model: Scorer, base: Scorer, answer: ReferenceAnswer) -> int:
    sizes = (model.vocabulary, base.vocabulary)
    prompt = answer.prompt_ids if answer.base_prompt_ids is None else answer.base_prompt_ids
    largest = max(*prompt, *answer.answer_ids)
    if largest >= sizes[1]:
        raise UserError(
            f"id {largest} of the prompt or answer lies beyond the base model's vocabulary of {sizes[1]}: "
            "the base needs the tokenizer of the model, or its prompt as plain text"
        )
    return min(sizes)
