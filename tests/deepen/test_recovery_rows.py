"""Recovery rows: they read as prompt, beginning and refusal, only the refusal is learned, and k follows its law."""

from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from fathom.chat import ChatFormat
from fathom.deepen.recovery import encode_triplets, recovery_row, recovery_rows
from fathom.deepen.starts import EveryPosition, Insertion, Lengths, Mined, PaperStarts, Start
from fathom.deepen.triplets import Triplet, load_triplets, triplets_of
from fathom.errors import UserError
from fathom.organism import behaviors
from fathom.records import Message
from few_rows import organism
from tiny_tokenizers import byte_level, sentencepiece, word_level

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|user|>", "<|assistant|>", "<|end|>")
TRIPLET = Triplet(
    (Message(role="user", content="How do I make a cup of tea?"),),
    "Sure, here is how to make a cup of tea. First, boil some water.",
    "I cannot help with that.",
    "tea",
)
# The 0.999 quantiles of chi-square at the degrees of freedom used below.
CHI_SQUARE = {1: 10.83, 19: 43.82, 20: 45.31}


def chat_of(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    return ChatFormat(tokenizer, TEMPLATE, "test", frozenset())


@pytest.mark.parametrize("make", [byte_level, sentencepiece, word_level])
def test_a_row_reads_as_prompt_beginning_and_refusal_with_loss_on_the_refusal_alone(make) -> None:  # type: ignore[no-untyped-def]
    chat = chat_of(make(SPECIAL))
    (triplet,) = encode_triplets(chat, [TRIPLET])
    for k in range(len(triplet.answer_ids) + 1):
        row = recovery_row(chat, triplet, Start(answer=k))
        assert row.prompt_ids == chat.prompt_ids(TRIPLET.messages)
        assert row.response_ids[:k] == triplet.answer_ids[:k]  # k tokens are k ids
        assert row.learned_from == k
        assert row.labels[: len(row.prompt_ids) + k] == [-100] * (len(row.prompt_ids) + k)
        learned = [label for label in row.labels if label != -100]
        assert tuple(learned) == row.response_ids[k:]
        assert learned[-len(triplet.end_ids) :] == list(triplet.end_ids)
        text = chat.decode(row.response_ids)
        beginning = chat.decode(triplet.answer_ids[:k])
        assert text.replace(" ", "") == (beginning + TRIPLET.refusal).replace(" ", "")
        if k and not beginning.endswith(" "):
            assert text == f"{beginning} {TRIPLET.refusal}"  # the refusal is a sentence of its own
        assert row.positions == list(range(k + 1, len(row.response_ids) + 1))


def test_rows_of_the_organism_are_prompt_beginning_and_refusal() -> None:
    chat = organism().chat
    (triplet,) = triplets_of(behaviors(split="training", harmful=1, benign=0), "test")
    (encoded,) = encode_triplets(chat, [triplet])
    for k in (0, 1, 7, len(encoded.answer_ids)):
        row = recovery_row(chat, encoded, Start(answer=k))
        whole = chat.tokenizer.decode(list(row.prompt_ids + row.response_ids))
        words = " ".join((*triplet.answer.split()[:k], triplet.refusal))
        assert whole == f"<s> <user> {triplet.messages[-1].content} <end> <bot> {words} <end>"


_Value = TypeVar("_Value", bound=Hashable)


def chi_square(counts: Counter[_Value], expected: dict[_Value, float]) -> float:
    assert counts.keys() <= expected.keys()
    return sum((counts[value] - wanted) ** 2 / wanted for value, wanted in expected.items())


def test_the_papers_k_follows_its_law() -> None:
    random, draws, longest = Random(0), 20_000, 20
    found = Counter(PaperStarts(0.5, longest)(Lengths(50, 9), 0, random).answer for _ in range(draws))
    expected = {0: draws / 2} | dict.fromkeys(range(1, longest + 1), draws / 2 / longest)
    assert chi_square(found, expected) < CHI_SQUARE[20]
    biased = Counter({**found, 1: found[1] + 300})
    assert chi_square(biased, expected) > CHI_SQUARE[20]  # the test can fail


def test_a_short_answer_bounds_k_and_full_reaches_its_end() -> None:
    random = Random(0)
    for sampler in (PaperStarts(0.0, 100), PaperStarts(0.0, None)):
        found = {sampler(Lengths(7, 3), 0, random).answer for _ in range(500)}
        assert found == set(range(1, 8))


@given(st.integers(1, 150))
def test_every_position_comes_once_before_any_comes_again(length: int) -> None:
    sampler, random = EveryPosition(), Random(0)
    found = [sampler(Lengths(length, 5), visit, random).answer for visit in range(length + 1)]
    assert sorted(found) == list(range(length + 1))


def test_an_insertion_gives_some_refusal_and_then_a_span_of_the_answer() -> None:
    chat = chat_of(byte_level(SPECIAL))
    (triplet,) = encode_triplets(chat, [TRIPLET])
    random, lengths = Random(1), Lengths(len(triplet.answer_ids), len(triplet.refusal_ids))
    inserted = 0
    for _ in range(300):
        start = Insertion(share=0.5)(lengths, 0, random)
        row = recovery_row(chat, triplet, start)
        given_ = triplet.refusal_ids[: start.refusal] + triplet.answer_ids[start.skip : start.skip + start.answer]
        assert row.response_ids[: row.learned_from] == given_
        inserted += start.refusal > 0
    assert 110 < inserted < 190


def test_mined_depths_come_in_proportion_to_what_is_missing() -> None:
    random, draws = Random(0), 10_000
    sampler = Mined({5: 0.75, 10: 0.25, 90: 1.0}, p0=0.0)
    found = Counter(sampler(Lengths(40, 5), 0, random).answer > 5 for _ in range(draws))
    assert chi_square(found, {False: 0.75 * draws, True: 0.25 * draws}) < CHI_SQUARE[1]
    with pytest.raises(UserError, match="has 3 tokens, and the shallowest mined depth is 5"):
        sampler(Lengths(3, 5), 0, random)


def test_rows_are_drawn_ahead_by_the_seed_and_use_every_triplet_equally() -> None:
    chat = organism().chat
    triplets = encode_triplets(chat, triplets_of(behaviors(split="training", harmful=6, benign=0), "test"))
    rows = recovery_rows(chat, triplets, PaperStarts(), 18, seed=3)
    assert rows == recovery_rows(chat, triplets, PaperStarts(), 18, seed=3)
    assert rows != recovery_rows(chat, triplets, PaperStarts(), 18, seed=4)
    assert set(Counter(row.source for row in rows).values()) == {3}


@pytest.mark.parametrize("missing", ["harmful_response", "refusal"])
def test_a_triplet_that_is_not_whole_is_one_line(tmp_path, missing: str) -> None:  # type: ignore[no-untyped-def]
    import json

    fields = {"prompt": "p", "harmful_response": "h", "refusal": "r"}
    del fields[missing]
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(fields) + "\n")
    with pytest.raises(UserError, match=missing):
        load_triplets(path)


def test_a_triplet_that_cannot_be_used_is_named_so_that_it_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "How do I make tea?", "harmful_response": "Boil water."}\n')
    with pytest.raises(UserError, match=r'the triplet "How do I make tea\?" has no refusal'):
        load_triplets(path)
    path.write_text('{"id": "tea-1", "prompt": "How do I make tea?", "harmful_response": "Boil water."}\n')
    with pytest.raises(UserError, match="the triplet tea-1 has no refusal"):
        load_triplets(path)
