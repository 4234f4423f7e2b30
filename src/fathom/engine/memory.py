"""How much to run at once: a budget from the device's memory, and what running out of it looks like."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

__all__ = ["Budget", "is_out_of_memory"]

_CPU_FLOOR = 384 << 20  # bytes; below this, batches of a small model are too narrow for its matrix products
_CUDA_SHARE = 0.6  # of free memory; the rest is for activations and fragmentation
_LOGIT_SHARE = 0.25  # of the budget
_LOGIT_BYTES = 8  # per logit beside its own: a copy in single precision and room to sort or mask it
_MOST_ROWS = 4096

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")


@dataclass(frozen=True)
class Budget:
    """What one wave may hold: `tokens` in the key-value cache, and `max_rows` rows."""

    tokens: int
    max_rows: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Budget":
        """A share of a CUDA device's free memory, elsewhere the size of the model's weights.

        Caches as large as the weights at most keep a run on a CPU within about twice the model's own memory.
        """
        total = _memory(model)
        config = model.config.get_text_config(decoder=True)
        logit_bytes = config.vocab_size * (model.dtype.itemsize + _LOGIT_BYTES)
        rows = int(total * _LOGIT_SHARE / logit_bytes)
        tokens = int(total * (1 - _LOGIT_SHARE) / _cache_bytes(model))
        return cls(tokens=max(1, tokens), max_rows=max(1, min(_MOST_ROWS, rows)))


def _memory(model: PreTrainedModel) -> int:
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        return int((free + unused) * _CUDA_SHARE)
    return max(_CPU_FLOOR, sum(weight.numel() * weight.element_size() for weight in model.parameters()))


def _cache_bytes(model: PreTrainedModel) -> int:
    """Keys and values of one token in all layers, in bytes; an upper estimate where heads are described unusually."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:  # no attention: its state grows with rows, not tokens, and the widest guess is one layer's output
        return int(2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * width * model.dtype.itemsize)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or this machine, had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)
