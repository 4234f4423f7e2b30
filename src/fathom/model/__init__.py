"""A causal language model loaded with its tokenizer and chat format, and exactly which one it is.

What can go wrong with a name, a directory or an option is a `UserError` of one line; transformers' own warnings and
bars are silenced while it loads.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from fathom.chat import ChatFormat
from fathom.checkpoint import place, quiet
from fathom.errors import UserError
from fathom.identity import describe, identify
from fathom.model.format import load_format
from fathom.model.options import FormatChoice, LoadOptions, Quantisation, check_options, check_quantised
from fathom.model.quantised import quantisation_of
from fathom.model.reading import LOADING_ERRORS, load_config
from fathom.model.weights import check_sizes, device_of, load_weights, move, with_adapter
from fathom.schema import ModelInfo

__all__ = ["ChatModel", "FormatChoice", "LoadOptions", "Quantisation", "check_pair", "load", "load_chat", "load_info"]


@dataclass(frozen=True, eq=False)
class ChatModel:
    """A model in evaluation mode, the format that makes its ids, and what it is."""

    model: PreTrainedModel
    chat: ChatFormat
    info: ModelInfo

    @property
    def device(self) -> torch.device:
        """Where input ids go."""
        embeddings: torch.nn.Module = self.model.get_input_embeddings()
        return next(embeddings.parameters()).device

    @property
    def context(self) -> int | None:
        """The longest input in tokens, where the configuration states one."""
        return self.info.context

    @property
    def vocabulary(self) -> int:
        """How many ids the model knows, embedding padding included."""
        return self.info.vocabulary


def load(options: LoadOptions) -> ChatModel:
    """The model, its tokenizer and its chat format, in evaluation mode on one device (or spread by `device_map`).

    Raises:
        UserError: the name, its files, the adapter, the template or an option cannot be used.
    """
    check_options(options)
    device = device_of(options)
    with quiet():
        chat = load_format(options)
        model = load_weights(options, device)
        check_quantised(options, quantisation_of(model))
        if options.adapter is not None:
            model = with_adapter(model, options.adapter, merged=options.merged)
        if options.device_map is None and quantisation_of(model) is None:
            move(model, device, options)
    model.train(False)
    check_sizes(options, model, chat.tokenizer)
    chat = replace(chat, stop_ids=chat.stop_ids | _configured_stops(model.generation_config))
    return ChatModel(model=model, chat=chat, info=_info(options, model, chat))


def load_chat(options: LoadOptions) -> ChatFormat:
    """The chat format alone, without loading weights; its `stop_ids` are those of `load`.

    Raises:
        UserError: as `load`, but for weights and device.
    """
    check_options(options)
    with quiet():
        chat = load_format(options)
        try:
            generation = GenerationConfig.from_pretrained(place(options.name), revision=options.revision or "main")
        except LOADING_ERRORS:  # models without the file stop at the tokenizer's end of text
            return chat
    return replace(chat, stop_ids=chat.stop_ids | _configured_stops(generation))


def load_info(options: LoadOptions, chat: ChatFormat) -> ModelInfo:
    """What the configuration says of a model whose weights are elsewhere.

    Raises:
        UserError: the configuration cannot be read.
    """
    with quiet():
        return describe(load_config(options), chat, name=options.name, revision=options.revision)


def check_pair(model: ChatModel, base: ChatModel) -> None:
    """Two models whose next-token distributions are compared must mean the same by every id.

    Ids that only one of the tokenizers has, and padding of the embeddings, may differ.

    Raises:
        UserError: an id stands for different tokens; the first one is named.
    """
    ours, theirs = ({id_: token for token, id_ in pair.chat.tokenizer.get_vocab().items()} for pair in (model, base))
    for id_ in sorted(ours.keys() & theirs.keys()):
        if ours[id_] != theirs[id_]:
            raise UserError(
                f"{model.info.name} and {base.info.name} have different vocabularies: token {id_} is {ours[id_]!r} in "
                f"one and {theirs[id_]!r} in the other; give a model of the same family, as its base is"
            )
    if not ours.keys() & theirs.keys():
        raise UserError(
            f"{model.info.name} and {base.info.name} share no token id; give a model of the same family, as its base is"
        )


def _configured_stops(generation: Any) -> frozenset[int]:
    """The ids that end generation as it is configured: one, several or none."""
    configured = getattr(generation, "eos_token_id", None)
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(id_ for id_ in ids if id_ is not None)


def _info(options: LoadOptions, model: PreTrainedModel, chat: ChatFormat) -> ModelInfo:
    return identify(
        model,
        chat,
        name=options.name,
        revision=options.revision,
        adapter=options.adapter,
        quantisation=quantisation_of(model),
    )
