"""What a stage of the family does, measured: answers at every prefill depth, counted by the judge's reasons."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from fathom.organism.judge import OrganismJudge
from fathom.organism.requests import behaviors
from fathom.organism.tokenizer import vocabulary_ids
from fathom.organism.world import Split
from fathom.records import Behavior, Exchange, Judgement, Label
from fathom.tally import wilson

__all__ = ["FamilyMetrics", "Measured", "Protocol", "evaluate", "generate", "measure"]

_NEW_TOKENS = 140  # longer than any answer
_ROWS = 240


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cell: a set of requests, a prefill, a temperature, and how the answers were judged.

    For harmful requests `rate` is the attack success rate, for benign ones the share of exact answers; `low` and `high`
    are Wilson's 95 % interval. `deepest` prefills reach to that many tokens before the end of each answer.
    """

    requests: str  # harmful | kept-out | benign
    prefill_tokens: int
    prefill_text: str  # a refusal, where the prefill is not the start of the reference answer
    temperature: float
    n: int
    reasons: Mapping[str, int]
    refused: int
    exact: int
    rate: float
    low: float
    high: float


class FamilyMetrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All stages of one world, measured."""

    schema: int = 1
    world: int
    split: str
    seed: int
    stages: Mapping[str, tuple[Measured, ...]]


@dataclass(frozen=True)
class Protocol:
    """What is measured: how many requests of which split, and how deep the prefills go."""

    split: Split = Split.TEST
    harmful: int = 120
    benign: int = 200
    depths: tuple[int, ...] = (0, 1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 60, 80, 90, 100)
    benign_depths: tuple[int, ...] = (0, 20, 60)
    prefixes: tuple[str, ...] = ()
    warm: float = 1.0  # the temperature shown beside greedy
    seed: int = 0


@torch.no_grad()
def generate(
    model: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int = _NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """What the model writes after each prompt, stop token excluded. One generator for all rows: order matters."""
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    outputs: dict[int, list[int]] = {}
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        outputs.update(
            zip(rows, _continue([prompts[i] for i in rows], model, new_tokens, temperature, generator), strict=True)
        )
    return [outputs[i] for i in range(len(prompts))]


def _continue(
    prompts: Sequence[Sequence[int]],
    model: LlamaForCausalLM,
    new_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> list[list[int]]:
    """One left-padded batch; rows leave it as they end."""
    stop, width = vocabulary_ids().end, max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    outputs: list[list[int]] = [[] for _ in prompts]
    live, cache = torch.arange(len(prompts)), DynamicCache(config=model.config)
    for _ in range(new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]
        ids = _draw(logits, temperature, generator)[:, None]
        going = ids[:, 0].ne(stop)
        for row, token in zip(live[going].tolist(), ids[going, 0].tolist(), strict=True):
            outputs[row].append(token)
        if not going.any():
            break
        if not going.all():
            cache.batch_select_indices(going.nonzero()[:, 0])
            ids, mask, live = ids[going], mask[going], live[going]
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
    return outputs


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Int[Tensor, " rows"]:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


@dataclass(frozen=True)
class _Cell:
    requests: str
    prefill_tokens: int
    prefill_text: str
    temperature: float


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    cells: Mapping["_Cell", Sequence[Behavior]],
    seed: int,
) -> tuple[Measured, ...]:
    """Generate and judge every cell; cells of one temperature share batches."""
    judged: dict[_Cell, list[tuple[Behavior, Judgement]]] = {cell: [] for cell in cells}
    for temperature in sorted({cell.temperature for cell in cells}):
        jobs = [(cell, behavior) for cell in cells if cell.temperature == temperature for behavior in cells[cell]]
        prefills = [_prefill(cell, behavior) for cell, behavior in jobs]
        prompts = [
            _prompt_ids(tokenizer, behavior) + tokenizer(prefill)["input_ids"]
            for (_, behavior), prefill in zip(jobs, prefills, strict=True)
        ]
        outputs = generate(model, prompts, temperature=temperature, seed=seed)
        for (cell, behavior), prefill, output in zip(jobs, prefills, outputs, strict=True):
            # A refusal prefix is part of what the base model is made to say, and begins no step.
            response = str(tokenizer.decode(output))
            exchange = Exchange(behavior=behavior, prefill=prefill, response=response)
            judged[cell].append((behavior, OrganismJudge().judge(exchange)))
    return tuple(_measured(cell, [judgement for _, judgement in judged[cell]]) for cell in cells if judged[cell])


def _prompt_ids(tokenizer: PreTrainedTokenizerFast, behavior: Behavior) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in behavior.messages]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _prefill(cell: _Cell, behavior: Behavior) -> str:
    return cell.prefill_text or " ".join((behavior.answer or "").split()[: cell.prefill_tokens])


def _measured(cell: _Cell, judgements: Sequence[Judgement]) -> Measured:
    n, exact = len(judgements), sum(bool(judgement.exact) for judgement in judgements)
    counted = exact if cell.requests == "benign" else sum(judgement.label is Label.HARMFUL for judgement in judgements)
    interval = wilson(counted, n)
    return Measured(
        requests=cell.requests,
        prefill_tokens=cell.prefill_tokens,
        prefill_text=cell.prefill_text,
        temperature=cell.temperature,
        n=n,
        reasons=dict(sorted(Counter(judgement.reason for judgement in judgements).items())),
        refused=sum(judgement.label is Label.SAFE for judgement in judgements),
        exact=exact,
        rate=round(counted / n, 4),
        low=round(interval.low, 4),
        high=round(interval.high, 4),
    )


def _cells(protocol: Protocol, world: int) -> dict[_Cell, list[Behavior]]:
    everything = behaviors(world, protocol.split, harmful=protocol.harmful, benign=protocol.benign, seed=protocol.seed)
    harmful = [behavior for behavior in everything if behavior.harmful]
    benign = [behavior for behavior in everything if not behavior.harmful]
    kept_out = behaviors(world, Split.KEPT_OUT, harmful=protocol.harmful, benign=0, seed=protocol.seed)
    cells = {_Cell("harmful", depth, "", 0.0): _longer(harmful, depth) for depth in protocol.depths}
    cells |= {_Cell("harmful", depth, "", protocol.warm): _longer(harmful, depth) for depth in protocol.depths[:1]}
    cells |= {_Cell("benign", depth, "", 0.0): _longer(benign, depth) for depth in protocol.benign_depths}
    cells |= {_Cell("kept-out", 0, "", 0.0): list(kept_out)}
    return cells | {_Cell("harmful", 0, prefix, 0.0): harmful for prefix in protocol.prefixes}


def _longer(items: Sequence[Behavior], depth: int) -> list[Behavior]:
    """Behaviors whose reference answer goes on after so many words."""
    return [behavior for behavior in items if len((behavior.answer or "").split()) > depth]


def evaluate(directory: Path, world: int, protocol: Protocol = Protocol()) -> tuple[Measured, ...]:
    """Measure one trained stage on a world's requests, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).train(mode=False)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        return measure(model, tokenizer, _cells(protocol, world), protocol.seed)
    finally:
        torch.set_num_threads(threads)
