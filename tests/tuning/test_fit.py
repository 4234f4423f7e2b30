"""Trainers proved by equivalences: batch and accumulation, β and plain training, adapters, checkpoints, NaN.

They share one process and one group, because importing TRL costs as much as all of them.
"""

import copy
import errno
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.training_args import ParallelMode
from trl import SFTConfig

from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.protect.constraint import BetaSchedule
from fathom.protect.objectives import Composed, Constrained, HeldToReference
from fathom.ranks import ALONE
from fathom.tuning.adapter import Adapter, with_adapter
from fathom.tuning.batches import collate
from fathom.tuning.checkpoints import latest_checkpoint
from fathom.tuning.fit import fit, keep_place
from fathom.tuning.head import response_head
from fathom.tuning.objective import Needs, PlainNll, ResponseLogits, TokenObjective, Tokens
from fathom.tuning.reference import make_columns, reference_columns
from fathom.tuning.rows import TrainingRow
from fathom.tuning.settings import Settings, read_settings
from fathom.tuning.trainer import make_dataset
from fathom.tuning.watching import Watch
from few_rows import guild_rows, organism

pytestmark = pytest.mark.xdist_group("training")

STEPS = 4


def settings(**values: object) -> Settings:
    given = {"learning_rate": 5e-4, "max_steps": STEPS, "warmup_steps": 2, "per_device_train_batch_size": 8, **values}
    given.setdefault("gradient_accumulation_steps", 1)
    return read_settings(None, [f"{name}={value}" for name, value in given.items()])


def fresh(model: ChatModel) -> ChatModel:
    from dataclasses import replace

    return replace(model, model=copy.deepcopy(model.model))


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return organism()


@pytest.fixture(scope="module")
def rows(model: ChatModel) -> list[TrainingRow]:
    return guild_rows(model, 16)


def weights(model: ChatModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.model.parameters()])


def trained(model: ChatModel, rows: Sequence[TrainingRow], objective: TokenObjective, **values: object) -> Tensor:
    return weights(fit(fresh(model), rows, objective, settings(**values)).model)


def close(first: Tensor, second: Tensor, start: Tensor, tolerance: float = 2e-3) -> None:
    """The same up to rounding, measured against how far training went."""
    assert (first - second).norm() < tolerance * (first - start).norm()


def test_special_ids_of_the_configuration_stay_what_they_were(
    model: ChatModel, rows: list[TrainingRow], tmp_path: Path
) -> None:
    """Trainers write the tokenizer's over them: padding that has no embedding makes a model that cannot be loaded."""
    from transformers import AutoConfig

    asked = fresh(model)
    asked.model.config.pad_token_id = None
    asked.model.generation_config.eos_token_id = [1, 5]
    asked.model.generation_config.pad_token_id = None
    fit(asked, rows, PlainNll(), settings(max_steps=1, save_steps=1), output=tmp_path, save=tmp_path / "saved")
    for place in (tmp_path / "saved", tmp_path / "checkpoints" / "checkpoint-1"):
        assert AutoConfig.from_pretrained(place).pad_token_id is None
    assert asked.model.generation_config.eos_token_id == [1, 5]
    assert asked.model.generation_config.pad_token_id is None


def test_without_an_output_nothing_is_written(
    model: ChatModel, rows: list[TrainingRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    fit(fresh(model), rows, PlainNll(), settings(max_steps=1))
    assert list(tmp_path.rglob("*")) == [tmp_path / "temporary"]


def test_four_rows_twice_are_eight_rows(model: ChatModel, rows: list[TrainingRow]) -> None:
    whole = trained(model, rows, PlainNll())
    halves = trained(model, rows, PlainNll(), per_device_train_batch_size=4, gradient_accumulation_steps=2)
    close(halves, whole, weights(model))
    other = trained(model, rows[::-1], PlainNll())
    with pytest.raises(AssertionError):  # the test can fail: other rows, another model
        close(other, whole, weights(model))


def test_the_first_step_is_plain_training_and_no_constraint_is_plain_throughout(
    model: ChatModel, rows: list[TrainingRow]
) -> None:
    start = weights(model)
    once = [
        trained(model, rows, objective, max_steps=1, warmup_steps=0)
        for objective in (PlainNll(), Constrained(BetaSchedule(5.0, 50.0, 0.7)))
    ]
    close(once[1], once[0], start)
    throughout = [trained(model, rows, objective) for objective in (PlainNll(), Constrained(BetaSchedule.uniform(0.0)))]
    close(throughout[1], throughout[0], start)
    held = trained(model, rows, Constrained())
    with pytest.raises(AssertionError):
        close(held, throughout[0], start)


def test_constants_of_a_batch_do_not_depend_on_who_is_beside_it(model: ChatModel, rows: list[TrainingRow]) -> None:
    with response_head(model.model):
        whole, one = (
            make_columns(model.model, part, Needs(logprobs=1, top=3), ranks=ALONE, autocast=None)
            for part in (rows, rows[3:4])
        )
    assert whole.logprobs[3] == pytest.approx(one.logprobs[0], abs=1e-4)
    assert [len(column) for column in whole.logprobs] == [len(row.positions) for row in rows]
    assert not any(whole.top)  # no row is held


def test_rows_that_come_again_are_read_and_held_once(
    model: ChatModel, rows: list[TrainingRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [msgspec.structs.replace(row, held=0.5) for row in rows[:2]]
    plan = [held[0], rows[2], held[1], held[0], held[0], rows[2]]
    needs, asked = Needs(logprobs=1, top=3), []
    real = collate
    monkeypatch.setattr("fathom.tuning.reference.collate", lambda r, **k: asked.extend(r) or real(r, **k))
    with response_head(model.model):
        alone = [make_columns(model.model, [row], needs, ranks=ALONE, autocast=None) for row in plan]
        asked.clear()
        made = make_columns(model.model, plan, needs, ranks=ALONE, autocast=None)
        assert len(asked) == 3
        kept = [
            reference_columns(model.model, plan, needs, ranks=ALONE, autocast=None, cache=tmp_path) for _ in range(2)
        ]
        assert len(asked) == 6
    data = make_dataset(plan, made)
    for i, (row, one) in enumerate(zip(plan, alone, strict=True)):
        assert data[i]["input_ids"] == row.input_ids
        assert (data[i]["held"], data[i]["labels"]) == (row.held, row.labels)
        for found in (made, *kept):
            np.testing.assert_allclose(found.logprobs[i], one.logprobs[0], atol=1e-4)
            np.testing.assert_array_equal(found.ids[i], one.ids[0])
            np.testing.assert_allclose(found.top[i], one.top[0], atol=1e-4)
        np.testing.assert_array_equal(np.asarray(data[i]["reference_ids"]), np.asarray(one.ids[0]))
        np.testing.assert_allclose(data[i]["reference_top"], np.asarray(one.top[0]), atol=1e-4)


def test_reference_columns_are_kept_and_made_anew_for_other_rows_or_weights(
    model: ChatModel, rows: list[TrainingRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = make_columns
    monkeypatch.setattr("fathom.tuning.reference.make_columns", lambda *a, **k: made.append(1) or real(*a, **k))

    def columns(of: ChatModel, what: Sequence[TrainingRow]) -> Any:
        with response_head(of.model):
            return reference_columns(
                of.model, what, Needs(logprobs=1), ranks=ALONE, autocast=None, cache=tmp_path
            ).logprobs

    first = columns(model, rows[:4])
    assert columns(model, rows[:4]) == [list(column) for column in first]
    assert len(made) == 1
    columns(model, rows[:3])
    changed = fresh(model)
    with torch.no_grad():
        next(changed.model.parameters()).add_(0.1)
    columns(changed, rows[:4])
    assert len(made) == 3


def test_reference_columns_are_of_the_weights_below_an_adapter(
    model: ChatModel, rows: list[TrainingRow], tmp_path: Path
) -> None:
    """Each process looks for them under one name, and so does a run that goes on."""
    for seed in (0, 1):
        used = fresh(model)
        wrapped = with_adapter(used.model, Adapter(rank=4), seed)
        with response_head(used.model):
            reference_columns(wrapped, rows, Needs(logprobs=1), ranks=ALONE, autocast=None, cache=tmp_path)
    assert len(list(tmp_path.glob("reference-*"))) == 1


def test_an_adapter_that_is_off_is_the_base_and_only_it_learns(
    model: ChatModel, rows: list[TrainingRow], tmp_path: Path
) -> None:
    used = fresh(model)
    wrapped = with_adapter(used.model, Adapter(rank=4))
    batch = torch.tensor([rows[0].input_ids])
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        on = wrapped(batch).logits
        with wrapped.disable_adapter():
            off = wrapped(batch).logits
        torch.testing.assert_close(off, model.model(batch).logits)
        assert not torch.allclose(on, off)
    learner = fresh(model)
    fitted = fit(
        learner,
        rows,
        Constrained(),
        settings(learning_rate=5e-3),
        adapter=Adapter(rank=4),
        output=tmp_path,
        save=tmp_path / "model",
    )
    assert fitted.losses[-1].loss < fitted.losses[0].loss
    assert fitted.adapter is not None
    assert (fitted.adapter / "adapter_config.json").is_file()
    names = {name for name, _ in fitted.model.model.named_parameters()}
    assert names == {name for name, _ in model.model.named_parameters()}  # merged: an ordinary model again
    torch.testing.assert_close(
        fitted.model.model.get_input_embeddings().weight, model.model.get_input_embeddings().weight
    )
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_held_rows_stay_where_the_reference_is(model: ChatModel, rows: list[TrainingRow]) -> None:
    import msgspec

    objective = Composed((PlainNll(), HeldToReference()))
    held = [msgspec.structs.replace(row, loss_weight=0.0, held=1.0) for row in rows]
    moved = trained(model, held, objective) - weights(model)
    free = trained(model, rows, objective) - weights(model)
    first = fit(fresh(model), held, objective, settings(max_steps=1)).losses[0].loss
    assert abs(first) < 1e-4  # at the start the divergence is nothing
    assert moved.norm() < free.norm()


def test_checkpointing_of_activations_and_half_precision_train(model: ChatModel, rows: list[TrainingRow]) -> None:
    start = weights(model)
    plain = trained(model, rows, PlainNll())
    close(trained(model, rows, PlainNll(), gradient_checkpointing=True), plain, start)
    # bf16 has three digits: the same way, not the same place.
    half = trained(model, rows, Constrained(), bf16=True) - start
    full = trained(model, rows, Constrained()) - start
    assert torch.nn.functional.cosine_similarity(half, full, dim=0) > 0.9


@dataclass(frozen=True)
class BecomesNan:
    """A loss that is no number from the third micro-batch on."""

    seen: list[int]

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> Tensor:
        self.seen.append(1)
        loss = -logits.logprobs(tokens.labels)
        return loss * float("nan") if len(self.seen) > 2 else loss


def test_a_loss_that_is_no_number_stops_with_one_line_and_a_checkpoint(
    model: ChatModel, rows: list[TrainingRow], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="the loss is nan at step 3") as raised:
        fit(fresh(model), rows, BecomesNan([]), settings(save_steps=1), output=tmp_path)
    last = latest_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "checkpoint-2"
    assert str(last) in str(raised.value)
    assert "\n" not in str(raised.value)
    from transformers import AutoModelForCausalLM

    saved = AutoModelForCausalLM.from_pretrained(last)
    assert all(bool(parameter.isfinite().all()) for parameter in saved.parameters())


def test_dropout_is_found_out_before_the_first_step(model: ChatModel, rows: list[TrainingRow]) -> None:
    dropping = fresh(model)
    dropping.model.config.attention_dropout = 0.5
    for layer in dropping.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(UserError, match="differs from its own reference"):
        fit(dropping, rows, Constrained(), settings())


def test_watching_changes_nothing(model: ChatModel, rows: list[TrainingRow]) -> None:
    seen: list[int] = []

    def look(step: int, inner: torch.nn.Module) -> None:
        assert not inner.training
        torch.rand(10)
        seen.append(step)

    watch = Watch(frozenset({0, 1, 2, 4}), look)
    found = weights(fit(fresh(model), rows, PlainNll(), settings(), watch=watch).model)
    assert seen == [0, 1, 2, 4]
    torch.testing.assert_close(found, trained(model, rows, PlainNll()), rtol=0, atol=0)


@dataclass(frozen=True)
class FullDisk:
    """Stands for a disk that is full while a checkpoint is written."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> Tensor:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_that_says_where_to_go_on(
    model: ChatModel, rows: list[TrainingRow], tmp_path: Path
) -> None:
    fit(fresh(model), rows, PlainNll(), settings(max_steps=1), output=tmp_path)
    with pytest.raises(UserError, match=r"no space left on the disk.*checkpoint-1.*same command") as raised:
        fit(fresh(model), rows, FullDisk(), settings(max_steps=2), output=tmp_path)
    assert "\n" not in str(raised.value)


def test_no_rows_is_one_line(model: ChatModel) -> None:
    with pytest.raises(UserError, match="no rows to train on"):
        fit(model, [], PlainNll(), settings())


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("packing=true", "packing cannot be set: packed rows attend to each other"),
        ("padding_free=true", "padding_free cannot be set"),
        ("learning_rat=1", "did you mean learning_rate"),
        ("learning_rate=fast", "learning_rate.*fast"),
        ("learning_rate", "give name=value"),
        ("output_dir=/", "give -o"),
        ("max_length=1", "at least 2"),
        ("max_steps=-5", "give 1 or more, or -1"),
        ("num_train_epochs=0", "nothing would be learned"),
        ("seed=-1", "from 0 to 4294967295"),
        ("per_device_train_batch_size=0", "at least 1"),
        ("optim=newton", "optim"),
    ],
)
def test_a_setting_of_no_sense_is_one_line(pair: str, said: str, tmp_path: Path) -> None:
    def use() -> None:
        found = read_settings(None, [pair]).with_batch()
        assert found.max_length is None
        found.config(tmp_path)

    with pytest.raises(UserError, match=said) as raised:
        use()
    assert "\n" not in str(raised.value)


def test_settings_come_from_the_paper_a_file_and_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("learning_rate: 3e-4\nwarmup_steps: 5\nlr_scheduler_kwargs: {num_cycles: 1}\n")
    found = read_settings(path, ["warmup-steps=7", "bf16=false"]).with_batch()
    assert found.values["learning_rate"] == 3e-4
    assert found.values["warmup_steps"] == 7
    assert (found.values["adam_beta1"], found.values["adam_beta2"]) == (0.5, 0.999)
    assert found.batch == 64
    config = found.with_defaults(use_cpu=True).config(tmp_path / "out")
    assert config.learning_rate == 3e-4
    assert config.packing is False


@pytest.mark.parametrize(
    ("pairs", "rows", "steps", "warmup"),
    [
        (("per_device_train_batch_size=8",), 100, 6, 10),  # batches of 64, three epochs
        (("num_train_epochs=0.5",), 192, 2, 10),
        (("max_steps=7", "warmup_steps=0.5"), 1, 7, 4),
        (("max_steps=7", "lr_scheduler_type=constant"), 1, 7, 0),
        (("max_steps=7", "lr_scheduler_type=constant_with_warmup"), 1, 7, 10),
    ],
)
def test_steps_and_warmup_are_what_the_trainer_takes(
    pairs: tuple[str, ...], rows: int, steps: int, warmup: int, tmp_path: Path
) -> None:
    chosen = read_settings(None, pairs).with_batch().with_defaults(use_cpu=True)
    assert chosen.steps(rows) == steps
    assert chosen.warmup(steps) == warmup
    if warmup:
        assert chosen.config(tmp_path).get_warmup_steps(steps) == warmup


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_settings_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="settings"):
        read_settings(path)


def test_a_hook_is_told_its_step_and_checkpoints_are_where_it_can_go_on(
    model: ChatModel, rows: list[TrainingRow], tmp_path: Path
) -> None:
    told: list[int] = []
    hook = lambda _, step: told.append(step)
    fit(fresh(model), rows, PlainNll(), settings(), output=tmp_path, before_step=hook, save_every=3)
    assert told == [0, 1, 2, 3]
    assert {path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}


def test_one_process_trains_on_the_gpu_of_its_model(tmp_path, monkeypatch):
    """And not on the first one, nor with a copy on each: what transformers does where it sees several."""
    current = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8, bf16=False)
    config._n_gpu = 4  # as on a machine with four
    assert config.train_batch_size == 32
    keep_place(config, torch.device("cuda:1"))
    assert (config.device, config.n_gpu, config.train_batch_size) == (torch.device("cuda:1"), 1, 8)
    assert config.parallel_mode is ParallelMode.NOT_PARALLEL
    assert current == [torch.device("cuda:1")]
