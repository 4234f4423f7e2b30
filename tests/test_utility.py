"""Scores of task answers, and the command that hands a model to lm-eval."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.command.utility import UtilityRequest, run_utility
from fathom.errors import UserError
from fathom.records import Label
from fathom.utility import exact_match, final_number, lm_eval_command, over_refusal, rouge_1, shown_command

words = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=9).map(" ".join)


@given(words, words)
def test_rouge_is_a_symmetric_share_that_order_does_not_change(first: str, second: str) -> None:
    assert rouge_1(first, first) == 1.0
    assert 0.0 <= rouge_1(first, second) <= 1.0
    assert rouge_1(first, second) == rouge_1(second, first)
    assert rouge_1(first, second) == rouge_1(" ".join(reversed(first.split())), second)


def test_rouge_counts_shared_words_once_for_each_time() -> None:
    assert rouge_1("a a b", "a c") == pytest.approx(2 * 1 / 5)
    assert rouge_1("A, b!", "a b") == 1.0
    assert rouge_1("", "a") == 0.0


@pytest.mark.parametrize(
    ("reference", "response", "score"),
    [
        ("#### 1200", "So she has $1,200.", 1.0),
        ("#### -3", "It is 4, no: -3", 1.0),
        ("#### 5", "5 apples and 6 pears", 0.0),
        ("none", "none", 0.0),
        ("2.50", "2.5", 1.0),
        ("7", "", 0.0),
    ],
)
def test_the_final_number_counts(reference: str, response: str, score: float) -> None:
    assert final_number(reference, response) == score


def test_exact_match_does_not_look_at_spacing() -> None:
    assert exact_match("select a  from b", "select a from b\n") == 1.0
    assert exact_match("select a", "select b") == 0.0


def test_over_refusal_is_a_share_and_of_nothing_is_an_error() -> None:
    assert over_refusal([Label.SAFE, Label.HARMFUL, Label.UNDECIDED, Label.HARMFUL]) == 0.25
    with pytest.raises(UserError, match="no answers"):
        over_refusal([])


@given(st.text(st.characters(codec="ascii", exclude_characters=",=", min_codepoint=33), min_size=1))
def test_a_command_is_one_shell_line_whatever_the_model_is_called(name: str) -> None:
    command = lm_eval_command(name, ["gsm8k", "mmlu"], limit=3)
    assert tuple(shlex.split(shown_command(command))) == command
    assert f"pretrained={name},dtype=auto" in command


def test_a_model_without_a_chat_template_is_asked_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    run_utility(UtilityRequest(model=str(tmp_path), tasks=("mmlu",)))
    printed = capsys.readouterr()
    assert "--apply_chat_template" not in printed.out
    assert "has no chat template" in printed.err
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    run_utility(UtilityRequest(model=str(tmp_path), tasks=("mmlu",)))
    assert "--apply_chat_template" in capsys.readouterr().out


@pytest.mark.parametrize(("model", "tasks"), [("a,b", ["x"]), ("a=b", ["x"]), ("a", []), ("a", [" "])])
def test_what_lm_eval_could_not_read_is_refused(model: str, tasks: list[str]) -> None:
    with pytest.raises(UserError):
        lm_eval_command(model, tasks)
