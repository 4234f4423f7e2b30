"""Draws come from the right distribution, cut as transformers cuts it, and depend on a row's own noise alone."""

import numpy as np
import pytest
import torch
from attempts import attempt, completed, tiny_chat
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from fathom.engine.sampling import _at_quantile, _drop_by_buckets, _drop_by_sorting, draw, largest
from fathom.model import ChatModel
from fathom.records import Attempt
from tiny_models import random_ids

VOCABULARY = 8
DRAWS = 4000

logit_rows = st.lists(
    st.lists(st.floats(-8, 8, width=32), min_size=VOCABULARY, max_size=VOCABULARY), min_size=1, max_size=6
)


def drawn(
    logits: torch.Tensor, noise: float, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> list[int]:
    rows = len(logits)

    def column(value: float) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.float64)

    return draw(
        logits, column(noise), temperature=column(temperature), top_k=[top_k] * rows, top_p=column(top_p)
    ).tolist()


def reachable(logits: torch.Tensor, **cut: float) -> set[int]:
    """Every token that some noise draws; steps finer than the least probability that matters here."""
    rows = logits.expand(4001, -1)
    noise = torch.linspace(0, 1, 4002, dtype=torch.float64)[:-1]
    ones = torch.ones_like(noise)
    tokens = draw(
        rows, noise, temperature=ones, top_k=[int(cut.get("top_k", 0))] * 4001, top_p=ones * cut.get("top_p", 1.0)
    )
    return set(tokens.tolist())


@given(logit_rows, st.floats(0, 1, exclude_max=True), st.floats(0.1, 5))
def test_a_draw_is_the_token_at_the_quantile(rows: list[list[float]], noise: float, temperature: float) -> None:
    logits = torch.tensor(rows)
    for row, token in zip(logits, drawn(logits, noise, temperature=temperature), strict=True):
        below = (row.double() / temperature).softmax(-1).cumsum(-1)
        assert (below[token - 1] if token else 0) <= noise + 1e-6
        assert noise <= below[token] + 1e-6


@given(logit_rows)
def test_no_noise_draws_an_impossible_token(rows: list[list[float]]) -> None:
    """The least and the greatest noise, with the first and the last tokens excluded."""
    logits = torch.tensor(rows)
    logits[:, [0, -1]] = -torch.inf
    for noise in (0.0, float(np.nextafter(1.0, 0.0))):
        assert all(0 < token < VOCABULARY - 1 for token in drawn(logits, noise))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, VOCABULARY + 2))
def test_top_k_keeps_what_transformers_keeps(seed: int, top_k: int) -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 0.7
    kept = TopKLogitsWarper(top_k)(torch.zeros(1, 0), logits.clone())[0]  # type: ignore[arg-type]
    assert reachable(logits, top_k=top_k) == set(kept.isfinite().nonzero()[:, 0].tolist())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.99))
def test_top_p_keeps_what_transformers_keeps(seed: int, top_p: float) -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 0.7
    kept = TopPLogitsWarper(top_p)(torch.zeros(1, 0), logits.clone())[0]  # type: ignore[arg-type]
    assert reachable(logits, top_p=top_p) == set(kept.isfinite().nonzero()[:, 0].tolist())


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 7, 300, 20_000]),
    st.sampled_from([0.0, 0.01, 1.0, 8.0, 200.0]),  # flat, nearly flat, …, all but certain
    st.sampled_from([1e-9, 0.05, 0.5, 0.9, 0.999, 1 - 1e-12]),
    st.booleans(),
)
def test_buckets_drop_what_sorting_drops(seed: int, vocabulary: int, spread: float, top_p: float, tied: bool) -> None:
    """Rows that share a place, logits that are equal and that are impossible are among them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, vocabulary, generator=generator) * spread
    if tied:
        logits = logits.round()
    logits[2, 1::2] = -torch.inf
    at = torch.tensor([0, 2, 1, 0])
    probabilities = (logits[at] / torch.tensor([[1.0], [0.7], [2.0], [5.0]])).softmax(-1)
    wanted = torch.tensor([top_p, 0.3, top_p, 0.8], dtype=torch.float64)
    found = _drop_by_buckets(logits, at, probabilities, wanted)
    assert torch.equal(found, _drop_by_sorting(logits, at, probabilities, wanted))
    assert bool((found.sum(-1) > 0).all())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 255, 256, 257, 1000]), st.floats(0, 1, exclude_max=True))
def test_the_quantile_is_found_by_chunks_as_one_by_one(seed: int, vocabulary: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(4, vocabulary, generator=generator) ** 8
    weights[torch.rand(4, vocabulary, generator=generator) < 0.5] = 0.0
    weights[:, seed % vocabulary] = 1e-3
    row = torch.full((4,), noise, dtype=torch.float64)
    tokens = _at_quantile(weights, row)[:, None]
    assert bool((weights.gather(1, tokens) > 0).all())
    through = weights.double().cumsum(-1)
    wanted, total = row[:, None] * through[:, -1:], through[:, -1:]
    upto = through.gather(1, tokens)
    assert bool((upto - weights.gather(1, tokens) <= wanted + 1e-12 * total).all())
    assert bool((upto >= wanted - 1e-12 * total).all())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 7, 255, 256, 257, 511, 512, 1000]), st.integers(0, 10_000))
def test_the_largest_is_argmax_first_of_equals(rows: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randn(rows, vocabulary, generator=generator)
    assert largest(distinct).tolist() == distinct.argmax(-1).tolist()
    tied = torch.randint(0, 3, (rows, vocabulary), generator=generator).float()
    assert largest(tied).tolist() == [row.tolist().index(row.max()) for row in tied]


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return tiny_chat("llama", vocabulary=VOCABULARY, stop_ids=(), initializer_range=0.15)


@torch.inference_mode()
def two_token_probabilities(model: ChatModel, ids: tuple[int, ...], temperature: float) -> torch.Tensor:
    """P(first, second), exactly, from plain forwards."""
    first = (model.model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)
    after = torch.tensor([[*ids, token] for token in range(VOCABULARY)])
    second = (model.model(after).logits[:, -1].double() / temperature).softmax(-1)
    return first[:, None] * second


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> tuple[float, int]:
    """Pearson's statistic over cells that expect five or more; the others are one cell together."""
    expected = (probabilities * counts.sum()).flatten()
    large = expected >= 5
    cells = [(counts.flatten()[large].double(), expected[large])]
    rest = expected[~large].sum()
    if rest > 0:
        cells.append((counts.flatten()[~large].sum()[None].double(), rest[None]))
    statistic = sum(float(((seen - mean) ** 2 / mean).sum()) for seen, mean in cells)
    return statistic, sum(len(mean) for _, mean in cells) - 1


def bound(freedom: int) -> float:
    """Beyond this lies 1 in 10 000 (Wilson and Hilferty's cube of a normal). Seeds are fixed, so it holds or not."""
    return float(freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_samples_follow_the_exact_distribution(model: ChatModel, temperature: float) -> None:
    """Two tokens each, so that the second is drawn given the first: 64 outcomes against their probabilities."""
    prompt, prefill = random_ids(6, seed=1, vocabulary=VOCABULARY), random_ids(3, seed=2, vocabulary=VOCABULARY)
    attempts = [attempt(prompt, prefill, sample=i, max_new_tokens=2, temperature=temperature) for i in range(DRAWS)]
    counts = torch.zeros(VOCABULARY, VOCABULARY)
    for done in completed(model, attempts).values():
        counts[done.output_ids] += 1
    probabilities = two_token_probabilities(model, prompt + prefill, temperature)
    statistic, freedom = chi_square(counts, probabilities)
    assert freedom > 20
    assert statistic < bound(freedom)
    # the check can fail: the distribution of another temperature is told apart
    other, freedom = chi_square(counts, two_token_probabilities(model, prompt + prefill, temperature * 1.35))
    assert other > bound(freedom)


def sampled_sweep() -> list[Attempt]:
    attempts = []
    for i in range(5):
        prompt, answer = random_ids(4 + 3 * i, seed=i), random_ids(9, seed=100 + i)
        for depth in (0, 2, 9):
            attempts += [
                attempt(prompt, answer[:depth], sample=sample, max_new_tokens=10, temperature=1.0, **cut)
                for sample in range(2)
                for cut in ({}, {"top_k": 5}, {"top_p": 0.8})
            ]
    return attempts


@pytest.mark.parametrize("family", ["llama", "bloom"])  # the shared way and the slow one
def test_draws_depend_on_the_attempt_alone(family: str) -> None:
    model = tiny_chat(family)
    attempts = sampled_sweep()
    whole = {id_: done.output_ids for id_, done in completed(model, attempts).items()}
    assert len(set(whole.values())) > len(whole) / 2
    reordered = completed(model, attempts[::-1], max_rows=4)
    assert {id_: done.output_ids for id_, done in reordered.items()} == whole
    for each in attempts[::15]:
        assert completed(model, [each])[each.id].output_ids == whole[each.id]


def test_both_ways_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, attempts = tiny_chat("llama"), sampled_sweep()
    shared = completed(model, attempts)
    monkeypatch.setattr("fathom.engine.transformers.obstacle", lambda *_: "a test says so")
    assert completed(model, attempts, notify=lambda _: None) == shared


def test_another_seed_draws_otherwise() -> None:
    model = tiny_chat("llama")
    one, two = (attempt(random_ids(6, seed=0), sample=sample, temperature=1.0) for sample in range(2))
    done = completed(model, [one, two])
    assert one.seed != two.seed
    assert done[one.id].output_ids != done[two.id].output_ids
