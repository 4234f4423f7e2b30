"""Tamper resistance: what a step adds, and that nothing else changes."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from added_gradients import added, flat
from fathom.deepen.resist import Attackers, LookAhead, Resistance, Unlikelihood, _Displaced
from fathom.errors import UserError
from fathom.tuning.batches import collate
from fathom.tuning.head import response_head
from fathom.tuning.objective import PlainNll, ResponseLogits
from few_rows import random_rows
from tiny_models import tiny

EVERY = 3


def look_ahead(**changes: object) -> LookAhead:
    attackers = Attackers(slowest=1e-3, fastest=1e-2, steps=6, batch=4, rows=8)
    given = {"attackers": attackers, "strength": 0.5, "every": EVERY, "looks": 2, "rows": 4, **changes}
    answers, refusals, benign = (random_rows(12, seed=seed) for seed in range(3))
    return LookAhead(Resistance(**given), answers, refusals, benign)  # type: ignore[arg-type]


def test_unlikelihood_is_what_is_left_of_a_label() -> None:
    rows = random_rows(4)
    tokens = collate(rows).tokens
    values = 3 * torch.randn(len(tokens), 97, generator=torch.Generator().manual_seed(0))
    values[0, tokens.labels[0]] = 90.0  # as sure as can be
    found = Unlikelihood()(ResponseLogits(values), tokens)
    p = values.softmax(-1)[torch.arange(len(tokens)), tokens.labels]
    naive = -tokens.loss_weight * torch.log(1 - p.clamp(max=1 - 1e-4))
    assert torch.allclose(found, naive, atol=1e-3)
    assert torch.isfinite(found).all()


def test_without_steps_of_an_attack_nothing_is_added() -> None:
    ahead = look_ahead(attackers=Attackers(slowest=1e-3, fastest=1e-2, steps=0))
    assert not added(ahead, tiny().model, 0).any()
    assert added(look_ahead(), tiny().model, 0).any()  # the test can fail


@pytest.mark.parametrize("harmless", [False, True])
def test_the_gradient_is_that_of_the_displaced_weights(harmless: bool) -> None:
    """A naive twin: move a copy, and differentiate there; at displacement 0 that is at the weights.

    Where the attacker trained on harmless answers, too, only the harmful ones are unlearned.
    """
    model = tiny().model
    for scale in (0.0, 0.02):
        ahead = look_ahead(clip=1e9, strength=2.0, looks=1, rows=24)  # whole batches: nothing is drawn
        generator = torch.Generator().manual_seed(1)
        moves = [scale * torch.randn(p.shape, generator=generator) for p in model.parameters()]
        ahead._displaced = [_Displaced(moves, harmless)]
        answers = [*ahead.answers] if harmless else [*ahead.answers, *ahead.benign]
        found = added(ahead, model, 1)
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, move in zip(moved.parameters(), moves, strict=True):
                parameter.add_(move)
        total = torch.zeros(())
        with response_head(moved):
            for rows, objective in ((ahead.refusals, PlainNll()), (answers, Unlikelihood())):
                batch = collate(rows)
                one = 1.0 / len(batch.tokens)
                call = {"labels": batch.labels, "tokens": batch.tokens, "objective": objective, "scale": one}
                total = total + moved(**batch.inputs, **call).loss
            total.backward()
        for layer in (moved.get_input_embeddings(), moved.get_output_embeddings()):
            layer.weight.grad = None  # left to deepening alone
        expected = 2.0 * flat(torch.zeros_like(p) if p.grad is None else p.grad for p in moved.parameters())
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_each_displacement_weighs_at_most_its_strength() -> None:
    assert float(added(look_ahead(clip=0.25), tiny().model, 0).norm()) <= 0.5 * 0.25 + 1e-6


def test_embeddings_get_nothing_and_those_of_ids_that_no_row_holds_lose_what_they_have() -> None:
    model, ahead = tiny().model, replace(look_ahead(), unseen=[3, 5])
    assert added(ahead, model, 0).any()
    rows = model.get_input_embeddings().weight.grad  # was 1 everywhere
    assert not rows[[3, 5]].any()
    assert (rows[[4, 6]] == 1).all()


def test_a_run_that_goes_on_where_an_attack_begins_is_the_run_that_did_not_stop() -> None:
    model, whole = tiny().model, look_ahead()
    first = [added(whole, model, step) for step in range(2 * EVERY)]
    later = look_ahead()
    again = [added(later, model, step) for step in range(EVERY, 2 * EVERY)]
    assert all(torch.equal(a, b) for a, b in zip(first[EVERY:], again, strict=True))
    assert not torch.equal(first[0], first[EVERY])
    other = added(replace(look_ahead(), seed=1), model, 0)
    assert not torch.equal(first[0], other)


def test_some_attackers_train_on_harmless_rows_too() -> None:
    from random import Random

    attackers = Attackers(slowest=1e-3, fastest=1e-2, steps=6, batch=4, rows=8)
    assert {attackers.draw(Random(seed)).benign for seed in range(20)} == {0.0, 0.5}
    kinds = set()
    for seed in range(8):
        ahead = look_ahead(attackers=attackers)
        with response_head(model := tiny().model):
            moved = ahead._attack(model, Random(seed))
        kinds |= {one.benign for one in moved}
        assert len(moved) == len(attackers.looks)
    assert kinds == {False, True}
    only = look_ahead(attackers=replace(attackers, benign=(0.0,)))
    with response_head(model := tiny().model):
        assert not any(one.benign for seed in range(4) for one in only._attack(model, Random(seed)))


def test_looking_ahead_makes_refusals_outlast_an_attack() -> None:
    """After some steps along what is added, an attack leaves less of the answers and more of the refusals."""

    def after_attack(model: PreTrainedModel, ahead: LookAhead) -> float:
        with response_head(model):
            copied = copy.deepcopy(model)
        probe = look_ahead()
        probe.seed, total = 7, 0.0
        with response_head(copied):
            from random import Random

            for move, _ in probe._attack(copied, Random("probe")):
                with torch.no_grad():
                    for parameter, part in zip(copied.parameters(), move, strict=True):
                        parameter.add_(part)
                    batch = collate(ahead.refusals)
                    one = 1.0 / len(batch.tokens)
                    total += float(
                        copied(
                            **batch.inputs, labels=batch.labels, tokens=batch.tokens, objective=PlainNll(), scale=one
                        ).loss
                    )
                    for parameter, part in zip(copied.parameters(), move, strict=True):
                        parameter.sub_(part)
        return total

    model, ahead = tiny().model, look_ahead()
    before = after_attack(model, ahead)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    with response_head(model):
        for step in range(12):
            optimiser.zero_grad(set_to_none=True)
            ahead(model, step)
            optimiser.step()
    assert after_attack(model, ahead) < before


@pytest.mark.parametrize(
    "make",
    [
        lambda: Attackers(slowest=1e-2, fastest=1e-3),
        lambda: Attackers(slowest=1e-3, fastest=1e-2, steps=-1),
        lambda: Attackers(slowest=1e-3, fastest=1e-2, benign=(1.0,)),
        lambda: Attackers(slowest=1e-3, fastest=1e-2, benign=()),
        lambda: look_ahead(strength=0.0),
        lambda: look_ahead(every=0),
        lambda: replace(look_ahead(), benign=()),
    ],
)
def test_bad_settings_are_one_line(make: object) -> None:
    with pytest.raises(UserError):
        make()  # type: ignore[operator]
