"""Weights in fewer bits, by bitsandbytes: how they are made, kept as they are, and turned back into numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fathom.model.options import DTYPES, Quantisation

__all__ = ["full_weight", "is_quantised", "keep_as_stored", "plain_products", "quantisation_of", "request", "turned"]

_OURS = ("Params4bit", "Int8Params")  # bitsandbytes' classes, by name: it is not imported for this


def request(kind: str, dtype: str, config: PreTrainedConfig) -> "transformers.BitsAndBytesConfig":
    """What transformers is told: 4 bits are NF4 with quantised scales, and products are computed in the model's dtype.

    `dtype` is auto (the configuration's) or a name.

    Source: QLoRA (arXiv 2305.14314), section 3.
    """
    if Quantisation(kind) is Quantisation.BITS_8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    stored = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    return transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES.get(dtype, stored) or torch.float32,
    )


def quantisation_of(model: PreTrainedModel) -> str | None:
    """A `Quantisation`, or the method's name where the weights were stored quantised by another; None for full ones."""
    for kind in Quantisation:
        if getattr(model, f"is_loaded_in_{kind.value}", False):
            return kind.value
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None:
        return None
    method = quantiser.quantization_config.quant_method
    return str(getattr(method, "value", method))


def is_quantised(layer: nn.Module) -> bool:
    """Whether a layer's own weight is bitsandbytes'."""
    return type(getattr(layer, "weight", None)).__name__ in _OURS


def keep_as_stored(model: PreTrainedModel) -> None:
    """Nothing that is asked of the model changes its weights.

    On processors with bf16 products, bitsandbytes packs 4-bit weights anew at the first forward in evaluation mode:
    scales are rounded to bf16, and again whenever the weights are saved or hashed; products are bf16 whatever the
    dtype; and a model that has answered once passes no gradient through these layers when it is trained afterwards.
    """
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


@torch.no_grad()
def full_weight(layer: nn.Module) -> Tensor:
    """A layer's weight as its products are computed with; quantised ones are out × in, whatever `turned` says."""
    weight: Any = layer.weight
    if not is_quantised(layer):
        return weight.detach()  # type: ignore[no-any-return]
    import bitsandbytes

    if type(weight).__name__ == "Params4bit":
        found: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    else:
        scale = weight.SCB if layer.state.SCB is None else layer.state.SCB  # type: ignore[union-attr]
        found = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, scale.to(weight.device))
    return found


@contextmanager
def plain_products(model: nn.Module) -> Iterator[None]:
    """While it lasts, quantised layers multiply by their full weights, made anew for each product.

    bitsandbytes' own products have a backward pass and no forward-mode derivative. 4 bits give the same numbers; 8 bits
    round what goes into a layer, too, which their backward pass does not know of, and this does not do.
    """
    # An adapter's layer shows the weight of the one that it is around, and is not to be passed by.
    layers = [layer for layer in model.modules() if "weight" in layer._parameters and is_quantised(layer)]
    before = [vars(layer).get("forward") for layer in layers]  # of accelerate, where it places layers
    for layer in layers:
        layer.forward = partial(_product, layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _product(layer: nn.Module, inputs: Tensor) -> Tensor:
    weight = full_weight(layer).to(inputs.dtype)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return F.linear(inputs, weight, None if bias is None else bias.to(inputs.dtype))


def turned(layer: nn.Module) -> bool:
    """Whether a quantised layer stands for one whose weight is in × out, as GPT-2's are."""
    return is_quantised(layer) and issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)
