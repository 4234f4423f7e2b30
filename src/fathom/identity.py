"""Exactly which weights, tokenizer and template a loaded model has."""

import hashlib
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fathom.chat import ChatFormat
from fathom.records import content_hash
from fathom.schema import ModelInfo

__all__ = ["describe", "identify", "tokenizer_hash", "vocabulary_size", "weights_hash"]


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many ids the model knows, embedding padding included."""
    size = model.config.get_text_config().vocab_size
    assert isinstance(size, int)
    return size


def _context(whole: PreTrainedConfig) -> int | None:
    """The longest input by the configuration's own name for it. A sliding window limits attention, not the input."""
    config = whole.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx"):
        if isinstance(length := getattr(config, name, None), int) and length > 0:
            return length
    return None


def identify(
    model: PreTrainedModel,
    chat: ChatFormat,
    *,
    name: str,
    revision: str | None = None,
    adapter: str | None = None,
    quantisation: str | None = None,
) -> ModelInfo:
    """What a model is, as loaded, under the name that it was given."""
    return ModelInfo(
        name=name,
        revision=revision,
        adapter=adapter,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),  # of two in one byte, both
        dtype=str(model.dtype).removeprefix("torch."),
        quantisation=quantisation,
        weights_hash=weights_hash(model),
        tokenizer_hash=tokenizer_hash(chat.tokenizer),
        template_hash=None if chat.template is None else content_hash(chat.template),
        template_source=chat.source,
        vocabulary=vocabulary_size(model),
        context=_context(model.config),
    )


def describe(config: PreTrainedConfig, chat: ChatFormat, *, name: str, revision: str | None = None) -> ModelInfo:
    """What is known of a model that a server runs, from its configuration and tokenizer: nothing of its weights."""
    vocabulary = config.get_text_config().vocab_size
    assert isinstance(vocabulary, int)
    return ModelInfo(
        name=name,
        revision=revision,
        adapter=None,
        architecture=next(iter(config.architectures or ()), "unknown"),
        parameters=0,
        dtype="as served",
        quantisation=None,
        weights_hash="",
        tokenizer_hash=tokenizer_hash(chat.tokenizer),
        template_hash=None if chat.template is None else content_hash(chat.template),
        template_source=chat.source,
        vocabulary=vocabulary,
        context=_context(config),
    )


def weights_hash(model: PreTrainedModel, *, without: Collection[str] = ()) -> str:
    """A hash of every tensor's name, shape, type and bytes as loaded, but of those whose names are left out.

    It is of the parameters in memory, not of files: the same weights hash alike however they are sharded or named on
    disk, and another dtype hashes otherwise. Tensors are hashed side by side, as blake2b leaves Python's lock; those
    that several processes hold in parts (FSDP2) are gathered one by one, by all of them in the same order.
    """
    held = ((name, value) for name, value in model.state_dict().items() if name not in without)
    tensors = sorted((name, value) for name, value in held if isinstance(value, torch.Tensor))
    if any(isinstance(value, DTensor) for _, value in tensors):
        digests = [_tensor_digest(value.full_tensor() if isinstance(value, DTensor) else value) for _, value in tensors]
    else:
        with ThreadPoolExecutor(max_workers=4) as pool:
            digests = list(pool.map(lambda item: _tensor_digest(item[1]), tensors))
    whole = hashlib.blake2b(digest_size=12)
    for (name, _), digest in zip(tensors, digests, strict=True):
        whole.update(name.encode() + b"\0" + digest)
    return whole.hexdigest()


def _tensor_digest(tensor: torch.Tensor) -> bytes:
    state = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=32)
    if tensor.numel() and not tensor.is_meta:  # weights offloaded to disk count by name and shape alone
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of vocabulary, merges, normalisation and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python alone
        return content_hash((dict(tokenizer.get_vocab()), tokenizer.special_tokens_map))
    whole = json.loads(backend.to_str())
    for state in ("truncation", "padding"):  # how it was last called, not what it is
        whole.pop(state, None)
    return content_hash((whole, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}))
