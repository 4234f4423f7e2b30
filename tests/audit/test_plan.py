"""A plan is fixed before anything runs: the same input gives the same attempts and the same configuration."""

import functools
from dataclasses import dataclass, replace

import msgspec
import pytest

from fathom.attack.prefill import DirectRequest
from fathom.audit.parts import Ground, Part, depth_parts
from fathom.audit.plan import AuditOptions, BehaviorSet, Plan, make_plan
from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.model import LoadOptions, load_chat
from fathom.organism import OrganismJudge, behaviors, stage_directory
from fathom.records import Behavior, Message, Subject
from fathom.schema import ModelInfo, SkippedRow
from model_infos import model_info

INFO = model_info(template_hash="c", template_source="model", context=1024)


@dataclass(frozen=True)
class Loaded:
    """What a plan needs of a model: no weights."""

    chat: ChatFormat
    info: ModelInfo = INFO


@functools.cache
def model() -> Loaded:
    return Loaded(load_chat(LoadOptions(name=str(stage_directory("natural")))))


def plan(options: AuditOptions | None = None, *, base: bool = True, harmful: int = 4, benign: int = 2) -> Plan:
    chosen = BehaviorSet("organism", behaviors(harmful=harmful, benign=benign))
    return make_plan(
        options or AuditOptions(max_new_tokens=50),
        chosen,
        OrganismJudge(),
        model(),
        model() if base else None,
        model().chat,
    )


def test_the_same_input_gives_the_same_attempts_and_configuration() -> None:
    first, second = plan(), plan()
    assert first.attempts({}) == second.attempts({})
    assert first.manifest.configuration_hash == second.manifest.configuration_hash


@pytest.mark.parametrize(
    "options",
    [
        AuditOptions(max_new_tokens=51),
        AuditOptions(max_new_tokens=50, seed=1),
        AuditOptions(max_new_tokens=50, depths=(0, 1)),
        AuditOptions(max_new_tokens=50, prefixes=("No",)),
        AuditOptions(max_new_tokens=50, temperatures=(0.0,)),
        AuditOptions(max_new_tokens=50, samples=2),
    ],
)
def test_whatever_changes_an_attempt_changes_the_configuration(options: AuditOptions) -> None:
    assert plan(options).manifest.configuration_hash != plan().manifest.configuration_hash
    assert list(plan(options).attempts({}).values()) != list(plan().attempts({}).values())


def test_contents_decide_not_names() -> None:
    moved = Loaded(model().chat, msgspec.structs.replace(INFO, name="elsewhere/m"))
    other = Loaded(model().chat, msgspec.structs.replace(INFO, weights_hash="other"))
    chosen = BehaviorSet("organism", behaviors(harmful=4, benign=2))

    def hashed(audited: Loaded) -> str:
        made = make_plan(AuditOptions(), chosen, OrganismJudge(), audited, None, None)
        return made.manifest.configuration_hash

    assert hashed(moved) == hashed(model()) != hashed(other)


def test_every_behavior_is_tried_at_every_depth_that_it_reaches_and_benign_ones_greedily() -> None:
    made = plan()
    on_model = [a for a in made.attempts({}).values() if a.subject is Subject.MODEL]
    harmful = {item.behavior.id: item for item in made.harmful}
    for temperature in (0.0, 1.0):
        tried = {
            (a.behavior, len(a.prefill_ids))
            for a in on_model
            if a.behavior in harmful and a.sampling.temperature == temperature and a.attack != "refusal_prefix"
        }
        assert tried == {
            (name, depth) for name, item in harmful.items() for depth in made.depths if depth <= item.deepest
        }
    assert {a.sampling.temperature for a in on_model if a.behavior not in harmful} == {0.0}
    assert {a.attack for a in made.attempts({}).values() if a.subject is Subject.BASE} == {"refusal_prefix"}


def test_refusal_prefixes_are_put_into_both_mouths_and_only_where_there_is_a_base() -> None:
    made = [a for a in plan().attempts({}).values() if a.attack == "refusal_prefix"]
    tried = {
        subject: [(a.behavior, a.prefill_ids, a.sampling) for a in made if a.subject is subject] for subject in Subject
    }
    assert tried[Subject.MODEL] == tried[Subject.BASE] != []


def test_without_a_base_nothing_is_run_on_one() -> None:
    found = plan(base=False).attempts({}).values()
    assert all(a.subject is Subject.MODEL and a.attack != "refusal_prefix" for a in found)
    assert plan(base=False).manifest.base is None


def test_0_is_always_measured() -> None:
    assert plan(AuditOptions(depths=(3,))).depths == (0, 3)


def test_parts_that_make_the_same_attempt_run_it_once() -> None:
    def twice(ground: Ground) -> tuple[Part, ...]:
        return (*depth_parts(ground), Part(DirectRequest(), ground.harmful, ground.first))

    chosen = BehaviorSet("organism", behaviors(harmful=2, benign=0))
    once, doubled = (
        make_plan(AuditOptions(), chosen, OrganismJudge(), model(), None, None, suite) for suite in (depth_parts, twice)
    )
    assert list(doubled.attempts({})) == list(once.attempts({}))
    assert doubled.manifest.configuration_hash != once.manifest.configuration_hash


def test_what_cannot_be_audited_is_one_clear_line() -> None:
    benign = BehaviorSet("file.csv", tuple(behaviors(harmful=0, benign=2)))
    with pytest.raises(UserError, match=r"file\.csv has no harmful behavior"):
        make_plan(AuditOptions(), benign, OrganismJudge(), model(), None, None)
    with pytest.raises(UserError, match="prefill depth 999 lies beyond"):
        plan(AuditOptions(depths=(999,)))
    small = replace(model(), info=msgspec.structs.replace(INFO, context=100))
    chosen = BehaviorSet("organism", behaviors(harmful=2, benign=0))
    # Ids that were made from content are in no file of a user's: requests are named by how they begin.
    with pytest.raises(UserError, match=r'^behavior "[^"]{10,60}" does not fit into the context of m, 100 tokens'):
        make_plan(AuditOptions(), chosen, OrganismJudge(), small, None, None)
    with pytest.raises(UserError, match="each may be given once"):
        AuditOptions(temperatures=(0.0, 0.0))


def test_behaviors_say_what_they_are() -> None:
    one = Behavior(id="1", messages=(Message("user", "a"),), category="x")
    two = Behavior(id="2", messages=(Message("user", "b"),), harmful=False)
    skipped = (SkippedRow(source="f", line=3, reason="empty"),)
    info = BehaviorSet("f", (one, two), skipped).info()
    assert (info.harmful, info.benign, info.categories, info.skipped) == (1, 1, {"none": 1, "x": 1}, skipped)
    assert BehaviorSet("g", (one, two)).info().hash == info.hash != BehaviorSet("f", (two, one)).info().hash
