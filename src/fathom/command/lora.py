"""LoRA as it is asked for on the command line."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fathom.errors import UserError

if TYPE_CHECKING:
    from fathom.model import ChatModel
    from fathom.tuning.adapter import Adapter
    from fathom.tuning.settings import Settings

__all__ = ["LORA_RATE", "Lora", "check_lora", "default_rate"]

LORA_RATE = 10  # times the rate of all weights; source: LoRA Without Regret (Schulman et al., 2025)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA as it was asked for."""

    rank: int = 16
    alpha: int | None = None  # default: twice the rank
    dropout: float = 0.0
    targets: str = "all-linear"

    def adapter(self) -> "Adapter":
        """Raises `UserError` for numbers that make no adapter."""
        from fathom.tuning.adapter import Adapter

        if self.rank < 1 or (self.alpha is not None and self.alpha < 1) or not 0 <= self.dropout < 1:
            raise UserError("LoRA needs a rank and an alpha of at least 1, and a dropout in [0, 1)")
        if self.targets == "all-linear":
            targets: str | tuple[str, ...] = self.targets
        else:
            targets = tuple(name.strip() for name in self.targets.split(",") if name.strip())
        return Adapter(self.rank, self.alpha or 2 * self.rank, self.dropout, targets)


def default_rate(settings: "Settings", lora: Lora | None, rate: float | None = None) -> "Settings":
    """`rate`, or the settings' own, as the default learning rate; an adapter's is `LORA_RATE` times that."""
    usual = settings.values["learning_rate"] if rate is None else rate
    assert isinstance(usual, int | float)
    return settings.with_defaults(learning_rate=usual * (1 if lora is None else LORA_RATE))


def check_lora(lora: Lora | None, model: "ChatModel") -> None:
    """That an adapter can be put on the model, before anything is asked of it or written.

    Raises:
        UserError: the adapter's numbers make none, or the model has no such layer.
    """
    if lora is not None:
        lora.adapter().check(model.model)
