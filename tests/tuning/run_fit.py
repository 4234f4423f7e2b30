"""Run by tests in processes of their own (`servers`): trains the organism, and writes what came of it as JSON."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Required, TypedDict

import torch


class Kind(TypedDict, total=False):
    rows: Required[int]
    steps: Required[int]
    lora: bool
    accumulated: int


BATCH = 8
# 9 rows at 8 a step in two halves: a step of 8, then one of 1, which leaves a process of two without any.
KINDS: Mapping[str, Kind] = {
    "plain": {"rows": 24, "steps": 12},
    "lora": {"rows": 24, "steps": 4, "lora": True},
    "uneven": {"rows": 9, "steps": 6, "accumulated": 2},
}


def train(
    out: Path, save_steps: int, *, rows: int, steps: int, lora: bool = False, accumulated: int = 1
) -> dict[str, object]:
    from accelerate import PartialState

    from fathom.protect.objectives import Constrained
    from fathom.ranks import Ranks
    from fathom.tuning.adapter import Adapter
    from fathom.tuning.fit import fit
    from fathom.tuning.settings import read_settings
    from few_rows import guild_rows, organism

    size = int(os.environ.get("WORLD_SIZE", "1"))
    state = PartialState(cpu=True)
    model = organism()
    torch.manual_seed(state.process_index)  # what each has drawn before is its own
    fitted = fit(
        model,
        guild_rows(model, rows),
        Constrained(),
        read_settings(
            None,
            [
                "learning_rate=1e-3",
                f"max_steps={steps}",
                "warmup_steps=2",
                f"per_device_train_batch_size={BATCH // size // accumulated}",
                f"gradient_accumulation_steps={accumulated}",
                f"save_steps={save_steps}",
            ],
        ),
        output=out,
        adapter=Adapter(rank=4) if lora else None,
        cache=out,
        ranks=Ranks(rank=state.process_index, size=state.num_processes),
    )
    return {
        "processes": state.num_processes,
        "losses": [record.loss for record in fitted.losses],
        "weights": torch.cat([p.detach().flatten() for p in fitted.model.model.parameters()]).tolist(),
    }


def shards() -> dict[str, object]:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from fathom.tuning.batches import collate
    from fathom.tuning.head import response_head
    from fathom.tuning.objective import PlainNll
    from few_rows import random_rows
    from tiny_models import tiny

    dist.init_process_group("gloo")
    plain, sharded = tiny().model, tiny().model
    batch = collate(random_rows(6))
    call = {**batch.inputs, "labels": batch.labels, "tokens": batch.tokens, "objective": PlainNll()}
    with response_head(plain):
        expected = plain(**call).loss
        expected.backward()
    with response_head(sharded):
        for layer in sharded.model.layers:
            fully_shard(layer)
        fully_shard(sharded)
        loss = sharded(**call).loss
        loss.backward()
    wanted = {name: p.grad for name, p in plain.named_parameters()}
    distance = max(float((p.grad.full_tensor() - wanted[name]).abs().max()) for name, p in sharded.named_parameters())
    found = {
        "processes": dist.get_world_size(),
        "dtensors": sum(isinstance(p, DTensor) for p in sharded.parameters()),
        "parameters": len(list(sharded.parameters())),
        "loss": [float(loss), float(expected)],
        "distance": distance,
    }
    dist.destroy_process_group()
    return found


def adapters(out: Path) -> dict[str, object]:
    """An adapter on sharded weights, merged, and the same on whole ones."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    from fathom.ranks import Ranks
    from fathom.tuning.adapter import Adapter, in_parts, merge, with_adapter
    from tiny_models import tiny

    dist.init_process_group("gloo")
    ranks, merged, parts = Ranks(rank=dist.get_rank(), size=2), [], []
    for sharded in (True, False):
        plain = tiny().model
        torch.manual_seed(ranks.rank)
        wrapped = with_adapter(plain, Adapter(rank=2), seed=3)
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_B" in name:  # zeros at first
                    weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
        if sharded:
            for layer in plain.model.layers:
                fully_shard(layer)
            fully_shard(wrapped)
        parts.append(in_parts(wrapped))
        model, path = merge(wrapped, Adapter(rank=2), type(tiny().model), out / str(sharded), ranks)
        merged.append(model)
        assert path is not None
    found: dict[str, object] = {"processes": dist.get_world_size(), "parts": parts}
    if ranks.first:
        one, two = (model.state_dict() for model in merged)
        assert one.keys() == two.keys()
        found["distance"] = max(float((one[name] - two[name]).abs().max()) for name in two)
        ids = torch.tensor([[1, 2, 3]])
        found["logits"] = float((merged[0](ids).logits - merged[1](ids).logits).abs().max())
    dist.destroy_process_group()
    return found


def main(arguments: tuple[str, ...], environment: Mapping[str, str], result: Path) -> None:
    """A kind, OUT, SAVE_STEPS: train; `shards`, `adapters OUT`: shard by `fully_shard`.

    `environment` is as torchrun would set it.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    if arguments[0] == "shards":
        found = shards()
    elif arguments[0] == "adapters":
        found = adapters(Path(arguments[1]))
    else:
        found = train(Path(arguments[1]), int(arguments[2]), **KINDS[arguments[0]])
    if os.environ.get("RANK", "0") == "0":
        result.write_text(json.dumps(found), encoding="utf-8")
