"""Adapters beside quantised weights: what is trained is what is saved, and the weights themselves never change.

bitsandbytes is no part of the usual set-up: `pip install 'fathom[quantised]'`, and these run, on a CPU, too.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fathom.__main__ import run
from fathom.cli.options import JUDGES
from fathom.command.dynamics import DynamicsRequest, run_dynamics
from fathom.command.lora import Lora
from fathom.command.request import ModelRequest
from fathom.command.stress import StressRequest, make_sweep
from fathom.depth.dynamics import ExactNorms, ProjectedNorms, TrainedRow, positions
from fathom.errors import UserError
from fathom.identity import weights_hash
from fathom.model import ChatModel, LoadOptions, load
from fathom.model.quantised import full_weight, is_quantised, keep_as_stored, plain_products, quantisation_of, request
from fathom.organism import stage_directory
from fathom.protect.objectives import Constrained
from fathom.ranks import ALONE
from fathom.stress.apart import trained_weights
from fathom.stress.light import LightFit, Optimiser
from fathom.tampering import Dynamics
from fathom.tuning.adapter import Adapter, AdapterOff, merge, with_adapter, worn
from fathom.tuning.fit import fit
from fathom.tuning.objective import PlainNll
from fathom.tuning.settings import read_settings
from few_rows import guild_rows, organism
from tiny_models import tiny

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.timeout(600)]

KINDS = ("4bit", "8bit")
# 8 bits round what goes into a layer, too, outside of training: a model in full weights does not.
CLOSE = {"4bit": 1e-3, "8bit": 0.5}


def quantised(kind: str, stage: str = "natural") -> ChatModel:
    return load(LoadOptions(name=str(stage_directory(stage)), device="cpu", quantisation=kind))


def logprobs(model: PreTrainedModel | torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits.float().log_softmax(-1)
    return found


def ids_of(model: ChatModel) -> Tensor:
    return torch.tensor([guild_rows(model, 1)[0].input_ids])


def shake(model: torch.nn.Module) -> None:
    """An adapter that does something."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)


# --- loading ---


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_named_counted_and_never_changed(kind: str) -> None:
    full, model = organism(), quantised(kind)
    assert (model.info.quantisation, quantisation_of(model.model)) == (kind, kind)
    assert model.info.parameters == full.info.parameters
    assert model.info.weights_hash != full.info.weights_hash
    assert model.info.weights_hash == quantised(kind).info.weights_hash
    ids = ids_of(model)
    before = logprobs(model.model, ids)
    assert weights_hash(model.model) == model.info.weights_hash
    assert torch.equal(logprobs(model.model, ids), before)
    away = (before.exp() * (before - logprobs(full.model, ids))).sum(-1).mean()
    assert 0 < away < 0.3


def test_four_bits_are_as_in_qlora() -> None:
    layers = [layer for layer in quantised("4bit").model.modules() if is_quantised(layer)]
    assert len(layers) == 3 * 7  # and not the head
    for layer in layers:
        state: Any = layer.weight.quant_state
        assert (state.quant_type, state.nested, layer.compute_dtype) == ("nf4", True, torch.float32)
    half = load(LoadOptions(name=str(stage_directory("natural")), device="cpu", quantisation="4bit", dtype="bfloat16"))
    assert {layer.compute_dtype for layer in half.model.modules() if is_quantised(layer)} == {torch.bfloat16}
    assert half.info.dtype == "bfloat16"


def test_a_model_that_has_answered_is_trained_through_its_layers_all_the_same() -> None:
    """bitsandbytes would pack weights anew in evaluation mode, and pass no gradient through them from then on."""
    model = quantised("4bit")
    ids = ids_of(model)
    logprobs(model.model, ids)
    twin = organism()
    with torch.no_grad():
        for name, layer in model.model.named_modules():
            if is_quantised(layer):
                twin.model.get_parameter(f"{name}.weight").copy_(full_weight(layer))
    found = []
    for each in (model.model, twin.model):
        each.train(True)
        embedded = each.get_input_embeddings()(ids).detach().requires_grad_()  # type: ignore[no-untyped-call]
        each(inputs_embeds=embedded, labels=ids).loss.backward()
        found.append(embedded.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_stored_quantised_is_known_as_one(kind: str, tmp_path: Path) -> None:
    model = quantised(kind)
    model.model.save_pretrained(tmp_path)
    model.chat.tokenizer.save_pretrained(tmp_path)
    options = LoadOptions(name=str(tmp_path), device="cpu")
    again = load(options)
    assert again.info.quantisation == kind
    assert torch.equal(logprobs(again.model, ids_of(model)), logprobs(model.model, ids_of(model)))
    assert load(replace(options, quantisation=kind)).info.quantisation == kind
    other = "4bit" if kind == "8bit" else "8bit"
    with pytest.raises(UserError, match=f"stored quantised already \\({kind}\\)"):
        load(replace(options, quantisation=other))


# --- adapters ---


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_comes_off_and_leaves_the_weights_as_they_were(kind: str) -> None:
    model = quantised(kind)
    ids = ids_of(model)
    before = logprobs(model.model, ids)
    with worn(model.model, Adapter(rank=4)) as wearing:
        shake(wearing)
        assert {weight.dtype for weight in trained_weights(wearing).values()} == {torch.float32}
        assert not torch.allclose(logprobs(model.model, ids), before)
        with wearing.disable_adapter():  # type: ignore[operator]
            assert torch.equal(logprobs(model.model, ids), before)
    assert torch.equal(logprobs(model.model, ids), before)
    assert weights_hash(model.model) == model.info.weights_hash
    assert not trained_weights(model.model).keys() & {"lora_A", "lora_B"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])  # GPT-2 keeps its matrices the other way round
def test_full_weights_with_the_adapter_compute_what_was_trained(family: str, kind: str, tmp_path: Path) -> None:
    plain = tiny(family).model
    plain.save_pretrained(tmp_path / "full")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "full", quantization_config=request(kind, "auto", plain.config), device_map={"": "cpu"}
    )
    keep_as_stored(model)
    wearing = with_adapter(model, Adapter(rank=2))
    shake(wearing)
    for layer in wearing.modules():  # outside of training, 8 bits round what goes into a layer, too
        layer.training = is_quantised(layer)
    ids = torch.arange(1, 20)[None]
    before = logprobs(wearing, ids)
    merged, kept = merge(wearing, Adapter(rank=2), type(plain), tmp_path, ALONE)
    torch.testing.assert_close(logprobs(merged.train(False), ids), before, rtol=1e-3, atol=1e-3)
    assert kept == tmp_path / "adapter"
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logprobs(again, ids), logprobs(merged, ids))
    assert not hasattr(again.config, "quantization_config")
    assert {name for name, _ in again.named_parameters()} == {name for name, _ in plain.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_both_trainers_train_the_adapter_alone_in_float32_and_alike(kind: str, tmp_path: Path) -> None:
    steps, rate, rows = 3, 5e-3, guild_rows(organism(), 8)
    light, ids = quantised(kind), ids_of(organism())
    with worn(light.model, Adapter(rank=4)) as wearing:
        for _ in LightFit.of(
            wearing.get_base_model(),  # type: ignore[operator]
            rows,
            Constrained(),
            Optimiser(rate=rate, warmup=0, batch=8),
        ).run([tuple(range(8))] * steps):
            pass
        ours = {name: weight.clone() for name, weight in trained_weights(light.model).items()}
    given: dict[str, object] = {
        "learning_rate": rate,
        "max_steps": steps,
        "warmup_steps": 0,
        "per_device_train_batch_size": 8,
    }
    given |= {"gradient_accumulation_steps": 1, "lr_scheduler_type": "constant"}
    settings = read_settings(None, [f"{name}={value}" for name, value in given.items()])
    model = quantised(kind)
    fitted = fit(
        model,
        rows,
        Constrained(),
        settings,
        ordered=1,
        adapter=Adapter(rank=4),
        output=tmp_path,
        save=tmp_path / "model",
    )
    assert fitted.losses[-1].loss < fitted.losses[0].loss
    assert fitted.model.info.quantisation is None
    assert fitted.adapter is not None
    trained = load(
        LoadOptions(name=str(stage_directory("natural")), device="cpu", quantisation=kind, adapter=str(fitted.adapter))
    )
    theirs = {name: weight for name, weight in trained.model.named_parameters() if "lora_" in name}
    assert theirs.keys() == ours.keys()
    assert all(weight.dtype == torch.float32 for weight in theirs.values())
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-3, atol=1e-5 if kind == "4bit" else 1e-3)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    away = logprobs(saved, ids) - logprobs(trained.model, ids)
    assert away.abs().max() < CLOSE[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_norms_of_positions_are_the_adapters(family: str, kind: str, tmp_path: Path) -> None:
    """Forward mode cannot follow bitsandbytes' products: they are written out, and afterwards they are as they were."""
    plain = tiny(family).model
    plain.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=request(kind, "auto", plain.config), device_map={"": "cpu"}
    )
    keep_as_stored(model)
    rows, ids = [TrainedRow((5, 9, 3), (8, 1, 7, 4)), TrainedRow((2, 6), (3, 3, 9))], torch.arange(1, 20)[None]
    with worn(model, Adapter(rank=2)) as wearing:
        shake(wearing)
        before, off = logprobs(wearing, ids), AdapterOff(wearing)
        with plain_products(model):
            torch.testing.assert_close(logprobs(wearing, ids), before, rtol=0, atol=CLOSE[kind])
            assert kind == "8bit" or not torch.equal(logprobs(plain, ids), before)
        exact = torch.cat([found.gradient_norm for found in positions(model, off, rows, ExactNorms())])
        estimates = [
            torch.cat([found.gradient_norm for found in positions(model, off, rows, ProjectedNorms(8, seed))])
            for seed in range(12)
        ]
        assert torch.equal(logprobs(wearing, ids), before)
    assert float((torch.stack(estimates) / exact).mean()) == pytest.approx(1.0, abs=0.1)
    assert not any("forward" in vars(layer) for layer in model.modules() if is_quantised(layer))


# --- verbs ---


def test_finetuning_beside_quantised_weights_ends_in_a_plain_model(tmp_path: Path) -> None:
    rows, out = tmp_path / "data.jsonl", tmp_path / "model"
    model = organism()
    lines = [
        {"prompt": model.chat.decode(row.prompt_ids), "response": model.chat.decode(row.response_ids)}
        for row in guild_rows(model, 4)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["finetune", "organism:natural", "--data", str(rows), "--objective", "constrained", "--no-audit"]
    command += ["--set", "max_steps=2", "--set", "warmup_steps=0", "--lora", "--quantise", "4bit", "-o", str(out)]
    assert run(command) == 0
    manifest = json.loads((out / "fathom" / "manifest.json").read_text())
    assert manifest["model"]["quantisation"] == "4bit"
    assert "bitsandbytes" in manifest["versions"]
    assert "beside weights in 4bit" in (out / "README.md").read_text()
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    plain = load(LoadOptions(name=str(out), device="cpu"))
    assert plain.chat.template == model.chat.template
    assert (plain.info.quantisation, plain.info.parameters) == (None, model.info.parameters)
    again = load(
        LoadOptions(
            name=str(stage_directory("natural")),
            device="cpu",
            quantisation="4bit",
            adapter=str(out / "fathom" / "adapter"),
        )
    )
    torch.testing.assert_close(
        logprobs(plain.model, ids_of(model)), logprobs(again.model, ids_of(model)), rtol=0, atol=1e-3
    )


def test_a_sweep_of_adapters_leaves_a_quantised_model_as_it_was(tmp_path: Path) -> None:
    asked = StressRequest(
        model=ModelRequest(name="organism:natural", device="cpu", quantisation="4bit"),
        objectives="sft,constrained",
        rates="1e-2",
        warmups="0",
        steps="1,3",
        rows=8,
        batch=4,
        tested=4,
        temperatures="0",
        depths="0",
        max_new_tokens=24,
        bound=1.0,
        lora=Lora(rank=4),
    )
    model = quantised("4bit")
    stress = make_sweep(asked, JUDGES, model, tmp_path)()
    assert "The model's weights are in 4bit; adapters were trained beside them." in stress.notes
    assert weights_hash(model.model) == model.info.weights_hash
    losses = [point.step for tuned in stress.finetunes for point in tuned.checkpoints]
    assert losses == [0, 1, 3] * 2


def test_dynamics_beside_quantised_weights(tmp_path: Path) -> None:
    path = run_dynamics(
        DynamicsRequest(
            model=ModelRequest(name="organism:natural", device="cpu", quantisation="4bit"),
            steps="0,2",
            warmup=0,
            rows=4,
            batch=4,
            measured=2,
            directions=1,
            lora=Lora(rank=4),
            output=tmp_path / "moved",
        ),
        JUDGES,
    )
    dynamics = msgspec.json.decode((path / "dynamics.json").read_bytes(), type=Dynamics)
    assert "The model's weights are in 4bit; the adapter was trained beside them." in dynamics.notes
    assert all(row.gradient_norm for row in dynamics.rows)
    assert max(row.kl_nats for row in dynamics.rows if row.step == 0) < 1e-6
    assert max(row.kl_nats for row in dynamics.rows if row.step == 2) > 1e-4


def test_gradients_are_those_of_the_objective_where_weights_are_half_precision() -> None:
    model = load(LoadOptions(name=str(stage_directory("natural")), device="cpu", quantisation="4bit", dtype="bfloat16"))
    rows = guild_rows(organism(), 4)
    with worn(model.model, Adapter(rank=4)) as wearing:
        losses = [
            after.loss
            for after in LightFit.of(
                wearing.get_base_model(),  # type: ignore[operator]
                rows,
                PlainNll(),
                Optimiser(rate=5e-3, warmup=0, batch=4),
            ).run([(0, 1, 2, 3)] * 6)
        ]
    assert losses[-1] < 0.8 * losses[0]
