"""Which share of the work this process does, when `torchrun` started several.

One process is rank 0 of 1. Work is split by a key, so that what shares computation stays together; results meet in the
run directory, never in memory. Nothing here imports torch unless there is more than one process.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from fathom.errors import PeerError, ProcessError, UserError

__all__ = ["ALONE", "Ranks"]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> "Ranks":
        """Read what `torchrun` put into the environment.

        Raises:
            UserError: the environment names several processes but not where they meet.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise UserError(
                f"WORLD_SIZE is {size} but RANK, MASTER_ADDR and MASTER_PORT are not all set; start several processes "
                f"with `torchrun --nproc_per_node {size} -m fathom audit …`"
            )
        return cls(rank=int(os.environ["RANK"]), size=size, local_rank=int(os.environ.get("LOCAL_RANK", "0")))

    @contextmanager
    def met(self) -> Iterator[None]:
        """The processes meet, and part at the end, so that the launcher sees an orderly end.

        What is wrong before they meet is wrong in all of them, since all were given the same; the first one says it.

        Raises:
            ProcessError: in place of a `UserError` inside, which may be this process's alone.
        """
        if self.size == 1:
            yield
            return
        import torch.distributed as dist

        # Barriers only: no tensor ever travels, so gloo serves GPUs too. One rank may generate for hours longer than
        # another; a shorter timeout would kill a healthy run.
        dist.init_process_group("gloo", timeout=timedelta(days=14))
        try:
            yield
        except PeerError:
            raise
        except UserError as error:
            raise ProcessError(f"process {self.rank} of {self.size}: {error}") from error
        finally:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def share(self, items: Iterable[_Item], key: Callable[[_Item], object]) -> list[_Item]:
        """The items of this process: groups of equal `key` are dealt round, in order of first appearance."""
        groups: dict[object, int] = {}
        return [item for item in items if groups.setdefault(key(item), len(groups)) % self.size == self.rank]

    def barrier(self) -> None:
        """Wait until every process is here.

        Raises:
            PeerError: one of them has ended and will never come.
        """
        if self.size > 1:
            import torch.distributed as dist

            try:
                dist.barrier()
            except RuntimeError as error:
                raise PeerError(
                    "another of the processes has ended before its work was done; what was done is kept, and the same "
                    "command goes on from here"
                ) from error


ALONE = Ranks()  # one process, as without `torchrun`
