"""Rows that have written the same so far share a lane; nobody can tell from what they write."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from attempts import attempt, completed, tiny_chat
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.engine import shared
from fathom.engine.rows import group_rows, make_rows
from fathom.engine.sampling import draw
from fathom.engine.shared import _Wave
from fathom.records import Attempt, Sampling
from tiny_models import random_ids

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    *({"temperature": temperature} for temperature in (0.05, 0.3, 0.6, 1.0)),
    *({"temperature": 1.0, "top_p": top_p} for top_p in (0.05, 0.5, 0.9)),
    *({"temperature": 1.0, "top_k": top_k} for top_k in (1, 2, 10)),
]


def grid(samples: int = 3, prompts: int = 2, new: int = 14) -> list[Attempt]:
    return [
        attempt(random_ids(9 + 5 * i, seed=i), behavior=str(i), sample=sample, max_new_tokens=new, **setting)
        for i in range(prompts)
        for setting in SETTINGS
        for sample in range(1 if setting["temperature"] == 0 else samples)
    ]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_grid_at_once_is_each_of_its_attempts_alone(family: str) -> None:
    model = tiny_chat(family, initializer_range=0.15)
    attempts = grid()
    together = completed(model, attempts)
    alone = {identity: done for each in attempts for identity, done in completed(model, [each]).items()}
    assert together == alone


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_rows_that_leave_a_trunk_write_what_they_write_alone(family: str) -> None:
    """Insertions at every place, and in some more answers of other lengths, greedy and drawn."""
    model = tiny_chat(family, initializer_range=0.15)
    prompt, answer, span = (random_ids(count, seed=seed) for seed, count in ((1, 9), (2, 7), (3, 4)))
    attempts = [
        attempt(prompt, (*answer[:place], *own), temperature=temperature, max_new_tokens=6)
        for place in range(len(answer) + 1)
        for own in ((), span, span[:2], (*span[:2], *span))
        for temperature in (0.0, 1.0)
    ]
    attempts = list({each.id: each for each in attempts}.values())
    groups = group_rows(make_rows(attempts))
    assert len(groups) == 1, "they share one trunk"
    assert any(groups[0].branch(row) < len(row.ids) for row in groups[0].rows)
    together = completed(model, attempts)
    alone = {identity: done for each in attempts for identity, done in completed(model, [each]).items()}
    assert together == alone


def test_rows_that_cannot_differ_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, top-k 1 and a temperature near 0 are one lane to the end, whatever their noise."""
    widths: list[int] = []
    plain = shared._forward

    def counted(model, ids, *rest):  # type: ignore[no-untyped-def]
        widths.append(ids.shape[0])
        return plain(model, ids, *rest)

    model = tiny_chat(stop_ids=())
    prompt = random_ids(12, seed=1)
    same: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 1e-6},
    ]
    attempts = [attempt(prompt, sample=i, **setting) for setting in same for i in range(4 if setting != same[0] else 1)]
    completed(model, attempts)  # the probe of the architecture is behind us
    engine_rows = make_rows(attempts)
    monkeypatch.setattr(shared, "_forward", counted)
    list(shared.SharedDecoder(model.model, frozenset()).run(group_rows(engine_rows)))
    assert len({tuple(row.output) for row in engine_rows}) == 1
    assert set(widths) == {1}


def test_lanes_hold_every_live_row_exactly_once() -> None:
    model = tiny_chat(stop_ids={3, 5, 8, 13, 21, 34})
    rows = make_rows(grid(samples=6))
    wave = _Wave(model.model, group_rows(rows))
    logits = wave.start()
    generator = torch.Generator().manual_seed(0)
    while wave.lanes:
        held = [id(row) for lane in wave.lanes for row in lane.rows]
        assert sorted(held) == sorted(id(row) for row in rows if row.finish is None)
        assert all(row.output == lane.rows[0].output for lane in wave.lanes for row in lane.rows)
        keys = [(lane.group, lane.branch, tuple(lane.rows[0].output)) for lane in wave.lanes]
        assert len(set(keys)) == len(keys) == len(logits)
        for lane in wave.lanes:
            for row in lane.rows:
                row.accept(int(torch.randint(1, 97, (), generator=generator)) % 7, model.chat.stop_ids)
        wave.branch()
        if wave.lanes:
            logits = wave.step([wave.taken(lane.rows[0]) for lane in wave.lanes])


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0.05, 2), st.floats(0.05, 1), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_sharing_logits_changes_no_draw(seed: int, rows: int, temperature: float, top_p: float, top_k: int) -> None:
    random = np.random.default_rng(seed)
    logits = torch.tensor(random.normal(size=(4, 11)), dtype=torch.float32)
    places = random.integers(0, 4, rows).tolist()
    noise = torch.tensor(random.random(rows))
    options = {
        "temperature": torch.tensor([temperature * (1 + i % 3) for i in range(rows)], dtype=torch.float64),
        "top_k": [top_k if i % 2 else 0 for i in range(rows)],
        "top_p": torch.tensor([top_p if i % 3 else 1.0 for i in range(rows)], dtype=torch.float64),
    }
    shared_draw = draw(logits, noise, **options, places=places)  # type: ignore[arg-type]
    assert torch.equal(shared_draw, draw(logits[places], noise, **options))  # type: ignore[arg-type]


def probabilities(logits: list[float], sampling: Sampling) -> list[float]:
    """The naive distribution: temperature, then top-k, then top-p, in the order of transformers' own warpers."""
    weights = [math.exp(logit / sampling.temperature) for logit in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept = order[: sampling.top_k or None]
    total, running, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if running / total < sampling.top_p:
            nucleus.append(i)
        running += weights[i]
    mass = sum(weights[i] for i in nucleus)
    return [weights[i] / mass if i in nucleus else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize(
    "setting",
    [{"temperature": 1.0}, {"temperature": 0.4}, {"temperature": 1.0, "top_p": 0.7}, {"temperature": 1.3, "top_k": 3}],
)
def test_draws_of_a_shared_lane_have_the_right_distribution(setting: dict[str, Any]) -> None:
    """Chi-square over pairs of tokens, vocabulary 7, 3000 draws of one prompt in one wave."""
    model = tiny_chat(vocabulary=7, stop_ids=(), initializer_range=0.1)
    prompt = (1, 4, 2, 6)
    attempts = [attempt(prompt, sample=i, max_new_tokens=2, **setting) for i in range(3000)]
    seen = Counter(done.output_ids for done in completed(model, attempts).values())
    sampling = attempts[0].sampling
    expected: dict[tuple[int, int], float] = {}
    first = probabilities(_logits(model, prompt), sampling)
    for one in range(7):
        if first[one]:
            second = probabilities(_logits(model, (*prompt, one)), sampling)
            expected |= {(one, two): 3000 * first[one] * second[two] for two in range(7) if second[two]}
    assert seen.keys() <= expected.keys()  # what a cut leaves out is never drawn
    cells = {cell: count for cell, count in expected.items() if count >= 5}
    rest = 3000 - sum(cells.values())
    chi = sum((seen[cell] - count) ** 2 / count for cell, count in cells.items())
    if rest >= 5:
        chi += (3000 - sum(seen[cell] for cell in cells) - rest) ** 2 / rest
    freedom = len(cells) - (rest < 5)
    # Wilson and Hilferty: chi-square's 99.99 % quantile; the seeds are fixed, so this never flickers
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi < limit, (chi, freedom)


@torch.inference_mode()
def _logits(model, ids: tuple[int, ...]) -> list[float]:  # type: ignore[no-untyped-def]
    return model.model(torch.tensor([ids])).logits[0, -1].double().tolist()


def test_thousands_of_draws_of_one_prompt_stay_within_the_budget() -> None:
    """A wave never holds more rows than allowed, and its results are those of small waves."""
    model = tiny_chat(stop_ids=())
    attempts = [attempt(random_ids(5, seed=3), sample=i, max_new_tokens=3, temperature=1.0) for i in range(2000)]
    assert completed(model, attempts) == completed(model, attempts, max_rows=300)
