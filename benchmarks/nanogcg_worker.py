"""One GCG step of nanoGCG 0.3.0 at a time, on request: run by `benchmarks/suffix.py` with the interpreter that has it.

Reads one JSON object a line and answers with one. What `GCG.run` does before and in its loop is done here in the same
order with nanoGCG's own functions, because `run` cannot be stopped between steps, which is where timings take turns.
"""

import gc
import json
import sys
import time
from pathlib import Path

import torch
from nanogcg import gcg
from nanogcg.utils import find_executable_batch_size
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


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
    request = json.loads(sys.stdin.readline())
    torch.set_num_threads(request["threads"])
    model = LlamaForCausalLM.from_pretrained(request["model"], torch_dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(request["model"])
    search = gcg.GCG(model, tokenizer, gcg.GCGConfig(topk=request["topk"], verbosity="ERROR"))
    ids = {name: torch.tensor([request[name]]) for name in ("before", "after", "target")}
    with torch.no_grad():
        search.before_embeds, search.after_embeds, search.target_embeds = (
            search.embedding_layer(ids[name]) for name in ("before", "after", "target")
        )
        search.prefix_cache = model(inputs_embeds=search.before_embeds, use_cache=True).past_key_values
    search.target_ids = ids["target"]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(step(search, tokenizer, json.loads(line))), flush=True)


def step(search: gcg.GCG, tokenizer: PreTrainedTokenizerFast, request: dict) -> dict:
    set_collector(gc if request["collect"] else _NoCollector)
    torch.manual_seed(request["seed"])
    suffix = torch.tensor([request["suffix"]])
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    gradient = search.compute_token_gradient(suffix)
    with torch.no_grad():
        ids = gcg.sample_ids_from_grad(
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
        losses = find_executable_batch_size(search._compute_candidates_loss_original, width)(embeds)
        chosen = losses.argmin().item()
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
