"""Run by tests in processes of their own (`servers`): trains the organism, and writes what came of it as JSON."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

STEPS, ROWS, BATCH = 12, 24, 8


def train(out: Path, save_steps: int) -> dict[str, object]:
    from accelerate import PartialState

    from fathom.protect.objectives import Constrained
    from fathom.ranks import Ranks
    from fathom.tuning.fit import fit
    from fathom.tuning.settings import read_settings
    from few_rows import guild_rows, organism

    size = int(os.environ.get("WORLD_SIZE", "1"))
    state = PartialState(cpu=True)
    model = organism()
    fitted = fit(
        model,
        guild_rows(model, ROWS),
        Constrained(),
        read_settings(
            None,
            [
                "learning_rate=1e-3",
                f"max_steps={STEPS}",
                "warmup_steps=2",
                f"per_device_train_batch_size={BATCH // size}",
                "gradient_accumulation_steps=1",
                f"save_steps={save_steps}",
            ],
        ),
        output=out,
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


def main(arguments: tuple[str, ...], environment: Mapping[str, str], result: Path) -> None:
    """`plain OUT SAVE_STEPS` trains; `shards` shards by `fully_shard`. `environment` is as torchrun would set it."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    found = shards() if arguments[0] == "shards" else train(Path(arguments[1]), int(arguments[2]))
    if os.environ.get("RANK", "0") == "0":
        result.write_text(json.dumps(found), encoding="utf-8")
