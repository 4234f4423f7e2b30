"""LoRA instead of all weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.checkpoint import one_line
from fathom.errors import UserError
from fathom.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Adapter", "save_adapter", "with_adapter"]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter; `targets` is PEFT's `target_modules`.

    The default puts it on every linear layer but the head.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"


def with_adapter(model: "PreTrainedModel", adapter: Adapter) -> "PreTrainedModel":
    import peft

    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    try:
        wrapped: Any = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha,
                lora_dropout=adapter.dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise UserError(f"LoRA cannot be put on this model: {one_line(error)}") from error
    return wrapped  # type: ignore[no-any-return]


def save_adapter(model: "PreTrainedModel", output: Path | None, ranks: Ranks) -> Path | None:
    if output is None:
        return None
    path = output / "adapter"
    if ranks.first:
        model.save_pretrained(path)
    ranks.barrier()
    return path
