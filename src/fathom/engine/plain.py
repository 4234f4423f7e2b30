"""The slow, exact way: `generate` itself, on batches of inputs of equal length, so that nothing is ever padded.

It needs nothing of an architecture but that it generates: recurrent state, linear attention, capped scores, sinks and
custom code all work. Prompts are computed anew for every depth.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from fathom.engine.rows import Row
from fathom.engine.sampling import choose

__all__ = ["equal_lengths", "generate_rows"]


def equal_lengths(rows: Iterable[Row], max_rows: int) -> Iterator[list[Row]]:
    """Batches of rows with inputs of the same length, longest first."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (len(row.ids), row.sampling.max_new_tokens), reverse=True):
        if batch and (len(batch) == max_rows or len(batch[0].ids) != len(row.ids)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def generate_rows(model: PreTrainedModel, rows: Sequence[Row], stop_ids: frozenset[int]) -> None:
    """Complete rows with inputs of equal length in place."""
    ids = torch.tensor([row.ids for row in rows], device=model.device)
    writer = _Writer(rows, stop_ids)
    new = max(row.sampling.max_new_tokens for row in rows)
    settings = GenerationConfig(do_sample=False, max_new_tokens=new, pad_token_id=0)  # type: ignore[no-untyped-call]
    # generate fills whatever is left open from the model's own settings: a repetition penalty there must not count
    own, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([writer]),
            stopping_criteria=StoppingCriteriaList([_AllFinished(rows)]),
        )
    finally:
        model.generation_config = own


class _Writer(LogitsProcessor):
    """Chooses every row's next token itself, writes it into the row, and leaves `generate` no other choice."""

    def __init__(self, rows: Sequence[Row], stop_ids: frozenset[int]) -> None:
        self.rows = rows
        self.stop_ids = stop_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        live = [i for i, row in enumerate(self.rows) if row.finish is None]
        chosen = torch.zeros(len(self.rows), dtype=torch.long)
        for i, token in zip(live, choose(scores[live], [self.rows[i] for i in live]), strict=True):
            self.rows[i].accept(token, self.stop_ids)
            chosen[i] = token
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, chosen.to(scores.device)[:, None], 0.0)


class _AllFinished(StoppingCriteria):
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        done = all(row.finish is not None for row in self.rows)
        return torch.full((len(self.rows),), done, dtype=torch.bool, device=input_ids.device)
