"""The blocked head against its naive equivalent: the same loss and the same gradients, for every kind of head."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.protect.constraint import BetaSchedule
from fathom.protect.objectives import Composed, Constrained, HeldToReference, SafetyMass
from fathom.tuning import head
from fathom.tuning.batches import Batch, Example, collate_examples
from fathom.tuning.head import response_head
from fathom.tuning.objective import PlainNll, ResponseLogits, TokenObjective
from few_rows import random_rows
from pretend_device import pretend
from tiny_models import tiny

FAMILIES = ("llama", "gemma2", "cohere", "granite", "phi", "gpt2", "mixtral")
TOP = 5
OBJECTIVES: dict[str, TokenObjective] = {
    "plain": PlainNll(),
    "constrained": Constrained(),
    "uniform": Constrained(BetaSchedule.uniform(2.0)),
    "held": Composed((PlainNll(), HeldToReference(TOP))),
    "mass": Composed((Constrained(), SafetyMass(0.7, (3, 5, 8)))),
}


def batch_of(seed: int = 0) -> Batch:
    """A batch with every column that an objective may read, of a reference that is not the model."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for row in random_rows(5, seed=seed, held=0.5):
        count = len(row.positions)
        top = torch.randn((count, 97), generator=generator).log_softmax(-1).topk(TOP)
        examples.append(
            Example(
                row,
                logprobs=(-5 * torch.rand(count, generator=generator)).tolist(),
                ids=top.indices.tolist() if row.held else [],
                top=top.values.tolist() if row.held else [],
                mass=torch.rand(count, generator=generator).tolist(),
            )
        )
    return collate_examples(examples)


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def naive(model: torch.nn.Module, batch: Batch, objective: TokenObjective) -> Tensor:
    logits = model(**batch.inputs).logits[:, :-1][batch.labels[:, 1:] != -100].float()
    return objective(ResponseLogits(logits), batch.tokens).sum() * 0.3


def blocked(model: torch.nn.Module, batch: Batch, objective: TokenObjective) -> Tensor:
    found: Tensor = model(**batch.inputs, labels=batch.labels, tokens=batch.tokens, objective=objective, scale=0.3).loss
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_head_gives_the_naive_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CPU_BLOCK", 97 * 4)  # several blocks of four rows
    model, batch = tiny(family).model, batch_of()
    expected = naive(model, batch, OBJECTIVES["constrained"])
    wanted = gradients(model, expected)
    with response_head(model):
        loss = blocked(model, batch, OBJECTIVES["constrained"])
        found = gradients(model, loss)
    torch.testing.assert_close(loss, expected)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_the_naive_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CPU_BLOCK", 97 * 3)
    model, batch = tiny("llama", tie_word_embeddings=True).model, batch_of(1)
    wanted = gradients(model, naive(model, batch, OBJECTIVES[name]))
    with response_head(model):
        found = gradients(model, blocked(model, batch, OBJECTIVES[name]))
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=2e-5)


def test_plain_training_is_the_cross_entropy_of_the_library() -> None:
    model, batch = tiny().model, batch_of(2)
    tokens = batch.tokens
    logits = model(**batch.inputs).logits[:, :-1][batch.labels[:, 1:] != -100]
    expected = F.cross_entropy(logits, tokens.labels, reduction="none") * tokens.loss_weight
    torch.testing.assert_close(PlainNll()(ResponseLogits(logits), tokens), expected)


def test_a_frozen_head_is_given_no_gradient() -> None:
    model, batch = tiny().model, batch_of()
    model.lm_head.weight.requires_grad_(False)
    with response_head(model):
        found = gradients(model, blocked(model, batch, PlainNll()))
    assert "lm_head.weight" not in found
    assert found


def test_half_precision_sums_blocks_as_well_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny().model.to(torch.bfloat16), batch_of()
    found = []
    for size in (97, 97 * 1000):
        monkeypatch.setattr(head, "CPU_BLOCK", size)
        with response_head(model):
            found.append(gradients(model, blocked(model, batch, PlainNll()))["lm_head.weight"].float())
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02)


def test_without_tokens_a_call_is_what_it_was_and_the_head_comes_off() -> None:
    model, batch = tiny().model, batch_of()
    before: Callable[..., object] = model.forward
    expected = model(**batch.inputs).logits
    with response_head(model):
        torch.testing.assert_close(model(**batch.inputs).logits, expected)
        generated = model.generate(batch.input_ids[:1, :2], max_new_tokens=3, do_sample=False)
    assert generated.shape[1] <= 5
    assert model.forward == before
    assert "forward" not in model.__dict__


def test_what_is_read_is_what_the_logits_say() -> None:
    model, batch = tiny().model, batch_of()
    with response_head(model), torch.no_grad():
        output = model(
            **batch.inputs,
            labels=batch.labels,
            tokens=batch.tokens,
            read=lambda logits, tokens: (logits.logprobs(tokens.labels),),
        )
        logits = model(**batch.inputs).logits[:, :-1].log_softmax(-1)
    mask = batch.labels[:, 1:] != -100
    expected = logits[mask].gather(-1, batch.tokens.labels[:, None])[:, 0]
    torch.testing.assert_close(output.read[0], expected)


@pytest.mark.parametrize("name", ["plain", "held"])
def test_a_head_on_another_device_changes_nothing(name: str) -> None:
    """As where a model is spread over devices: the batch is with the first layer, the head with the last."""
    objective, batch = OBJECTIVES[name], batch_of()
    model = tiny("llama", tie_word_embeddings=False).model
    with response_head(model):
        given = {**batch.inputs, "labels": batch.labels, "tokens": batch.tokens, "objective": objective}
        here = gradients(model, model(**given, scale=0.3).loss)
        with pretend() as device:
            model.get_output_embeddings().to(device)
            output = model(**given, scale=0.3)
            assert output.loss.device.type == "cpu"
            there = gradients(model, output.loss)
            (read,) = model(**given, read=lambda logits, tokens: (logits.logprobs(tokens.labels),)).read
            assert read.device.type == "cpu"
            assert there.keys() == here.keys()
            for which, gradient in there.items():
                torch.testing.assert_close(gradient.cpu(), here[which], atol=1e-6, rtol=1e-5)
