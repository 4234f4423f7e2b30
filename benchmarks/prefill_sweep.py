"""The prefilling sweep against transformers' `generate`: seconds, outputs and peak memory, side by side.

`python benchmarks/prefill_sweep.py small` — a random Llama of 59 M parameters, vocabulary 49 152: 64 prompts × depths
0, 5, 10, 20, 40 × 64 new tokens, greedy, no stop token, against `generate` on left-padded batches of 16 per depth.
`python benchmarks/prefill_sweep.py tiny` — the built-in family's shape: 120 prompts × 14 depths × 110 new tokens.
`python benchmarks/prefill_sweep.py quick` — a few prompts: does it all run?
"""

import argparse
import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Required, TypedDict, Unpack, runtime_checkable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import common
from common import Effort, Figure, Goal, Memory
from fathom.chat import ChatFormat, Continuation
from fathom.engine import TransformersEngine
from fathom.model import ChatModel
from fathom.records import Attempt, Sampling

Key = tuple[int, int]  # prompt, depth
BATCH = 16  # of `generate`, as the paper's code has it


class Sizes(TypedDict):
    """Of a Llama."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    tie_word_embeddings: bool


@dataclass(frozen=True)
class Shape:
    """A model and a sweep. Prompts are `prompt_tokens` long, drawn evenly from that range."""

    config: Sizes
    prompts: int
    prompt_tokens: tuple[int, int]
    depths: tuple[int, ...]
    new_tokens: int


SHAPES = {
    "small": Shape(
        config={
            "vocab_size": 49152,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "tie_word_embeddings": True,
        },
        prompts=64,
        prompt_tokens=(20, 60),
        depths=(0, 5, 10, 20, 40),
        new_tokens=64,
    ),
    "quick": Shape(
        config={
            "vocab_size": 997,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
        },
        prompts=6,
        prompt_tokens=(15, 35),
        depths=(0, 2, 8),
        new_tokens=8,
    ),
    "tiny": Shape(
        config={
            "vocab_size": 500,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
        },
        prompts=120,
        prompt_tokens=(15, 35),
        depths=(0, 1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 60, 80, 100),
        new_tokens=110,
    ),
}


class NoText(ChatFormat):
    """A chat format whose tokenizer knows no token: ids are all that is compared here."""

    def __init__(self) -> None:
        empty: PreTrainedTokenizerBase = PreTrainedTokenizerBase()  # type: ignore[no-untyped-call]
        super().__init__(tokenizer=empty, template=None, source="plain", stop_ids=frozenset())

    def continuation(self, prefill_ids: Sequence[int], output_ids: Sequence[int]) -> Continuation:  # noqa: ARG002
        return Continuation("", "", tuple(0 for _ in output_ids))


def build_model(shape: Shape) -> LlamaForCausalLM:
    """Random weights, drawn wide enough that the best token is never a near tie."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape.config, max_position_embeddings=2048, initializer_range=0.06, eos_token_id=None)
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    return model


def make_inputs(shape: Shape) -> dict[Key, tuple[list[int], list[int]]]:
    draw = random.Random(0)
    vocabulary = shape.config["vocab_size"]
    inputs = {}
    for i in range(shape.prompts):
        prompt = [draw.randrange(vocabulary) for _ in range(draw.randint(*shape.prompt_tokens))]
        answer = [draw.randrange(vocabulary) for _ in range(max(shape.depths))]
        for depth in shape.depths:
            inputs[i, depth] = (prompt, answer[:depth])
    return inputs


class Settings(TypedDict, total=False):
    """What `generate` is told of a batch."""

    max_new_tokens: Required[int]
    do_sample: Required[bool]
    temperature: float
    top_p: float
    top_k: int
    eos_token_id: list[int] | None


@runtime_checkable
class Generates(Protocol):
    """transformers' `generate`, as far as it is asked here; its own annotations do not fit its own models."""

    def generate(
        self, *, input_ids: Tensor, attention_mask: Tensor, pad_token_id: int, **settings: Unpack[Settings]
    ) -> Tensor: ...


@torch.inference_mode()
def generate_padded(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], **settings: Unpack[Settings]
) -> list[list[int]]:
    """What `generate` writes after each row of one left-padded batch, stop tokens and padding included."""
    assert isinstance(model, Generates)
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    whole = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **settings)
    written: list[list[int]] = whole[:, width:].tolist()
    return written


def run_generate(model: LlamaForCausalLM, shape: Shape) -> dict[Key, tuple[int, ...]]:
    """Left-padded batches per depth, in the order of the prompts."""
    inputs, outputs = make_inputs(shape), {}
    for depth in shape.depths:
        for start in range(0, shape.prompts, BATCH):
            keys = [(i, depth) for i in range(start, min(start + BATCH, shape.prompts))]
            rows = [inputs[key][0] + inputs[key][1] for key in keys]
            written = generate_padded(model, rows, max_new_tokens=shape.new_tokens, do_sample=False)
            outputs.update({key: tuple(row) for key, row in zip(keys, written, strict=True)})
    return outputs


def run_engine(model: LlamaForCausalLM, shape: Shape) -> dict[Key, tuple[int, ...]]:
    """The same attempts through the engine, in one call."""
    sampling = Sampling(max_new_tokens=shape.new_tokens)
    attempts, by_id = [], {}
    for (i, depth), (prompt, prefill) in make_inputs(shape).items():
        attempt = Attempt.make(
            behavior=str(i), attack="prefill", prompt_ids=prompt, prefill_ids=prefill, sampling=sampling, run_seed=0
        )
        attempts.append(attempt)
        by_id[attempt.id] = (i, depth)
    engine = TransformersEngine(as_chat_model(model))
    return {by_id[done.attempt]: done.output_ids for done in engine.complete(attempts)}


def as_chat_model(model: LlamaForCausalLM) -> ChatModel:
    return ChatModel(model=model, chat=NoText(), info=common.info_of(model, model.config.max_position_embeddings))


RUNS = {"generate, padded batches of 16": run_generate, "fathom": run_engine}


def prepare(name: str, shape: Shape, threads: int) -> Callable[[], object]:
    """Model loaded and the libraries' own buffers made, by a sweep of two prompts."""
    torch.set_num_threads(threads)
    model = build_model(shape)
    warm = Shape(shape.config, 2, shape.prompt_tokens, shape.depths[:2], 2)
    RUNS[name](model, warm)
    return functools.partial(RUNS[name], model, shape)


def figures(effort: Effort, threads: int) -> list[Figure]:
    if effort is Effort.QUICK:  # memory would take two more processes, whose imports would be most of the time
        return measure(SHAPES["quick"], 1, threads, memory=False)
    return measure(SHAPES["small"], 3, threads)


def measure(shape: Shape, rounds: int, threads: int, *, memory: bool = True) -> list[Figure]:
    """Time, outputs and peak memory against `generate`; targets stand beside the quoted shape alone."""
    model = build_model(shape)
    print(
        f"{model.num_parameters() / 1e6:.1f} M parameters, {shape.prompts} prompts x "
        f"{len(shape.depths)} depths x {shape.new_tokens} new tokens"
    )
    results: dict[str, dict[Key, tuple[int, ...]]] = {}
    baseline, ours = RUNS

    def keep(name: str) -> None:
        results[name] = RUNS[name](model, shape)

    seconds = common.timings({name: functools.partial(keep, name) for name in RUNS}, rounds)
    common.show(seconds, baseline)
    same = sum(results[ours][key] == output for key, output in results[baseline].items())
    at_least, at_most = (Goal.AT_LEAST, Goal.AT_MOST) if shape == SHAPES["small"] else (None, None)

    def time_of(read: Callable[[str], float], label: str, goal: Goal | None) -> Figure:
        sides = {"baseline": f"{read(baseline):.1f} s", "ours": f"{read(ours):.1f} s"}
        return Figure(label, read(baseline) / read(ours), goal=goal, target=3, **sides)

    def memory_of(read: Callable[[Memory], float], label: str, goal: Goal | None) -> Figure:
        sides = {"baseline": f"{read(used[baseline]):.0f} MB", "ours": f"{read(used[ours]):.0f} MB"}
        return Figure(label, read(used[ours]) / read(used[baseline]), goal=goal, target=2, **sides)

    found = [
        time_of(seconds.clock, f"prefilling sweep, {model.num_parameters() / 1e6:.0f} M parameters: time", at_least),
        time_of(seconds.processor, "… processor time", None),
        Figure("… rows with the same output", 100 * same / len(results[baseline]), "%", goal=Goal.AT_LEAST, target=100),
    ]
    if memory:
        used = {name: common.peak_memory(functools.partial(prepare, name, shape, threads)) for name in RUNS}
        found += [
            memory_of(lambda one: one.peak, "… peak memory of the process", at_most),
            memory_of(lambda one: one.extra, "… above the loaded model", None),
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", nargs="?", choices=SHAPES, default="small")
    parser.add_argument("--prompts", type=int, help="fewer prompts, for a quick look")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="fewer than the machine has idle cores")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.prompts:
        shape = dataclasses.replace(shape, prompts=options.prompts)
    torch.set_num_threads(options.threads)
    print(common.environment())
    print(common.table(measure(shape, options.rounds, options.threads)))


if __name__ == "__main__":
    main()
