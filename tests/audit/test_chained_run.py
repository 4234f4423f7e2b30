"""Searches that learn from one another: killed anywhere, or shared among processes, they end in the same states."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fathom.attack.kinds import Victim, prepare
from fathom.attack.suffix.attack import Suffix
from fathom.attack.suffix.state import State
from fathom.audit.parts import States
from fathom.audit.plan import AuditOptions, BehaviorSet, Plan, make_plan
from fathom.audit.search import found_states, run_searches
from fathom.audit.suites import NamedAttack, Wording, suite_of
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import OrganismJudge, behaviors, stage_directory
from fathom.organism.attack_words import ASK_ON
from fathom.progress import silent
from fathom.ranks import ALONE, Ranks
from fathom.records import Subject
from fathom.run import Run

SEARCH: dict[str, Any] = {"steps": 12, "length": 12, "width": 8, "topk": 16, "answer_tokens": 130, "chain": 4}


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return load(LoadOptions(name=str(stage_directory("natural"))))


@pytest.fixture(scope="module")
def plan(model: ChatModel) -> Plan:
    suite = suite_of((NamedAttack("suffix", SEARCH),), Wording(ask=ASK_ON), budget=None, before=lambda *_: ())
    options = AuditOptions(depths=(0,), max_new_tokens=16, prefixes=())
    asked = BehaviorSet("organism", behaviors(split="development", harmful=6, benign=1))
    return make_plan(options, asked, OrganismJudge(), model, None, None, suite)


def searched(model: ChatModel, plan: Plan, path: Path, *ranks: Ranks) -> Mapping[str, States]:
    victim = Victim(model, OrganismJudge(), 0)
    for one in ranks:
        run = Run.start(path, plan.manifest)
        run_searches(run, plan, {Subject.MODEL: victim}, one, silent)
    return found_states(Run.open(path), plan)


@pytest.fixture(scope="module")
def finished(model: ChatModel, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chained") / "run"
    searched(model, plan, path, ALONE)
    return path


def states(found: Mapping[str, States]) -> States:
    (of_part,) = found.values()
    return of_part


def test_each_begins_with_what_was_found_before_it_in_its_chain(model: ChatModel, plan: Plan, finished: Path) -> None:
    """Against a loop over the behaviors, four at a time; harmful and benign ones never meet in a chain."""
    attack, victim = Suffix(**SEARCH), Victim(model, OrganismJudge(), 0)
    asked = behaviors(split="development", harmful=6, benign=1)
    expected: dict[str, State] = {}
    for chain in (asked[:4], asked[4:6], asked[6:]):
        earlier: list[State] = []
        for target in attack.targets(prepare(model.chat, chain)):
            state = attack.begin(target, victim, earlier)
            while state.step < attack.steps and not attack.done(state):
                state = attack.step(state, target, victim)
            earlier.append(state)
            expected[target.key] = state
    assert states(found_states(Run.open(finished), plan)) == expected
    first, second, *_ = attack.targets(prepare(model.chat, asked))
    assert expected[first.key].verified
    begun = attack.begin(second, victim, [expected[first.key]])
    assert begun.current.ids == expected[first.key].best.ids != attack.init(second, victim).current.ids


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_chain_that_was_cut_off_goes_on(
    model: ChatModel, plan: Plan, finished: Path, tmp_path: Path, share: float
) -> None:
    path = tmp_path / "cut"
    shutil.copytree(finished, path)
    for journal in path.glob("*.jsonl"):
        content = journal.read_bytes()
        journal.write_bytes(content[: int(len(content) * share)])
    assert searched(model, plan, path, ALONE) == found_states(Run.open(finished), plan)


def test_two_processes_find_the_same(model: ChatModel, plan: Plan, finished: Path, tmp_path: Path) -> None:
    ranks = (Ranks(rank=1, size=2), Ranks(rank=0, size=2))  # the later chain first
    assert searched(model, plan, tmp_path / "two", *ranks) == found_states(Run.open(finished), plan)
