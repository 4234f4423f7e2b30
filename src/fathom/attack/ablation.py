"""A direction taken out of a model's residual stream while it runs, by hooks: no weight is copied or changed.

Every decoder layer reads a stream without the direction, and what its attention and its feed-forward network write to
the stream has none of it either. That is the model whose embedding and output projections are orthogonal to the
direction, exactly so where these are found by name; an architecture whose parts have other names is ablated between
its layers.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from fathom.errors import UserError

__all__ = ["ablated", "decoder_layers", "without"]

# What writes to the residual stream, by the names of transformers' modules. Where a norm stands between a part and
# the stream ("sandwich" norms of Gemma, OLMo 2, GLM 4), the norm is what writes.
_PARTS = (
    ("self_attn", "attn", "attention", "self_attention", "mixer"),
    ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe"),
)
_NORMS_THAT_WRITE = (
    ("post_feedforward_layernorm", ("post_attention_layernorm", "post_feedforward_layernorm")),
    ("post_mlp_layernorm", ("post_self_attn_layernorm", "post_mlp_layernorm")),
)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers that the residual stream runs through.

    Raises:
        UserError: the model has no list of as many modules as its configuration has layers.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise UserError(
            f"{type(model).__name__} has no list of {count} decoder layers, so nothing can be ablated in its residual "
            "stream; leave out refusal-direction"
        )
    return max(lists, key=lambda layers: sum(weight.numel() for weight in layers.parameters()))


def without(stream: Float[Tensor, "*any width"], direction: Float[Tensor, " width"]) -> Float[Tensor, "*any width"]:
    """The stream less its part along a unit direction; the sum is taken in single precision at least."""
    unit = direction.to(device=stream.device)
    along = (stream.to(unit.dtype) @ unit)[..., None] * unit
    return stream - along.to(stream.dtype)


@contextmanager
def ablated(model: PreTrainedModel, direction: Float[Tensor, " width"]) -> Iterator[None]:
    """Run the model without `direction` in its residual stream; afterwards it is as it was."""
    unit = (direction.float() / direction.float().norm()).to(model.device)

    def out(module: nn.Module, given: Any, output: Any) -> Any:
        del module, given
        return (without(output[0], unit), *output[1:]) if isinstance(output, tuple) else without(output, unit)

    def entering(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        del module
        if given:
            return (without(given[0], unit), *given[1:]), named
        return given, {**named, "hidden_states": without(named["hidden_states"], unit)}

    layers = decoder_layers(model)
    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(entering, with_kwargs=True).remove)
            for writer in _writers(layer):
                hooks.callback(writer.register_forward_hook(out).remove)
        hooks.callback(layers[-1].register_forward_hook(out).remove)
        yield


def _writers(layer: nn.Module) -> list[nn.Module]:
    named = dict(layer.named_children())
    for sign, norms in _NORMS_THAT_WRITE:
        if sign in named:
            return [named[name] for name in norms if name in named]
    return [named[name] for names in _PARTS for name in names if name in named]
