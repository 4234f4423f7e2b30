"""The rows of a step, shared over processes: the same rows, once each, whatever the number of processes.

accelerate deals whole batches out, and makes up the last ones of an epoch from its first rows, which then count twice
or more. A hundred rows at 64 a step are such a case on two processes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

__all__ = ["BLANK", "EvenShares", "RowsOrBlank", "SharedLoader"]

BLANK = -1  # in the place of a row, for a process for which none is left


class EvenShares(Sampler[list[int]]):
    """One process's rows of each batch that all of them take together: as many as the others', or one fewer.

    `order` is the same on all processes, `batch` rows are of all of them. A process without any gets `[BLANK]`: it has
    to take the step with the others.
    """

    def __init__(self, order: Sampler[int], batch: int, *, process: int, processes: int) -> None:
        self.order, self.process, self.processes = order, process, processes
        self.batches = BatchSampler(order, batch, drop_last=False)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.process :: self.processes] or [BLANK]

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)


class RowsOrBlank(TorchDataset[Mapping[str, Any]]):
    """The rows, and at `BLANK` one of them that says so."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {**self.rows[max(index, 0)], "blank": index == BLANK}


class SharedLoader(DataLoader[Mapping[str, Any]]):
    """A loader that hands the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        shares = self.batch_sampler
        assert isinstance(shares, EvenShares)
        shares.set_epoch(epoch)
