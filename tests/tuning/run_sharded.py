"""`fathom` as accelerate's FSDP2 runs it, on CPU processes.

accelerate shards on accelerators alone and falls back to whole copies on CPUs, so it is told that these are some. What
it does then, `fully_shard` by the configuration's policy, is the same. Each step says how many parameters are in parts.
"""

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from fathom.__main__ import main
from fathom.tuning import trainer

_made, _step = PartialState.__init__, trainer.RowTrainer.training_step


def _as_accelerators(self: PartialState, *arguments: object, **options: object) -> None:
    _made(self, *arguments, **options)
    if PartialState._shared_state["distributed_type"] is DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _counted(self: trainer.RowTrainer, model: object, *arguments: object, **options: object) -> object:
    found = [isinstance(parameter, DTensor) for parameter in model.parameters()]  # type: ignore[attr-defined]
    sys.stderr.write(f"in parts {sum(found)} of {len(found)}\n")
    return _step(self, model, *arguments, **options)  # type: ignore[arg-type]


if __name__ == "__main__":
    PartialState.__init__ = _as_accelerators  # type: ignore[method-assign]
    trainer.RowTrainer.training_step = _counted  # type: ignore[method-assign, assignment]
    main()
