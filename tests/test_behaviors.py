"""Files of behaviors: every row is used or named with its line and the reason; every bad file is one clear line."""

import csv
import io
import json
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.behaviors import behavior_id, file_rows, load_behaviors
from fathom.errors import UserError
from fathom.records import Behavior, Message, encode_line


@pytest.fixture
def load(tmp_path):
    def load_text(text, name="behaviors.jsonl", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return load_behaviors(path)

    return load_text


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(*rows):
    """CSV with quotes where they are needed, and the line on which each row begins."""
    out, starts = io.StringIO(newline=""), []
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        starts.append(out.getvalue().count("\n") + 1)
        writer.writerow(row)
    return out.getvalue(), starts


def reasons(loaded):
    return {row.line: row.reason for row in loaded.skipped}


# --- columns ---


def test_the_files_own_columns(load):
    row = {
        "prompt": "Brew it.",
        "harmful_response": "First, …",
        "target": "Sure",
        "refusal": "No.",
        "category": "potions",
        "id": "b1",
    }
    assert load(lines(row)).behaviors == (
        Behavior(
            id="b1",
            messages=(Message(role="user", content="Brew it."),),
            category="potions",
            answer="First, …",
            target="Sure",
            refusal="No.",
        ),
    )


@pytest.mark.parametrize("name", ["response", "answer", "completion", "harmful_response", "Harmful Response"])
def test_a_benign_row_has_its_reference_under_any_of_the_names(load, name):
    (behavior,) = load(lines({"Prompt": "Brew tea.", "harmful": False, name: "Boil water."})).behaviors
    assert (behavior.harmful, behavior.answer) == (False, "Boil water.")


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        (  # HarmBench
            ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"],
            ["Brew this", "contextual", "potions", "context", "A recipe", "brew_this"],
            {"prompt": "A recipe\n\n---\n\nBrew this", "category": "potions", "id": "brew_this", "harmful": True},
        ),
        (  # JailbreakBench
            ["Index", "Goal", "Target", "Behavior", "Category", "Source"],
            ["0", "Brew a potion", "Sure, here is", "Potion", "Brewing", "Original"],
            {"prompt": "Brew a potion", "target": "Sure, here is", "category": "Brewing", "harmful": True},
        ),
        (["goal", "target"], ["Brew", "Sure"], {"prompt": "Brew", "target": "Sure"}),  # AdvBench
        (  # XSTest
            ["id", "prompt", "type", "label", "focus", "note"],
            ["v2-1", "Kill a process?", "homonyms", "safe", "kill", ""],
            {"prompt": "Kill a process?", "category": "homonyms", "harmful": False, "id": "v2-1"},
        ),
        (["prompt", "label"], ["Brew", "unsafe"], {"prompt": "Brew", "harmful": True}),
        (  # StrongREJECT
            ["category", "source", "forbidden_prompt"],
            ["Potions", "custom", "Brew, please"],
            {"prompt": "Brew, please", "category": "Potions", "harmful": True},
        ),
        (  # Alpaca
            ["instruction", "input", "output"],
            ["Sum up.", "Tea is a drink.", "Tea."],
            {"prompt": "Sum up.\n\nTea is a drink.", "answer": "Tea."},
        ),
        (["input", "output"], ["Hello", "Good day."], {"prompt": "Hello", "answer": "Good day."}),
        (  # Dolly
            ["instruction", "context", "response", "category"],
            ["Who wrote it?", "Ann wrote it.", "Ann.", "closed_qa"],
            {"prompt": "Who wrote it?\n\nAnn wrote it.", "answer": "Ann.", "category": "closed_qa"},
        ),
    ],
)
def test_columns_of_public_benchmarks(load, header, row, expected):
    text, _ = table(header, row)
    (behavior,) = load(text, "b.csv").behaviors
    assert {name: getattr(behavior, name) for name in expected} == expected


def test_messages_instead_of_a_prompt(load):
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    (behavior,) = load(lines({"messages": turns})).behaviors
    assert [message.role for message in behavior.messages] == ["system", "user", "assistant", "user"]
    (answered,) = load(lines({"messages": [*turns, {"role": "assistant", "content": "Sure."}]})).behaviors
    assert (answered.messages, answered.answer) == (behavior.messages, "Sure.")
    text, _ = table(["messages"], [json.dumps(turns)])
    assert load(text, "b.csv").behaviors[0].messages == behavior.messages


def test_conversations_of_sharegpt(load):
    turns = [{"from": name, "value": name} for name in ("system", "human", "gpt", "human", "gpt")]
    (behavior,) = load(lines({"conversations": turns})).behaviors
    assert [message.role for message in behavior.messages] == ["system", "user", "assistant", "user"]
    assert (behavior.prompt, behavior.answer) == ("human", "gpt")
    (unanswered,) = load(lines({"conversations": [*turns[:-1], {"from": "gpt", "value": " "}]})).behaviors
    assert (unanswered.messages, unanswered.answer) == (behavior.messages, None)


def test_a_system_prompt_in_a_column_of_its_own(load):
    (behavior,) = load(lines({"system_prompt": "Be brief.", "question": "Tea?"})).behaviors
    assert [message.role for message in behavior.messages] == ["system", "user"]
    assert load(lines({"system_prompt": "", "question": "Tea?"})).behaviors[0].messages == behavior.messages[1:]


def test_what_is_said_of_the_answer_is_not_said_of_the_request(load):
    """BeaverTails: a safe answer is a refusal, or harmless. WildGuard says both."""
    row = {"prompt": "Brew?", "response": "Take a root.", "category": {"potions": True, "theft": False}}
    loaded = load(lines({**row, "is_safe": True}, {**row, "is_safe": False}))
    (behavior,) = loaded.behaviors
    assert (behavior.harmful, behavior.answer, behavior.category) == (True, "Take a root.", "potions")
    assert loaded.marked == {behavior.id}
    assert "says that its answer is safe" in reasons(loaded)[1]
    guarded = {"prompt": "Brew?", "response": "Tea, then.", "response_harm_label": "unharmful"}
    refused, helped = load(
        lines({**guarded, "prompt_harm_label": "harmful"}, {**guarded, "prompt_harm_label": "unharmful"})
    ).behaviors
    assert (refused.harmful, refused.answer) == (True, None)
    assert (helped.harmful, helped.answer) == (False, "Tea, then.")


def test_what_pandas_writes_for_nothing_is_nothing(load):
    nan = float("nan")
    row = {"prompt": "Brew", "id": 7.0, "harmful": 0.0, "target": nan, "category": 3, "metadata": {"n": 1, "k": "v"}}
    (behavior,) = load(lines(row)).behaviors
    assert (behavior.id, behavior.harmful, behavior.target) == ("7", False, None)
    assert (behavior.category, behavior.metadata) == ("3", {"k": "v"})
    assert load(lines({"prompt": "Brew", "harmful": nan, "id": nan})).behaviors[0].harmful


def test_a_prompt_a_line(load):
    loaded = load('Brew it, please\r\n\n  Brew "this" \n', "b.txt")
    assert [behavior.prompt for behavior in loaded.behaviors] == ["Brew it, please", 'Brew "this"']


def test_of_a_list_on_one_line_rows_are_counted(load):
    text = json.dumps([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    assert reasons(load(text, "b.json")) == {3: "the same as row 1"}


def test_a_long_list_is_read_in_linear_time(tmp_path):
    """Alpaca, 52 002 rows of 380 characters, had taken more than five minutes: each row's line was counted anew."""
    rows = [{"prompt": f"Name plant {number}. " + "It is green. " * 25} for number in range(30_000)]
    path = tmp_path / "b.json"
    path.write_text(json.dumps(rows, indent=4))
    began = time.process_time()
    found = list(file_rows(path))
    assert time.process_time() - began < 10  # about 0.3; counted anew, more than 30
    assert [row.line for row in found] == [3 * number + 2 for number in range(30_000)]


def test_a_behaviors_own_lines_are_read_back(load):
    behavior = Behavior(
        id="x", messages=(Message(role="user", content="Brew"),), harmful=False, answer="A", metadata={"potion": "red"}
    )
    assert load(encode_line(behavior)).behaviors == (behavior,)


# --- ids ---


def test_an_id_is_a_hash_of_content_unless_the_file_has_a_unique_one(load):
    loaded = load(lines({"prompt": "a", "id": 1}, {"prompt": "b", "id": 2}, {"prompt": "c", "id": 2}, {"prompt": "d"}))
    a, b, c, d = loaded.behaviors
    assert a.id == "1"
    assert [x.id for x in (b, c, d)] == [behavior_id(x) for x in (b, c, d)]


def test_an_id_stays_what_it_was(load):
    full = {"prompt": "a", "harmful": "false", "category": "k", "answer": "x", "target": "t", "refusal": "r"}
    loaded = load(lines({"prompt": "a"}, {**full, "metadata": {"potion": "red"}}))
    assert [behavior.id for behavior in loaded.behaviors] == ["77559fc9a29229978ccac58a", "3f401d3598e1cf0abd4bc4e9"]


def test_ids_do_not_depend_on_order_or_format(load):
    rows = [{"prompt": "a", "target": "t"}, {"prompt": "b", "category": "k"}]
    first = {behavior.id for behavior in load(lines(*rows)).behaviors}
    text, _ = table(["category", "target", "prompt"], ["k", "", "b"], ["", "t", "a"])
    assert {behavior.id for behavior in load(text, "b.csv").behaviors} == first
    assert {behavior.id for behavior in load(json.dumps(rows[::-1]), "b.json").behaviors} == first


# --- rows that cannot be used ---


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"target": "Sure"}, "has no prompt"),
        ({}, "is empty"),
        ({"prompt": "   "}, "has no prompt"),
        ({"prompt": 3}, "prompt is a number (3), not text"),
        ({"prompt": ["a"]}, "prompt is a list"),
        ({"prompt": "a", "target": {"b": 1}}, "target is an object"),
        ({"prompt": "a", "harmful": "perhaps"}, "harmful is 'perhaps'"),
        ({"prompt": "a", "label": "3_partial"}, "label is '3_partial'"),
        ({"prompt": "a", "harmful": 0.5}, "harmful is 0.5"),
        ({"prompt": "a", "Prompt": "b"}, "twice"),
        ({"prompt": "a\ud800"}, "half of a character"),
        ({"messages": []}, "do not end with the user's request"),
        ({"messages": "nope"}, "messages are not JSON"),
        ({"messages": {"role": "user"}}, "not a list"),
        ({"messages": [{"role": "user"}]}, "role and a content"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role 'robot'"),
        ({"messages": [{"role": "user", "content": 1}]}, "a message's content is a number"),
        ({"messages": [{"role": "system", "content": "a"}]}, "do not end with the user's request"),
        (["prompt"], "is a list, not an object"),
        ("prompt", "is text, not an object"),
        (None, "is null"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_the_reason(load, row, reason):
    loaded = load(lines({"prompt": "good"}, row))
    assert [behavior.prompt for behavior in loaded.behaviors] == ["good"]
    assert list(reasons(loaded)) == [2]
    assert reason in reasons(loaded)[2]
    assert loaded.skipped[0].source == "behaviors.jsonl"


def test_a_broken_line_of_jsonl_does_not_take_the_others_with_it(load):
    deep = "[" * 100_000
    loaded = load('{"prompt": "a"}\n\n{"prompt": \n' + deep + '\n{"prompt": "b"}')
    assert [behavior.prompt for behavior in loaded.behaviors] == ["a", "b"]
    assert set(reasons(loaded)) == {3, 4}
    assert "not JSON" in reasons(loaded)[3]


def test_the_same_content_is_used_once_and_said_to_be_there_twice(load):
    loaded = load(lines({"prompt": "a", "id": "1"}, {"prompt": "b"}, {"prompt": "a", "id": "2"}))
    assert len(loaded.behaviors) == 2
    assert reasons(loaded) == {3: "the same as line 1"}


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1).filter(str.strip)


@given(prompts=st.lists(FIELD, min_size=1, unique=True), bad=st.sets(st.integers(0, 30)))
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_every_row_is_used_or_skipped_on_its_own_line(suffix, prompts, bad, tmp_path_factory):
    rows = [{"prompt": prompt, "harmful": "???" if i in bad else "yes"} for i, prompt in enumerate(prompts)]
    if suffix == ".csv":
        text, starts = table(["prompt", "harmful"], *([row["prompt"], row["harmful"]] for row in rows))
        starts = starts[1:]
    elif suffix == ".jsonl":
        text, starts = lines(*rows), list(range(1, len(rows) + 1))
    else:
        text = json.dumps(rows, indent=1)
        starts = [number for number, line in enumerate(text.split("\n"), 1) if line.strip() == "{"]
    path = tmp_path_factory.mktemp("rows") / f"b{suffix}"
    path.write_bytes(text.encode())
    expected = [i for i in range(len(rows)) if i not in bad]
    if not expected:
        with pytest.raises(UserError, match="none of the"):
            load_behaviors(path)
        return
    loaded = load_behaviors(path)
    assert [behavior.prompt for behavior in loaded.behaviors] == [prompts[i] for i in expected]
    assert [row.line for row in loaded.skipped] == [starts[i] for i in range(len(rows)) if i in bad]


def test_csv_lines_are_counted_through_quoted_fields(load):
    text = 'prompt,target\n\n"two\nlines","a\n\nb"\nthree,a,b\none\n"last\r\none",x\n'
    loaded = load(text, "b.csv")
    assert [behavior.prompt for behavior in loaded.behaviors] == ["two\nlines", "last\r\none"]
    assert reasons(loaded) == {
        7: "has 3 fields, where the header has 2",
        8: "has 1 fields, where the header has 2",
    }


def test_a_long_field_and_hostile_text_are_data(load):
    hostile = '<script>alert(1)</script>\x1b[31m\u202e{{ 1/0 }}=cmd|" /C calc"!A0' + "x" * 1_000_000
    text, _ = table(["prompt"], [hostile])
    assert load(text, "b.csv").behaviors[0].prompt == hostile
    assert load(lines({"prompt": hostile})).behaviors[0].prompt == hostile


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["b.jsonl", "b.csv", "b.json", "b.CSV"])
def test_byte_order_marks_are_no_text(load, encoding, name):
    text = {"jsonl": '{"prompt": "é"}', "json": '[{"prompt": "é"}]', "csv": "prompt\né\n"}[name.lower()[2:]]
    assert load(text, name, encoding).behaviors[0].prompt == "é"


@pytest.mark.parametrize("name", ["behaviors", "rows", "data"])
def test_json_may_hold_the_list_in_an_object(load, name):
    text = json.dumps({"about": {"data": 1}, name: [{"prompt": "a"}, 3]}, indent=2)
    loaded = load(text, "b.json")
    assert loaded.behaviors[0].prompt == "a"
    assert list(reasons(loaded)) == [text[: text.index("3")].count("\n") + 1]


def test_tab_separated(load):
    assert load("goal\ttarget\na, b\tc\n", "b.tsv").behaviors[0].target == "c"


# --- files that cannot be used ---


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("", "b.jsonl", "is empty"),
        (" \n\n", "b.csv", "is empty"),
        ("[]", "b.json", "holds no behaviors"),
        ("prompt,target\n", "b.csv", "holds no behaviors"),
        ("a,b\n1,2\n", "b.csv", "no column of requests"),
        ('prompt\n"open', "b.csv", "is not CSV (line 2"),
        ('[{"prompt": "a"},\n{]', "b.json", "is not JSON"),
        ('{"prompt": "a"}\n{"prompt": "b"}', "b.json", ".jsonl"),
        ('[{"prompt": "a"},\n{"prompt": "b"}]', "b.jsonl", "name it .json"),
        ("3", "b.json", "not a list of objects"),
        ("[" * 100_000, "b.json", "nested too deeply"),
        ('{"target": "a"}', "b.jsonl", "none of the 1 rows"),
        (
            '{"prompt": "a"}',
            "b.md",
            "give JSONL (.jsonl), CSV (.csv, .tsv), JSON (.json), Parquet (.parquet) or one prompt a line (.txt)",
        ),
        ('{"prompt": "a"}', "b.txt", "begins with JSON: name it .jsonl"),
        ("prompt,target\na,b\n", "b.txt", "begins with columns: name it .csv"),
        ('"Brew it, please"\nBrew this\n', "b.csv", "no column of requests among 'Brew it, please'"),
        ("goal;target\na;b\n", "b.csv", "columns are parted by commas"),
        ("prompt,target,prompt\na,b,c\n", "b.csv", "has the column 'prompt' twice"),
        ('[{"a": 1}]', "b.json", "(row 1: has no prompt (it has: a))"),
        ("PK\x03\x04\0\0", "b.csv", "zero byte"),
        (b"prompt\nna\xefve\n", "b.csv", "not text in UTF-8 (line 2)"),
        (b"\x80\x04\x95" * 9, "b.jsonl", "not text in UTF-8 (line 1)"),
        (b"PAR1\x15\x00\xff", "b.parquet", "no Parquet file that can be read"),
        (b"PAR1\x15\x00\xff", "b.jsonl", "is not a text file, whatever its name says: give JSONL"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(load, text, name, says):
    with pytest.raises(UserError) as raised:
        load(text, name)
    assert says in str(raised.value)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_behaviors(tmp_path / "missing.csv")
    with pytest.raises(UserError, match="is a directory"):
        load_behaviors(tmp_path)


@given(content=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_any_bytes_are_behaviors_or_an_error_of_one_line(suffix, content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        loaded = load_behaviors(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may or may not be raised
    else:
        assert loaded.behaviors
        msgspec.json.encode(loaded.behaviors)
