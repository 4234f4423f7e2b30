"""Loosened prompts: what stays, and what changes."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fathom.deepen.loosened import loosened
from fathom.records import Message

WORDS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12)


def asked(words: list[str]) -> tuple[Message, ...]:
    return (Message(role="system", content="be kind"), Message(role="user", content=" ".join(words)))


@given(WORDS, st.integers(0, 99))
def test_without_strength_nothing_changes(words: list[str], seed: int) -> None:
    assert loosened(asked(words), ["z"], Random(seed), 0.0) == asked(words)


@given(WORDS, st.integers(0, 99), st.floats(0, 1))
def test_only_the_last_message_changes_and_is_never_empty(words: list[str], seed: int, strength: float) -> None:
    found = loosened(asked(words), ["z"], Random(seed), strength)
    assert found[0] == asked(words)[0]
    assert found[1].content.split()
    assert set(found[1].content.split()) <= {*words, "z"}
    assert found == loosened(asked(words), ["z"], Random(seed), strength)


def test_words_are_left_out_put_in_and_swapped() -> None:
    words = [f"w{i}" for i in range(200)]
    found = loosened(asked(words), ["z"], Random(0), 0.2)[1].content.split()
    left = [word for word in found if word != "z"]
    assert 20 < 200 - len(left) < 60
    assert 10 < found.count("z") < 40
    assert left != sorted(left, key=lambda word: int(word[1:]))
