"""Rows side by side: padded ids, labels, and what is known of each learned token, row after row."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from fathom.tuning.objective import Tokens
from fathom.tuning.rows import IGNORED, TrainingRow

__all__ = ["ABSENT", "Batch", "Example", "Wide", "collate", "collate_examples"]

ABSENT = -1e4  # a log-probability where no reference is kept: its exponential is 0 exactly

Wide: TypeAlias = Sequence[Sequence[float]] | NDArray[np.number]  # several values a learned token: (tokens, some)


class Example(NamedTuple):
    """A row and its reference columns; empty where the objective needs none."""

    row: TrainingRow
    logprobs: Sequence[float] = ()
    ids: Wide = ()
    top: Wide = ()
    mass: Sequence[float] = ()


class Batch(NamedTuple):
    """What a model and an objective are given. `counts` are the learned tokens of each row."""

    input_ids: Int[Tensor, "rows width"]
    attention_mask: Int[Tensor, "rows width"]
    labels: Int[Tensor, "rows width"]
    tokens: Tokens
    counts: list[int]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the body is given."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def collate(rows: Sequence[TrainingRow], device: torch.device | None = None) -> Batch:
    """A batch without reference columns."""
    return collate_examples([Example(row) for row in rows], device)


def collate_examples(examples: Sequence[Example], device: torch.device | None = None) -> Batch:
    """Pad on the right. The padding id is 0: it is masked, and no label."""
    rows = [example.row for example in examples]
    width = max(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for i, row in enumerate(rows):
        ids = torch.tensor(row.input_ids)
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
        labels[i, : len(ids)] = torch.tensor(row.labels)
    counts = [len(row.positions) for row in rows]
    batch = Batch(input_ids, attention_mask, labels, _tokens(examples, labels, counts), counts)
    return batch if device is None else _moved(batch, device)


def _tokens(examples: Sequence[Example], labels: Tensor, counts: list[int]) -> Tokens:
    rows = [example.row for example in examples]
    repeat = torch.tensor(counts)
    return Tokens(
        labels=labels[labels != IGNORED],
        positions=torch.tensor([position for row in rows for position in row.positions]),
        loss_weight=torch.tensor([row.loss_weight for row in rows]).repeat_interleave(repeat),
        held=torch.tensor([row.held for row in rows]).repeat_interleave(repeat),
        reference_logprobs=_flat([example.logprobs for example in examples], counts),
        reference_ids=_wide([example.ids for example in examples], counts, 0),
        reference_top=_wide([example.top for example in examples], counts, ABSENT),
        reference_mass=_flat([example.mass for example in examples], counts),
    )


def _flat(columns: Sequence[Sequence[float]], counts: Sequence[int]) -> Tensor | None:
    """One value a token, or None where no row has any."""
    if not any(columns):
        return None
    if [len(column) for column in columns] != list(counts):
        raise ValueError("a reference column has another length than its row: it was made for other rows")
    return torch.tensor([value for column in columns for value in column], dtype=torch.float32)


def _wide(columns: Sequence[Wide], counts: Sequence[int], absent: float) -> Tensor | None:
    """Several values a token, of `absent`'s type; `absent` in rows without any, None where no row has any."""
    kind = np.int64 if isinstance(absent, int) else np.float32
    arrays = [np.asarray(column, kind) for column in columns]
    width = max((array.shape[1] for array in arrays if array.ndim == 2), default=0)
    if not width:
        return None
    parts = []
    for array, count in zip(arrays, counts, strict=True):
        if len(array) and len(array) != count:
            raise ValueError("a reference column has another length than its row: it was made for other rows")
        parts.append(array if len(array) else np.full((count, width), absent, kind))
    return torch.from_numpy(np.concatenate(parts))


def _moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        batch.input_ids.to(device),
        batch.attention_mask.to(device),
        batch.labels.to(device),
        batch.tokens.to(device),
        batch.counts,
    )
