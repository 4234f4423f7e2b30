"""What can go wrong in a trainer and a user can mend, as one line that says where to go on from."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from fathom.errors import UserError
from fathom.tuning.checkpoints import where_to_go_on

__all__ = ["one_line_errors"]


@contextlib.contextmanager
def one_line_errors(output: Path | None) -> Iterator[None]:
    """What can go wrong in a trainer and a user can mend, as one line that says where to go on from."""
    from fathom.tuning.trainer import NotFiniteError

    try:
        yield
    except NotFiniteError as error:
        raise UserError(
            f"{error}: training stopped before that step. {where_to_go_on(output)}; try a lower learning rate "
            "(--set learning_rate=…), more warm-up or a smaller max_grad_norm"
        ) from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            "out of memory while training: try --set per_device_train_batch_size=1 (the step's batch stays the same), "
            "--set gradient_checkpointing=true, --lora, --dtype bfloat16, or --lora with --quantise 4bit"
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "no space left" in str(error).lower() or "os error 28" in str(error).lower():
            raise UserError(
                f"no space left on the disk while training. {where_to_go_on(output)}: free some space and run the same "
                "command again"
            ) from error
        raise
