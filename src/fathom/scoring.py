"""How probable given tokens are: per-token log-probabilities, ranks and KL at response positions only.

The naive equivalent of everything here is two lines per model, and holds a log-softmax of the whole vocabulary:

    logits = model(prompt + response).logits[prompt_length - 1 : -1].float()   # row t predicts response token t
    logprobs = logits.log_softmax(-1)                                          # [response, vocabulary]

Here the model's body gives hidden states of the response rows, and the head is applied to blocks of rows × vocabulary;
what is kept of a block are its log-sum-exp and its part of the KL, which combine exactly. One row of work is one
response, in one forward of its own: no number depends on which other responses were scored, or in which order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fathom.errors import UserError
from fathom.model import ChatModel

__all__ = [
    "Head",
    "HeadLogits",
    "LogitTable",
    "Logits",
    "PairScores",
    "ReferenceAnswer",
    "Scorer",
    "TokenScores",
    "compare",
    "compare_logits",
    "log_normaliser",
    "score",
    "score_logits",
]

ROWS = 1024  # response rows at a time
CPU_BLOCK = 2**21  # logits at a time: small enough for a cache, large enough that threads seldom wait for each other
GPU_BLOCK = 2**25
PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class ReferenceAnswer:
    """The ids of a request and of a reference answer to it; `base_prompt_ids` is the request as the base is given it.

    `base_prompt_ids` None: the base is given the same ids as the model.
    """

    behavior: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    base_prompt_ids: tuple[int, ...] | None = None


class TokenScores(NamedTuple):
    """Of each response token under one model: log-probability in nats, and rank (1 = the most probable id)."""

    logprobs: Float64[Tensor, "response"]
    ranks: Int[Tensor, "response"]


class PairScores(NamedTuple):
    """Of each response token under two models: the model's scores, the base's log-probability, KL(model ‖ base) ≥ 0."""

    model: TokenScores
    base_logprobs: Float64[Tensor, "response"]
    kl_nats: Float64[Tensor, "response"]


@runtime_checkable
class Logits(Protocol):
    """Rows of logits that are computed column by column, when asked for."""

    @property
    def rows(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def columns(self, index: slice | Int[Tensor, "columns"]) -> Float[Tensor, "rows columns"]:
        """Logits of some ids in float32, in memory of their own: the caller may overwrite them."""
        ...

    def at(self, ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """Logit of one id in each row, in float32."""
        ...


@dataclass(frozen=True, eq=False)
class Head:
    """A model's last step, from hidden states to logits: softcap(scale · (h Wᵀ + b))."""

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, "vocabulary"] | None
    scale: float  # Cohere's logit_scale, one over Granite's logits_scaling; 1 elsewhere
    softcap: float | None  # Gemma's final_logit_softcapping

    def logits(
        self, hidden: Float[Tensor, "rows width"], index: slice | Int[Tensor, "columns"]
    ) -> Float[Tensor, "rows columns"]:
        """Logits of some ids, computed in the head's own dtype and returned in float32."""
        return self._transformed(F.linear(hidden, self.weight[index], None if self.bias is None else self.bias[index]))

    def at(self, hidden: Float[Tensor, "rows width"], ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """Logit of one id in each row."""
        logits = torch.linalg.vecdot(hidden, self.weight[ids])
        return self._transformed(logits if self.bias is None else logits + self.bias[ids])

    def _transformed(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()


@dataclass(frozen=True, eq=False)
class HeadLogits:
    """`Logits` from hidden states and a head: no column exists before it is asked for."""

    hidden: Float[Tensor, "rows width"]
    head: Head

    @property
    def rows(self) -> int:
        return self.hidden.shape[0]

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def columns(self, index: slice | Int[Tensor, "columns"]) -> Float[Tensor, "rows columns"]:
        return self.head.logits(self.hidden, index)

    def at(self, ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        return self.head.at(self.hidden, ids)


@dataclass(frozen=True, eq=False)
class LogitTable:
    """`Logits` that a model computed itself, for models whose head is no plain projection."""

    table: Float[Tensor, "rows vocabulary"]

    @property
    def rows(self) -> int:
        return self.table.shape[0]

    @property
    def vocabulary(self) -> int:
        return self.table.shape[1]

    @property
    def device(self) -> torch.device:
        return self.table.device

    def columns(self, index: slice | Int[Tensor, "columns"]) -> Float[Tensor, "rows columns"]:
        return self.table[:, index].to(torch.float32, copy=True)

    def at(self, ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        return self.table.gather(1, ids[:, None])[:, 0].float()


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
                f"{len(prompt_ids)} prompt and {len(response_ids)} answer tokens exceed the model's context of "
                f"{self.model.context} tokens: shorten the answer"
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


@torch.inference_mode()
def score(scorer: Scorer, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> TokenScores:
    """Log-probability and rank of each response token under one model."""
    parts, start = [], 0
    for logits in scorer.response_logits(prompt_ids, response_ids):
        parts.append(score_logits(logits, torch.tensor(response_ids[start : start + logits.rows])))
        start += logits.rows
    return _join(parts)


@torch.inference_mode()
def compare(model: Scorer, base: Scorer, answer: ReferenceAnswer) -> PairScores:
    """Per-token KL(model ‖ base) of an answer, with both models' log-probabilities and the model's ranks.

    Where the two heads have different sizes (embeddings padded differently), both distributions are restricted to the
    ids that both heads have and renormalised there; with equal sizes nothing is left out.

    Raises:
        UserError: the base has no embedding for an id, or a context is exceeded.

    Source: Fig. 1, D_t = KL(π_aligned(·|x, y_<t) ‖ π_base(·|x, y_<t)).
    """
    vocabulary = _shared_vocabulary(model, base, answer)
    base_prompt = answer.prompt_ids if answer.base_prompt_ids is None else answer.base_prompt_ids
    pairs = zip(
        model.response_logits(answer.prompt_ids, answer.answer_ids),
        base.response_logits(base_prompt, answer.answer_ids),
        strict=True,
    )
    parts, start = [], 0
    for p, q in pairs:
        parts.append(compare_logits(p, q, torch.tensor(answer.answer_ids[start : start + p.rows]), vocabulary))
        start += p.rows
    return PairScores(
        model=_join([part.model for part in parts]),
        base_logprobs=torch.cat([part.base_logprobs for part in parts]),
        kl_nats=torch.cat([part.kl_nats for part in parts]),
    )


@torch.inference_mode()
def score_logits(logits: Logits, targets: Int[Tensor, "rows"]) -> TokenScores:
    """`score` for rows of logits."""
    ranks = _Ranks(logits, targets, logits.vocabulary)
    sums = []
    for start, block in _blocks(logits, logits.vocabulary):
        ranks.see(block, start, torch.empty_like(block))
        sums.append(_exponentiate(block))
    return ranks.scores(_log_sums(sums).logsumexp(0))


@torch.inference_mode()
def compare_logits(p: Logits, q: Logits, targets: Int[Tensor, "rows"], vocabulary: int) -> PairScores:
    """`compare` for rows of logits: KL(p ‖ q) over the first `vocabulary` ids, and each target's scores."""
    ranks, theirs, blocks = _Ranks(p, targets, vocabulary), _Targets(targets, p.device), []
    scratch: Tensor | None = None  # one for all blocks: fresh memory costs as much as the arithmetic in it
    for start, x in _blocks(p, vocabulary):
        y = q.columns(slice(start, start + x.shape[1])).to(x.device)
        scratch = torch.empty_like(x) if scratch is None else scratch.flatten()[: x.numel()].view_as(x)
        ranks.see(x, start, scratch)
        theirs.see(y, start)
        blocks.append(_block_divergence(x, y, scratch))
    log_p, log_q = _log_sums([block.p for block in blocks]), _log_sums([block.q for block in blocks])
    total_p, total_q = log_p.logsumexp(0), log_q.logsumexp(0)
    # Σ_v p_v (x_v - y_v): every block's sum is known up to exp(its largest x), and total_p normalises.
    tops = torch.stack([block.p.top for block in blocks]).double()
    gap = ((tops - total_p).exp() * torch.stack([block.gap for block in blocks]).double()).sum(0)
    kl = (gap - total_p + total_q).clamp_min(0.0)  # Gibbs: a negative value is rounding
    return PairScores(ranks.scores(total_p), (theirs.logits.double() - total_q).cpu(), kl.cpu())


@torch.inference_mode()
def log_normaliser(logits: Logits) -> Float64[Tensor, "rows"]:
    """Log-sum-exp of each row over the whole vocabulary, block by block."""
    return _log_sums([_exponentiate(block) for _, block in _blocks(logits, logits.vocabulary)]).logsumexp(0)


class _Sum(NamedTuple):
    """Σ exp(logit) over a block, as total · exp(top)."""

    top: Float[Tensor, "rows"]
    total: Float[Tensor, "rows"]


class _Block(NamedTuple):
    p: _Sum
    q: _Sum
    gap: Float[Tensor, "rows"]  # Σ exp(x - top) (x - y) over the block


def _block_divergence(
    x: Float[Tensor, "rows columns"], y: Float[Tensor, "rows columns"], scratch: Float[Tensor, "rows columns"]
) -> _Block:
    """One block's part of two log-sum-exps and of the KL; overwrites all three."""
    gap = torch.sub(x, y, out=scratch)
    p = _exponentiate(x)
    total = gap.mul_(x).sum(1)
    if total.isnan().any():  # an id that the model excludes (logit -inf) adds nothing
        total = gap.masked_fill_(x == 0, 0.0).sum(1)
    return _Block(p, _exponentiate(y), total)


def _exponentiate(x: Float[Tensor, "rows columns"]) -> _Sum:
    """In place: x becomes exp(x - top), one exponential per logit."""
    top = x.amax(1, keepdim=True).clamp_min_(torch.finfo(x.dtype).min)  # a block of nothing but -inf
    return _Sum(top[:, 0], x.sub_(top).exp_().sum(1))


def _log_sums(sums: Sequence[_Sum]) -> Float64[Tensor, "blocks rows"]:
    """Log-sum-exp of each block. At once: threads would wait for each other at every small logarithm."""
    tops, totals = (torch.stack([part[which] for part in sums]).double() for which in (0, 1))
    return tops + totals.log()


class _Targets:
    """Finds the logits of given tokens, one in each row, as the blocks go by."""

    def __init__(self, targets: Int[Tensor, "rows"], device: torch.device) -> None:
        self._ids = targets.to(device)
        self.logits = torch.zeros(len(targets), device=device)

    def see(self, block: Float[Tensor, "rows columns"], start: int) -> None:
        place = self._ids - start
        inside = (place >= 0) & (place < block.shape[1])
        found = block.gather(1, place.clamp(0, block.shape[1] - 1)[:, None])[:, 0]
        self.logits = torch.where(inside, found, self.logits)


class _Ranks:
    """Counts, as the blocks go by, how many ids lie above each row's token."""

    def __init__(self, logits: Logits, targets: Int[Tensor, "rows"], vocabulary: int) -> None:
        self._ids = targets.to(logits.device)
        self._targets = _Targets(targets, logits.device)
        # To count in the first of several blocks, a token's logit must be known before its own block comes by.
        self._own = None if _width(logits) >= vocabulary else logits.at(self._ids)
        self._above = torch.zeros(len(targets), device=logits.device)  # exact in float32 up to 16 million ids

    def see(self, block: Float[Tensor, "rows columns"], start: int, scratch: Float[Tensor, "rows columns"]) -> None:
        """Count in one block; overwrites `scratch` only."""
        self._targets.see(block, start)
        own = self._targets.logits if self._own is None else self._own
        above = torch.gt(block, own[:, None], out=scratch)
        self._above += above.sum(1)
        if self._own is not None:
            # The logit known before comes from another matrix product, which may round up or down: never count itself.
            itself = _Targets(self._ids, block.device)
            itself.see(above, start)
            self._above -= itself.logits

    def scores(self, log_normaliser: Float64[Tensor, "rows"]) -> TokenScores:
        return TokenScores((self._targets.logits.double() - log_normaliser).cpu(), self._above.long().cpu() + 1)


def _width(logits: Logits) -> int:
    """Columns of a block."""
    return max(1, (CPU_BLOCK if logits.device.type == "cpu" else GPU_BLOCK) // logits.rows)


def _blocks(logits: Logits, vocabulary: int) -> Iterator[tuple[int, Float[Tensor, "rows columns"]]]:
    width = _width(logits)
    for start in range(0, vocabulary, width):
        yield start, logits.columns(slice(start, min(start + width, vocabulary)))


def _join(parts: Sequence[TokenScores]) -> TokenScores:
    return TokenScores(torch.cat([part.logprobs for part in parts]), torch.cat([part.ranks for part in parts]))


def _shared_vocabulary(model: Scorer, base: Scorer, answer: ReferenceAnswer) -> int:
    sizes = (model.vocabulary, base.vocabulary)
    prompt = answer.prompt_ids if answer.base_prompt_ids is None else answer.base_prompt_ids
    largest = max(*prompt, *answer.answer_ids)
    if largest >= sizes[1]:
        raise UserError(
            f"id {largest} of the prompt or answer lies beyond the base model's vocabulary of {sizes[1]}: "
            "the base needs the tokenizer of the model, or its prompt as plain text"
        )
    return min(sizes)


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
