"""Laws of attacks that search: steps are pure, states go through a journal, and what is found is what it says."""

import dataclasses
from dataclasses import replace

import msgspec
import pytest
import torch
from worlds import finished, items, setting, victim

from fathom.attack.insertion import OwnInsertion
from fathom.attack.ranks import JudgedRanks, ReferenceRanks
from fathom.attack.refusal_direction import Candidate, DirectionSearch, RefusalDirection
from fathom.errors import UserError
from fathom.records import Exchange, Label

SEARCHES = [
    (ReferenceRanks(tokens=30), 4, 0),
    (ReferenceRanks(top=2, tokens=30), 4, 0),
    (JudgedRanks(top=4, tokens=14, lookahead=8), 3, 0),
    (OwnInsertion(), 4, 0),
    (RefusalDirection(train=3, development=2, positions=2, new_tokens=16), 12, 12),
]


@pytest.mark.parametrize(("attack", "harmful", "benign"), SEARCHES, ids=lambda value: getattr(value, "name", None))
def test_a_search_goes_on_from_its_journal_as_if_nothing_had_happened(attack, harmful: int, benign: int) -> None:  # type: ignore[no-untyped-def]
    asked, given = victim("deepened"), items(harmful, benign)
    for target in attack.targets(given):
        states = finished(attack, target, asked)
        middle = states[len(states) // 2]
        read = msgspec.json.decode(msgspec.json.encode(middle), type=attack.state)
        assert read == middle
        for expected in states[len(states) // 2 + 1 :]:
            read = attack.step(read, target, asked)
            assert read == expected
        spent = [attack.spent(state) for state in states]
        assert spent == sorted(spent)


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (ReferenceRanks(top=1, tokens=30), "deepened"),
        (JudgedRanks(top=4, tokens=6, lookahead=4), "deepened"),
        (OwnInsertion(), "natural"),
    ],
    ids=["reference-ranks", "judged-ranks", "own-insertion"],
)
def test_a_search_takes_no_more_than_was_said(attack, name: str) -> None:  # type: ignore[no-untyped-def]
    given, asked = items(2), victim(name)
    targets = attack.targets(given)
    assert sum(attack.spent(finished(attack, target, asked)[-1]) for target in targets) <= (
        attack.estimate(given, setting()).forward_tokens
    )


def test_own_insertion_costs_the_refusals_that_were_written() -> None:
    attack, given = OwnInsertion(), items(3)
    (target,) = attack.targets(given)
    state = attack.init(target, victim())
    costs = {
        one.behavior: int(one.found["forward_tokens"]) for one in attack.found(given, setting(), {target.key: state})
    }
    assert len(costs) == len(given)
    assert sum(costs.values()) == state.forward_tokens


@torch.inference_mode()
@pytest.mark.parametrize(("name", "top"), [("natural", 20), ("deepened", 3), ("deepened", 50)])
def test_each_token_of_reference_ranks_is_the_references_or_was_not_to_be_had(name: str, top: int) -> None:
    """Against the naive walk: one forward pass a token."""
    attack, asked, given = ReferenceRanks(top=top, tokens=25), victim(name), items(3)
    (target,) = attack.targets(given)
    barred = {asked.model.chat.response_ids(i.behavior.messages, i.behavior.refusal)[0] for i in given}
    special = asked.model.chat.stop_ids | asked.model.chat.special_ids
    walks = finished(attack, target, asked)[-1].walks
    for walk, item in zip(walks, given, strict=True):
        ids: list[int] = []
        misses = 0
        for wanted in item.answer_ids[:25]:
            logits = asked.model.model(torch.tensor([[*item.prompt_ids, *ids]])).logits[0, -1]
            order = [token for token in logits.argsort(descending=True).tolist() if token not in special]
            if (logits > logits[wanted]).sum() < top:
                ids.append(wanted)
            else:
                misses += 1
                ids.append(next((token for token in order[:top] if token not in barred), order[0]))
        assert walk.ids == tuple(ids)
        assert walk.misses == misses
        assert walk.worst_rank <= top


@torch.inference_mode()
def test_each_token_of_judged_ranks_is_among_the_models_best() -> None:
    attack, asked = JudgedRanks(top=5, tokens=20, lookahead=8), victim("deepened")
    (target,) = attack.targets(items(3))
    for walk, item in zip(finished(attack, target, asked)[-1].walks, items(3), strict=True):
        assert 0 < len(walk.ids) <= 20
        logits = asked.model.model(torch.tensor([[*item.prompt_ids, *walk.ids]])).logits[0]
        for place, token in enumerate(walk.ids):
            row = logits[len(item.prompt_ids) - 1 + place]
            row = row.index_fill(0, torch.tensor(sorted(asked.model.chat.stop_ids)), -torch.inf)
            assert (row > row[token]).sum() < 5
        assert 1 <= walk.worst_rank <= 5


def test_a_model_that_does_not_refuse_needs_no_choice() -> None:
    """On the base model, judged ranks are its own greedy answer."""
    attack, asked = JudgedRanks(tokens=40), victim("base")
    (target,) = attack.targets(items(3))
    for walk in finished(attack, target, asked)[-1].walks:
        assert walk.guided == 0
        assert walk.worst_rank == 1


def test_own_insertion_uses_what_the_model_said() -> None:
    attack, asked, given = OwnInsertion(span=4), victim("natural"), items(4)
    (target,) = attack.targets(given)
    state = attack.init(target, asked)
    said = {answer.behavior: answer.ids for answer in state.answers}
    for item in given:
        if item.behavior.id in said:
            text = asked.model.chat.decode(said[item.behavior.id])
            judged = asked.judge.judge(Exchange(behavior=item.behavior, prefill="", response=text))
            assert judged.label is Label.SAFE
    made = list(attack.found(given, setting(), {target.key: state}))
    assert {attempt.behavior for attempt in made} == said.keys()
    for attempt in made:
        place = attempt.parameters["place"]
        refusal = said[attempt.behavior]
        place = len(refusal) if place == "end" else int(place)
        assert attempt.prefill_ids[:place] == refusal[:place]


def test_own_insertion_takes_of_benign_requests_the_answers_that_are_no_refusals() -> None:
    attack, asked, given = OwnInsertion(span=4), victim("natural"), items(2, 4)
    (target,) = attack.targets(given)
    state = attack.init(target, asked)
    benign = {item.behavior.id: item for item in given if not item.behavior.harmful}
    said = {answer.behavior: answer.ids for answer in state.answers if answer.behavior in benign}
    assert said, "the model answers some of them"
    for behavior, ids in said.items():
        exchange = Exchange(behavior=benign[behavior].behavior, prefill="", response=asked.model.chat.decode(ids))
        assert asked.judge.judge(exchange).label is not Label.SAFE
    made = [one for one in attack.found(given, setting(), {target.key: state}) if one.behavior in benign]
    assert {one.behavior for one in made} == said.keys()
    for one in made:
        assert one.prefill_ids[-4:] == benign[one.behavior].answer_ids[:4]
        assert one.prefill_ids[:-4] == said[one.behavior][: len(one.prefill_ids) - 4]


def test_the_direction_is_reported_on_requests_that_it_never_saw() -> None:
    attack, given = RefusalDirection(train=4, development=4), items(15, 12)
    state = DirectionSearch(
        pending=(),
        tried=(Candidate(layer=1, position=-1, refused=0, harmful=4, of=4, kl=0.05),),
        best=0,
        direction=(1.0,),
        queries=100,
        forward_tokens=1000,
    )
    (target,) = attack.targets(given)
    made = list(attack.found(given, setting(), {target.key: state}))
    harmful = [item.behavior.id for item in given if item.behavior.harmful]
    benign = [item.behavior.id for item in given if not item.behavior.harmful]
    assert [attempt.behavior for attempt in made] == harmful[8:] + benign[8:]
    assert sum(float(attempt.found["forward_tokens"]) for attempt in made) == pytest.approx(1000)
    # Another direction of the same layer and place is another attempt.
    others = list(replace(attack, train=attack.train + 1).found(given, setting(), {target.key: state}))
    assert not {attempt.id for attempt in made} & {attempt.id for attempt in others}


def test_a_direction_within_the_bound_goes_before_a_stronger_one_beyond_it() -> None:
    attack = RefusalDirection(kl=0.1)
    gentle = Candidate(layer=1, position=-1, refused=3, harmful=1, of=8, kl=0.05)
    strong = Candidate(layer=2, position=-1, refused=0, harmful=8, of=8, kl=2.0)
    assert attack._order(gentle) < attack._order(strong)
    assert attack._order(dataclass_with(strong, kl=0.1)) < attack._order(gentle)


def dataclass_with(candidate: Candidate, **fields: float) -> Candidate:
    return msgspec.structs.replace(candidate, **fields)


def test_too_few_behaviors_for_a_direction_are_one_clear_line() -> None:
    with pytest.raises(UserError, match="12 benign"):
        RefusalDirection().targets(items(12))


def test_ranks_without_references_say_what_to_do() -> None:
    bare = [dataclasses.replace(item, answer_ids=()) for item in items()]
    with pytest.raises(UserError, match="judged-ranks"):
        ReferenceRanks().targets(bare)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReferenceRanks(top=0),
        lambda: JudgedRanks(top=1),
        lambda: JudgedRanks(lookahead=1),
        lambda: JudgedRanks(tokens=0),
        lambda: RefusalDirection(train=0),
        lambda: RefusalDirection(kl=0),
    ],
)
def test_parameters_that_make_no_search(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\w"):
        make()
