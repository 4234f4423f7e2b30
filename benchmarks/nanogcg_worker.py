"""One GCG step of nanoGCG 0.3.0 at a time, on request: run by `benchmarks/suffix.py` with the interpreter that has it.

Reads one JSON object a line and answers with one. What `GCG.run` does before and in its loop is done here in the same
order with nanoGCG's own functions, because `run` cannot be stopped between steps, which is where timings take turns.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypedDict

import torch
from nanogcg import gcg
from nanogcg.utils import find_executable_batch_size
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


class Opening(TypedDict):
    """The first line: the model, and the ids around the suffix."""

    model: str
    topk: int
    threads: int
    before: list[int]
    after: list[int]
    target: list[int]


class Request(TypedDict):
    """Every further line: one step from this suffix."""

    suffix: list[int]
    width: int
    seed: int
    collect: bool


class Step(TypedDict):
    """What such a line is answered with."""

    seconds: float
    cpu_seconds: float
    memory: float
    candidates: list[list[int]]
    losses: list[float]
    chosen: int
    gradient: list[list[float]]


class Config(Protocol):
    topk: int
    n_replace: int


class Search(Protocol):
    """nanoGCG's `GCG`, which has no types that mypy reads, as far as it is used here."""

    config: Config
    embedding_layer: nn.Embedding
    not_allowed_ids: Tensor | None
    prefix_cache: object
    before_embeds: Tensor
    after_embeds: Tensor
    target_embeds: Tensor
    target_ids: Tensor

    def compute_token_gradient(self, optim_ids: Tensor) -> Tensor: ...

    def _compute_candidates_loss_original(self, search_batch_size: int, input_embeds: Tensor) -> Tensor: ...


class _NoCollector:
    """Stands where nanoGCG's modules look for `gc`."""

    @staticmethod
    def collect() -> None:
        return None


def memory(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(field)


def set_collector(module: object) -> None:
    import nanogcg.utils

    gcg.gc = module
    nanogcg.utils.gc = module


def main() -> None:
    opening: Opening = json.loads(sys.stdin.readline())
    torch.set_num_threads(opening["threads"])
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(opening["model"], torch_dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(opening["model"])
    search: Search = gcg.GCG(model, tokenizer, gcg.GCGConfig(topk=opening["topk"], verbosity="ERROR"))
    before, after, target = (torch.tensor([ids]) for ids in (opening["before"], opening["after"], opening["target"]))
    with torch.no_grad():
        search.before_embeds, search.after_embeds, search.target_embeds = (
            search.embedding_layer(ids) for ids in (before, after, target)
        )
        search.prefix_cache = model(inputs_embeds=search.before_embeds, use_cache=True).past_key_values
    search.target_ids = target
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(step(search, tokenizer, json.loads(line))), flush=True)


def step(search: Search, tokenizer: PreTrainedTokenizerFast, request: Request) -> Step:
    set_collector(gc if request["collect"] else _NoCollector)
    torch.manual_seed(request["seed"])
    suffix = torch.tensor([request["suffix"]])
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    gradient = search.compute_token_gradient(suffix)
    with torch.no_grad():
        ids: Tensor = gcg.sample_ids_from_grad(
            suffix.squeeze(0),
            gradient.squeeze(0),
            request["width"],
            search.config.topk,
            search.config.n_replace,
            not_allowed_ids=search.not_allowed_ids,
        )
        ids = gcg.filter_ids(ids, tokenizer)
        width = ids.shape[0]
        embeds = torch.cat(
            [
                search.embedding_layer(ids),
                search.after_embeds.repeat(width, 1, 1),
                search.target_embeds.repeat(width, 1, 1),
            ],
            dim=1,
        )
        score: Callable[[Tensor], Tensor] = find_executable_batch_size(search._compute_candidates_loss_original, width)
        losses = score(embeds)
        chosen = int(losses.argmin())
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "memory": memory("VmHWM") - before,
        "candidates": ids.tolist(),
        "losses": losses.double().tolist(),
        "chosen": chosen,
        "gradient": gradient[0, :, :64].double().tolist(),
    }


if __name__ == "__main__":
    main()
