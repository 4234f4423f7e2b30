"""What becomes of a model when it is trained further in memory and must itself stay as it is: a copy, or an adapter.

A copy and its optimiser cost three to four times the model's own memory. An adapter costs a few per cent of it: the
model wears it only while it is trained or asked.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fathom.engine import TransformersEngine
from fathom.model import ChatModel
from fathom.records import Attempt, Completion
from fathom.tuning.adapter import Adapter, worn

__all__ = ["Apart", "apart", "load_trained", "trained_weights"]


@contextmanager
def apart(
    start: ChatModel, adapter: Adapter | None, seed: int = 0
) -> "Iterator[tuple[ChatModel, PreTrainedModel | None]]":
    """What may be trained while the start stays as it is: a copy, or the start with an adapter on, which comes off.

    With it the model that wears the adapter, where there is one.
    """
    if adapter is None:
        yield replace(start, model=copy.deepcopy(start.model)), None
        return
    with worn(start.model, adapter, seed) as adapted:
        yield start, adapted


@dataclass(frozen=True, eq=False)
class Apart:
    """A model trained further, apart from the one that it began as. It answers attempts as an engine does.

    Without an adapter, `model` is a copy already, or what nobody trains; with one it is the model that wears it.
    """

    model: ChatModel
    adapter: Adapter | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # of the adapter, once it has been trained

    @contextmanager
    def worn(self) -> Iterator[ChatModel]:
        """The trained model, in evaluation mode, for as long as the context lasts."""
        if self.adapter is None:
            yield self.model
            return
        with self.further() as model:
            model.model.train(False)
            yield model

    @contextmanager
    def further(self) -> Iterator[ChatModel]:
        """What may be trained from here on, in place; `kept` makes the result of it before the context ends."""
        with apart(self.model, self.adapter) as (model, _):
            if self.weights:
                load_trained(model.model, self.weights)
            yield model

    def kept(self, model: ChatModel) -> "Apart":
        """What `further` gave, as it has been trained by now."""
        model.model.train(False)
        if self.adapter is None:
            return Apart(model)
        return replace(self, weights={name: weight.clone() for name, weight in trained_weights(model.model).items()})

    def complete(self, attempts: Sequence[Attempt]) -> Iterator[Completion]:
        """As `TransformersEngine.complete`."""
        with self.worn() as model:
            yield from TransformersEngine(model).complete(attempts)


def trained_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights that are trained, by name: all, or an adapter's."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def load_trained(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Put back what `trained_weights` gave.

    Raises:
        KeyError: they are of another kind of training, and some weight would stay as it is.
    """
    missing = trained_weights(model).keys() - weights.keys()
    if missing:
        raise KeyError(f"no weights of {min(missing)} and {len(missing) - 1} more: they are of another training")
    with torch.no_grad():
        model.load_state_dict(dict(weights), strict=False)
