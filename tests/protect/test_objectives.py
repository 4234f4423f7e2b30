"""What the parts of an objective do to tokens, rows and weights, each against its definition."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import UserError
from fathom.protect.gate import Gate
from fathom.protect.objectives import Objective, kl_to_reference, mass_divergence, parse_objective
from fathom.protect.replay import Replay, interleave
from fathom.protect.safety import safety_tokens
from fathom.protect.weights import Anchor, Proximal, SafeLora, project_update
from fathom.tuning.objective import ResponseLogits
from fathom.tuning.rows import Kind, TrainingRow

NAMES = (
    "sft",
    "constrained",
    "uniform:0.5",
    "gate",
    "gate+replay",
    "constrained+replay",
    "replay+mass",
    "lisa+safe-lora",
)


def row(prompt: int, *, kind: Kind = Kind.TASK) -> TrainingRow:
    return TrainingRow(prompt_ids=(prompt,), response_ids=(1, 2, 3), kind=kind)


@pytest.mark.parametrize("name", NAMES)
def test_a_composition_is_its_name(name: str) -> None:
    assert parse_objective(name).name == name
    assert parse_objective(parse_objective(name).name) == parse_objective(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gates", "no objective called 'gates'"),
        ("sft+constrained", "takes the place of an earlier part"),
        ("gate+gate", "takes the place of an earlier part"),
        ("gate:much", "is no number"),
        ("sft:1", "takes no number"),
        ("replay:1", "between 0 and 1"),
        ("uniform:-1", "0 \\(no constraint\\) or above"),
        ("gate:0", "above 0"),
        ("safe-lora:2", "cosine"),
        ("", "no objective called ''"),
    ],
)
def test_a_composition_of_no_sense_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_objective(text)


@given(st.integers(0, 1000), st.integers(1, 20))
def test_kl_by_buckets_is_below_the_whole_and_equal_to_it_over_all_ids(seed: int, top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = (3 * torch.randn((4, 20), generator=generator)).log_softmax(-1)
    logits = 3 * torch.randn((4, 20), generator=generator)
    whole = (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)
    best = reference.topk(top)
    found = kl_to_reference(ResponseLogits(logits), best.indices, best.values)
    assert bool((found <= whole + 1e-4).all())
    assert bool((found >= -1e-4).all())
    if top == 20:
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4)
    same = kl_to_reference(ResponseLogits(reference), best.indices, best.values)
    torch.testing.assert_close(same, torch.zeros(4), rtol=0, atol=1e-4)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_divergence_of_mass_is_a_divergence(p: float, q: float) -> None:
    found = mass_divergence(torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64))
    assert found >= -1e-12
    assert mass_divergence(torch.tensor(p), torch.tensor(p)) == pytest.approx(0, abs=1e-5)


def test_the_gate_holds_what_the_reference_refuses_and_nothing_else() -> None:
    rows = [row(1), row(2), row(3)]
    found = Gate(samples=8, refused=6, weight=2.0)(rows, {(1,): 5, (2,): 6, (3,): 8})
    assert [(r.loss_weight, r.held) for r in found] == [(1.0, 0.0), (0.0, 2.0), (0.0, 2.0)]
    assert [r.prompt_ids for r in found] == [r.prompt_ids for r in rows]


@given(st.integers(1, 200), st.sampled_from([0.05, 0.125, 0.5]))
def test_replay_makes_up_its_share_and_moves_no_other_row(count: int, share: float) -> None:
    rows = [row(number) for number in range(count)]
    replayed = [row(-1, kind=Kind.REPLAY), row(-2, kind=Kind.REPLAY)]
    found = interleave(Replay(share=share), rows, replayed)
    assert [r for r in found if r.kind is Kind.TASK] == rows
    added = [r for r in found if r.kind is Kind.REPLAY]
    assert len(added) == max(1, round(count * share / (1 - share)))
    uses = Counter(r.prompt_ids for r in added)
    assert max(uses.values()) - min(uses.get((-1,), 0), uses.get((-2,), 0)) <= 1


def test_replay_of_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="no refusal to repeat"):
        interleave(Replay(), [row(1)], [])


def test_safety_tokens_mark_refusals_and_are_no_words_of_the_prompts() -> None:
    refusals = [(10, 11, 50), (10, 12, 50), (20, 11, 50)] * 10
    answers = [(30, 31, 11), (30, 32, 33)] * 10
    found = safety_tokens(refusals, answers, ignored=(50,))
    assert found == (10, 12, 20)
    assert safety_tokens([], answers) == ()


def test_the_pull_is_the_gradient_of_the_squared_distance() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    anchor = Anchor(Proximal(0.3))
    anchor.remember(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(5, 4)
    model(x).square().mean().backward()
    anchor(model)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    distance = sum((p - start[name]).square().sum() for name, p in model.named_parameters())
    (model(x).square().mean() + 0.15 * distance).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_an_update_along_alignment_stays_and_one_across_it_goes() -> None:
    direction = torch.zeros(4, 4)
    direction[0, 0] = 2.0
    along, across = torch.zeros(4, 4), torch.zeros(4, 4)
    along[0, 1], across[1, 0] = 1.0, 1.0
    torch.testing.assert_close(project_update(along, direction), 2.0 * along)  # C = V Vᵀ / ‖V‖
    torch.testing.assert_close(project_update(across, direction), torch.zeros(4, 4))
    aligned = {"w": torch.eye(4), "bias": torch.ones(4)}
    base = {"w": torch.eye(4) - direction, "bias": torch.zeros(4)}
    kept = SafeLora(0.35)({"w": aligned["w"] + along, "bias": torch.zeros(4)}, aligned, base)
    torch.testing.assert_close(kept["w"], aligned["w"] + along)
    torch.testing.assert_close(kept["bias"], torch.zeros(4))  # vectors are left alone
    undone = SafeLora(0.35)({"w": aligned["w"] + across, "bias": torch.zeros(4)}, aligned, base)
    torch.testing.assert_close(undone["w"], aligned["w"])


def test_mass_without_safety_tokens_is_an_error() -> None:
    with pytest.raises(UserError, match="no safety tokens"):
        parse_objective("mass").per_token()
    assert Objective().per_token().needs.any == 0
