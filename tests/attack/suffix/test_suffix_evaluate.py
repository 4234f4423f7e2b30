"""The fast way against a naive twin: every candidate in a full forward of its own, a full log-softmax."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import fathom.attack.suffix.feedforward as feedforward
import fathom.attack.suffix.plain as plain
import fathom.attack.suffix.sharing as sharing
from fathom.attack.suffix.evaluate import PlainEvaluator, SharedEvaluator, evaluator
from fathom.attack.suffix.objective import loss_of
from fathom.attack.suffix.options import CrossEntropy, Mellowmax
from fathom.attack.suffix.problem import Case, Target
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.scoring import Scorer
from tiny_models import random_ids, tiny

SHARED = ("llama", "qwen3", "gpt_neox", "olmo2", "cohere", "granite", "phi")
PLAIN = ("bloom", "gemma2", "phi3")  # positions in the scores, capped scores, a window shorter than the text
CE = CrossEntropy()


def naive_losses(model: ChatModel, case: Case, candidates: torch.Tensor) -> torch.Tensor:
    target = torch.tensor(case.target.ids)
    found = []
    for row in candidates.tolist():
        ids = torch.tensor([[*case.prompt_ids(row), *case.target.ids]])
        logprobs = model.model(ids).logits[0, -len(target) - 1 : -1].float().log_softmax(-1)
        found.append(-(logprobs[torch.arange(len(target)), target] * torch.tensor(case.target.shares)).sum())
    return torch.stack(found).detach()


def a_case(before: int = 9, after: int = 3, target: int = 5, weights: tuple[float, ...] = ()) -> Case:
    ids = random_ids(before + after + target, seed=1)
    parts = ids[:before], ids[before : before + after], ids[before + after :]
    return Case(behavior="b", before_ids=parts[0], after_ids=parts[1], target=Target(parts[2], weights))


def neighbours(suffix: tuple[int, ...], count: int, changes: int = 1, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    rows = torch.tensor(suffix).repeat(count, 1)
    for row in rows:
        places = torch.randperm(len(suffix), generator=random)[:changes]
        row[places] = torch.randint(1, 90, (changes,), generator=random)
    return rows


@pytest.mark.parametrize("family", [*SHARED, *PLAIN])
def test_every_architecture_gets_the_naive_losses(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedforward, "PIECE_CPU", 7)
    model, case, suffix = tiny(family), a_case(), random_ids(6, seed=2)
    said: list[str] = []
    found = evaluator(Scorer.of(model), case, suffix, CE, said.append)
    assert isinstance(found, SharedEvaluator if family in SHARED else PlainEvaluator)
    assert bool(said) == (family in PLAIN)
    candidates = torch.cat([neighbours(suffix, 12), neighbours(suffix, 4, 3), torch.tensor([suffix])])
    found.gradient(suffix, CE)
    losses = loss_of(found.scores(candidates).reading, case.target, CE)
    assert torch.allclose(losses, naive_losses(model, case, candidates), atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    before=st.integers(0, 7),
    after=st.integers(0, 3),
    target=st.integers(1, 6),
    size=st.integers(1, 6),
    packed=st.sampled_from([1, 20, 1088]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_packing(before: int, after: int, target: int, size: int, packed: int, seed: int) -> None:
    model = tiny("llama")
    case = a_case(before or (1 if not after else 0), after, target)
    suffix = random_ids(size, seed=seed)
    found = SharedEvaluator(Scorer.of(model), case, print, packed)
    found.gradient(suffix, CE)
    candidates = neighbours(suffix, 7, min(2, size), seed)
    scores = found.scores(candidates)
    losses = loss_of(scores.reading, case.target, CE)
    assert torch.allclose(losses, naive_losses(model, case, candidates), atol=2e-5)
    settled = SharedEvaluator(Scorer.of(model), case, print, packed)  # a forward pass alone leaves the same
    assert settled.settle(suffix) == (1, size, 0)
    assert torch.allclose(settled.scores(candidates).reading.nll, scores.reading.nll, atol=2e-5)
    # what is left out of a candidate is exactly what it shares with the current suffix
    first = [
        next((i for i, (a, b) in enumerate(zip(row, suffix, strict=True)) if a != b), size - 1)
        for row in candidates.tolist()
    ]
    assert scores.spent.forward_tokens == sum(size - place + after + target - 1 for place in first)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom"])
@pytest.mark.parametrize("objective", [CE, Mellowmax(0.7)])
def test_the_gradient_is_autograds_on_one_hot_vectors(family: str, objective: CrossEntropy | Mellowmax) -> None:
    model, case, suffix = tiny(family), a_case(weights=(1.0, 2.0, 1.0, 0.5, 3.0)), random_ids(5, seed=3)
    found = evaluator(Scorer.of(model), case, suffix, objective, print).gradient(suffix, objective)
    embeddings = model.model.get_input_embeddings()
    one_hot = F.one_hot(torch.tensor(suffix), model.vocabulary).float().requires_grad_()
    matrix = embeddings(torch.arange(model.vocabulary)).detach()
    fixed = embeddings(torch.tensor([[*case.prompt_ids(suffix), *case.target.ids]])).detach()
    start = len(case.before_ids)
    inputs = torch.cat([fixed[:, :start], (one_hot @ matrix)[None], fixed[:, start + len(suffix) :]], 1)
    target, shares = torch.tensor(case.target.ids), torch.tensor(case.target.shares)
    logits = model.model(inputs_embeds=inputs).logits[0, -len(target) - 1 : -1]
    own = logits[torch.arange(len(target)), target]
    if isinstance(objective, Mellowmax):
        loss = torch.logsumexp(-objective.alpha * own + shares.log(), 0) / objective.alpha
    else:
        loss = (shares * (logits.logsumexp(1) - own)).sum()
    (slope,) = torch.autograd.grad(loss, one_hot)
    assert found.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    assert torch.allclose(found.slope, slope, atol=1e-5 + 1e-3 * float(slope.abs().max()))


def test_mellowmax_is_nanogcgs_for_equal_weights() -> None:
    model, case, suffix = tiny(), a_case(), random_ids(4, seed=2)
    found = evaluator(Scorer.of(model), case, suffix, Mellowmax(0.5), print)
    found.gradient(suffix, Mellowmax(0.5))
    candidates = neighbours(suffix, 5)
    losses = loss_of(found.scores(candidates).reading, case.target, Mellowmax(0.5))
    model.model.requires_grad_(False)
    target = torch.tensor(case.target.ids)
    for row, loss in zip(candidates.tolist(), losses, strict=True):
        logits = model.model(torch.tensor([[*case.prompt_ids(row), *case.target.ids]])).logits[0, -len(target) - 1 : -1]
        t = -logits[torch.arange(len(target)), target]
        expected = (torch.logsumexp(0.5 * t, 0) - torch.log(torch.tensor(len(t)))) / 0.5
        assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_greedy_says_whether_the_model_would_write_the_target_itself() -> None:
    model, suffix = tiny(), random_ids(4, seed=2)
    before, after = random_ids(5, seed=5), random_ids(2, seed=6)
    ids = [*before, *suffix, *after]
    for _ in range(3):
        ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    own, other = tuple(ids[-3:]), (*ids[-3:-1], (ids[-1] + 1) % model.vocabulary)
    for target, expected in ((own, [True, True, True]), (other, [True, True, False])):
        case = Case(behavior="b", before_ids=before, after_ids=after, target=Target(target))
        found = evaluator(Scorer.of(model), case, suffix, CE, print)
        reading = found.gradient(suffix, CE).reading
        assert reading.greedy[0].tolist() == expected
        assert found.scores(torch.tensor([suffix])).reading.greedy[0].tolist() == expected


def test_first_tokens_read_as_in_the_whole() -> None:
    model, case, suffix = tiny(), a_case(), random_ids(6, seed=2)
    for found in (
        SharedEvaluator(Scorer.of(model), case, print, 50),
        PlainEvaluator(Scorer.of(model), case, print, 50),
    ):
        found.gradient(suffix, CE)
        candidates = neighbours(suffix, 9)
        whole, first = found.scores(candidates), found.scores(candidates, 2)
        assert torch.allclose(whole.reading.nll[:, :2], first.reading.nll, atol=1e-5)
        assert first.spent.forward_tokens == whole.spent.forward_tokens - 9 * 3


@pytest.mark.parametrize("way", [SharedEvaluator, PlainEvaluator])
def test_out_of_memory_lowers_the_width_and_says_so(way: type, monkeypatch: pytest.MonkeyPatch) -> None:
    model, case, suffix = tiny(), a_case(), random_ids(6, seed=2)
    said: list[str] = []
    found = way(Scorer.of(model), case, said.append, 400)
    found.gradient(suffix, CE)
    candidates = neighbours(suffix, 20)
    expected = found.scores(candidates).reading.nll
    module = sharing if way is SharedEvaluator else plain
    read = module.read_targets

    def scarce(logits: object, targets: torch.Tensor) -> object:
        if len(targets) > 5 * 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(logits, targets)

    monkeypatch.setattr(module, "read_targets", scarce)
    assert torch.allclose(found.scores(candidates).reading.nll, expected, atol=1e-6)
    assert said
    assert "going on with" in said[0]
    before = len(said)
    other = way(found.scorer, case, said.append, 400)  # another case or search: it need not find out again
    other.gradient(suffix, CE)
    assert torch.allclose(other.scores(candidates).reading.nll, expected, atol=1e-6)
    assert len(said) == before

    def none(logits: object, targets: torch.Tensor) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "read_targets", none)
    with pytest.raises(UserError, match="out of memory with a single candidate"):
        found.scores(candidates)


@pytest.mark.parametrize("way", [SharedEvaluator, PlainEvaluator])
def test_a_gradient_that_does_not_fit_is_said_in_one_line(way: type, monkeypatch: pytest.MonkeyPatch) -> None:
    found = way(Scorer.of(tiny()), a_case(), print, 400)

    def none(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(way, "gradient_of", none)
    with pytest.raises(UserError, match="out of memory with a single candidate of 22 tokens"):
        found.gradient(random_ids(6, seed=2), CE)


def test_what_a_model_cannot_share_is_said_once() -> None:
    scorer, said = Scorer.of(tiny("bloom")), list[str]()
    for suffix in (random_ids(6, seed=2), random_ids(6, seed=3)):
        assert isinstance(evaluator(scorer, a_case(), suffix, CE, said.append), PlainEvaluator)
    assert len(said) == 1


def test_a_model_without_attention_shares_nothing() -> None:
    """Its losses may come out nearly right by chance: a tiny model says nearly the same after any conversation."""
    said: list[str] = []
    assert isinstance(
        evaluator(Scorer.of(tiny("mamba")), a_case(), random_ids(6, seed=2), CE, said.append), PlainEvaluator
    )
    assert "not all of its layers leave keys behind" in said[0]


def test_another_error_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SharedEvaluator(Scorer.of(tiny()), a_case(), print, 400)
    found.gradient(random_ids(6, seed=2), CE)

    def broken(logits: object, targets: torch.Tensor) -> object:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(sharing, "read_targets", broken)
    with pytest.raises(RuntimeError, match="no such kernel"):
        found.scores(neighbours(random_ids(6, seed=2), 3))


@pytest.mark.parametrize(("target", "say"), [(300, "give a shorter target"), (100, "give a shorter prompt or suffix")])
def test_longer_than_the_context(target: int, say: str) -> None:
    case = a_case(before=150, target=target)
    with pytest.raises(UserError, match=say):
        evaluator(Scorer.of(tiny()), case, random_ids(6, seed=2), CE, print)
