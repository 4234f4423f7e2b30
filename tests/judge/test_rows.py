"""Rows of JSONL: what is a row, what is named as none, and that a line of input makes at most one line of output."""

import json
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import UserError
from fathom.judge.refusal import RefusalJudge
from fathom.judge.rows import JudgedRow, SkippedLine, judge_rows
from fathom.records import Exchange, Judgement, Label, encode_line

JUDGE = RefusalJudge()
REFUSAL = "Warm it. I cannot help with that."


def row(**keys: object) -> str:
    return json.dumps(keys)


@pytest.mark.parametrize("key", ["completion", "response", "output"])
def test_a_row_gets_its_verdict_and_place(key: str) -> None:
    (judged,) = judge_rows([row(prompt="How?", **{key: REFUSAL}, id="r7", other=[1, {"a": None}])], JUDGE)
    assert judged == JudgedRow(
        row=1, id="r7", verdict=Label.SAFE, reason="refused", refusal_char=9, judge="refusal", version=JUDGE.version
    )


def test_completion_is_preferred_and_prefill_is_handed_on() -> None:
    class Listener:
        name, version = "listener", "0"

        def judge(self, exchange: Exchange) -> Judgement:
            assert (exchange.prefill, exchange.response, exchange.behavior.prompt) == ("Sure", " thing", "How?")
            return Judgement(label=Label.HARMFUL, reason="complied")

    (judged,) = judge_rows([row(prompt="How?", completion=" thing", output="no", prefill="Sure")], Listener())
    assert isinstance(judged, JudgedRow)
    assert judged.judge == "listener"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[1]", "object"),
        ("null", "object"),
        ('{"prompt": ' + "[" * 100_000, "not JSON"),
        (row(completion="a"), "no prompt"),
        (row(prompt="a"), "no completion or response or output"),
        (row(prompt=1, completion="a"), "prompt must be text"),
        (row(prompt="a", completion=None), "completion must be text"),
        (row(prompt="a", completion="b", prefill=3), "prefill must be text"),
        (b'{"prompt": "\xff\xfe", "completion": "a"}', "not JSON"),
    ],
)
def test_bad_rows_are_named_and_the_others_judged(line: str | bytes, why: str) -> None:
    good = row(prompt="a", completion="Warm it.")
    first, second, third = judge_rows([good, line, good], JUDGE)
    assert isinstance(second, SkippedLine)
    assert second.row == 2
    assert why in second.skipped
    assert isinstance(first, JudgedRow)
    assert isinstance(third, JudgedRow)
    assert (first.row, third.row) == (1, 3)


@pytest.mark.parametrize("lines", [[], ["", "  \n"], ["{", "[]"]])
def test_nothing_to_judge_is_the_users_mistake(lines: list[str]) -> None:
    with pytest.raises(UserError, match=r"answers\.jsonl: nothing to judge"):
        list(judge_rows(lines, JUDGE, source="answers.jsonl"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a", "completion": "b"}\n'.encode("utf-16"), "not text in UTF-8"),
        (b'[{"prompt": "a", "completion": "b"},\n{}]', "is a JSON list"),
        (b'\n[\n {\n  "prompt": "a"\n }\n]', "is a JSON list"),
    ],
)
def test_a_file_of_another_format_is_one_line(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        next(judge_rows(content.splitlines(keepends=True), JUDGE, source="answers.json"))


def test_a_first_line_that_is_no_row_may_be_a_list() -> None:
    first, second = judge_rows(["[1]", row(prompt="a", completion=REFUSAL)], JUDGE)
    assert isinstance(first, SkippedLine)
    assert isinstance(second, JudgedRow)


def test_rows_stream() -> None:
    def endless() -> Iterator[str]:
        while True:
            yield row(prompt="a", completion=REFUSAL)

    judged = judge_rows(endless(), JUDGE)
    assert [next(judged).row for _ in range(3)] == [1, 2, 3]


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    (judged,) = judge_rows([b"\xef\xbb\xbf" + row(prompt="a", completion=REFUSAL).encode()], JUDGE)
    assert isinstance(judged, JudgedRow)


@given(st.text(max_size=60), st.text(max_size=200))
def test_law_any_text_makes_one_line(prompt: str, completion: str) -> None:
    (judged,) = judge_rows([row(prompt=prompt, completion=completion, id=completion)], JUDGE)
    line = encode_line(judged)
    assert line.count(b"\n") == 1
    assert msgspec.json.decode(line, type=JudgedRow) == judged
