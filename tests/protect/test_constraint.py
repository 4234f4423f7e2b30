"""Laws of the constraint: what it is at the start, in its limit, and how steep it is, against Eq. 3 written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import UserError
from fathom.protect.constraint import BetaSchedule, anchored_nll, constrained_nll, token_weights

LOGPROBS = st.floats(-30.0, 0.0)
BETAS = st.floats(1e-3, 50.0)


def exact(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@given(LOGPROBS, LOGPROBS, BETAS)
def test_it_is_equation_three(logprob: float, reference: float, beta: float) -> None:
    ours, theirs, b = exact(logprob, reference, beta)
    naive = 2 / b * torch.logaddexp(torch.zeros_like(b), -b * (ours - theirs))
    torch.testing.assert_close(constrained_nll(ours, theirs, b), naive, rtol=1e-6, atol=1e-6)


@given(LOGPROBS, LOGPROBS, BETAS)
def test_the_gradient_is_that_of_cross_entropy_times_its_weight(logprob: float, reference: float, beta: float) -> None:
    for loss in (constrained_nll, anchored_nll):
        ours, theirs, b = exact(logprob, reference, beta)
        ours.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(ours, theirs, b).sum(), ours)
        (plain,) = torch.autograd.grad((-ours).sum(), ours)
        expected = 2 / (1 + math.exp(min(700.0, beta * (logprob - reference)))) * plain
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(token_weights(ours.detach(), theirs, b) * plain, expected, rtol=1e-9, atol=1e-12)


@given(LOGPROBS, LOGPROBS, BETAS)
def test_the_two_forms_differ_by_a_constant_of_the_token(logprob: float, reference: float, beta: float) -> None:
    ours, theirs, b = exact(logprob, reference, beta)
    constant = 2 / b * math.log(2) + theirs
    torch.testing.assert_close(anchored_nll(ours, theirs, b), constrained_nll(ours, theirs, b) - constant)


@given(LOGPROBS, st.floats(0.0, 1e6))
def test_the_first_step_is_plain_training_for_any_beta(logprob: float, beta: float) -> None:
    ours, theirs, b = exact(logprob, logprob, beta)
    ours.requires_grad_()
    loss = anchored_nll(ours, theirs, b)
    torch.testing.assert_close(loss, -ours)
    (gradient,) = torch.autograd.grad(loss.sum(), ours)
    assert gradient.item() == pytest.approx(-1.0)


@given(LOGPROBS, LOGPROBS, st.sampled_from([0.0, 1e-12, 1e-6]))
def test_no_constraint_is_plain_training_at_every_step(logprob: float, reference: float, beta: float) -> None:
    ours, theirs, b = exact(logprob, reference, beta)
    ours.requires_grad_()
    loss = anchored_nll(ours, theirs, b)
    torch.testing.assert_close(loss, -ours, rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(loss.sum(), ours)
    assert gradient.item() == pytest.approx(-1.0, abs=1e-4)


def test_the_schedule_of_the_paper() -> None:
    betas = BetaSchedule()(torch.arange(1, 9))
    torch.testing.assert_close(betas, torch.tensor([0.5, 2, 2, 2, 2, 0.1, 0.1, 0.1]))
    torch.testing.assert_close(BetaSchedule.uniform(0.5)(torch.arange(1, 9)), torch.full((8,), 0.5))


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_a_schedule_of_no_sense_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="0 \\(no constraint\\) or above"):
        BetaSchedule(rest=value)
