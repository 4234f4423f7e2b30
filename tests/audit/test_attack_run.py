"""A run of attacks: killed anywhere it ends in the same bytes; budgets bind; every attack has a control and a cost."""

import dataclasses
import shutil
from pathlib import Path

import msgspec
import pytest

from fathom.attack.ranks import JudgedRanks
from fathom.audit.execute import Execution
from fathom.audit.parts import direct_parts
from fathom.audit.plan import AuditOptions, BehaviorSet, Plan, make_plan
from fathom.audit.spending import fresh_tokens
from fathom.audit.suites import NamedAttack, Wording, planned_costs, suite_of
from fathom.errors import UserError
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import OrganismJudge, behaviors, stage_directory
from fathom.organism.attack_words import ASK_ON
from fathom.progress import silent
from fathom.ranks import ALONE
from fathom.records import Attempt, Sampling
from fathom.run import Run

ATTACKS = (
    NamedAttack("insertion", {}),
    NamedAttack("own-insertion", {}),
    NamedAttack("multi-turn", {}),
    NamedAttack("best-of-n", {"n": 3}),
    NamedAttack("judged-ranks", {"tokens": 8, "lookahead": 6, "top": 4}),
    NamedAttack("refusal-direction", {"train": 2, "development": 2, "positions": 1, "new_tokens": 8}),
)


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return load(LoadOptions(name=str(stage_directory("deepened"))))


def planned(model: ChatModel, *, budget: int | None = None) -> Plan:
    suite = suite_of(ATTACKS, Wording(ask=ASK_ON), budget=budget, before=direct_parts)
    options = AuditOptions(depths=(0,), max_new_tokens=16, prefixes=())
    asked = BehaviorSet("organism", behaviors(harmful=12, benign=12))
    return make_plan(options, asked, OrganismJudge(), model, None, None, suite)


def execute(model: ChatModel, path: Path, *, budget: int | None = None) -> bytes:
    plan = planned(model, budget=budget)
    Execution(Run.start(path, plan.manifest), plan, OrganismJudge(), model, None, ALONE, silent)()
    return (path / "audit.json").read_bytes()


@pytest.fixture(scope="module")
def finished(model: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attacks") / "run"
    execute(model, path)
    return path


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (NamedAttack("suffix", {"length": 40}), "up to 41 that the attack adds and up to 16 new ones"),
        (NamedAttack("judged-ranks", {"tokens": 50}), "up to 50 that the attack adds"),
    ],
)
def test_what_a_search_has_no_room_for_is_said_before_it_is_searched_for(
    model: ChatModel, attack: NamedAttack, says: str
) -> None:
    small = dataclasses.replace(model, info=msgspec.structs.replace(model.info, context=64))
    options = AuditOptions(depths=(0,), max_new_tokens=16, prefixes=())
    asked = BehaviorSet("organism", behaviors(harmful=2, benign=0))
    suite = suite_of((attack,), Wording(), budget=None, before=direct_parts)
    with pytest.raises(UserError, match=says):
        make_plan(options, asked, OrganismJudge(), small, None, None, suite)


def test_ranks_take_as_many_tokens_as_there_is_room_for() -> None:
    for room, tokens in ((40, 40), (-3, 1), (4000, 256), (None, 256)):
        ((attack, _),) = suite_of(
            (NamedAttack("judged-ranks", {}),), Wording(room=room), budget=None, before=direct_parts
        ).attacks
        assert isinstance(attack, JudgedRanks)
        assert attack.tokens == tokens


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    model: ChatModel, finished: Path, tmp_path: Path, share: float
) -> None:
    path = tmp_path / "cut"
    shutil.copytree(finished, path)
    (path / "audit.json").unlink()
    for journal in path.glob("*.jsonl"):
        content = journal.read_bytes()
        journal.write_bytes(content[: int(len(content) * share)])  # mostly in the middle of a line
    assert execute(model, path) == (finished / "audit.json").read_bytes()


def test_every_attack_has_its_control_and_its_cost(finished: Path) -> None:
    audit = Run.open(finished).audit
    names = {row.attack for row in audit.attacks}
    assert names == {"direct", *(attack.name for attack in ATTACKS)}
    greedy = [row for row in audit.attacks if row.parameters["temperature"] == 0 or row.attack == "best-of-n"]
    places = {"control": set[object](), "attack": set[object]()}
    for row in greedy:
        if row.attack == "own-insertion":
            places["attack" if row.control is None else "control"].add(row.parameters.get("place"))
        else:
            assert row.control is not None
    # An answer is longer than a refusal, so every place of one but its end is a place of the other.
    assert places["attack"] == set()
    assert all(row.cost is not None and row.cost.forward_tokens >= row.cost.queries for row in audit.attacks)
    assert {row.attack for row in audit.budget} >= {"insertion", "best-of-n", "judged-ranks"}
    assert audit.depth.half_depth.deepest == 0


def test_costs_shown_beforehand_are_not_exceeded(model: ChatModel, finished: Path) -> None:
    shown = {cost.attack: cost for cost in planned_costs(planned(model).parts)}
    run = Run.open(finished)
    for name in ("direct", "insertion", "multi-turn", "best-of-n"):
        mine = [attempt for attempt in run.attempts.values() if attempt.attack == name]
        assert shown[name].attempts == len(mine)
    spent: dict[str, int] = {}
    for row in run.audit.attacks:
        if row.cost is not None and row.worst_of is None and row.counted == "continuation":
            spent[row.attack] = spent.get(row.attack, 0) + row.cost.forward_tokens
    assert shown["best-of-n"].forward_tokens is not None
    assert spent["best-of-n"] <= shown["best-of-n"].forward_tokens


def test_a_budget_binds_attempts_and_searches(model: ChatModel, finished: Path, tmp_path: Path) -> None:
    execute(model, tmp_path / "poor", budget=120)
    rich, poor = Run.open(finished), Run.open(tmp_path / "poor")
    assert len(poor.attempts) < len(rich.attempts)
    assert {attempt.attack for attempt in poor.attempts.values()} == {a.attack for a in rich.attempts.values()}

    def searched(run: Run) -> float:
        return max(
            float(attempt.found["forward_tokens"])
            for attempt in run.attempts.values()
            if attempt.attack == "judged-ranks"
        )

    assert searched(poor) < searched(rich)
    assert any(note.startswith("judged-ranks: its budget of 120") and "searches" in note for note in poor.audit.notes)


def of_attack(run: Run, name: str, behavior: str) -> list[Attempt]:
    return [one for one in run.attempts.values() if one.attack == name and one.behavior == behavior]


def spent(run: Run, attempts: list[Attempt]) -> int:
    completions = run.completions
    fresh = sum(fresh_tokens(one.prompt_ids + one.prefill_ids for one in attempts))
    return fresh + sum(len(completions[one.id].output_ids) for one in attempts)


def test_a_budget_is_spent_and_what_it_cut_is_said(model: ChatModel, tmp_path: Path) -> None:
    """What answers left of it pays for further attempts; killed in between, the run ends in the same bytes."""
    named = (NamedAttack("best-of-n", {"n": 60}), NamedAttack("insertion", {}))
    suite = suite_of(named, Wording(), budget=400, before=direct_parts)
    asked = BehaviorSet("organism", behaviors(harmful=3, benign=1))
    options = AuditOptions(depths=(0,), max_new_tokens=80, prefixes=(), temperatures=(0.0,))
    plan = make_plan(options, asked, OrganismJudge(), model, None, None, suite)

    def executed(path: Path) -> bytes:
        Execution(Run.start(path, plan.manifest), plan, OrganismJudge(), model, None, ALONE, silent)()
        return (path / "audit.json").read_bytes()

    audit = executed(tmp_path / "whole")
    run = Run.open(tmp_path / "whole")
    left_out = behaviors_cut = 0
    for item in (*plan.harmful, *plan.benign):
        mine = of_attack(run, "best-of-n", item.behavior.id)
        assert spent(run, mine) <= 400
        if len(mine) < 60:
            assert spent(run, mine) + 80 > 400
            left_out, behaviors_cut = left_out + 60 - len(mine), behaviors_cut + 1
        assert len(mine) > (400 - len(item.prompt_ids)) // 80  # more than if each had cost the most that it may
    assert left_out
    said = f"left out {left_out} of 240 attempts, on {behaviors_cut} behaviors"
    assert any(note.startswith("best-of-n: its budget of 400") and said in note for note in run.audit.notes)
    for place in (0.2, 0.6):
        path = tmp_path / f"cut {place}"
        shutil.copytree(tmp_path / "whole", path)
        (path / "audit.json").unlink()
        for journal in path.glob("*.jsonl"):
            content = journal.read_bytes()
            journal.write_bytes(content[: int(len(content) * place)])
        assert executed(path) == audit
        assert (path / "attempts.jsonl").read_bytes() == (tmp_path / "whole" / "attempts.jsonl").read_bytes()


def test_answers_are_drawn_as_was_asked_for(tmp_path: Path) -> None:
    from fathom.__main__ import run

    line = ["attack", "organism:natural", "--with", "framing", "--limit", "1", "--max-new-tokens", "8", "-o"]
    assert run([*line, str(tmp_path / "run"), "--temperature", "0.9", "--top-p", "0.6", "--top-k", "50"]) == 0
    made = Run.open(tmp_path / "run")
    sampling = Sampling(max_new_tokens=8, temperature=0.9, top_p=0.6, top_k=50)
    assert made.manifest.sampling == sampling
    assert {attempt.sampling for attempt in made.attempts.values()} == {sampling}
