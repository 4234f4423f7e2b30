"""A model made ready for scoring: hidden states of response rows, and its head where that is a plain projection."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.scoring.logits import Head, HeadLogits, Logits, LogitTable

__all__ = ["ROWS", "Scorer"]

ROWS = 1024  # response rows at a time
PROBE_TOKENS = 8


@dataclass(frozen=True, eq=False)
class Scorer:
    """A model made ready for scoring; make one with `Scorer.of`. `head` None: the model's own logits are used."""

    model: ChatModel
    head: Head | None

    @classmethod
    def of(cls, model: ChatModel) -> "Scorer":
        """Find the model's head and check it against the model's own logits on a few ids spread over its vocabulary.

        The check depends on the model alone, so that every process and every resume takes the same path. Where the
        head does not reproduce the logits (adapters on the head, transformations not known here), the model's own
        logits are used: more memory, the same numbers.
        """
        found = _find_head(_plain(model))
        return cls(model, found if found is not None and _reproduces(model, found) else None)

    @property
    def plain(self) -> PreTrainedModel:
        """The transformers model inside a PEFT wrapper; adapters stay injected in its layers."""
        return _plain(self.model)

    @property
    def vocabulary(self) -> int:
        """How many ids the model gives a probability to."""
        return self.own_logits([0], 1).shape[1] if self.head is None else self.head.weight.shape[0]

    @torch.inference_mode()
    def response_logits(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Iterator[Logits]:
        """Logits of the rows that predict each response token, at most `ROWS` rows at a time, from one forward.

        Raises:
            UserError: prompt and response are longer than the model's context.
        """
        if not prompt_ids or not response_ids:
            raise ValueError("a prompt and a response of at least one token each are needed")
        ids, first = [*prompt_ids, *response_ids], len(prompt_ids) - 1
        if self.model.context is not None and len(ids) > self.model.context:
            raise UserError(
                f"the prompt {self.model.chat.excerpt(prompt_ids)}: {len(prompt_ids)} prompt and {len(response_ids)} "
                f"answer tokens exceed the model's context of {self.model.context} tokens: shorten the answer"
            )
        if self.head is not None:
            # The last response token is fed to nothing: its own row would predict what follows the response.
            hidden = self.hidden(torch.tensor([ids[:-1]], device=self.model.device))[0, first:]
            yield from (self.head_logits(hidden[start : start + ROWS]) for start in range(0, len(hidden), ROWS))
            return
        for start in range(first, len(ids) - 1, ROWS):
            stop = min(start + ROWS, len(ids) - 1)
            yield LogitTable(self.own_logits(ids[:stop], stop - start))

    @torch.inference_mode()
    def next_logits(self, ids: Sequence[int]) -> Logits:
        """Logits of the one row that predicts what follows `ids`, from a plain forward."""
        if self.head is None:
            return LogitTable(self.own_logits(ids, 1))
        return self.head_logits(self.hidden(torch.tensor([list(ids)], device=self.model.device))[0, -1:])

    def head_logits(self, hidden: Float[Tensor, "rows width"]) -> HeadLogits:
        """Logits of rows of hidden states. Only where `head` is not None."""
        if self.head is None:
            raise ValueError("this model's head is no plain projection; use its own logits")
        return HeadLogits(hidden.to(self.head.weight.device), self.head)

    def hidden(self, input_ids: Int[Tensor, "1 length"], **forward: object) -> Float[Tensor, "1 length width"]:
        """What the model's body hands to its head; `forward` goes to the body as it is."""
        body = self.plain.base_model
        hidden: Tensor = body(input_ids=input_ids, **{"use_cache": False, **forward}).last_hidden_state
        return hidden

    def own_logits(self, ids: Sequence[int], rows: int) -> Float[Tensor, "rows vocabulary"]:
        """The model's own logits of the last rows of a sequence."""
        return _own_logits(self.model, ids, rows)


def _plain(model: ChatModel) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper (adapters stay injected in its layers)."""
    unwrap = getattr(model.model, "get_base_model", None)
    inner: PreTrainedModel = model.model if unwrap is None else unwrap()
    return inner


def _find_head(model: PreTrainedModel) -> Head | None:
    projection: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    # Exactly nn.Linear: a subclass (adapter, quantised layer) multiplies by more than its weight. A head that was
    # offloaded has its weights on the meta device.
    if type(projection) is not torch.nn.Linear or projection.weight.is_meta:
        return None
    config = model.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(
        projection.weight.detach(), None if projection.bias is None else projection.bias.detach(), scale, softcap
    )


@torch.inference_mode()
def _reproduces(model: ChatModel, head: Head) -> bool:
    vocabulary = head.weight.shape[0]
    ids = [vocabulary * (i + 1) // (PROBE_TOKENS + 2) for i in range(PROBE_TOKENS)]
    own = _own_logits(model, ids, PROBE_TOKENS).float()
    try:
        hidden = Scorer(model, head).hidden(torch.tensor([ids], device=model.device))[0]
        found = head.logits(hidden.to(head.weight.device), slice(0, vocabulary)).to(own.device)
    except Exception:  # bodies of unknown models fail in unknown ways, and the model's own logits serve
        return False
    if found.shape != own.shape:
        return False
    # Blocks of a product round differently: a few units in the last place of the largest logit.
    tolerance = 64 * torch.finfo(head.weight.dtype).eps * own.abs().max()
    return bool(((found - own).abs() <= tolerance).all())


def _own_logits(model: ChatModel, ids: Sequence[int], rows: int) -> Float[Tensor, "rows vocabulary"]:
    input_ids = torch.tensor([list(ids)], device=model.device)
    try:
        output = model.model(input_ids=input_ids, use_cache=False, logits_to_keep=rows)
    except TypeError:  # an architecture without logits_to_keep
        output = model.model(input_ids=input_ids, use_cache=False)
    logits: Tensor = output.logits[0, -rows:]
    return logits
