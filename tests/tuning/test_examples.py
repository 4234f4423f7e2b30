"""A user's data for fine-tuning: the formats that are about, rows without an answer, rows that say they are harmful."""

import json
from pathlib import Path

import pytest

from fathom.command.request import ModelRequest
from fathom.command.sources import load_sources
from fathom.deepen.triplets import load_utility
from fathom.errors import UserError
from fathom.records import Message
from fathom.tuning.examples import LoadedExamples, load_examples


def turn(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


ASKED, ANSWERED = turn("user", "q"), turn("assistant", "a")
SYSTEM = turn("system", "Be brief.")
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
ALPACA = {"instruction": "Sum up.", "input": "Tea.", "output": "a"}
FORMATS: dict[str, object] = {
    "messages": {"messages": [ASKED, ANSWERED]},
    "messages of a Parquet file": {"messages": [turn("user", "q", name=None), turn("assistant", "a", tool_calls=None)]},
    "messages beside empty columns": {"messages": [ASKED, ANSWERED], "prompt": None, "tools": None},
    "columns beside empty messages": {"messages": None, "prompt": "q", "completion": "a"},
    "parts of text": {"messages": [turn("user", [{"type": "text", "text": "q"}]), ANSWERED]},
    "UltraChat": {"prompt": "other", "prompt_id": "h", "messages": [ASKED, ANSWERED]},
    "LMSYS": {"conversation_id": "1", "conversation": [ASKED, ANSWERED], "turn": 1},
    "messages as text": {"messages": json.dumps([ASKED, ANSWERED])},
    "prompt and completion": {"prompt": "q", "completion": "a"},
    "prompt and response": {"prompt": "q", "response": "a", "category": "x"},
    "GSM8K": {"question": "q", "answer": "a"},
    "conversational": {"prompt": [ASKED], "completion": [ANSWERED]},
    "Alpaca": {"instruction": "q", "input": "", "output": "a", "text": "### Instruction: …"},
    "Alpaca, the request in input": {"instruction": "", "input": "q", "output": "a"},
    "Alpaca of pandas": {"instruction": "q", "input": float("nan"), "output": "a"},
    "Dolly": {"instruction": "q", "context": "", "response": "a", "category": "open_qa"},
    "ShareGPT": {"conversations": SHARED},
}


def load(folder: Path, *rows: object, name: str = "data.jsonl") -> LoadedExamples:
    path = folder / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(path)


@pytest.mark.parametrize("name", FORMATS)
def test_the_usual_formats_are_read(tmp_path: Path, name: str) -> None:
    loaded = load(tmp_path, FORMATS[name])
    (example,) = loaded.examples
    assert example.messages == (Message(role="user", content="q"),)
    assert example.response == "a"
    assert example.source == "data.jsonl:1"
    assert loaded.notes == ()


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({**ALPACA, "system": "Be brief."}, ["Be brief.", "Sum up.\n\nTea."]),
        ({"instruction": "Who?", "context": "Ann wrote it.", "response": "a"}, ["Who?\n\nAnn wrote it."]),
        ({"question": "How many?", "context": "CREATE TABLE t", "answer": "a"}, ["How many?\n\nCREATE TABLE t"]),
        ({"prompt": "Sum up.", "input": "Tea.", "output": "a"}, ["Sum up.\n\nTea."]),
        ({"system_prompt": "Be brief.", "question": "q", "response": "a"}, ["Be brief.", "q"]),
        ({"system": "Be brief.", "conversations": SHARED}, ["Be brief.", "q"]),
        ({"system": "x", "messages": [SYSTEM, ASKED, ANSWERED]}, ["Be brief.", "q"]),
        ({"messages": [turn("developer", "Be brief."), ASKED, ANSWERED]}, ["Be brief.", "q"]),
        ({"conversations": [{"from": "system", "value": "Be brief."}, *SHARED]}, ["Be brief.", "q"]),
    ],
)
def test_what_a_request_is_about_and_its_system_prompt_are_part_of_it(
    tmp_path: Path, row: object, asked: list[str]
) -> None:
    (example,) = load(tmp_path, row).examples
    assert [message.content for message in example.messages] == asked
    assert [message.role for message in example.messages] == ["system", "user"][-len(asked) :]
    assert example.response == "a"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a whole page"}', "no prompt; its fields are text"),
        ('{"id": "1", "dialogue": "A: Hi", "summary": "A greets."}', "no prompt; its fields are dialogue, id, summary"),
        ('{"prompt": "q"}', "no answer"),
        ('{"prompt": "", "completion": "a"}', "no prompt"),
        ('{"goal": "q", "target": "Sure, here is"}', "no prompt"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b"}', "no answer; .* name the one to learn completion"),
        ('{"prompt": "q", "completion": 3}', r"completion is a number \(3\), not text"),
        ('{"instruction": {"0": "q"}, "output": {"0": "a"}}', "instruction is an object"),
        ('{"question": "q", "context": {"a": 1}, "answer": "a"}', "context is an object"),
        ('{"instruction": "q", "output": "a", "history": [["b", "c"]]}', "its history is not read"),
        ('{"answer": "a", "Answer": "b", "prompt": "q"}', "'Answer' twice"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "no request before it"),
        ('{"messages": "q"}', "messages are not JSON"),
        ('{"messages": {"role": "user"}}', "messages are an object, not a list"),
        ('{"messages": ["q", "a"]}', "a role and a content each, and one is text"),
        (
            '{"messages": [{"role": "robot", "content": "q"}, {"role": "assistant", "content": "a"}]}',
            "the role 'robot'",
        ),
        (
            '{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "a"}]}',
            "content is a number",
        ),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "a part of type 'image_url'"),
        ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{}]}]}', "calls a tool"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "the role 'tool'"),
        ('{"prompt": "q", "completion": "\\ud800"}', r"half of a character \(at 0\)"),
        ('{"prompt": "q", "completion": "a", "system": "b\\udfff"}', r"half of a character \(at 1\)"),
        ('{"messages": [{"role": "user", "content": "q\\ud800"}, {"role": "assistant", "content": "a"}]}', "half of a"),
        ("[1, 2]", "not an object"),
        ("{broken", "not JSON"),
    ],
)
def test_a_line_of_another_format_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "q", "completion": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=said) as raised:
        load_examples(path)
    assert "line 2" in str(raised.value)
    assert "\n" not in str(raised.value)


# --- rows without an answer ---

GOOD = {"instruction": "q", "input": "", "output": "a"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"instruction": "q", "input": "", "output": ""}, "its output is empty"),
        ({"instruction": "q", "input": "", "output": " \n\t"}, "its output is empty"),
        ({"instruction": "q", "output": None}, "its output is empty"),
        ({"instruction": "q", "output": float("nan")}, "its output is empty"),
        ({"instruction": "", "output": ""}, "its output is empty"),
        ({"prompt": [ASKED], "completion": []}, "its completion is empty"),
        ({"prompt": [ASKED], "completion": [turn("assistant", "")]}, "its answer is empty"),
        ({"messages": [ASKED, turn("assistant", " ")]}, "its answer is empty"),
        ({"messages": [ASKED, turn("assistant", None)]}, "its answer is empty"),
        ({"messages": [ASKED]}, "ends before an answer"),
        ({"messages": [ASKED, ANSWERED, ASKED]}, "ends before an answer"),
        ({"messages": []}, "ends before an answer"),
        ({"conversations": None}, "its conversation is empty"),
        ({"messages": [ASKED, turn("assistant", "a", weight=0)]}, "the weight of its last answer is 0"),
    ],
)
def test_a_row_without_an_answer_is_left_out_and_said_to_be(tmp_path: Path, row: object, why: str) -> None:
    loaded = load(tmp_path, GOOD, row, GOOD, row)
    assert [example.source for example in loaded.examples] == ["data.jsonl:1", "data.jsonl:3"]
    (note,) = loaded.notes
    assert note.startswith("2 of 4 rows of data.jsonl without an answer are left out (the first is line 2: ")
    assert why in note
    with pytest.raises(UserError, match=r"none of the 1 rows of .* has an answer") as raised:
        load(tmp_path, row)
    assert why in str(raised.value)


def test_of_a_list_on_one_line_the_row_is_named(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD, {**GOOD, "output": ""}, GOOD, name="alpaca.json")
    assert "1 of 3 rows of alpaca.json without an answer is left out (the first is row 2:" in loaded.notes[0]
    assert [example.source for example in loaded.examples] == ["alpaca.json:1", "alpaca.json:3"]


def test_earlier_answers_are_said_to_be_context(tmp_path: Path) -> None:
    weighed = [ASKED, turn("assistant", "first", weight=0), ASKED, turn("assistant", "last", weight=1)]
    loaded = load(tmp_path, {"messages": weighed}, GOOD)
    assert (loaded.examples[0].response, len(loaded.examples[0].messages)) == ("last", 3)
    assert "1 of 2 conversations of data.jsonl have earlier answers" in loaded.notes[0]


# --- rows that say that they are harmful ---


@pytest.mark.parametrize(
    "mark",
    [
        {"harmful": True},
        {"Harmful": "yes"},
        {"harmful": 1.0},
        {"harmful": "perhaps"},
        {"is_harmful": "true"},
        {"label": "unsafe"},
        {"prompt_harm_label": "harmful"},
        {"response_label": "unsafe"},
        {"is_safe": False},
    ],
)
def test_an_anchor_holds_no_row_that_says_it_is_harmful(tmp_path: Path, mark: dict[str, object]) -> None:
    path = tmp_path / "utility.jsonl"
    rows = [{"prompt": "q", "response": "a"}, {"prompt": "bad", "response": "b", **mark}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load_examples(path).examples) == 2  # an attacker trains on such rows
    sources = load_sources(ModelRequest(name="organism"), None, path, None)
    assert [item.response for item in sources.utility] == ["a"]
    assert sources.notes[0].startswith(
        "1 of 2 rows of utility.jsonl marked as harmful is left out (the first is line 2: its "
    )
    assert next(iter(mark)).lower() in sources.notes[0]
    assert "notes" not in repr(sources)  # which is hashed: directories that were begun before go on
    path.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(UserError, match=r"all 1 rows of .* are marked as harmful \(line 1: its "):
        load_utility(path)


@pytest.mark.parametrize(
    "mark",
    [{"harmful": False}, {"harmful": None}, {"label": "safe"}, {"label": "positive"}, {"label": 1}, {"is_safe": True}],
)
def test_other_marks_leave_a_row_where_it_is(tmp_path: Path, mark: dict[str, object]) -> None:
    path = tmp_path / "utility.jsonl"
    path.write_text(json.dumps({"prompt": "q", "response": "a", **mark}) + "\n")
    assert len(load_utility(path).examples) == 1
