"""Rows and data: what is learned is what was written, cut before it is annotated, and every odd line is one line."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.records import Message, content_hash
from fathom.tuning.batches import ABSENT, Example, collate, collate_examples
from fathom.tuning.rows import Kind, TrainingRow, fit_length, read_rows, rows_hash, write_rows
from few_rows import random_rows
from tiny_tokenizers import word_level


@given(st.integers(0, 100), st.integers(4, 20))
def test_cutting_keeps_the_beginning_and_what_is_learned(seed: int, length: int) -> None:
    rows = [row for row in random_rows(8, seed=seed) if len(row.prompt_ids) + row.learned_from < length]
    found = fit_length(rows, context=None, max_length=length)
    for before, after in zip(rows, found.rows, strict=True):
        assert after.input_ids == before.input_ids[:length]
        assert after.labels == before.labels[:length]
        assert after.positions == before.positions[: len(after.positions)]
    assert found.cut == sum(len(row.input_ids) > length for row in rows)


def test_rows_that_do_not_fit_are_one_line() -> None:
    row = TrainingRow(prompt_ids=(1,) * 6, response_ids=(2,) * 4, learned_from=2, source="data.jsonl:7")
    with pytest.raises(UserError, match=r"data\.jsonl:7 has 10 tokens, and the model's context is 9"):
        fit_length([row], context=9, max_length=None)
    with pytest.raises(UserError, match="has 8 tokens before the first one that is learned"):
        fit_length([row], context=64, max_length=8)
    with pytest.raises(UserError, match="max_length is 65, but the model's context is 64"):
        fit_length([row], context=64, max_length=65)
    assert fit_length([row], context=10, max_length=None).rows == (row,)


def test_a_row_of_no_file_is_named_by_its_prompt() -> None:
    chat = ChatFormat(word_level(), None, "plain", frozenset())
    prompt = chat.prompt_ids((Message(role="user", content="How do I make tea?"),))
    for source in ("", content_hash("tea")):
        row = TrainingRow(prompt_ids=prompt, response_ids=(2,) * 4, source=source)
        with pytest.raises(UserError, match=rf"the task row with the prompt {re.escape(chat.excerpt(prompt))} has"):
            fit_length([row], context=4, max_length=None, chat=chat)


def test_a_row_without_anything_to_learn_cannot_be_made() -> None:
    for fields in ({"learned_from": 2}, {"prompt_ids": ()}, {"learned_from": -1}):
        with pytest.raises(ValueError, match=r"learned_from|prompt_ids"):
            TrainingRow(**{"prompt_ids": (1,), "response_ids": (1, 2), **fields})  # type: ignore[arg-type]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = random_rows(5, held=1.0)
    write_rows(tmp_path / "rows.jsonl", rows)
    assert list(read_rows(tmp_path / "rows.jsonl")) == rows
    assert rows_hash(rows) == rows_hash(read_rows(tmp_path / "rows.jsonl"))
    assert rows_hash(rows) != rows_hash(rows[::-1])


@given(st.integers(0, 200))
def test_a_batch_holds_the_learned_tokens_row_after_row(seed: int) -> None:
    rows = random_rows(6, seed=seed)
    batch = collate(rows)
    mask = batch.labels[:, 1:] != -100
    assert batch.labels[:, 1:][mask].tolist() == batch.tokens.labels.tolist()
    assert batch.tokens.positions.tolist() == [position for row in rows for position in row.positions]
    assert batch.counts == [len(row.positions) for row in rows]
    for i, row in enumerate(rows):
        kept = batch.attention_mask[i].sum().item()
        assert batch.input_ids[i, :kept].tolist() == row.input_ids
        assert batch.labels[i, :kept].tolist() == row.labels
        assert batch.labels[i, kept:].eq(-100).all()


def test_a_column_of_other_rows_is_refused() -> None:
    row = TrainingRow(prompt_ids=(1,), response_ids=(2, 3))
    with pytest.raises(ValueError, match="made for other rows"):
        collate_examples([Example(row, logprobs=(-1.0,))])
    mixed = collate_examples([Example(row, ids=((4, 5), (6, 7)), top=((-1.0, -2.0), (-1.0, -2.0))), Example(row)])
    assert mixed.tokens.reference_top is not None
    assert mixed.tokens.reference_top[2:].eq(ABSENT).all()


def test_a_kind_is_written_as_its_word() -> None:
    assert str(Kind.RECOVERY) == "recovery"
