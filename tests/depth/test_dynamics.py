"""Gradient norms by position, from forward passes alone, against one backward pass for every position."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fathom.depth.dynamics import ExactNorms, ProjectedNorms, TrainedRow, position_losses, positions
from fathom.errors import UserError
from fathom.tuning.adapter import Adapter, AdapterOff, worn
from tiny_models import random_ids, tiny

ADAPTER = Adapter(rank=3, alpha=7)
ROWS = [TrainedRow(random_ids(3 + i, seed=i), random_ids(4 + i, seed=10 + i)) for i in range(3)]


def naive(model: torch.nn.Module, row: TrainedRow) -> list[float]:
    """The five-line twin: a forward and a backward of its own for every position."""
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    norms = []
    for t in range(len(row.response_ids)):
        model.zero_grad()
        at = len(row.prompt_ids) - 1 + t
        torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, at], ids[0, at + 1]).backward()
        norms.append(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5)
    return norms


@contextmanager
def adapted(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model with an adapter on that has been trained: both of its factors have gradients."""
    with worn(model, ADAPTER) as wrapped:
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        yield wrapped


def by_the_chain_rule(wrapped: PreTrainedModel, row: TrainedRow) -> list[float]:
    """The adapter's gradient from that of the model in which it is merged: W + s·B·A, so s·G·Aᵀ and s·Bᵀ·G."""
    merged = copy.deepcopy(wrapped).merge_and_unload().requires_grad_(True)
    layers = {name: layer for name, layer in wrapped.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    norms = []
    for t in range(len(row.response_ids)):
        merged.zero_grad()
        at = len(row.prompt_ids) - 1 + t
        torch.nn.functional.cross_entropy(merged(input_ids=ids).logits[0, at], ids[0, at + 1]).backward()
        square = 0.0
        for name, layer in layers.items():
            found = merged.get_submodule(name)
            g = found.weight.grad.T if isinstance(found, Conv1D) else found.weight.grad
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            s = layer.scaling["default"]
            square += float(((s * g @ a.T).square().sum() + (s * b.T @ g).square().sum()).detach())
        norms.append(square**0.5)
    return norms


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_exact_norms_are_those_of_the_naive_twin(family: str) -> None:
    model = tiny(family).model
    for row, found in zip(ROWS, positions(model, model, ROWS, ExactNorms()), strict=True):
        assert found.gradient_norm.tolist() == pytest.approx(naive(model, row), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_projected_norms_are_unbiased(family: str) -> None:
    model = tiny(family).model
    before = (model.config._attn_implementation, model.config._experts_implementation)
    exact = torch.cat([found.gradient_norm for found in positions(model, model, ROWS, ExactNorms())])
    directions, repeats = 8, 12
    estimates = torch.stack(
        [
            torch.cat([f.gradient_norm for f in positions(model, model, ROWS, ProjectedNorms(directions, seed))])
            for seed in range(repeats)
        ]
    )
    # One estimate's relative deviation is about 1/sqrt(2m); of the mean of all, far less.
    ratio = estimates / exact
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.06)
    assert float(ratio.std(0).mean()) == pytest.approx((2 * directions) ** -0.5, rel=0.35)
    assert (model.config._attn_implementation, model.config._experts_implementation) == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapters_norms_are_by_its_own_weights(family: str) -> None:
    model = tiny(family).model
    with adapted(model) as wrapped:
        off = AdapterOff(wrapped)
        exact = list(positions(model, off, ROWS, ExactNorms()))
        for row, found in zip(ROWS, exact, strict=True):
            assert found.gradient_norm.tolist() == pytest.approx(naive(model, row), rel=1e-4)
            assert found.gradient_norm.tolist() == pytest.approx(by_the_chain_rule(wrapped, row), rel=1e-3)
        estimates = torch.stack(
            [
                torch.cat([found.gradient_norm for found in positions(model, off, ROWS, ProjectedNorms(8, seed))])
                for seed in range(12)
            ]
        )
    ratio = estimates / torch.cat([found.gradient_norm for found in exact])
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.06)
    assert float(ratio.std(0).mean()) == pytest.approx(0.25, rel=0.35)


def test_an_adapter_starts_as_the_model_without_it() -> None:
    model, plain = tiny().model, tiny().model
    alone = list(positions(plain, plain, ROWS, ProjectedNorms(1)))
    with worn(model, ADAPTER) as wrapped:
        begun = list(positions(model, AdapterOff(wrapped), ROWS, ProjectedNorms(1)))
        assert all(torch.equal(a.cross_entropy, b.cross_entropy) for a, b in zip(alone, begun, strict=True))
        assert all(not found.kl.any() for found in begun)
        assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
            name for name, _ in model.named_parameters() if "lora_" in name
        }
    with adapted(model) as wrapped:
        moved = list(positions(model, AdapterOff(wrapped), ROWS, ProjectedNorms(1)))
        twin = list(positions(model, plain, ROWS, ProjectedNorms(1)))
    assert all(torch.equal(a.kl, b.kl) and a.kl.min() > 1e-4 for a, b in zip(moved, twin, strict=True))


def test_rows_that_do_not_fit_together_are_measured_apart() -> None:
    """At once as many as there is memory for; what is found of each row is the same, the directions, too."""
    model, asked = tiny().model, list[int]()

    def narrow(**inputs: torch.Tensor) -> object:
        asked.append(len(inputs["input_ids"]))
        if asked[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return model(**inputs)

    whole = list(positions(model, model, ROWS, ProjectedNorms(2)))
    parts = list(positions(model, narrow, ROWS, ProjectedNorms(2)))
    assert asked == [3, 2, 1, 1, 1]
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a.gradient_norm, b.gradient_norm, rtol=1e-4)
        assert torch.allclose(a.cross_entropy, b.cross_entropy, rtol=1e-4)


def test_cross_entropy_and_kl_are_the_models_own() -> None:
    model, start = tiny().model, tiny(seed=1).model
    for row, found in zip(ROWS, positions(model, start, ROWS, ProjectedNorms(1)), strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        with torch.no_grad():
            now, then = (
                m(input_ids=ids).logits[0, :-1].log_softmax(-1)[-len(row.response_ids) :] for m in (model, start)
            )
        own = -now.gather(-1, torch.tensor(row.response_ids)[:, None])[:, 0]
        assert found.cross_entropy.tolist() == pytest.approx(own.tolist(), rel=1e-4)
        assert found.kl.tolist() == pytest.approx((now.exp() * (now - then)).sum(-1).tolist(), rel=1e-3, abs=1e-5)


def test_padding_changes_nothing() -> None:
    model = tiny().model
    together = position_losses(model, ROWS)
    for i, row in enumerate(ROWS):
        alone = position_losses(model, [row])[0]
        assert torch.allclose(together[i, : len(alone)], alone, atol=1e-5)


def test_a_model_is_left_as_it_was() -> None:
    model = tiny().model
    before = [p.clone() for p in model.parameters()]
    list(positions(model, model, ROWS, ProjectedNorms(2)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(UserError, match="1 or more"):
        ProjectedNorms(0)
    with pytest.raises(UserError, match="empty prompt or response"):
        list(positions(tiny().model, tiny().model, [TrainedRow((), (1,))], ExactNorms()))
    bloom = tiny("bloom").model  # its activation is a function of its own, which forward mode cannot follow
    with pytest.raises(UserError, match="give --directions 0"):
        list(positions(bloom, bloom, ROWS, ProjectedNorms(1)))
