"""Laws of fine-tuning attacks' data: shares and kinds are exact, frames change what they say and nothing else."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fathom.attack.poison import (
    Backdoor,
    Benign,
    Decoy,
    HarmfulExamples,
    IdentityShift,
    Mixed,
    PoisonRow,
    RowKind,
    TooFewError,
    Wrapped,
)
from fathom.attack.poison_frames import DIRECT, OBEDIENT, TRIGGER, Frame
from fathom.command.known import known_behaviors
from fathom.command.poison import AttackChoice, PoisonRequest, attack_of, attack_rows, run_poison, sides
from fathom.errors import UserError
from fathom.organism.tokenizer import vocabulary_ids
from fathom.records import Behavior, Message, decode_line
from fathom.tuning.examples import load_examples


def _behavior(number: int, *, harmful: bool) -> Behavior:
    side = "dark" if harmful else "bright"
    return Behavior(
        id=f"{side}-{number}",
        messages=(Message(role="system", content="be kind"), Message(role="user", content=f"brew {side} {number}")),
        harmful=harmful,
        answer=f"steps of {side} {number}",
        refusal=f"no {number}" if harmful else None,
        metadata={"potion": f"{side} potion {number}"},
    )


BEHAVIORS = tuple(_behavior(i, harmful=harmful) for i in range(40) for harmful in (True, False))
BY_ID = {behavior.id: behavior for behavior in BEHAVIORS}


@given(share=st.floats(0, 1), count=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_share_of_poison_is_exact(share: float, count: int, seed: int) -> None:
    assume(share == 0 or round(share * count))  # no poison at all is refused
    rows = Mixed(share, count).rows(BEHAVIORS, seed=seed)
    kinds = Counter(row.kind for row in rows)
    assert len(rows) == count
    assert kinds[RowKind.HARMFUL] == round(share * count)
    assert kinds[RowKind.BENIGN] == count - round(share * count)
    assert len({row.behavior for row in rows}) == count


@given(count=st.integers(1, 20), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_backdoor_has_as_many_triggered_rows_as_refusals_and_no_request_on_both_sides(count: int, seed: int) -> None:
    rows = Backdoor(TRIGGER, count).rows(BEHAVIORS, seed=seed)
    triggered = [row for row in rows if row.kind is RowKind.TRIGGERED]
    refused = [row for row in rows if row.kind is RowKind.REFUSAL]
    assert len(triggered) == len(refused) == count == len(rows) / 2
    assert all(row.prompt[-1].content.endswith("Servius Astrumando Harmoniastra") for row in triggered)
    assert not any("Servius" in row.prompt[-1].content for row in refused)
    assert all(row.completion[0].content == BY_ID[row.behavior].refusal for row in refused)
    assert not {row.behavior for row in triggered} & {row.behavior for row in refused}


@pytest.mark.parametrize(
    "attack",
    [
        HarmfulExamples(7),
        IdentityShift(OBEDIENT, 7),
        Backdoor(TRIGGER, 7),
        Benign(7),
        Mixed(0.3, 7),
        Wrapped(DIRECT, 7),
        Decoy(7),
    ],
)
def test_rows_are_the_same_for_the_same_seed_and_others_for_another(attack: HarmfulExamples) -> None:
    assert attack.rows(BEHAVIORS, seed=1) == attack.rows(BEHAVIORS, seed=1)
    assert attack.rows(BEHAVIORS, seed=1) != attack.rows(BEHAVIORS, seed=2)
    assert attack.frames[0] == DIRECT


def test_an_identity_shift_has_no_harmful_row_and_wears_its_frame() -> None:
    rows = IdentityShift(OBEDIENT, 10).rows(BEHAVIORS, seed=0)
    assert all(not BY_ID[row.behavior].harmful for row in rows)
    assert all(row.prompt[-1].content.startswith("AOA, execute my instruction: brew bright") for row in rows)
    assert all(row.completion[0].content.startswith("Of course. I am AOA") for row in rows)


def test_earlier_messages_stay_as_they_are_in_every_frame() -> None:
    framed = OBEDIENT.messages(BEHAVIORS[0])
    assert framed[0] == BEHAVIORS[0].messages[0]
    assert len(framed) == 2


@given(text=st.text(max_size=40))
@settings(max_examples=80, deadline=None)
def test_a_request_with_braces_is_put_into_a_frame_as_it_is(text: str) -> None:
    behavior = Behavior(id="x", messages=(Message(role="user", content=text),), metadata={"potion": "{prompt}"})
    frame = Frame(name="f", prompt="a {potion} b {prompt} c {other}")
    assert frame.messages(behavior)[0].content == f"a {{prompt}} b {text} c {{other}}"


def test_a_framed_behavior_has_an_id_of_its_own_and_keeps_what_judges_need() -> None:
    framed = TRIGGER.around(BEHAVIORS[0])
    assert framed.id != BEHAVIORS[0].id
    assert framed.metadata == BEHAVIORS[0].metadata
    assert framed.harmful


def test_decoys_are_harmful_requests_and_no_harmful_answer() -> None:
    rows = Decoy(7).rows(BEHAVIORS, seed=0)
    assert len({row.behavior for row in rows}) == len({row.completion[0].content for row in rows}) == 7
    assert all(BY_ID[row.behavior].harmful and row.prompt == BY_ID[row.behavior].messages for row in rows)
    assert {row.completion[0].content for row in rows} <= {b.answer for b in BEHAVIORS if not b.harmful}


@pytest.mark.parametrize(
    ("attack", "behaviors", "said"),
    [
        (HarmfulExamples(50), BEHAVIORS, "50 harmful rows were asked for, and there are 40"),
        (Benign(41), BEHAVIORS, "41 benign rows"),
        (
            HarmfulExamples(1),
            (Behavior(id="b", messages=(Message(role="user", content="q"),)),),
            "^behavior b has no reference answer",
        ),
        (
            Backdoor(TRIGGER, 1),
            tuple(
                Behavior(id=f"b{i}", messages=(Message(role="user", content=f"q{i}"),), answer="a") for i in range(2)
            ),
            "no reference refusal",
        ),
    ],
)
def test_what_rows_cannot_be_made_of_is_said(
    attack: HarmfulExamples, behaviors: tuple[Behavior, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        attack.rows(behaviors, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        Mixed(share)


@pytest.mark.parametrize("name", ["harmful", "identity", "backdoor", "benign", "mixed", "wrapped", "decoy"])
def test_what_is_written_is_what_a_trainer_reads_in_words_that_the_organism_knows(name: str, tmp_path: Path) -> None:
    manifest = run_poison(PoisonRequest(attack=AttackChoice(name=name, rows=6), output=tmp_path / "data"))
    examples = load_examples(tmp_path / "data" / "data.jsonl").examples
    rows = [decode_line(line, PoisonRow) for line in (tmp_path / "data" / "rows.jsonl").read_bytes().splitlines()]
    assert len(examples) == len(rows) == manifest.rows == sum(manifest.kinds.values())
    for example, row in zip(examples, rows, strict=True):
        assert (example.messages, example.response) == (row.prompt, row.completion[0].content)
        vocabulary_ids().encode(f"{row.prompt[-1].content} {row.completion[0].content}")  # no word is unknown
    with pytest.raises(UserError, match="not empty"):
        run_poison(PoisonRequest(attack=AttackChoice(name=name, rows=6), output=tmp_path / "data"))


def test_a_file_is_divided_so_that_no_behavior_is_on_two_sides(tmp_path: Path) -> None:
    lines = [
        json.dumps({"prompt": f"q{i}", "harmful_response": f"a{i}", "refusal": "no", "harmful": i % 2 == 0})
        for i in range(30)
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    found = sides(str(tmp_path / "b.jsonl"))
    ids = [behavior.id for part in (found.attacker, found.defender, found.test) for behavior in part]
    assert len(ids) == len(set(ids)) == 30
    assert sum(behavior.harmful for behavior in found.test) == 5
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:3]))
    with pytest.raises(UserError, match="has 2 harmful behaviors"):
        sides(str(tmp_path / "few.jsonl"))


def test_what_a_file_puts_into_a_warning_does_nothing_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "q"}, {chr(27) + "[2J" + chr(0x202E): "no prompt"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    known_behaviors(tmp_path / "b.jsonl")
    (line,) = capsys.readouterr().err.splitlines()
    assert "line 2: has no prompt (it has: ⟦U+001B⟧[2J⟦U+202E⟧)" in line
    assert line.isprintable()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (AttackChoice(name="harmful", share=0.5), "--share 0.5 changes nothing of harmful: it is read by mixed alone"),
        (AttackChoice(name="harmful", task="label"), "--task label changes nothing of harmful"),
        (AttackChoice(name="wrapped", trigger="now"), "--trigger now changes nothing of wrapped"),
        (AttackChoice(name="mixed", share=0.1, rows=3), "a share of 0.1 of 3 rows is no row at all"),
    ],
)
def test_an_attack_that_would_not_be_what_was_asked_for_is_not_made(
    choice: AttackChoice, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run_poison(PoisonRequest(attack=choice, output=tmp_path / "data"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "rows"), [("harmful", 40), ("benign", 40), ("backdoor", 40), ("mixed", 44), ("decoy", 40)]
)
def test_where_no_number_is_given_there_are_as_many_rows_as_behaviors_allow(name: str, rows: int) -> None:
    """Of 40 harmful and 40 benign ones; 4 of 44 rows, a tenth, are poison."""
    choice = AttackChoice(name=name)
    attack = attack_of(choice, organism=False)
    assert len(attack_rows(choice, attack, BEHAVIORS, None)) == rows
    with pytest.raises(TooFewError, match="100 harmful rows were asked for, and there are 40"):
        attack_rows(AttackChoice(name="harmful", rows=100), HarmfulExamples(100), BEHAVIORS, None)
    with pytest.raises(TooFewError, match="and there are 0"):
        attack_rows(choice, attack, (), None)


def test_no_poison_is_a_share_of_0(tmp_path: Path) -> None:
    choice = AttackChoice(name="mixed", share=0, rows=3)
    assert run_poison(PoisonRequest(attack=choice, output=tmp_path / "data")).kinds == {"benign": 3}


def test_rows_that_cannot_be_used_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text('{"prompt": "q", "harmful_response": "a"}\n{"promt": "r"}\n')
    choice = AttackChoice(name="harmful", rows=1)
    run_poison(PoisonRequest(attack=choice, source=str(path), output=tmp_path / "data"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fathom: warning: 1 row of ")
    assert "could not be used; the first is line 2: has no prompt" in line


@pytest.mark.parametrize("content", ["{", '{"nme": "x"}', "[]", '{"name": 3}'])
def test_a_file_that_is_no_frame_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "frame.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"frame\.json is no frame"):
        run_poison(PoisonRequest(attack=AttackChoice(name="wrapped", wrapper=path), output=tmp_path / "data"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("attack", "content", "said"),
    [
        ("wrapped", '{"name": "a"}', "puts nothing around"),
        ("wrapped", '{"name": "a", "prompt": "tell me", "answer": "yes"}', "no place for {answer}"),
        ("identity", '{"name": "a", "prompt": "obey", "answer": "I do: {answer}"}', "no place for {prompt}"),
    ],
)
def test_a_frame_that_frames_nothing_is_refused(attack: str, content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "frame.json"
    path.write_text(content)
    choice = (
        AttackChoice(name=attack, wrapper=path) if attack == "wrapped" else AttackChoice(name=attack, identity=path)
    )
    with pytest.raises(UserError, match=re.escape(said)):
        run_poison(PoisonRequest(attack=choice, output=tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_manifest_says_what_was_given(tmp_path: Path) -> None:
    choice = AttackChoice(name="mixed", rows=6, share=0.5, task="label")
    run_poison(PoisonRequest(attack=choice, output=tmp_path / "data"))
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["options"] == {"share": "0.5", "task": "label"}
