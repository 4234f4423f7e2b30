"""LoRA instead of all weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.checkpoint import one_line, quiet
from fathom.errors import UserError
from fathom.model.quantised import full_weight, is_quantised, turned
from fathom.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

__all__ = ["Adapter", "AdapterOff", "in_parts", "merge", "with_adapter", "worn"]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter; `targets` is PEFT's `target_modules`.

    The default puts it on every linear layer but the head.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"

    def check(self, model: "PreTrainedModel") -> None:
        """That the model has every layer that is named; PEFT itself is content with one of them.

        Raises:
            UserError: it has not, or none is named.
        """
        if isinstance(self.targets, str):
            return
        if not self.targets:
            raise UserError("--lora-targets is empty: give names of layers, or all-linear")
        names = [name for name, _ in model.named_modules()]
        for target in self.targets:
            if not any(f".{name}".endswith(f".{target}") for name in names):
                raise UserError(
                    f"LoRA cannot be put on this model: it has no layer called {target!r}; its linear layers are "
                    f"{', '.join(_linear(model))}"
                )


def _linear(model: "PreTrainedModel") -> list[str]:
    """Last names of the layers that multiply by a matrix, each once, in the model's order."""
    found = (name.rpartition(".")[2] for name, layer in model.named_modules() if _multiplies(layer))
    return list(dict.fromkeys(found))


def _multiplies(layer: "Module") -> bool:
    """Linear layers, and GPT-2's, which are called Conv1D."""
    return getattr(getattr(layer, "weight", None), "ndim", 0) == 2 and "Embedding" not in type(layer).__name__


def with_adapter(model: "PreTrainedModel", adapter: Adapter, seed: int = 0) -> "PreTrainedModel":
    """The model with an adapter that does nothing yet; what is random in it is decided by `seed` alone.

    So it is the same in each of several processes, whatever each of them has drawn before.
    """
    import peft
    import torch

    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            wrapped: Any = peft.get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"LoRA cannot be put on this model: {one_line(error)}") from error
    return wrapped  # type: ignore[no-any-return]


@contextmanager
def worn(model: "PreTrainedModel", adapter: Adapter, seed: int = 0) -> "Iterator[PreTrainedModel]":
    """The model with an adapter on, as `with_adapter`; afterwards the model is as it was, and no copy was made of it.

    Meanwhile `model` itself answers with the adapter.
    """
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with quiet():
        wrapped: Any = with_adapter(model, adapter, seed)
    try:
        yield wrapped
    finally:
        wrapped.unload()
        for parameter, before in trainable:
            parameter.requires_grad_(before)


@dataclass(frozen=True, eq=False)
class AdapterOff:
    """A model as it is without the adapter that it wears: called as a model is, and nothing is copied."""

    wrapped: "PreTrainedModel"  # as `with_adapter` or `worn` gave it

    def __call__(self, **inputs: object) -> object:
        with self.wrapped.disable_adapter():  # type: ignore[operator]
            return self.wrapped(**inputs)


def merge(
    model: "PreTrainedModel", adapter: Adapter, kind: "type[PreTrainedModel]", output: Path | None, ranks: Ranks
) -> "tuple[PreTrainedModel, Path | None]":
    """The model with its adapter merged into it, and where the adapter alone was saved, if anywhere.

    `kind` is the class of the model before it was trained. Weights that several processes hold in parts (FSDP2) are put
    together in the memory of the first, and quantised ones are made full ones there, as to round the sum would undo
    much of the adapter: the first process returns a model on its CPU, and the others return the model as it is.
    """
    quantised = any(is_quantised(layer) for layer in model.modules())
    state = _whole_state(model, ranks)
    path = None if output is None else output / "adapter"
    if path is not None and ranks.first:
        model.save_pretrained(path, state_dict=state)
    ranks.barrier()
    if not ranks.first and (quantised or in_parts(model)):
        return model, path
    if quantised:
        return _full(model, kind), path
    if state is not None:
        model = _rebuilt(model, adapter, kind, state)
    return model.merge_and_unload(), path  # type: ignore[operator]


def in_parts(model: "PreTrainedModel") -> bool:
    """Whether several processes hold parts of its weights (FSDP2)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(weight, DTensor) for weight in model.parameters())


def _whole_state(model: "PreTrainedModel", ranks: Ranks) -> "dict[str, Tensor] | None":
    """None where the weights are whole; else all of them on the CPU of the first process, and nothing on the others.

    Gathered one by one, by all processes in the same order.
    """
    from torch.distributed.tensor import DTensor

    if not in_parts(model):
        return None
    found = dict[str, "Tensor"]()
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if ranks.first:
            found[name] = whole.cpu()
    return found


def _rebuilt(
    model: "PreTrainedModel", adapter: Adapter, kind: "type[PreTrainedModel]", state: "dict[str, Tensor]"
) -> "PreTrainedModel":
    """A model of the same configuration, with the adapter on it, that holds these weights."""
    plain = _blank(kind, model.config, model.generation_config)
    again = with_adapter(plain, adapter)
    again.load_state_dict(state, assign=True)
    plain.tie_weights()
    return again


def _full(model: "PreTrainedModel", kind: "type[PreTrainedModel]") -> "PreTrainedModel":
    """A model in full weights on the CPU that computes what the quantised one with its adapter does.

    Layer by layer, so that no more than one of them is a full one on the device.
    """
    inner: PreTrainedModel = model.get_base_model()  # type: ignore[operator]
    config = copy.deepcopy(inner.config)
    del config.quantization_config
    plain = _blank(kind, config, inner.generation_config)
    plain.load_state_dict(_full_state(inner), assign=True)
    plain.tie_weights()
    return plain


def _full_state(inner: "PreTrainedModel") -> "dict[str, Tensor]":
    """All weights, in the model's dtype, by the names that they have without adapter and quantisation."""
    from peft.tuners.lora import LoraLayer

    found, done = dict[str, "Tensor"](), list[str]()
    for name, layer in inner.named_modules():
        worn = isinstance(layer, LoraLayer)
        base = layer.get_base_layer() if worn else layer
        if name.endswith(".base_layer") or not (worn or is_quantised(base)):
            continue
        weight = full_weight(base)
        if worn:
            weight = weight.float() + layer.get_delta_weight("default").detach()
        found[f"{name}.weight"] = (weight.T if turned(base) else weight).to(inner.dtype).cpu().contiguous()
        if getattr(base, "bias", None) is not None:
            found[f"{name}.bias"] = base.bias.detach().to(inner.dtype).cpu()
        done.append(f"{name}.")
    others = ((key, value) for key, value in inner.state_dict().items() if not key.startswith(tuple(done)))
    return {**found, **{key: value.detach().cpu() for key, value in others}}


def _blank(kind: "type[PreTrainedModel]", config: Any, generation: Any) -> "PreTrainedModel":
    """A model whose weights are still to be put in."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        plain = kind(config)
    plain.generation_config = generation
    return plain
