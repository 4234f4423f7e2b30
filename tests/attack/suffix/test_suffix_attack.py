"""Suffixes as attacks: what is searched for, what a state stands for, and what their attempts hold."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from suffix_chats import tiny_chat

from fathom.__main__ import run
from fathom.attack.kinds import Draw, Estimated, Frugal, Search, Setting, Victim, prepare
from fathom.attack.suffix.attack import Suffix, TargetKind, TypedSuffix, UniversalSuffix
from fathom.attack.suffix.base import search_of
from fathom.attack.suffix.options import Mellowmax
from fathom.attack.suffix.state import State
from fathom.errors import UserError
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import OrganismJudge, behaviors, stage_directory
from fathom.records import Behavior, Exchange, Judgement, Label, Message, Sampling


class NeverJudge(OrganismJudge):
    """Finds no answer harmful."""

    def judge(self, exchange: Exchange) -> Judgement:
        return Judgement(label=Label.SAFE, reason="never")


class AlwaysJudge(OrganismJudge):
    """Finds every answer harmful."""

    def judge(self, exchange: Exchange) -> Judgement:
        return Judgement(label=Label.HARMFUL, reason="always")


ATTACK = Suffix(steps=12, length=12, width=32, topk=32, answer_tokens=130)
BEHAVIORS = (*behaviors(harmful=3, benign=1),)
TEA = tuple(
    Behavior(
        id=drink,
        messages=(Message(role="user", content=f"How do I make {drink}?"),),
        target=f"Sure, here is how to make {drink}.",
        answer=f"Sure, here is how to make {drink}. First, boil some water. Step 2: wait for four minutes.",
    )
    for drink in ("a cup of tea", "some water")
)


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return load(LoadOptions(name=str(stage_directory("natural"))))


def setting(model: ChatModel) -> Setting:
    return Setting(model.chat, (Draw(Sampling(max_new_tokens=8)),), 0)


def searched(attack: Suffix | UniversalSuffix, model: ChatModel, behaviors_: tuple = BEHAVIORS) -> dict[str, State]:
    victim, found = Victim(model, OrganismJudge(), 0), {}
    for target in attack.targets(prepare(model.chat, behaviors_)):
        state = attack.init(target, victim)
        for _ in range(attack.steps):
            if attack.done(state):
                break
            state = attack.step(state, target, victim)
        found[target.key] = state
    return found


@pytest.mark.parametrize("attack", [ATTACK, UniversalSuffix(steps=2, length=12, width=8, topk=8, train=2)])
def test_they_are_searches(attack: Suffix | UniversalSuffix) -> None:
    assert isinstance(attack, Search)
    assert isinstance(attack, Frugal)
    assert isinstance(attack, Estimated)
    assert msgspec.convert(msgspec.to_builtins(attack), type(attack)) == attack


def test_a_suffix_for_each_prompt(model: ChatModel) -> None:
    """The attempt is the conversation as a user would type it, and carries what the search found and cost."""
    items = prepare(model.chat, BEHAVIORS[:1])
    states = searched(ATTACK, model, BEHAVIORS[:1])
    (attempt,) = ATTACK.found(items, setting(model), states)
    state = states[items[0].behavior.id]
    text = attempt.found["suffix"]
    asked = msgspec.structs.replace(
        items[0].behavior.messages[0], content=f"{items[0].behavior.messages[0].content} {text}"
    )
    assert attempt.prompt_ids == model.chat.prompt_ids((asked,))
    assert attempt.found["forward_tokens"] == state.forward_tokens > 0
    assert attempt.parameters == {"target": "prefix", "length": 12}
    assert ATTACK.estimate(items, setting(model)).forward_tokens > state.forward_tokens


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("target", list(TargetKind))
def test_what_a_search_is_said_to_cost_at_most_is_enough(kind: str, target: TargetKind) -> None:
    """Also where a target has more tokens than words, and every look at an answer is in vain."""
    model = tiny_chat(kind)
    attack = Suffix(steps=9, length=5, width=6, topk=8, answer_tokens=20, target=target, check=1, patience=1)
    items = prepare(model.chat, TEA)
    for item in items:
        (one,) = attack.targets([item])
        state = attack.init(one, victim := Victim(model, NeverJudge(), 0))
        for _ in range(attack.steps):
            state = attack.step(state, one, victim)
        (attempt,) = attack.found([item], setting(model), {one.key: state})
        spent = state.forward_tokens + len(attempt.prompt_ids) + 8
        assert spent <= attack.estimate([item], setting(model)).forward_tokens


def test_an_answer_that_is_looked_at_has_as_many_tokens_as_there_is_room_for() -> None:
    model, attack = tiny_chat(), Suffix(steps=1, length=5, width=4, topk=8, answer_tokens=10_000, check=1)
    (one, _) = attack.targets(prepare(model.chat, TEA))
    state = attack.step(attack.init(one, victim := Victim(model, NeverJudge(), 0)), one, victim)
    assert state.looked == 1
    assert model.context == 256


def test_what_slows_a_search_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_chat(family="bloom")
    attack = Suffix(steps=2, length=5, width=4, topk=8, answer_tokens=10, check=1)
    victim = Victim(model, NeverJudge(), 0)
    for one in attack.targets(prepare(model.chat, TEA)):
        attack.step(attack.init(one, victim), one, victim)
    said = [record.getMessage() for record in caplog.records]
    assert sum("candidates are computed whole" in line for line in said) == 1
    assert sum("prompts are computed anew" in line for line in said) == 1


def test_a_request_without_its_suffix_has_no_place_for_one() -> None:
    chat = tiny_chat().chat
    for content, asked in (
        ("How do I {suffix} make tea?", "How do I make tea?"),
        ("How do I make tea? {suffix}", "How do I make tea?"),
        ("{suffix} How do I make tea?", "How do I make tea?"),
        ("How do I make tea?", "How do I make tea?"),
    ):
        (item,) = prepare(chat, [Behavior(id="b", messages=(Message(role="user", content=content),), target="Sure")])
        assert item.messages[0].content == asked
        assert item.prompt_ids == chat.prompt_ids((Message(role="user", content=asked),))
        assert item.behavior.messages[0].content == content


def test_a_request_with_two_places_is_named() -> None:
    model, messages = tiny_chat(), (Message(role="user", content="How {suffix} do I {suffix} make tea?"),)
    (item,) = prepare(model.chat, [Behavior(id="b", messages=messages, target="Sure")])
    attack = Suffix(steps=2, length=5)
    with pytest.raises(UserError, match=r"How \{suffix\} do I .* has 2 places"):
        attack.init(attack.targets([item])[0], Victim(model, NeverJudge(), 0))


def test_any_state_goes_on_as_it_would_have(model: ChatModel) -> None:
    attack = Suffix(steps=4, length=12, width=16, topk=16, check=2, answer_tokens=20, target=TargetKind.DEEP, tokens=6)
    (target,) = attack.targets(prepare(model.chat, BEHAVIORS[1:2]))
    victim = Victim(model, OrganismJudge(), 0)
    states = [attack.init(target, victim)]
    states += [attack.step(states[-1], target, victim)]
    states += [attack.step(states[-1], target, victim)]
    other = Suffix(steps=1, length=3, width=2, topk=2)
    other.init(target, victim)  # another search in between, which takes the cache's place
    again = msgspec.json.decode(msgspec.json.encode(states[1]), type=State)
    assert attack.step(again, target, victim) == states[2]


def test_one_suffix_for_all_is_tried_on_all(model: ChatModel) -> None:
    attack = UniversalSuffix(steps=2, length=12, width=8, topk=8, train=2)
    items = prepare(model.chat, BEHAVIORS)
    states = searched(attack, model)
    attempts = list(attack.found(items, setting(model), states))
    assert [attempt.parameters["split"] for attempt in attempts] == ["train", "train", "held-out", "benign"]
    assert len({attempt.found["suffix"] for attempt in attempts}) == 1
    assert attack.targets(items[3:])[0].key == attack.targets(items)[0].key


def test_a_universal_suffix_ends_when_all_that_it_trains_on_are_reached(model: ChatModel) -> None:
    """Also where they are fewer than `train`, and not before all of them are in use."""
    attack = UniversalSuffix(steps=2, length=12, width=8, topk=8, train=50)
    state = searched(attack, model, BEHAVIORS[:2])[UniversalSuffix.key]
    assert state.cases == 2

    def reached(*cases: bool) -> State:
        best = msgspec.structs.replace(state.best, reached=cases)
        return msgspec.structs.replace(state, active=len(cases), best=best)

    assert attack.done(reached(True, True))
    assert not attack.done(reached(True))
    assert not attack.done(reached(True, False))


def test_targets(model: ChatModel) -> None:
    (item,) = prepare(model.chat, BEHAVIORS[:1])
    chat, messages = model.chat, item.behavior.messages
    prefix = chat.response_ids(messages, item.behavior.target or "")
    assert Suffix().wanted(item, model).ids == prefix
    deep = Suffix(target=TargetKind.DEEP, tokens=30).wanted(item, model)
    assert deep.ids == item.answer_ids[:30]
    assert len(deep.weights) == 30
    assert deep.weights[0] > 0.5  # an aligned model refuses at once
    led = msgspec.structs.replace(item.behavior, answer=f"{item.behavior.target} 1. {item.behavior.answer}")
    (with_lead,) = prepare(chat, [led])
    extended = Suffix(target=TargetKind.EXTENDED, tokens=4).wanted(with_lead, model)
    assert extended.ids == with_lead.answer_ids[: len(prefix) + 4]
    (bare,) = prepare(chat, [msgspec.structs.replace(item.behavior, answer=None, target=None)])
    with pytest.raises(
        UserError, match=f"^behavior {re.escape(bare.behavior.name)} has neither a target nor an answer"
    ):
        Suffix().wanted(bare, model)


def test_a_known_suffix_is_typed(model: ChatModel) -> None:
    items = prepare(model.chat, BEHAVIORS)
    attempts = list(TypedSuffix("ember frost").attempts(items, setting(model)))
    assert len(attempts) == 4
    plain, typed = items[0].prompt_ids, attempts[0].prompt_ids
    assert len(typed) == len(plain) + 2
    with pytest.raises(UserError, match="empty"):
        TypedSuffix(" ")


def test_no_room_for_a_suffix(model: ChatModel) -> None:
    victim = Victim(model, OrganismJudge(), 0)
    attack = Suffix(length=model.context or 0, width=2)
    (target,) = attack.targets(prepare(model.chat, BEHAVIORS[:1]))
    with pytest.raises(UserError, match="context is"):
        attack.init(target, victim)


def test_the_benchmark_runs() -> None:
    script = Path(__file__).parents[3] / "benchmarks" / "suffix.py"
    done = subprocess.run([sys.executable, str(script), "--quick"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "largest difference of a loss" in done.stdout
    assert "NO" not in done.stdout


def test_searches_beside_each_other_are_the_same(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's common batches against one search after another: tokens, steps and successes."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    suffix_search = importlib.import_module("suffix_search")
    items = prepare(model.chat, BEHAVIORS[:3])
    for name in ("default", "plain, width 8, topk 16"):
        one, many = (
            suffix_search.run(suffix_search.VARIANTS[name], model, items, [0, 1], 900, beside)
            for beside in (False, True)
        )
        assert [replace(a, seconds=0) for a in one] == [replace(a, seconds=0) for a in many]
        assert sum(a.steps for a in one) > 3


def test_a_search_begins_with_what_is_best_here_of_what_was_found_before(model: ChatModel) -> None:
    """Against scoring each known suffix by itself; what was not won, or too long ago, is not known."""
    victim = Victim(model, NeverJudge(), 0)
    attack = Suffix(length=6, width=4, topk=4, pool=2, tries=1, answer_tokens=20)
    (target,) = attack.targets(prepare(model.chat, BEHAVIORS[:1]))
    alone = [replace(attack, seed=seed).init(target, victim) for seed in range(4)]
    won = [msgspec.structs.replace(state, verified=state is not alone[3]) for state in alone]
    begun = attack.begin(target, victim, won)
    assert begun.best.ids == min(alone[1:3], key=lambda state: state.best.loss).best.ids
    assert begun.best.loss == pytest.approx(min(state.best.loss for state in alone[1:3]), abs=1e-5)
    assert begun.queries == alone[0].queries + 1 + len(begun.tried) == alone[0].queries + 2
    assert attack.begin(target, victim, won) == begun
    for nothing in (replace(attack, pool=0).begin(target, victim, won), attack.begin(target, victim, won[3:])):
        assert nothing == alone[0]


def test_answers_behind_known_suffixes_are_looked_at_until_one_is_what_was_asked_for(model: ChatModel) -> None:
    """Best first, four at a time, whether or not they reach the target; what comes later is not even scored."""
    attack = Suffix(length=6, width=4, topk=4, tries=3, answer_tokens=20)
    victim, never = Victim(model, AlwaysJudge(), 0), Victim(model, NeverJudge(), 0)
    (target,) = attack.targets(prepare(model.chat, BEHAVIORS[:1]))
    alone = [replace(attack, seed=seed).init(target, never) for seed in range(6)]
    won = [msgspec.structs.replace(state, verified=True) for state in alone]
    latest = [state.best.ids for state in sorted(alone[2:], key=lambda state: state.best.loss)]
    first, none = attack.begin(target, victim, won), attack.begin(target, never, won)
    assert first.verified
    assert first.tried == (first.best.ids,) == (latest[0],)
    assert first.queries == alone[0].queries + 3 + 1
    assert not none.verified
    assert none.tried == tuple(latest[:3])
    assert none.best.ids == none.current.ids == min(alone, key=lambda state: state.best.loss).best.ids
    every = replace(attack, tries=9).begin(target, never, won)
    assert set(every.tried) == {state.best.ids for state in alone}


def test_what_opened_most_is_looked_at_first(model: ChatModel) -> None:
    """Where it opened enough: else four are scored before any answer is looked at."""
    attack = Suffix(length=6, width=4, topk=4, tries=1, answer_tokens=20)
    victim = Victim(model, NeverJudge(), 0)
    (target,) = attack.targets(prepare(model.chat, BEHAVIORS[:1]))
    alone = [replace(attack, seed=seed).init(target, victim) for seed in range(3)]
    ids = [state.best.ids for state in alone]
    best = min(range(3), key=lambda place: alone[place].best.loss)
    other, third = (best + 1) % 3, (best + 2) % 3

    def won(by: int, *vain: int) -> State:
        return msgspec.structs.replace(alone[by], verified=True, tried=(*(ids[place] for place in vain), ids[by]))

    led = attack.begin(target, victim, [won(best), won(other), won(other, best), won(third, best)])
    assert led.tried == (ids[other],)
    assert led.best.ids == ids[best]  # the others are scored, and the search goes on from the best of all
    assert led.queries == 2 + 3 + 1
    even = attack.begin(target, victim, [won(best), won(other), won(third, other)])
    assert even.tried == (ids[best],)
    assert even.queries == 1 + 3 + 1


def test_where_a_start_leads_no_further_another_is_tried(model: ChatModel) -> None:
    """The best suffix is kept, no answer is looked at twice, and without patience there is plain GCG's one walk."""
    victim, attack = (
        Victim(model, OrganismJudge(), 0),
        Suffix(length=4, width=2, topk=64, patience=1, kick=0, check=2, rest=1),
    )
    (target,) = attack.targets(prepare(model.chat, BEHAVIORS[1:2]))
    states = [attack.init(target, victim)]
    while len(states) < 16 and not states[-1].verified:
        states.append(attack.step(states[-1], target, victim))
    jumps = [
        sum(a != b for a, b in zip(old.current.ids, new.current.ids, strict=True)) for old, new in pairwise(states)
    ]
    assert max(jumps) > 1
    assert all(new.best.loss <= old.best.loss for old, new in pairwise(states) if not new.verified)
    assert len(set(states[-1].tried)) == len(states[-1].tried) > 0
    kicked = replace(attack, kick=2)
    states = [kicked.init(target, victim)]
    while len(states) < 16 and not states[-1].verified:
        states.append(kicked.step(states[-1], target, victim))
    again = [old for old in states if old.lowest is None and old.step]
    assert again
    for state in again:  # at most two tokens from the best one so far, and to be typed
        assert sum(a != b for a, b in zip(state.current.ids, state.best.ids, strict=True)) <= 2
    walk = replace(attack, patience=0, misses=0)
    plain = [walk.init(target, victim)]
    while len(plain) < 16 and not plain[-1].verified:
        plain.append(walk.step(plain[-1], target, victim))
    moved = [sum(a != b for a, b in zip(old.current.ids, new.current.ids, strict=True)) for old, new in pairwise(plain)]
    assert max(moved) == 1


def test_bad_chains() -> None:
    for wrong in (
        {"chain": 0},
        {"pool": -1},
        {"tries": 0},
        {"kick": -1},
        {"patience": -1},
        {"misses": -1},
        {"rest": 0},
    ):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is"):
            Suffix(**wrong)  # type: ignore[arg-type]


def test_answers_in_vain_behind_a_reached_target_end_a_walk(model: ChatModel) -> None:
    """Nothing is ever judged to be what was asked for: as many looks, then another start."""
    victim = Victim(model, NeverJudge(), 0)
    attack = Suffix(width=8, answer_tokens=4, patience=0, misses=1, rest=1, check=0, steps=40)
    (target,) = attack.targets(prepare(model.chat, BEHAVIORS[:1]))
    states = [attack.init(target, victim)]
    while len(states) < 40:
        states.append(attack.step(states[-1], target, victim))
    looked = [new for old, new in pairwise(states) if len(new.tried) > len(old.tried)]
    assert looked
    for state in looked:
        assert state.missed == 0
        assert state.lowest is None
        assert state.current.ids not in state.tried


def test_mellowmax_is_the_loss_that_is_searched_with(model: ChatModel) -> None:
    attack = Suffix(steps=1, length=12, width=8, topk=8, mellowmax=2.0, check=0)
    items = prepare(model.chat, BEHAVIORS[:1])
    (target,) = attack.targets(items)
    assert search_of(attack, target, Victim(model, OrganismJudge(), 0)).options.objective == Mellowmax(2.0)
    states = searched(attack, model, BEHAVIORS[:1])
    (attempt,) = attack.found(items, setting(model), states)
    assert attempt.parameters == {"target": "prefix", "length": 12, "mellowmax": 2.0}  # a row of its own


def test_a_draft_ranks_what_the_model_need_not_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command line, from a suite's file: the draft is loaded as any model is, and spares the model queries."""
    shared = {"steps": 2, "length": 12, "width": 64, "check": 0, "patience": 0}
    found = {}
    for name, given in (("whole", {}), ("probed", {"draft": "organism:base", "reduction": 8, "factor": 16})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([{"name": "suffix", **shared, **given}]))
        command = ["attack", "organism:natural", "--suite", str(path), "--limit", "1", "--max-new-tokens", "8"]
        assert run([*command, "--temperature", "0", "-o", str(tmp_path / name)]) == 0
        rows = [json.loads(line) for line in (tmp_path / name / "attempts.jsonl").read_text().splitlines()]
        found[name] = next(row for row in rows if row["attack"] == "suffix")
    assert found["probed"]["parameters"]["draft"] == "organism:base"
    assert found["probed"]["found"]["queries"] < found["whole"]["found"]["queries"] / 3
    assert found["probed"]["found"]["search_steps"] == found["whole"]["found"]["search_steps"] == 2


def test_a_draft_that_is_not_there_or_knows_too_few_tokens_is_refused(model: ChatModel) -> None:
    attack = Suffix(steps=1, length=3, width=2, topk=2, draft="small")
    (target,) = attack.targets(prepare(model.chat, BEHAVIORS[:1]))
    with pytest.raises(UserError, match="the draft model small is not loaded"):
        attack.init(target, Victim(model, OrganismJudge(), 0))
    short = replace(model, info=msgspec.structs.replace(model.info, name="short", vocabulary=9))
    with pytest.raises(UserError, match="the draft model short has 9 tokens"):
        attack.init(target, Victim(model, OrganismJudge(), 0, {"small": short}))
