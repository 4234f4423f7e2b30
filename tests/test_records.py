"""Records are what they say on disk: strict, the same bytes for the same content, an id that is their content."""

import hashlib
import random
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.records import (
    Attempt,
    Behavior,
    Completion,
    Counted,
    Finish,
    Label,
    Message,
    Sampling,
    Subject,
    Verdict,
    content_hash,
    decode_line,
    encode_line,
    excerpt,
    spoken_name,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ids = st.lists(st.integers(0, 2**20), max_size=12)
parameters = st.dictionaries(texts, st.one_of(texts, st.integers(-(2**40), 2**40), st.booleans()), max_size=4)
samplings = st.one_of(
    st.builds(Sampling, max_new_tokens=st.integers(1, 999)),
    st.builds(
        Sampling,
        max_new_tokens=st.integers(1, 999),
        temperature=st.floats(0.01, 5),
        top_p=st.floats(0.01, 1),
        top_k=st.integers(0, 99),
    ),
)
attempts = st.builds(
    Attempt.make,
    behavior=texts,
    attack=texts,
    prompt_ids=ids.filter(bool),
    prefill_ids=ids,
    sampling=samplings,
    run_seed=st.integers(0, 2**31),
    parameters=parameters,
    subject=st.sampled_from(Subject),
    sample=st.integers(0, 9),
    found=parameters,
)
behaviors = st.builds(
    Behavior,
    id=texts,
    messages=st.lists(st.builds(Message, role=texts, content=texts), min_size=1, max_size=3).map(tuple),
    harmful=st.booleans(),
    category=st.none() | texts,
    answer=st.none() | texts,
    metadata=st.dictionaries(texts, texts, max_size=3),
)


@given(st.one_of(attempts, behaviors))
def test_a_record_is_one_line_and_comes_back(record: Attempt | Behavior) -> None:
    line = encode_line(record)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_line(line, type(record)) == record


@given(attempts, st.integers(0, 2**31))
def test_the_id_is_what_determines_the_completion(attempt: Attempt, other_seed: int) -> None:
    def made(**changes: object) -> Attempt:
        fields = ("behavior", "attack", "prompt_ids", "prefill_ids", "sampling", "parameters", "subject", "sample")
        return Attempt.make(**{name: getattr(attempt, name) for name in fields} | {"run_seed": other_seed} | changes)

    assert made().id == attempt.id
    assert made(found={"steps": 3}).id == attempt.id, "what a search found out beside the ids changes no completion"
    assert made(prefill_ids=(*attempt.prefill_ids, 1)).id != attempt.id
    assert made(prompt_ids=(*attempt.prompt_ids, 1)).id != attempt.id
    assert made(sample=attempt.sample + 1).id != attempt.id
    assert made(behavior=attempt.behavior + "x").id != attempt.id
    assert made(run_seed=other_seed + 1).seed != made().seed


def test_a_token_cannot_move_between_prompt_and_prefill_unnoticed() -> None:
    sampling = Sampling(max_new_tokens=1)
    one = Attempt.make(behavior="b", attack="a", prompt_ids=(1, 2), prefill_ids=(), sampling=sampling, run_seed=0)
    other = Attempt.make(behavior="b", attack="a", prompt_ids=(1,), prefill_ids=(2,), sampling=sampling, run_seed=0)
    assert one.id != other.id


@given(parameters)
def test_a_hash_does_not_depend_on_the_order_of_a_mapping(content: dict[str, object]) -> None:
    items = list(content.items())
    random.Random(0).shuffle(items)
    assert content_hash(dict(items)) == content_hash(content)
    assert len(content_hash(content)) == 24
    assert set(content_hash(content)) <= set(string.hexdigits.lower())


def test_a_hash_is_the_same_on_every_machine() -> None:
    written = '{"a":null,"b":[1,"ü"]}'.encode()  # keys in order, no spaces, UTF-8
    assert content_hash({"b": [1, "ü"], "a": None}) == hashlib.blake2b(written, digest_size=12).hexdigest()


@pytest.mark.parametrize(
    "line",
    [
        b'{"attempt":"a","output_ids":[],"text":"","prefill_text":"","token_ends":[],"finish":"stop","more":1}',
        b'{"attempt":"a","output_ids":[],"text":"","prefill_text":"","token_ends":[]}',
        b'{"attempt":"a","output_ids":["x"],"text":"","prefill_text":"","token_ends":[],"finish":"stop"}',
        b'{"attempt":"a","output_ids":[],"text":"","prefill_text":"","token_ends":[],"finish":"enough"}',
    ],
)
def test_a_line_of_another_version_is_an_error(line: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_line(line, Completion)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_a_sampling_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**{"max_new_tokens": 1, **wrong})  # type: ignore[arg-type]


def test_an_attempt_needs_a_prompt() -> None:
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        Attempt.make(
            behavior="b", attack="a", prompt_ids=(), prefill_ids=(), sampling=Sampling(max_new_tokens=1), run_seed=0
        )


@given(texts)
def test_a_made_id_gives_way_to_the_beginning_of_the_request(request: str) -> None:
    messages = (Message(role="system", content="Be brief."), Message(role="user", content=request))
    made = Behavior(id=content_hash(request), messages=messages)
    assert made.name == spoken_name(made.id, messages) == excerpt(request)
    assert Behavior(id="harm-12", messages=messages).name == "harm-12"


@given(st.text(max_size=200).map(lambda text: text * 40))
def test_an_excerpt_is_one_short_line_that_does_nothing_to_a_terminal(text: str) -> None:
    named = excerpt(text)
    assert named == f'"{named[1:-1]}"'
    assert len(named) <= 62
    assert named.isprintable()
    start = text.strip()[:20]
    if start.isprintable() and start == " ".join(start.split()):
        assert named[1:].startswith(start[: len(text.strip())].rstrip())


def test_an_excerpt_of_a_short_line_is_the_line() -> None:
    assert excerpt("How do I make tea?") == '"How do I make tea?"'
    assert excerpt("a" * 61) == f'"{"a" * 59}…"'


def test_labels_and_finishes_are_their_names_on_disk() -> None:
    verdict = Verdict(
        attempt="a", judge="j", version="1", counted=Counted.CONTINUATION, label=Label.UNDECIDED, reason="empty"
    )
    assert b'"label":"UNDECIDED"' in encode_line(verdict)
    assert [str(finish) for finish in Finish] == ["stop", "length"]
