"""What is computed in half precision, and what must not be: numbers that rows carry stay as they were made."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.utils import _apply_to_tensors

from fathom.model import ChatModel
from fathom.protect.objectives import Constrained
from fathom.tuning import fit as fitting
from fathom.tuning.head import Sealed
from fathom.tuning.settings import read_settings
from few_rows import guild_rows, organism

pytestmark = pytest.mark.xdist_group("training")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAUNCHED = "ACCELERATE_MIXED_PRECISION"


@pytest.mark.parametrize(
    ("device", "launched", "given", "expected"),
    [
        (CPU, None, [], None),
        (CUDA, None, [], torch.bfloat16),
        (CUDA, "no", [], None),  # the launcher knows better than a default
        (CPU, "bf16", [], torch.bfloat16),
        (CUDA, "fp16", [], torch.float16),
        (CUDA, "bf16", ["bf16=false"], None),  # and who gave it, better than both
        (CUDA, None, ["fp16=true"], torch.float16),
        (CUDA, "no", ["bf16=true"], torch.bfloat16),
        (CUDA, None, ["fp16=false"], torch.bfloat16),
    ],
)
def test_columns_and_trainer_compute_in_one_precision(
    device: torch.device,
    launched: str | None,
    given: list[str],
    expected: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of the machine nothing but the device counts: a model on the CPU of one with CUDA is a model on a CPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    if launched is None:
        monkeypatch.delenv(LAUNCHED, raising=False)
    else:
        monkeypatch.setenv(LAUNCHED, launched)
    settings = fitting._for_device(read_settings(None, given), device)
    assert fitting._autocast(settings) == expected
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    assert {name: bool(settings.values[name]) for name in halves} == {
        name: dtype == expected for name, dtype in halves.items()
    }


def test_deepspeed_rounds_no_reference_column() -> None:
    from fathom.tuning.trainer import RowTrainer

    trainer = RowTrainer.__new__(RowTrainer)
    trainer.args = SimpleNamespace(device=CPU)
    trainer.is_deepspeed_enabled = True  # transformers makes every float what the engine computes in
    column = torch.tensor([-1.0009765625, -2.00048828125])
    found = trainer._prepare_input({"input_ids": torch.ones(1, 2), "tokens": {"reference_logprobs": column}})
    assert torch.equal(found["tokens"]["reference_logprobs"], column)


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return organism()


def test_a_forward_is_handed_nothing_that_fsdp2_would_round(model: ChatModel) -> None:
    handed = list[dict[str, object]]()
    hook = model.model.register_forward_pre_hook(lambda module, given, named: handed.append(named), with_kwargs=True)
    settings = read_settings(None, ["max_steps=1", "warmup_steps=0", "per_device_train_batch_size=4"])
    try:
        fitting.fit(model, guild_rows(model, 4), Constrained(), settings)
    finally:
        hook.remove()
    found = [named for named in handed if isinstance(named.get("tokens"), Sealed)]
    assert len(found) == 2  # the first look and the step
    seen = list[torch.dtype]()
    _apply_to_tensors(lambda tensor: seen.append(tensor.dtype), found)  # as `fully_shard` looks for them
    assert seen
    assert not any(dtype.is_floating_point for dtype in seen)
    tokens = found[0]["tokens"]
    assert isinstance(tokens, Sealed)
    assert tokens.tokens.reference_logprobs is not None
