"""Suites: every name makes its attacks, files are read strictly, and what is wrong is one clear line."""

import functools
import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fathom.attack.decoding import BestOfN
from fathom.attack.deep import DeepPrefill
from fathom.attack.framing import Framing
from fathom.attack.kinds import Draw, Search, prepare
from fathom.attack.suffix.attack import TypedSuffix
from fathom.attack.suffix.problem import Joined
from fathom.audit.parts import Ground, direct_parts
from fathom.audit.plan import AuditOptions, BehaviorSet, make_plan
from fathom.audit.suite_file import load_suite
from fathom.audit.suites import ATTACKS, SUITES, NamedAttack, Wording, planned_costs, suite_of
from fathom.command.attack import AttackRequest, _named, make_suite
from fathom.command.request import ModelRequest
from fathom.errors import UserError
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import OrganismJudge, behaviors, stage_directory
from fathom.records import Attempt, Sampling

MODEL = ModelRequest(name="organism:deepened")


def suite(*named: NamedAttack, budget: int | None = None, wording: Wording | None = None):  # type: ignore[no-untyped-def]
    return suite_of(named, wording or Wording(), budget=budget, before=direct_parts)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_makes_its_attacks(name: str) -> None:
    made = suite(*SUITES[name])
    assert [attack.name for attack, _ in made.attacks] == [named.name for named in SUITES[name]]


@functools.cache
def stage() -> ChatModel:
    return load(LoadOptions(name=str(stage_directory("natural"))))


def ground(*, refusals: int, benign_answers: int, answers: int = 1) -> Ground:
    model = stage()
    kept = [
        msgspec.structs.replace(
            behavior,
            refusal=behavior.refusal if refusals and behavior.harmful else None,
            answer=behavior.answer if (answers if behavior.harmful else benign_answers) else None,
            target=None,
        )
        for behavior in behaviors(harmful=4, benign=3)
    ]
    prepared = prepare(model.chat, kept)
    return Ground(
        chat=model.chat,
        base_chat=None,
        harmful=tuple(item for item in prepared if item.behavior.harmful),
        benign=tuple(item for item in prepared if not item.behavior.harmful),
        base_items=(),
        draws=(Draw(Sampling(max_new_tokens=4)),),
        depths=(0,),
        prefixes=(),
        seed=0,
    )


def test_benign_behaviors_without_refusals_or_answers_cost_an_attack_its_control_alone() -> None:
    named = (NamedAttack("insertion", {}), NamedAttack("multi-turn", {}), NamedAttack("suffix", {"steps": 1}))
    parts = suite(*named)(ground(refusals=1, benign_answers=0))
    assert [part.attack.name for part in parts] == ["direct", "direct", "insertion", "multi-turn", "suffix"]
    parts = suite(*named)(ground(refusals=1, benign_answers=1))
    assert [part.attack.name for part in parts[2:]] == ["insertion", "multi-turn", "multi-turn", "suffix", "suffix"]


def test_a_suite_leaves_out_what_the_behaviors_do_not_allow_and_says_so() -> None:
    told: list[str] = []
    named = SUITES["quick"]
    made = suite_of(
        named,
        Wording(),
        budget=None,
        before=direct_parts,
        left_out=lambda *said: told.append(" ".join(said)),
    )
    given = ground(refusals=0, benign_answers=0, answers=0)
    assert {part.attack.name for part in made(given)} == {"direct", "framing", "best-of-n"}
    assert [line.split()[0] for line in told] == ["insertion", "multi-turn"]
    assert "add a `refusal` column" in told[0]
    _refused(lambda: suite(*named)(given), "add a `refusal` column")  # what was asked for by name
    alone = suite_of(named[:1], Wording(), budget=None, before=direct_parts, left_out=lambda *_: None)
    _refused(lambda: alone(given), "add a `refusal` column")


def test_attempts_are_made_once_however_often_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = Attempt.make

    def counted(**content: Any) -> Attempt:
        made.append(content["attack"])
        return make(**content)

    monkeypatch.setattr(Attempt, "make", counted)
    behaviors_given = BehaviorSet("here", tuple(behaviors(harmful=3, benign=2)))
    options = AuditOptions(depths=(0, 1), max_new_tokens=4, temperatures=(0.0,))
    named = (NamedAttack("insertion", {}), NamedAttack("multi-turn", {}))
    plan = make_plan(options, behaviors_given, OrganismJudge(), stage(), None, None, suite(*named, budget=400))
    planned_costs(plan.parts)
    assert plan.attempts({}) == plan.attempts({})
    once = Counter(
        attempt.attack
        for part in plan.parts
        if not isinstance(part.attack, Search)
        for attempt in part.attack.attempts(part.items, part.setting)
    )
    assert Counter(made) == once + once  # by the plan, and here


def test_names_are_those_of_the_classes() -> None:
    assert all(vars(kind)["name"] == name for name, kind in ATTACKS.items())


def test_a_file_of_toml_or_json(tmp_path: Path) -> None:
    toml, other = tmp_path / "own.toml", tmp_path / "own.json"
    toml.write_text('[[attack]]\nname = "best-of-n"\nn = 4\nbudget = 900\n\n[[attack]]\nname = "insertion"\n')
    other.write_text(json.dumps({"attack": [{"name": "best-of-n", "n": 4, "budget": 900}, {"name": "insertion"}]}))
    assert load_suite(toml) == load_suite(other)
    made = suite(*load_suite(toml), budget=50)
    assert made.attacks[0] == (BestOfN(n=4), 900)
    assert made.attacks[1][1] == 50


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("s.toml", "[[attack]", "mend it"),
        ("s.toml", "", "lists no attacks"),
        ("s.json", "[1]", "lists no attacks"),
        ("s.json", '[{"n": 3}]', "has no name"),
        ("s.json", '[{"name": "insertion", "budget": 0}]', "budget"),
        ("s.json", '[{"name": "insertion", "budget": true}]', "budget"),
        ("s.toml", 'budget = 50\n[[attack]]\nname = "insertion"\n', "has 'budget' beside its attacks"),
        ("s.toml", 'seed = 9\n[[attack]]\nname = "insertion"\n', "give --seed on the command line"),
        ("s.toml", 'max-new-tokens = 9\n[[attack]]\nname = "insertion"\n', "--max-new-tokens on the command line"),
        ("s.toml", '[[attack]]\nname = "insertion"\n[[atack]]\nname = "decoding"\n', "has 'atack' beside"),
        ("s.json", '{"attack": [{"name": "insertion"}], "n": 3}', "their parameters inside these"),
    ],
)
def test_a_file_that_is_no_suite_is_one_clear_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    _refused(lambda: load_suite(path), says)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (AttackRequest(), "no attack was asked for"),
        (AttackRequest(suite="nonsense"), "give quick, standard, paper, adaptive"),
        (AttackRequest(attacks=["nothing"]), "there is no attack called 'nothing'"),
        (AttackRequest(attacks=["best-of-n m=3"]), "it takes mutate, n, temperature, top_k, top_p"),
        (AttackRequest(attacks=["best-of-n n=0"]), "n is 0"),
        (AttackRequest(attacks=["best-of-n n=many"]), "Expected `int`"),
        (AttackRequest(attacks=["best-of-n n"]), "no key=value"),
        (AttackRequest(attacks=["best-of-n 'n"]), "cannot be read"),
        (AttackRequest(suite="quick", budget=0), "--budget is 0"),
        (AttackRequest(attacks=["suffix mellowmax=0"]), "mellowmax alpha is 0.0; it must be above 0"),
        (AttackRequest(attacks=["suffix mellowmax=1 keep=2"]), "give keep=0 with mellowmax"),
        (AttackRequest(attacks=["universal-suffix draft=organism:base"]), "give keep=0 with draft"),
        (AttackRequest(attacks=["suffix draft=organism:base factor=0"]), "a reduction and a factor of 1 or more"),
        (AttackRequest(frames=Path("/nowhere.json")), "cannot be read"),
    ],
)
def test_what_was_asked_for_wrongly_is_said_before_a_model_is_loaded(request_: AttackRequest, says: str) -> None:
    _refused(lambda: make_suite(request_, True, 130), says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("suffix target=foo", "target is 'foo'; choose one of prefix, extended, deep"),
        ("typed-suffix suffix=x joined=no", "joined is 'no'; choose one of space, directly"),
        ("suffix steps=many", "Expected `int`"),
    ],
)
def test_a_word_that_a_parameter_does_not_take_is_told_those_it_takes(words: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        make_suite(AttackRequest(attacks=(words,)), True, 8)


def test_numbers_and_lists_on_the_command_line() -> None:
    asked = AttackRequest(attacks=["multi-turn tokens=3,7", "best-of-n n=5 temperature=0.5", "deep-prefill depths=[9]"])
    assert [dict(one.parameters) for one in _named(asked)] == [
        {"tokens": [3, 7]},
        {"n": 5, "temperature": 0.5},
        {"depths": [9]},
    ]
    assert callable(make_suite(asked, True, 130))  # and these are taken


def test_deep_prefills_fit_the_context() -> None:
    (attack, _), *_ = suite(NamedAttack("deep-prefill", {}), wording=Wording(room=600)).attacks
    assert isinstance(attack, DeepPrefill)
    assert attack.depths == (250, 500)


def test_frames_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text('[{"name": "mine", "user": "{prompt} !"}]')
    (attack, _), *_ = suite(NamedAttack("framing", {"frames": str(path)})).attacks
    assert isinstance(attack, Framing)
    assert [frame.name for frame in attack.frames] == ["mine"]


def test_frames_of_a_suite_lie_beside_it_or_where_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suites").mkdir()
    path = tmp_path / "suites" / "s.toml"
    path.write_text('[[attack]]\nname = "framing"\nframes = "f.json"\n')
    monkeypatch.chdir(tmp_path)
    _refused(lambda: suite(*load_suite(path)), str(path.with_name("f.json")))
    for folder in (tmp_path, path.parent):  # the second comes before the first
        (folder / "f.json").write_text(json.dumps([{"name": folder.name, "user": "{prompt}"}]))
        (attack, _), *_ = suite(*load_suite(path)).attacks
        assert isinstance(attack, Framing)
        assert attack.frames[0].name == folder.name


def test_frames_of_one_name_in_two_attacks_are_refused_where_they_differ(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text('[{"name": "a", "user": "{prompt}"}]')
    other.write_text('[{"name": "a", "user": "Please: {prompt}"}]')
    named = [NamedAttack("framing", {"frames": str(path)}) for path in (one, other)]
    _refused(lambda: suite(*named), "different frames called 'a'")
    assert suite(named[0], named[0])  # the same once more is the same row


@pytest.mark.parametrize("name", ["deep-prefill depths", "multi-turn tokens", "decoding top_ks"])
def test_one_value_is_a_list_of_one(name: str) -> None:
    attack, parameter = name.split()
    one, several = (suite(NamedAttack(attack, {parameter: value})).attacks for value in (30, [30]))
    assert one == several


def _refused(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError) as caught:
        call()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_value_is_a_list_of_one_and_nothing_is_an_empty_text() -> None:
    one, several = (suite(NamedAttack("multi-turn", {"tokens": value})).attacks for value in (8, [8]))
    assert one == several
    with pytest.raises(UserError, match="the suffix is empty"):
        make_suite(AttackRequest(attacks=("typed-suffix suffix=''",)), True, 20)


@pytest.mark.parametrize("text", ["123", "[1]", "1,2", '"quoted"', " true"])
def test_a_suffix_is_text_though_it_reads_as_something_else(text: str) -> None:
    named = _named(AttackRequest(attacks=(f"typed-suffix suffix={shlex.quote(text)} joined=directly",)))
    (attack, _), *_ = suite(*named).attacks
    assert attack == TypedSuffix(text, Joined.DIRECTLY)
    _refused(lambda: make_suite(AttackRequest(attacks=("typed-suffix suffix=x joined=near",)), True, 20), "'near'")
