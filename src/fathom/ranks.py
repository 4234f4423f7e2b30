"""Which share of the work this process does, when `torchrun` started several.

One process is rank 0 of 1. Work is split by a key, so that what shares computation stays together; results meet in the
run directory, never in memory. Nothing here imports torch unless there is more than one process.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from fathom.errors import UserError

__all__ = ["ALONE", "Ranks"]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> "Ranks":
        """Read what `torchrun` put into the environment, and meet the other processes.

        Raises:
            UserError: the environment names several processes but not where they meet.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
            raise UserError(
                f"WORLD_SIZE is {size} but RANK and MASTER_ADDR are not set; start several processes with "
                f"`torchrun --nproc_per_node {size} -m fathom audit …`"
            )
        import torch.distributed as dist

        # Barriers only: no tensor ever travels, so gloo serves GPUs too. One rank may generate for hours longer than
        # another; a shorter timeout would kill a healthy run.
        dist.init_process_group("gloo", timeout=timedelta(days=14))
        if dist.get_world_size() != size:
            raise UserError(f"{dist.get_world_size()} processes met, but WORLD_SIZE says {size}")
        return cls(rank=dist.get_rank(), size=size, local_rank=int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def share(self, items: Iterable[_Item], key: Callable[[_Item], object]) -> list[_Item]:
        """The items of this process: groups of equal `key` are dealt round, in order of first appearance."""
        groups: dict[object, int] = {}
        return [item for item in items if groups.setdefault(key(item), len(groups)) % self.size == self.rank]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def leave(self) -> None:
        """Say goodbye, so that the launcher sees an orderly end."""
        if self.size > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()


ALONE = Ranks()  # one process, as without `torchrun`
