"""What the reference says of each learned token: columns made once, by the forward that training will use.

The reference is the model as it is before training (with an adapter: the adapter off), so no second model is held. The
columns are kept on disk under a hash of rows, weights and what was asked for, and made anew when any of them changes.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
import torch
from torch import Tensor

from fathom.identity import weights_hash
from fathom.ranks import Ranks
from fathom.records import content_hash
from fathom.tuning.batches import Wide, collate
from fathom.tuning.objective import Needs, ResponseLogits, Tokens
from fathom.tuning.rows import TrainingRow, rows_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Columns", "arrow_columns", "distinct", "make_columns", "no_columns", "reference_columns"]

BATCH = 8


@dataclass(frozen=True)
class Columns:
    """Of each row, one value (or several) for each learned token; empty lists where nothing was asked for.

    Rows that are equal share theirs: a plan may hold the same row many times.
    """

    logprobs: Sequence[Sequence[float]]
    ids: Sequence[Wide]
    top: Sequence[Wide]
    mass: Sequence[Sequence[float]]

    def of(self, index: Sequence[int]) -> Self:
        """The columns of some rows, in another order; nothing is copied."""
        return type(self)(*([column[i] for i in index] for column in vars(self).values()))


def no_columns(count: int) -> Columns:
    """Columns of an objective that needs none."""
    empty: tuple[tuple[float, ...], ...] = ((),) * count
    nothing: tuple[Wide, ...] = ((),) * count
    return Columns(empty, nothing, nothing, empty)


def distinct(rows: Sequence[TrainingRow]) -> tuple[list[TrainingRow], list[int]]:
    """The rows that differ, in the order of their first coming, and which of them each row is."""
    numbers: dict[TrainingRow, int] = {}
    index = [numbers.setdefault(row, len(numbers)) for row in rows]
    return list(numbers), index


@dataclass(frozen=True)
class _Reader:
    """Reads what is needed off logits."""

    needs: Needs

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> tuple[Tensor, ...]:
        top = min(self.needs.top, logits.values.shape[-1])
        best = logits.values.topk(top, -1).indices if top else tokens.labels[:, None][:, :0]
        mass = (
            logits.mass(torch.tensor(self.needs.mass, device=logits.values.device)).exp()
            if self.needs.mass
            else torch.zeros_like(tokens.loss_weight)
        )
        return logits.logprobs(tokens.labels), best, logits.logprobs_of(best), mass


def reference_columns(
    model: "PreTrainedModel",
    rows: Sequence[TrainingRow],
    needs: Needs,
    *,
    ranks: Ranks,
    autocast: torch.dtype | None,
    cache: Path | None,
) -> Columns:
    """The columns, from the cache or made by all processes together. The model has its response head on."""
    if not needs.any or not rows:
        return no_columns(len(rows))
    if cache is None:
        return make_columns(model, rows, needs, ranks=ranks, autocast=autocast)
    different, index = distinct(rows)
    asked = (needs.logprobs, needs.top, needs.mass, str(autocast))
    key = content_hash((rows_hash(different), _reference_hash(model), *asked))
    path = cache / f"reference-{key}"
    if not path.exists():
        columns = make_columns(model, different, needs, ranks=ranks, autocast=autocast)
        if ranks.first:
            _write(path, columns)
        ranks.barrier()
    return _read(path).of(index)


def _reference_hash(model: "PreTrainedModel") -> str:
    """Of the weights that are read: an adapter, which is off then, is none of them."""
    learned = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return weights_hash(model, without=learned if hasattr(model, "disable_adapter") else ())


def make_columns(
    model: "PreTrainedModel",
    rows: Sequence[TrainingRow],
    needs: Needs,
    *,
    ranks: Ranks,
    autocast: torch.dtype | None,
) -> Columns:
    """One pass over the rows that differ, dropout off and adapters off.

    Each process does its share, and all get everything.
    """
    rows, index = distinct(rows)
    mine = list(range(ranks.rank, len(rows), ranks.size))
    found: dict[int, tuple[Any, ...]] = {}
    reader = _Reader(needs)
    device = next(model.get_input_embeddings().parameters()).device
    with _as_reference(model), torch.no_grad(), autocasting(device, autocast):
        # By length, so that little is padding; the columns do not depend on it.
        mine.sort(key=lambda i: len(rows[i].prompt_ids) + len(rows[i].response_ids))
        for start in range(0, len(mine), BATCH):
            chosen = mine[start : start + BATCH]
            batch = collate([_asked(rows[i]) for i in chosen], device=device)
            output = model(**batch.inputs, labels=batch.labels, tokens=batch.tokens, read=reader)
            parts = [column.cpu().split(batch.counts) for column in output.read]
            for at, i in enumerate(chosen):
                keep = needs.top and rows[i].held > 0
                logprobs, ids, top, mass = (column[at] for column in parts)
                if rows[i].reference_temperature != 1.0:
                    top = (top / rows[i].reference_temperature).log_softmax(-1)
                found[i] = (
                    logprobs.tolist() if needs.logprobs else [],
                    ids.numpy().astype(np.int32) if keep else [],
                    top.float().numpy() if keep else [],
                    mass.tolist() if needs.mass else [],
                )
    found = _gather(found, ranks)
    ordered = [found[i] for i in range(len(rows))]
    return Columns(*(tuple(column) for column in zip(*ordered, strict=True))).of(index)


def _asked(row: TrainingRow) -> TrainingRow:
    """The row as the reference is asked about it: the same response, after its own prompt or another."""
    if not row.reference_prompt_ids:
        return row
    return msgspec.structs.replace(row, prompt_ids=row.reference_prompt_ids)


def autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """As the trainer will compute."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def _as_reference(model: "PreTrainedModel") -> Iterator[None]:
    training = model.training
    model.train(False)
    adapter_off = getattr(model, "disable_adapter", None)  # a PEFT wrapper's
    try:
        with contextlib.nullcontext() if adapter_off is None else adapter_off():
            yield
    finally:
        model.train(training)


def _gather(found: Mapping[int, tuple[Any, ...]], ranks: Ranks) -> dict[int, tuple[Any, ...]]:
    if ranks.size == 1:
        return dict(found)
    import torch.distributed as dist

    parts: list[dict[int, tuple[Any, ...]]] = [{}] * ranks.size
    dist.all_gather_object(parts, dict(found))
    return {i: value for part in parts for i, value in part.items()}


def arrow_columns(columns: Columns) -> dict[str, list[Any]]:
    """As arrow takes them: it knows arrays of one dimension."""
    return {
        name: [list(values) for values in column] if name in ("ids", "top") else list(column)
        for name, column in vars(columns).items()
    }


def _write(path: Path, columns: Columns) -> None:
    """An arrow directory, wholly or not at all."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=".reference-"))
    try:
        Dataset.from_dict(arrow_columns(columns)).save_to_disk(str(scratch / "columns"))
        (scratch / "columns").replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read(path: Path) -> Columns:
    from datasets import Dataset

    whole = Dataset.load_from_disk(str(path))
    ids: list[Wide] = [np.asarray(values, np.int32) if values else [] for values in whole["ids"]]
    top: list[Wide] = [np.asarray(values, np.float32) if values else [] for values in whole["top"]]
    return Columns(list(whole["logprobs"]), ids, top, list(whole["mass"]))
