"""An adversary inside deepening: what a step adds, that its vectors undo refusals, and that memory changes nothing."""

import copy
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from added_gradients import added, flat
from fathom.attack.suffix.text import around_place
from fathom.chat import FIRST_VECTOR
from fathom.deepen.adversary import Adversary, Answerable, Attackable, Hardening, answerable, with_room
from fathom.deepen.recovery import encode_triplets
from fathom.deepen.starts import PaperStarts
from fathom.deepen.triplets import triplets_of
from fathom.errors import UserError
from fathom.organism import behaviors
from fathom.tuning.head import response_head
from few_rows import guild_rows, organism

ADVERSARY = Adversary(strength=1.0, rows=3, steps=4, fewest=2, most=5, tokens=6, clip=1e9)


def items(count: int = 6) -> list[Attackable]:
    chat = organism().chat
    triplets = triplets_of(behaviors(split="training", harmful=count, benign=0), "test")
    encoded = encode_triplets(chat, triplets)
    return [Attackable(e, *around_place(chat, t.source, t.messages)) for t, e in zip(triplets, encoded, strict=True)]


def benign() -> tuple[Answerable, ...]:
    return answerable(guild_rows(organism(), 2, benign=4), items(), ADVERSARY, None)


def hardening(adversary: Adversary = ADVERSARY, batch: int = 8) -> Hardening:
    return Hardening(adversary, organism().chat, items(), benign(), PaperStarts(0.3, 20), seed=1, batch=batch)


def read(model: PreTrainedModel, ids: tuple[int, ...], vectors: Tensor) -> Tensor:
    """Logits of ids, some of which name vectors, by `inputs_embeds`."""
    known = torch.tensor([0 if id_ >= FIRST_VECTOR else id_ for id_ in ids])
    rows = list(model.get_input_embeddings()(known))
    places = [place for place, id_ in enumerate(ids) if id_ >= FIRST_VECTOR]
    for place, vector in zip(places, vectors, strict=True):
        rows[place] = vector
    return model(inputs_embeds=torch.stack(rows)[None]).logits[0]


def test_the_gradient_is_that_of_refusals_behind_vectors_that_were_searched_for() -> None:
    """A naive twin, row by row, by embeddings that are handed to the model."""
    model = copy.deepcopy(organism().model)
    to_add = hardening()
    embeddings = model.get_input_embeddings().weight.detach()
    distance = ADVERSARY.rate * float(embeddings.double().square().mean().sqrt())
    drawn = to_add._draw(Random(f"adversary {to_add.seed} 3"))
    totals, tokens = [torch.zeros(()), torch.zeros(())], [0, 0]
    for one in drawn:
        prompt, answer = one.prompt_ids, one.item.triplet.answer_ids[: ADVERSARY.tokens]
        vectors = embeddings[list(one.begin)]
        for _ in range(ADVERSARY.steps):
            leaf = vectors.clone().requires_grad_()
            logits = read(model, (*prompt, *answer), leaf)[len(prompt) - 1 : -1]
            (slope,) = torch.autograd.grad(cross_entropy(logits, torch.tensor(answer)), leaf)
            vectors = leaf.detach() - distance * slope.sign()
        for side, row in enumerate((one.row, one.benign)):
            logits = read(model, (*row.prompt_ids, *row.response_ids), vectors)
            learned = torch.tensor(row.response_ids[row.learned_from :])
            logits = logits[len(row.prompt_ids) + row.learned_from - 1 : -1]
            totals[side] = totals[side] + cross_entropy(logits, learned, reduction="sum")
            tokens[side] += len(learned)
    (totals[0] / tokens[0] + totals[1] / tokens[1]).backward()
    model.get_input_embeddings().weight.grad.zero_()  # those are left alone
    expected = flat(parameter.grad for parameter in model.parameters())
    found = added(to_add, copy.deepcopy(organism().model), 3)
    assert float((found - expected).norm() / expected.norm()) < 1e-2  # a sign of a number near 0 may differ
    assert {len(one.begin) for one in drawn} <= set(range(2, 6))
    assert all(one.row.prompt_ids == one.prompt_ids for one in drawn)


def test_how_many_rows_run_at_once_changes_nothing() -> None:
    model = copy.deepcopy(organism().model)
    one, all_at_once = added(hardening(batch=1), model), added(hardening(batch=8), model)
    assert float((one - all_at_once).norm() / one.norm()) < 1e-2
    assert not torch.equal(one, added(hardening(batch=1), model, step=1))  # another step, other rows


def test_vectors_undo_the_refusal() -> None:
    """What is searched for makes the harmful answer likelier than the same number of random tokens does."""
    model = copy.deepcopy(organism().model)
    losses = {}
    for steps in (1, 12):
        to_add = hardening(replace(ADVERSARY, steps=steps, rows=6, fewest=8, most=8))
        drawn = to_add._draw(Random(0))
        with response_head(model):
            found = to_add._searched(model, drawn)
        each = []
        for one in drawn:
            vectors = torch.stack([found[id_] for id_ in one.prompt_ids if id_ >= FIRST_VECTOR])
            answer = one.item.triplet.answer_ids[: ADVERSARY.tokens]
            with torch.no_grad():
                logits = read(model, (*one.prompt_ids, *answer), vectors)[len(one.prompt_ids) - 1 : -1]
                each.append(float(cross_entropy(logits, torch.tensor(answer))))
        losses[steps] = sum(each) / len(each)
    assert losses[12] < 0.5 * losses[1]


def test_each_of_both_gradients_is_clipped_and_weighed() -> None:
    model = copy.deepcopy(organism().model)
    free = float(added(hardening(), model).norm())
    clipped = float(added(hardening(replace(ADVERSARY, clip=0.5, strength=0.1)), model).norm())
    assert free > 1.0
    assert 0.02 < clipped <= 0.1 + 1e-3  # two of norm 0.5, a tenth of each


def test_benign_requests_stand_before_the_same_vectors_once_each() -> None:
    chat, rows = organism().chat, guild_rows(organism(), 2, benign=4)
    found = answerable([*rows, *rows], items(), ADVERSARY, None)
    assert len(found) == len({(row.prompt_ids, row.response_ids) for row in rows})
    row = found[0].behind((FIRST_VECTOR, FIRST_VECTOR + 1))
    text = chat.tokenizer.decode([id_ for id_ in row.prompt_ids if id_ < FIRST_VECTOR])
    assert text.endswith("<end> <bot>")
    assert row.prompt_ids[-4:-2] == (FIRST_VECTOR, FIRST_VECTOR + 1)
    assert row.response_ids == found[0].response_ids
    shortest = min(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    assert 0 < len(answerable(rows, items(), ADVERSARY, shortest + ADVERSARY.most)) < len(found)
    with pytest.raises(UserError, match="no utility row leaves room for the adversary's 5 vectors in 9 tokens"):
        answerable(rows, items(), ADVERSARY, 9)


def test_triplets_without_room_for_vectors_are_left_out() -> None:
    found = items()
    lengths = sorted(len(item.before) + len(item.after) + len(item.triplet.answer_ids) for item in found)
    assert with_room(found, ADVERSARY, None) == tuple(found)
    assert 0 < len(with_room(found, ADVERSARY, lengths[3] + 40)) <= len(found)
    with pytest.raises(UserError, match="no triplet leaves room for the adversary's 5 vectors in 20 tokens"):
        with_room(found, ADVERSARY, 20)


@pytest.mark.parametrize("wrong", [{"strength": -1.0}, {"strength": float("inf")}, {"rows": 0}, {"fewest": 30}])
def test_adversaries_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="adversary"):
        Adversary(**{"strength": 1.0, **wrong})  # type: ignore[arg-type]
