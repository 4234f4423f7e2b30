"""Gradient norms by position, from forward passes alone, against one backward pass for every position."""

import pytest
import torch

from fathom.depth.dynamics import ExactNorms, ProjectedNorms, TrainedRow, position_losses, positions
from fathom.errors import UserError
from tiny_models import random_ids, tiny

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


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_exact_norms_are_those_of_the_naive_twin(family: str) -> None:
    model = tiny(family).model
    for row, found in zip(ROWS, positions(model, model, ROWS, ExactNorms()), strict=True):
        assert found.gradient_norm.tolist() == pytest.approx(naive(model, row), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_projected_norms_are_unbiased(family: str) -> None:
    model, before = tiny(family).model, tiny(family).model.config._attn_implementation
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
    assert model.config._attn_implementation == before


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
