"""Double precision where it is to be had: Apple's devices have none."""

import torch
from torch import Tensor

__all__ = ["doubled", "finest"]


def doubled(values: Tensor) -> Tensor:
    """The values in float64: where they are, or on the CPU where their device has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def finest(device: torch.device) -> torch.dtype:
    """The floats of the most digits that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64
