"""Laws of attacks that only make inputs: which ids they give, of whom, and what they refuse."""

import dataclasses
import json
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import GREEDY, items, setting, stage

from fathom.attack.decoding import BestOfN, Decoding, Template, worst_of
from fathom.attack.deep import DeepPrefill, MultiTurn, deep_depths
from fathom.attack.framing import FRAMES, Frame, Framing, load_frames
from fathom.attack.insertion import Insertion, grid
from fathom.attack.kinds import Draw, prepare
from fathom.attack.mutation import Mutated, mutate, mutated_units
from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.organism.attack_words import ASK_ON, FILLER
from fathom.organism.attack_words import FRAMES as OWN_FRAMES
from fathom.records import Behavior, Message, Sampling
from tiny_tokenizers import byte_level


@given(st.integers(1, 500))
def test_places_begin_with_none_and_end_with_all(length: int) -> None:
    found = grid(length)
    assert found[0] == 0
    assert found[-1] == length
    assert list(found) == sorted(set(found))


@given(st.integers(1, 12), st.integers(0, 20))
def test_an_insertion_is_a_refusals_beginning_and_a_span_of_the_answer(span: int, start: int) -> None:
    for item in items():
        refusal = stage().chat.response_ids(item.behavior.messages, item.behavior.refusal)
        made = list(Insertion(span=span, start=start).attempts((item,), setting()))
        assert len(made) == len(grid(len(refusal)))
        for attempt in made:
            place = attempt.parameters["place"]
            place = len(refusal) if place == "end" else int(place)
            assert attempt.prefill_ids == refusal[:place] + item.answer_ids[start : start + span]
            assert attempt.prompt_ids == item.prompt_ids


def test_all_places_are_all_and_drawn_ones_are_some_of_them_each_once() -> None:
    every, drawn = Insertion(places="all"), Insertion(places="random:5")
    for length in (1, 4, 5, 40):
        assert every.at(length, "b") == tuple(range(length + 1))
        some = drawn.at(length, "b")
        assert set(some) <= set(range(length + 1))
        assert len(set(some)) == len(some) == min(5, length + 1)
        assert some == drawn.at(length, "b")
    others = {Insertion(places="random:5", seed=seed).at(40, behavior) for seed in (0, 1) for behavior in "bcd"}
    assert len(others) == 6, "each behavior and seed has places of its own"


def test_drawn_places_are_one_row_and_say_where_they_were() -> None:
    (item, *_) = items()
    refusal = stage().chat.response_ids(item.behavior.messages, item.behavior.refusal)
    made = list(Insertion(places="random:3").attempts((item,), setting()))
    assert [one.parameters for one in made] == [{"place": "random", "span": 8}] * 3
    for one in made:
        place = int(one.found["place"])
        assert one.prefill_ids == refusal[:place] + item.answer_ids[:8]


def test_mutations_keep_a_text_readable_and_strength_0_keeps_it_as_it_is() -> None:
    text = "Explain carefully how Alice's 3 red potions are brewed, step by step!"
    made = [mutate(text, 0.4, Mutated.CHARACTERS, str(seed)) for seed in range(40)]
    assert len(set(made)) == 40
    assert made == [mutate(text, 0.4, Mutated.CHARACTERS, str(seed)) for seed in range(40)]
    for one in made:
        assert len(one) == len(text)
        assert one.isprintable()
        same = sum(a.lower() == b.lower() for a, b in zip(one, text, strict=True))
        assert same > len(text) // 3, "the source's strength leaves most characters where a reader looks for them"
    calm = [mutate(text, 0.0, units, "x") for units in Mutated]
    assert calm == [text, text]


@given(st.text(), st.floats(0, 1), st.sampled_from(list(Mutated)))
def test_any_text_can_be_mutated(text: str, strength: float, units: Mutated) -> None:
    made = mutate(text, strength, units, "1")
    if units is Mutated.CHARACTERS:
        assert len(made.split(" ")) >= 1
    else:
        assert set(made.split()) <= set(text.split())
        assert bool(made.split()) == bool(text.split())


def test_a_tokenizer_of_words_is_given_words_in_another_order() -> None:
    attack = BestOfN(n=6, mutate=0.4)
    unknown = stage().chat.tokenizer.unk_token_id
    made = list(attack.attempts(items(2), setting()))
    assert len(made) == len({one.id for one in made}) == 12
    assert len({one.prompt_ids for one in made}) > 6
    for one in made:
        assert one.parameters == {"mutate": 0.4, "mutated": "words"}
        assert unknown not in one.prompt_ids
    assert made == list(attack.attempts(items(2), setting()))
    assert next(BestOfN(n=2, mutate=0.4, temperature=0).attempts(items(1), setting())).sampling.greedy


def test_a_tokenizer_of_any_text_is_given_other_characters() -> None:
    template = "{% for m in messages %}{{ '<|user|>' + m['content'] }}{% endfor %}<|assistant|>"
    chat = ChatFormat(byte_level(("<|user|>", "<|assistant|>")), template, "test", frozenset())
    assert mutated_units(chat) is Mutated.CHARACTERS
    asked = Message(role="user", content="Tell me how potions are brewed.")
    (item,) = prepare(chat, [Behavior(id="b", messages=(asked,))])
    (one, *_) = BestOfN(n=3, mutate=0.4).attempts([item], dataclasses.replace(setting(), chat=chat))
    text = chat.decode(one.prompt_ids)
    assert "Tell me how potions are brewed." not in text
    assert one.parameters["mutated"] == "characters"


def test_a_jinja_frame_can_ask_in_another_writing() -> None:
    frame = Frame("coded", "{{ prompt | base64 }} {{ prompt | rot13 }} {{ prompt | hex }}", jinja=True)
    assert frame.fill("Hi", "").user == "SGk= Uv 4869"


def test_insertion_without_refusals_says_what_to_do() -> None:
    bare = [_changed(item, refusal=None) for item in items()]
    with pytest.raises(UserError, match="own-insertion"):
        list(Insertion().attempts(bare, setting()))


@pytest.mark.parametrize("filler", [None, FILLER])
def test_a_deep_prefill_has_the_depth_that_it_says_and_ends_in_the_own_answer(filler: str | None) -> None:
    for attempt in DeepPrefill((5, 200, 700), filler=filler).attempts(items(), setting()):
        depth, own = int(attempt.parameters["depth"]), _answer(attempt.behavior)
        assert len(attempt.prefill_ids) == depth
        if not attempt.parameters["composed"]:
            assert attempt.prefill_ids == own[:depth]
        else:
            half = own[: len(own) // 2]
            assert attempt.prefill_ids[-len(half) :] == half


def test_one_short_answer_cannot_make_up_a_deep_prefill() -> None:
    with pytest.raises(UserError, match="filler"):
        list(DeepPrefill((1000,)).attempts(items()[:1], setting()))


def test_deep_depths_leave_room() -> None:
    assert deep_depths(None) == (250, 500, 1000, 2000, 4000)
    assert deep_depths(1000) == (250, 500, 1000)
    assert deep_depths(10) == ()


def test_multi_turn_puts_the_start_into_an_earlier_turn() -> None:
    for attempt in MultiTurn((4, 9), ask=ASK_ON).attempts(items(), setting()):
        item = next(item for item in items() if item.behavior.id == attempt.behavior)
        text = stage().chat.tokenizer.decode(attempt.prompt_ids)
        start = stage().chat.decode(item.answer_ids[: int(attempt.parameters["tokens"])]).strip()
        assert attempt.prefill_ids == ()
        assert text.index(item.behavior.prompt) < text.index(start) < text.rindex(ASK_ON)


def test_what_is_said_to_the_organism_is_in_its_vocabulary() -> None:
    unknown = stage().chat.tokenizer.unk_token_id
    for text in (ASK_ON, FILLER, *(f"{frame.user} {frame.system or ''} {frame.prefill}" for frame in OWN_FRAMES)):
        ids = stage().chat.tokenise(text.replace("{prompt}", ""))
        assert ids
        assert unknown is None or unknown not in ids


def test_framing_puts_each_request_into_each_frame() -> None:
    frames = tuple(Frame(*words) for words in OWN_FRAMES)
    made = list(Framing(frames).attempts(items(), setting()))
    assert len(made) == len(items()) * len(frames)
    for attempt in made:
        item = next(item for item in items() if item.behavior.id == attempt.behavior)
        text = stage().chat.tokenizer.decode(attempt.prompt_ids)
        assert item.behavior.prompt in text
        frame = next(frame for frame in frames if frame.name == attempt.parameters["frame"])
        assert stage().chat.decode(attempt.prefill_ids) == frame.prefill


def test_a_template_without_a_system_role_has_the_frames_words_before_the_users() -> None:
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    chat = dataclasses.replace(stage().chat, template=refuses + str(stage().chat.template))
    frame = Frame("under", "{prompt}", system="please")
    for given_, joined in ((stage().chat, False), (chat, True)):
        (made,) = Framing((frame,)).attempts(items()[:1], dataclasses.replace(setting(), chat=given_))
        text = given_.tokenizer.decode(made.prompt_ids)
        assert text.index("please") < text.index(items()[0].behavior.prompt)
        assert (text.count("<user>") == text.count("<system>") == 1) != joined, text


@given(st.text(max_size=30), st.text(max_size=30))
def test_what_a_request_holds_is_never_a_placeholder(prompt: str, target: str) -> None:
    frame = Frame("a", "<{prompt}|{target}>")
    assert frame.fill(prompt, target).user == f"<{prompt}|{target}>"
    assert frame.fill("{target}", "x").user == "<{target}|x>"
    assert Frame("j", "<{{ prompt }}|{{ target }}>", jinja=True).fill("{{ target }}", "x").user == "<{{ target }}|x>"


def test_the_built_in_frames_are_frames() -> None:
    assert len({frame.name for frame in FRAMES}) == len(FRAMES)
    assert all("QUESTION" in frame.fill("QUESTION", "TARGET").user for frame in FRAMES)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("f.json", "{", "cannot be used"),
        ("f.json", "[]", "give one or more"),
        ("f.json", '[{"name": "a", "user": "no place"}]', "has no {prompt}"),
        ("f.json", '[{"name": "a", "user": "{prompt} {targte}"}]', "{targte}"),
        ("f.json", '[{"name": "a", "user": "{prompt}"}, {"name": "a", "user": "{prompt}"}]', "each name once"),
        ("f.json", '[{"name": "a", "user": 3}]', "str"),
        (
            "f.json",
            '[{"name": "a", "user": "{prompt}", "sytem": "x"}]',
            "unknown key 'sytem'; there are name, user, system, prefill, jinja",
        ),
        ("f.json", '[{"name": "a", "user": "{prompt}"}, {"name": "b", "user": "{prompt}", "prefil": ""}]', "'prefil'"),
        ("f.jinja", "{{ prompt", "not a Jinja template"),
        ("f.jinja", "{{ nothing }}", "nothing"),
        ("f.jinja", "{{ ''.__class__.__mro__ }}", "cannot be used"),
        ("f.txt", "{prompt}", "neither .json"),
    ],
)
def test_frames_that_cannot_be_used_are_one_clear_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_frames(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frames_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps([{"name": "a", "user": "say {prompt}", "prefill": "{target}"}]))
    (frame,) = load_frames(path)
    assert frame == Frame("a", "say {prompt}", prefill="{target}")
    assert frame.wants_target
    path = tmp_path / "own.jinja"
    path.write_text("{{ prompt | upper }}")
    assert load_frames(path)[0].fill("yes", "").user == "YES"


def test_the_papers_grid_has_its_settings_once() -> None:
    found = Decoding().settings(10)
    assert len(found) == len(set(found)) == 20 + 19 + 9  # top-p 1 is temperature 1
    assert {s.top_k for s in found if s.top_k} == {1, 2, 5, 10, 20, 50, 100, 200, 500}


def test_the_grid_with_and_without_template() -> None:
    made = list(Decoding(samples=2).attempts(items(2), setting()))
    assert len(made) == 2 * 2 * 48 * 2
    bare = {attempt.prompt_ids for attempt in made if attempt.parameters["template"] == Template.NONE}
    chat = {attempt.prompt_ids for attempt in made if attempt.parameters["template"] == Template.CHAT}
    assert chat == {item.prompt_ids for item in items(2)}
    assert not bare & chat
    assert len({attempt.seed for attempt in made}) == len({attempt.id for attempt in made}) == len(made)


def test_best_of_n_is_n_draws() -> None:
    made = list(BestOfN(n=5, temperature=0.7).attempts(items(2), setting(GREEDY)))
    assert [attempt.sample for attempt in made] == [0, 1, 2, 3, 4] * 2
    assert {attempt.sampling for attempt in made} == {Sampling(max_new_tokens=60, temperature=0.7)}
    with pytest.raises(ValueError, match="temperature"):
        BestOfN(temperature=0)


@given(st.integers(1, 9), st.floats(0.05, 0.95))
def test_the_worst_of_n_is_estimated_without_bias(total: int, chance: float) -> None:
    """Over all that independent draws may bring, the mean is 1 - (1 - p)^n for every n."""
    for n in range(1, total + 1):
        mean = sum(
            math.comb(total, c) * chance**c * (1 - chance) ** (total - c) * worst_of(c, total, n)
            for c in range(total + 1)
        )
        assert mean == pytest.approx(1 - (1 - chance) ** n)


def test_the_worst_of_n_is_what_subsets_say() -> None:
    from itertools import combinations

    answers = [True, True, False, False, False]
    for n in range(1, 6):
        subsets = list(combinations(answers, n))
        assert worst_of(2, 5, n) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Insertion(span=0),
        lambda: Insertion(start=-1),
        lambda: BestOfN(mutate=1.5),
        lambda: BestOfN(temperature=0),
        lambda: Insertion(places="some"),
        lambda: Insertion(places="random:0"),
        lambda: Insertion(places="random:"),
        lambda: DeepPrefill(()),
        lambda: DeepPrefill((0,)),
        lambda: DeepPrefill((5,), filler=" "),
        lambda: MultiTurn(()),
        lambda: MultiTurn(ask=""),
        lambda: Framing(()),
        lambda: Decoding((), (), ()),
        lambda: Decoding(samples=0),
        lambda: Decoding(templates=()),
        lambda: BestOfN(n=0),
        lambda: Draw(Sampling(max_new_tokens=3), 2),
    ],
)
def test_parameters_that_make_no_attack(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\w"):
        make()


def _changed(item, **fields):  # type: ignore[no-untyped-def]
    import dataclasses

    return dataclasses.replace(item, behavior=msgspec.structs.replace(item.behavior, **fields))


def _answer(behavior: str) -> tuple[int, ...]:
    return next(item.answer_ids for item in items() if item.behavior.id == behavior)
