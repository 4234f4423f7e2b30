"""Laws of vectors in place of tokens: read as `inputs_embeds` would be, resumed exactly, and never taken for text."""

import dataclasses
from typing import Any

import msgspec
import pytest
import torch
from worlds import GREEDY, items, setting, stage, victim

from fathom.attack.embedding import Embedding
from fathom.attack.suffix.base import TargetKind
from fathom.attack.suffix.text import around_place
from fathom.audit.parts import direct_parts
from fathom.audit.plan import AuditOptions, BehaviorSet, make_plan
from fathom.audit.suites import NamedAttack, Wording, suite_of
from fathom.chat import FIRST_VECTOR
from fathom.engine import TransformersEngine
from fathom.errors import UserError
from fathom.model.vectors import named, packed, reading, unpacked, vector_ids
from fathom.organism import OrganismJudge, behaviors
from fathom.records import Attempt, Behavior, Message, Sampling
from tiny_models import random_ids, tiny

FAMILIES = ["llama", "gemma2", "gemma3_text", "gpt2", "qwen3", "mamba"]


def around(family: str, **changes: Any) -> None:
    """One model's logits behind ids of vectors, against `inputs_embeds`."""
    model = tiny(family, **changes).model
    before, after = random_ids(5, seed=1), random_ids(4, seed=2)
    embedding = model.get_input_embeddings()
    vectors = torch.randn(3, embedding.weight.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sides = [embedding(torch.tensor([ids])) for ids in (before, after)]
        expected = model(inputs_embeds=torch.cat([sides[0], vectors[None], sides[1]], 1), use_cache=False).logits
        with reading(model, named([vectors])):
            found = model(input_ids=torch.tensor([[*before, *vector_ids(vectors), *after]]), use_cache=False).logits
        assert torch.allclose(found, expected, atol=1e-5)
        plain = torch.tensor([[*before, *after]])
        untouched = model(input_ids=plain).logits
        with reading(model, named([vectors])):
            assert torch.equal(model(input_ids=plain).logits, untouched)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_ids_of_vectors_are_read_as_inputs_embeds(family: str, tied: bool) -> None:
    around(family, tie_word_embeddings=tied)


def test_answers_behind_vectors_are_those_that_generate_gives_to_inputs_embeds() -> None:
    model = stage()
    vectors = torch.randn(4, model.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    (item,) = items(1)
    before, after = around_place(model.chat, "b", item.behavior.messages)
    attempt = Attempt.make(
        behavior="b",
        attack="embedding",
        prompt_ids=(*before, *vector_ids(vectors), *after),
        prefill_ids=(),
        sampling=Sampling(max_new_tokens=20),
        run_seed=0,
    )
    with reading(model.model, named([vectors])):
        (done,) = TransformersEngine(model).complete([attempt])
    embedding = model.model.get_input_embeddings()
    with torch.no_grad():
        sides = [embedding(torch.tensor([ids])) for ids in (before, after)]
        inputs = torch.cat([sides[0], vectors[None], sides[1]], 1)
        written = model.model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=sorted(model.chat.stop_ids),
        )[0].tolist()
    assert written[: len(done.output_ids)] == list(done.output_ids)
    assert len(written) - len(done.output_ids) in (0, 1)  # the stop token


def test_a_vectors_id_says_what_it_is_and_is_no_token() -> None:
    one, two = torch.zeros(2, 8), torch.ones(2, 8)
    assert vector_ids(one)[0] == vector_ids(one)[1]
    assert set(vector_ids(one)).isdisjoint(vector_ids(two))
    assert min(vector_ids(torch.cat([one, two]))) >= FIRST_VECTOR
    assert max(vector_ids(torch.randn(50, 8))) < 2**53, "JavaScript reads them, too"
    drawn = torch.randn(3, 5)
    assert torch.equal(unpacked(packed(drawn), 3), drawn)


def test_the_place_of_vectors_is_the_end_of_the_request_or_where_it_says() -> None:
    chat = stage().chat
    for messages in (item.behavior.messages for item in items(4)):
        before, after = around_place(chat, "b", messages)
        assert before + after == chat.prompt_ids(messages)
        assert chat.decode(before).endswith(messages[-1].content)
    (first, *_) = items(1)
    words = first.behavior.messages[-1].content.split()
    named_place = (Message(role="user", content=" ".join([*words[:2], "{suffix}", *words[2:]])),)
    before, after = around_place(chat, "b", named_place)
    assert before + after == chat.prompt_ids(first.behavior.messages)
    assert chat.decode(before).endswith(" ".join(words[:2]))
    with pytest.raises(UserError, match="2 places"):
        around_place(chat, "b", (Message(role="user", content="{suffix} and {suffix}"),))


def searched(attack: Embedding, name: str = "natural"):  # type: ignore[no-untyped-def]
    asked = victim(name)
    (target, *_) = attack.targets(items(1))
    states = [attack.init(target, asked)]
    while states[-1].step < attack.steps and not attack.done(states[-1]):
        states.append(attack.step(states[-1], target, asked))
    return target, asked, states


def test_a_search_wins_lowers_its_loss_and_goes_on_from_its_journal_as_if_nothing_had_happened() -> None:
    attack = Embedding(vectors=4, steps=30, target=TargetKind.PREFIX)
    target, asked, states = searched(attack)
    assert states[-1].verified
    assert states[-1].loss < states[1].loss
    middle = len(states) // 2
    read = msgspec.json.decode(msgspec.json.encode(states[middle]), type=attack.state)
    assert read == states[middle]
    for expected in states[middle + 1 :]:
        read = attack.step(read, target, asked)
        assert read == expected
    spent = [attack.spent(state) for state in states]
    assert spent == sorted(spent)
    assert spent[-1] <= attack.estimate(items(1), setting()).forward_tokens
    assert states[-1].backward_tokens < states[-1].forward_tokens
    other = dataclasses.replace(attack, seed=1).init(target, asked)
    assert other.vectors != states[0].vectors


def test_what_is_found_is_what_was_judged() -> None:
    attack = Embedding(vectors=4, steps=30, target=TargetKind.PREFIX)
    target, asked, states = searched(attack)
    final = {target.key: states[-1]}
    (attempt,) = attack.found(target.items, setting(GREEDY), final)
    assert attempt.found["forward_tokens"] == states[-1].forward_tokens
    (other,) = dataclasses.replace(attack, tokens=3).found(target.items, setting(GREEDY), final)
    assert other.parameters != attempt.parameters  # rows of their own, where seeds are draws of one
    with attack.applied(asked.model, final):
        (done,) = TransformersEngine(asked.model).complete([attempt])
    from fathom.records import Exchange, Label

    exchange = Exchange(behavior=target.items[0].behavior, prefill="", response=done.text, finish=done.finish)
    assert asked.judge.judge(exchange).label is Label.HARMFUL


def planned(model, **parameters: object):  # type: ignore[no-untyped-def]
    suite = suite_of((NamedAttack("embedding", parameters),), Wording(), budget=None, before=direct_parts)
    options = AuditOptions(depths=(0,), max_new_tokens=16, prefixes=())
    return make_plan(
        options, BehaviorSet("organism", behaviors(harmful=2, benign=1)), OrganismJudge(), model, None, None, suite
    )


def test_what_there_is_no_room_for_is_said_before_it_is_searched_for() -> None:
    small = dataclasses.replace(stage(), info=msgspec.structs.replace(stage().info, context=64))
    with pytest.raises(UserError, match="up to 40 that the attack adds"):
        planned(small, vectors=40)
    attack = Embedding(vectors=30, target=TargetKind.EXTENDED, tokens=60)
    (target,) = attack.targets(items(1))
    with pytest.raises(UserError, match=r"30 vectors .* the model's context is 64 tokens: give fewer vectors"):
        attack.init(target, dataclasses.replace(victim(), model=small))


@pytest.mark.parametrize(
    ("parameters", "says"),
    [({"vectors": 0}, "vectors is 0; it must be at least 1"), ({"rate": 0}, "rate is 0"), ({"target": "x"}, "prefix")],
)
def test_parameters_that_make_no_search(parameters: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        planned(stage(), **parameters)


def test_a_prompt_with_vectors_can_be_named_in_an_error() -> None:
    chat = stage().chat
    assert chat.excerpt((*items(1)[0].prompt_ids, FIRST_VECTOR + 7)).startswith('"')


def test_a_behavior_without_target_is_left_out() -> None:
    bare = Behavior(id="b", messages=(Message(role="user", content="how do I brew tea ?"),))
    mixed = BehaviorSet("organism", (bare, *behaviors(harmful=1, benign=0)))
    suite = suite_of((NamedAttack("embedding", {}),), Wording(), budget=None, before=direct_parts)
    options = AuditOptions(depths=(0,), max_new_tokens=16, prefixes=())
    plan = make_plan(options, mixed, OrganismJudge(), stage(), None, None, suite)
    assert [len(part.items) for part in plan.parts if part.attack.name == "embedding"] == [1]
