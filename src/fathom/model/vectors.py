"""Vectors where tokens would stand: ids that no tokenizer has, and a model that reads them as these vectors.

An attempt holds ids alone, and its identity is a hash of them. So a vector is named by an id made of its own content,
far beyond any vocabulary: what shares vectors shares ids, and with them caches, and other vectors are another attempt.
While `reading` is open, the model's embedding layer gives such ids their vectors, behind its own scaling (Gemma): what
`inputs_embeds` would hold.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from fathom.chat import FIRST_VECTOR

__all__ = ["embedded", "named", "packed", "reading", "size", "unpacked", "vector_ids"]

_SAMPLED = 1024  # embeddings whose size is taken for that of all
_BITS = 48  # of content; a sum with FIRST_VECTOR that JavaScript still counts exactly


def packed(vectors: Float[Tensor, "count width"]) -> bytes:
    """Vectors in single precision, as a journal keeps them: exactly."""
    return vectors.detach().cpu().float().numpy().astype("<f4").tobytes()


def unpacked(data: bytes, count: int) -> Float[Tensor, "count width"]:
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(count, -1)


def vector_ids(vectors: Float[Tensor, "count width"]) -> tuple[int, ...]:
    """An id for each vector: the same wherever the same vector is, and no token's."""
    digests = (hashlib.blake2b(packed(vector), digest_size=_BITS // 8).digest() for vector in vectors)
    return tuple(FIRST_VECTOR + int.from_bytes(digest) for digest in digests)


@contextmanager
def reading(model: PreTrainedModel, vectors: Mapping[int, Float[Tensor, " width"]]) -> Iterator[None]:
    """Let the model read ids of `vectors` as these; gradients flow to them, and to weights. Then it is as it was."""
    embedding: nn.Module = model.get_input_embeddings()
    asked: list[Tensor] = []

    def entering(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        ids: Tensor = given[0]
        asked.append(ids)
        return (ids.masked_fill(ids >= FIRST_VECTOR, 0), *given[1:])

    def leaving(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        del module, given
        ids = asked.pop()
        soft = ids >= FIRST_VECTOR
        if not bool(soft.any()):
            return output
        rows = torch.stack([vectors[name] for name in ids[soft].tolist()])
        read = output.clone()
        read[soft.to(read.device)] = rows.to(read)
        return read

    hooks = (embedding.register_forward_pre_hook(entering), embedding.register_forward_hook(leaving))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def named(vectors: Sequence[Float[Tensor, "count width"]]) -> dict[int, Float[Tensor, " width"]]:
    """All of these vectors by their ids."""
    return {name: vector for group in vectors for name, vector in zip(vector_ids(group), group, strict=True)}


@torch.no_grad()
def embedded(model: PreTrainedModel, ids: Int[Tensor, " ids"]) -> Float[Tensor, "ids width"]:
    """What the model's embedding layer makes of ids, its own scaling included, in single precision."""
    embedding: nn.Module = model.get_input_embeddings()
    vectors: Tensor = embedding(ids.to(next(embedding.parameters()).device))
    return vectors.float()


def size(model: PreTrainedModel, count: int) -> float:
    """The root mean square of the numbers of the embeddings of ids below `count`, of some that are spread over them."""
    ids = torch.arange(0, count, max(1, count // _SAMPLED))
    return float(embedded(model, ids).double().square().mean().sqrt())
