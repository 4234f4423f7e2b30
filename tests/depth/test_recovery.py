import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.depth import nodes as nodes_module
from fathom.depth.nodes import TreeReader
from fathom.depth.recovery import (
    STOCK_OPENINGS,
    BehaviorRecovery,
    recovery,
    recovery_rows,
    refusal_set,
)
from fathom.depth.tree import OpeningTree
from fathom.scoring import ReferenceAnswer
from tiny_models import FAMILIES, WINDOW, random_ids, tiny, wrap

PROMPT, ANSWER = random_ids(11, seed=1), random_ids(2 * WINDOW, seed=2)
OPENINGS = [(5,), (7, 9), (7, 8, 11, 12), (7, 8, 11, 13), (7, 8, 20), (30, 31, 32), (30, 40)]
TREELESS = {"bloom", "mamba"}  # positions inside the attention scores; no attention


@torch.inference_mode()
def naive(model, openings, depths, prompt=PROMPT, answer=ANSWER) -> list[float]:
    """One plain forward for each depth and opening."""
    masses = []
    for depth in depths:
        mass = 0.0
        for opening in openings:
            before = [*prompt, *answer[:depth]]
            rows = model.model(torch.tensor([[*before, *opening]])).logits[0, len(before) - 1 : -1]
            mass += rows.double().log_softmax(-1).gather(1, torch.tensor(opening)[:, None]).sum().exp().item()
        masses.append(mass)
    return masses


def item(name="b", prompt=PROMPT, answer=ANSWER) -> ReferenceAnswer:
    return ReferenceAnswer(behavior=name, prompt_ids=prompt, answer_ids=answer)


def likely(model, depths=(0, 3, 9)) -> list[tuple[int, ...]]:
    """Openings that the model does give weight to after some depths: else a wrong tree would go unnoticed."""
    found = set()
    for depth in depths:
        ids = [*PROMPT, *ANSWER[:depth]]
        for rank in range(3):
            opening: list[int] = []
            for step in range(4):
                with torch.inference_mode():
                    logits = model.model(torch.tensor([[*ids, *opening]])).logits[0, -1]
                opening.append(int(logits.topk(3).indices[rank if step < 2 else 0]))
            found.add(tuple(opening))
    return sorted(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_equals_one_forward_per_depth(family):
    model = tiny(family)
    depths = range(len(ANSWER) + 1)
    openings = sorted(OpeningTree([*OPENINGS, *likely(model)]).openings)
    (record,) = recovery(model, [item()], openings, depths)
    assert record.positions == tuple(depths)
    assert record.refusal_mass == pytest.approx(naive(model, openings, depths), rel=1e-4, abs=5e-6)
    assert max(record.refusal_mass) > 3e-3


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - TREELESS))
def test_architectures_with_attention_take_the_tree(monkeypatch, family):
    """Else the test above would only say that plain forwards equal plain forwards."""
    monkeypatch.setattr(TreeReader, "plain_masses", None)
    model = tiny(family)
    openings = likely(model)
    (record,) = recovery(model, [item()], openings, [0, 3, 9])
    assert record.refusal_mass == pytest.approx(naive(model, openings, [0, 3, 9]), rel=1e-4, abs=5e-6)


@pytest.mark.parametrize("family", sorted(TREELESS))
def test_other_architectures_are_noticed_and_read_plainly(monkeypatch, family):
    asked = []
    plain = TreeReader.plain_masses
    monkeypatch.setattr(TreeReader, "plain_masses", lambda self, *given: asked.append(1) or plain(self, *given))
    list(recovery(tiny(family), [item()], OPENINGS, [0, 5]))
    assert asked == [1]


def test_a_mask_that_forgets_the_window_is_noticed(monkeypatch):
    asked = []
    plain = TreeReader.plain_masses
    monkeypatch.setattr(TreeReader, "plain_masses", lambda self, *given: asked.append(1) or plain(self, *given))
    monkeypatch.setattr(nodes_module, "_attention_kinds", lambda config: ("full_attention",))
    model = tiny("mistral")
    openings = likely(model)
    (record,) = recovery(model, [item()], openings, [3, 9])
    assert asked == [1]
    assert record.refusal_mass == pytest.approx(naive(model, openings, [3, 9]), rel=1e-4, abs=5e-6)


def test_a_head_that_is_no_projection_is_read_plainly():
    model = tiny()
    head = model.model.lm_head
    model.model.lm_head = type("Doubled", (torch.nn.Linear,), {})(head.in_features, head.out_features, bias=False)
    with torch.no_grad():
        model.model.lm_head.weight.copy_(2 * head.weight)
    openings = likely(model)
    (record,) = recovery(wrap(model.model), [item()], openings, [0, 3])
    assert record.refusal_mass == pytest.approx(naive(model, openings, [0, 3]), rel=1e-4, abs=5e-6)


@pytest.mark.parametrize("nodes", [1, 3, 1000])
def test_groups_of_any_size_give_the_same(monkeypatch, nodes):
    model = tiny()
    openings = likely(model)
    (whole,) = recovery(model, [item()], openings, range(17))
    monkeypatch.setattr(nodes_module, "NODES", nodes)
    (grouped,) = recovery(model, [item()], openings, range(17))
    assert grouped.refusal_mass == pytest.approx(whole.refusal_mass, rel=1e-4, abs=1e-7)


def test_what_is_cut_off_is_bounded(monkeypatch):
    model = tiny()
    openings = [(a, b, c) for a, b, c in itertools.product(range(1, 6), range(6, 10), range(10, 14))]
    bound = 1e-3
    monkeypatch.setattr(nodes_module, "NEGLIGIBLE", bound)
    (record,) = recovery(model, [item()], openings, range(17))
    exact = naive(model, openings, range(17))
    branches = 5 + 5 * 4  # inner nodes below the root
    assert all(
        low <= true + 1e-9 <= low + branches * bound for low, true in zip(record.refusal_mass, exact, strict=True)
    )
    assert any(low < true - 1e-7 for low, true in zip(record.refusal_mass, exact, strict=True))


def test_all_first_tokens_together_are_certain():
    (record,) = recovery(
        tiny(vocabulary=50), [item(answer=(3, 4, 5), prompt=(1, 2))], [(i,) for i in range(50)], range(4)
    )
    assert record.refusal_mass == pytest.approx((1.0,) * 4)
    assert max(record.refusal_mass) <= 1.0


def test_a_record_depends_on_its_item_alone():
    model = tiny()
    openings = likely(model)
    items = [item("a"), item("b", answer=ANSWER[:5]), item("c", prompt=random_ids(4, seed=5))]
    together = list(recovery(model, items, openings, [0, 2, 9]))
    assert [next(iter(recovery(model, [one], openings, [0, 2, 9]))) for one in items] == together
    assert list(recovery(model, items[::-1], openings, [0, 2, 9]))[::-1] == together


def test_positions_beyond_the_answer_are_not_measured():
    (record,) = recovery(tiny(), [item(answer=ANSWER[:3])], OPENINGS, [40, 3, 0, 4])
    assert record.positions == (0, 3)


def test_no_openings_have_no_mass():
    (record,) = recovery(tiny(), [item()], [], [0, 1])
    assert record.refusal_mass == (0.0, 0.0)


@given(st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=4), max_size=12))
def test_a_tree_holds_the_shortest_openings_and_nothing_else(openings):
    given_openings = {tuple(opening) for opening in openings if opening}
    tree = OpeningTree(openings)
    assert tree.openings <= given_openings
    for opening in given_openings:  # each is represented by exactly one opening that it begins with
        assert sum(opening[: len(kept)] == kept for kept in tree.openings) == 1
    ends = {
        (*prefix, int(level.ids[j]))
        for level in tree.levels
        for i, prefix in enumerate(level.prefixes)
        for j in range(len(level.ids))
        if level.opens[i, j]
    }
    assert ends == tree.openings


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=1, max_size=6))
def test_rows_average_the_records_that_reach_a_position(masses):
    records = [
        BehaviorRecovery(behavior=str(i), positions=tuple(range(len(row))), refusal_mass=tuple(row))
        for i, row in enumerate(masses)
    ]
    rows = recovery_rows(records)
    for row in rows:
        reached = [mass[row.position] for mass in masses if len(mass) > row.position]
        assert row.n == len(reached)
        assert row.refusal_mass == pytest.approx(sum(reached) / len(reached))
        assert 0 <= row.low <= row.refusal_mass + 1e-12
        assert row.refusal_mass - 1e-12 <= row.high <= 1
    assert recovery_rows(records[::-1]) == rows


class Words:
    """A chat format whose tokens are words, and spaces that follow no word."""

    def __init__(self):
        self.words: list[str] = []

    def id(self, word):
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def response_ids(self, messages, response):
        lead = response[: len(response) - len(response.lstrip())]
        return tuple(self.id(word) for word in ([lead] if lead else []) + response.split())

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


def openings_of(own=(), references=(), answers=(), **options) -> list[str]:
    chat: Any = Words()

    def ids(texts):
        return [chat.response_ids((), text) for text in texts]

    found = refusal_set(chat, ids(own), ids(references), answers=ids(answers), **options)
    assert all(a == b or a != b[: len(a)] for a in found for b in found), "not prefix-free"
    return [chat.decode(opening) for opening in found]


def test_the_models_own_and_most_frequent_refusals_come_first():
    own = ["No thanks my friend", "That is not for me", "That is not for us", "That is not for you"]
    found = openings_of(own, ["We never do such things"])
    assert found[:3] == ["That is not", "No thanks my", "We never do"]
    stock = {" ".join(text.split()[:4]) for text in STOCK_OPENINGS}
    assert set(found[3 : 3 + len(stock)]) == stock


def test_an_opening_is_lengthened_until_no_answer_begins_so():
    own = ["I cannot do that for you", "Let me think about it", "Let me see first what it is"]
    answers = ["I cannot do magic but here it is", "Let me think about it and here it is"]
    found = openings_of(own, answers=answers)
    assert "I cannot do that" in found
    assert "I cannot do" not in found
    assert not any(opening.startswith("Let me think") for opening in found)  # four tokens do not tell either
    assert "Let me see" in found


def test_a_short_refusal_is_whole_and_implies_longer_ones():
    assert openings_of(["No", "No I will not"], limit=1)[0] == "No"
    assert "No I will" not in openings_of(["No I will not", "No"])


def test_openings_stand_as_they_read_in_mid_answer_too():
    found = openings_of(["That is not for me"], limit=1)
    assert found == ["That is not", "  That is not", "\n\n That is not"]


def test_the_limit_holds():
    own = [f"w{i} a b c" for i in range(100)]
    assert len(openings_of(own, limit=32)) == 3 * 32


def test_stock_openings_with_words_that_the_tokenizer_lacks_are_left_out():
    """A tokenizer of few words would leave "I" of "I apologize", which is no refusal."""

    class FewWords(Words):
        def response_ids(self, messages, response):
            return super().response_ids(messages, " ".join(w for w in response.split() if w in {"I", "cannot", "help"}))

    chat: Any = FewWords()
    assert [chat.decode(ids) for ids in refusal_set(chat, [])] == ["I cannot help"]
