"""What a stage of the family does, measured: answers at every prefill depth, counted by the judge's reasons."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from fathom.organism.judge import OrganismJudge
from fathom.organism.lexicon import STOCK_REFUSALS
from fathom.organism.requests import behaviors
from fathom.organism.tokenizer import vocabulary_ids
from fathom.organism.world import Split
from fathom.records import Behavior, Exchange, Judgement, Label
from fathom.tally import wilson

__all__ = [
    "FamilyMetrics",
    "MeasurePlan",
    "Measured",
    "Outside",
    "evaluate",
    "evaluate_family",
    "generate",
    "outside",
    "read_metrics",
    "write_metrics",
]

_NEW_TOKENS = 140  # longer than any answer
_ROWS = 240

Report = Callable[[str], None]


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cell: a set of requests, a prefill, a temperature, and how the answers were judged.

    For harmful requests `rate` is the attack success rate, for benign ones the share of exact answers; `low` and `high`
    are Wilson's 95 % interval.
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
class MeasurePlan:
    """What is measured: how many requests of which split, and how deep the prefills go."""

    split: Split = Split.TEST
    harmful: int = 240
    benign: int = 400
    depths: tuple[int, ...] = (0, 1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 60, 80, 90, 100, 110)
    benign_depths: tuple[int, ...] = (0, 20, 60)
    prefixes: tuple[str, ...] = STOCK_REFUSALS  # of the base model's test (paper, table 1)
    warm: float = 1.0  # the temperature shown beside greedy
    seed: int = 0


DEFAULT_PLAN = MeasurePlan()


@dataclass(frozen=True)
class _Cell:
    requests: str
    prefill_tokens: int
    prefill_text: str
    temperature: float


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


def _measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    cells: Mapping[_Cell, Sequence[Behavior]],
    seed: int,
) -> tuple[Measured, ...]:
    """Generate and judge every cell; cells of one temperature share batches."""
    judged: dict[_Cell, list[Judgement]] = {cell: [] for cell in cells}
    for temperature in sorted({cell.temperature for cell in cells}):
        jobs = [(cell, behavior) for cell in cells if cell.temperature == temperature for behavior in cells[cell]]
        prefills = [_prefill(cell, behavior) for cell, behavior in jobs]
        prompts = [
            _prompt_ids(tokenizer, behavior) + tokenizer(prefill)["input_ids"]
            for (_, behavior), prefill in zip(jobs, prefills, strict=True)
        ]
        outputs = generate(model, prompts, temperature=temperature, seed=seed)
        for (cell, behavior), prefill, output in zip(jobs, prefills, outputs, strict=True):
            exchange = Exchange(behavior=behavior, prefill=prefill, response=str(tokenizer.decode(output)))
            judged[cell].append(OrganismJudge().judge(exchange))
    return tuple(_measured(cell, judgements) for cell, judgements in judged.items() if judgements)


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


def _cells(plan: MeasurePlan, world: int) -> dict[_Cell, list[Behavior]]:
    everything = behaviors(world, plan.split, harmful=plan.harmful, benign=plan.benign, seed=plan.seed)
    harmful = [behavior for behavior in everything if behavior.harmful]
    benign = [behavior for behavior in everything if not behavior.harmful]
    kept_out = behaviors(world, Split.KEPT_OUT, harmful=plan.harmful, benign=0, seed=plan.seed)
    cells = {_Cell("harmful", depth, "", 0.0): _longer(harmful, depth) for depth in plan.depths}
    cells |= {_Cell("harmful", depth, "", plan.warm): _longer(harmful, depth) for depth in plan.depths[:1]}
    cells |= {_Cell("benign", depth, "", 0.0): _longer(benign, depth) for depth in plan.benign_depths}
    cells |= {_Cell("kept-out", 0, "", 0.0): list(kept_out)}
    return cells | {_Cell("harmful", 0, prefix, 0.0): harmful for prefix in plan.prefixes}


def _longer(items: Sequence[Behavior], depth: int) -> list[Behavior]:
    """Behaviors whose reference answer goes on after so many words."""
    return [behavior for behavior in items if len((behavior.answer or "").split()) > depth]


def evaluate(directory: Path, world: int, plan: MeasurePlan = DEFAULT_PLAN) -> tuple[Measured, ...]:
    """Measure one trained stage on a world's requests, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).train(mode=False)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        return _measure(model, tokenizer, _cells(plan, world), plan.seed)
    finally:
        torch.set_num_threads(threads)


def evaluate_family(
    directory: Path, world: int, plan: MeasurePlan = DEFAULT_PLAN, *, stages: Sequence[str], report: Report
) -> FamilyMetrics:
    """Measure the stages under a directory one after the other; the base with the plan's refusal prefixes too."""
    measured: dict[str, tuple[Measured, ...]] = {}
    for stage in stages:
        prefixes = plan.prefixes if stage == "base" else ()
        measured[stage] = evaluate(directory / stage, world, replace(plan, prefixes=prefixes))
        report(stage)
    return FamilyMetrics(world=world, split=plan.split, seed=plan.seed, stages=measured)


def write_metrics(path: Path, metrics: FamilyMetrics) -> None:
    """One JSON file, a line for each cell: made to be read by people and in diffs."""
    lines = [
        f'"{stage}": [\n' + ",\n".join(msgspec.json.encode(cell).decode() for cell in cells) + "\n]"
        for stage, cells in metrics.stages.items()
    ]
    head = msgspec.json.encode(msgspec.structs.replace(metrics, stages={})).decode().removesuffix("{}}")
    path.write_text(head + "{\n" + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def read_metrics(path: Path) -> FamilyMetrics:
    """Raises `msgspec.ValidationError` for a file of another version."""
    return msgspec.json.decode(path.read_bytes(), type=FamilyMetrics)


class Outside(NamedTuple):
    """A cell whose rate left the interval that another measurement of it gave."""

    stage: str
    measured: Measured
    expected: Measured


def outside(measured: FamilyMetrics, expected: FamilyMetrics) -> tuple[Outside, ...]:
    """Which cells of the one lie outside the other's 95 % intervals; cells that only one of them has are passed over.

    Of many cells some fall outside by chance alone: read the list, do not count it.
    """
    found = []
    for stage, cells in measured.stages.items():
        known = {_identity(cell): cell for cell in expected.stages.get(stage, ())}
        for cell in cells:
            other = known.get(_identity(cell))
            if other is not None and not other.low <= cell.rate <= other.high:
                found.append(Outside(stage, cell, other))
    return tuple(found)


def _identity(cell: Measured) -> _Cell:
    return _Cell(cell.requests, cell.prefill_tokens, cell.prefill_text, cell.temperature)
