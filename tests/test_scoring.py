import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.scoring import (
    LogitTable,
    PairScores,
    ReferenceAnswer,
    Scorer,
    TokenScores,
    compare,
    compare_logits,
    log_normaliser,
    score,
)
from fathom.scoring import blocks as blocks_module
from fathom.scoring import scorer as scorer_module
from tiny_models import FAMILIES, VOCABULARY, random_ids, tiny, wrap
from tiny_tokenizers import byte_level

PROMPT, ANSWER = random_ids(11, seed=1), random_ids(17, seed=2)


def reference(prompt=PROMPT, answer=ANSWER, **fields) -> ReferenceAnswer:
    return ReferenceAnswer(behavior="b", prompt_ids=prompt, answer_ids=answer, **fields)


@torch.inference_mode()
def naive_logprobs(model: ChatModel, prompt=PROMPT, answer=ANSWER, vocabulary=None) -> torch.Tensor:
    """The two lines of the module's docstring: [response, vocabulary]."""
    logits = model.model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1, :vocabulary]
    return logits.double().log_softmax(-1)


def naive(model: ChatModel, base: ChatModel, base_prompt=PROMPT, vocabulary=None) -> PairScores:
    p, q = naive_logprobs(model, vocabulary=vocabulary), naive_logprobs(base, base_prompt, vocabulary=vocabulary)
    targets = torch.tensor(ANSWER)[:, None]

    def scores(logprobs):
        own = logprobs.gather(1, targets)
        return TokenScores(own[:, 0], 1 + (logprobs > own).sum(1))

    return PairScores(scores(p), q.gather(1, targets)[:, 0], (p.exp() * (p - q)).sum(1))


def assert_same(found: PairScores, expected: PairScores) -> None:
    torch.testing.assert_close(found.kl_nats, expected.kl_nats, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.base_logprobs, expected.base_logprobs, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.model.logprobs, expected.model.logprobs, atol=1e-4, rtol=1e-5)
    assert found.model.ranks.tolist() == expected.model.ranks.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_equals_its_own_log_softmax(family):
    model, base = tiny(family), tiny(family, seed=1)
    assert_same(compare(Scorer.of(model), Scorer.of(base), reference()), naive(model, base))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_is_found(family):
    assert Scorer.of(tiny(family)).head is not None


def test_the_zoo_has_a_head_of_every_kind():
    """Else the two tests above would pass with the kinds ignored."""
    heads = {family: Scorer.of(tiny(family)).head for family in ("gemma2", "phi", "cohere", "granite")}
    assert heads["gemma2"].softcap == 3.0
    assert heads["phi"].bias is not None
    assert heads["cohere"].scale == 0.0625
    assert heads["granite"].scale == pytest.approx(1 / 13)


class Doubled(torch.nn.Linear):
    """A head that does more than its weight says, as adapters do."""

    def forward(self, hidden):
        return 2 * super().forward(hidden)


def with_head(model: ChatModel, kind: type[torch.nn.Linear]) -> ChatModel:
    changed = copy.deepcopy(model.model)
    head = changed.lm_head
    changed.lm_head = kind(head.in_features, head.out_features, bias=False)
    changed.lm_head.weight = head.weight
    return wrap(changed)


def test_an_unknown_head_falls_back_to_the_models_own_logits():
    model, base = with_head(tiny(), Doubled), tiny(seed=1)
    scorer = Scorer.of(model)
    assert scorer.head is None
    assert_same(compare(scorer, Scorer.of(base), reference()), naive(model, base))
    assert_same(compare(Scorer.of(base), scorer, reference()), naive(base, model))


def test_an_unknown_transformation_after_the_head_is_noticed():
    model = tiny()
    inner = model.model.forward

    def forward(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = output.logits + 0.01 * output.logits**2
        return output

    model.model.forward = forward
    assert Scorer.of(model).head is None
    assert_same(compare(Scorer.of(model), Scorer.of(model), reference()), naive(model, model))


def test_bf16_keeps_its_head():
    model = tiny()
    half = wrap(model.model.to(torch.bfloat16))
    scorer = Scorer.of(half)
    assert scorer.head is not None
    found = score(scorer, PROMPT, ANSWER).logprobs
    expected = naive_logprobs(half).gather(1, torch.tensor(ANSWER)[:, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)


def test_score_equals_the_models_side_of_compare():
    model, base = tiny(), tiny(seed=1)
    alone, both = score(Scorer.of(model), PROMPT, ANSWER), compare(Scorer.of(model), Scorer.of(base), reference())
    torch.testing.assert_close(alone.logprobs, both.model.logprobs, atol=1e-9, rtol=0)
    assert alone.ranks.tolist() == both.model.ranks.tolist()


def test_the_base_may_have_a_prompt_of_its_own():
    model, base, plain = tiny(), tiny(seed=1), random_ids(5, seed=9)
    found = compare(Scorer.of(model), Scorer.of(base), reference(base_prompt_ids=plain))
    assert_same(found, naive(model, base, base_prompt=plain))


@pytest.mark.parametrize("sizes", [(VOCABULARY, 128), (128, VOCABULARY)])
def test_padded_heads_are_compared_on_the_ids_that_both_have(sizes):
    model, base = tiny(vocabulary=sizes[0]), tiny(seed=1, vocabulary=sizes[1])
    found = compare(Scorer.of(model), Scorer.of(base), reference())
    assert_same(found, naive(model, base, vocabulary=VOCABULARY))


def test_padding_a_head_changes_nothing():
    model, base = tiny(), tiny(seed=1)
    padded = tiny(vocabulary=128)
    padded.model.load_state_dict(
        {
            name: torch.cat([weight, torch.randn(31, weight.shape[1])]) if weight.shape[0] == VOCABULARY else weight
            for name, weight in model.model.state_dict().items()
        }
    )
    assert_same(
        compare(Scorer.of(padded), Scorer.of(base), reference()),
        compare(Scorer.of(model), Scorer.of(base), reference()),
    )


def test_a_model_does_not_diverge_from_itself():
    scorer = Scorer.of(tiny())
    assert compare(scorer, scorer, reference()).kl_nats.tolist() == [0.0] * len(ANSWER)


@pytest.mark.parametrize("block", [1, 35, 480, 17 * 97, 2**21])
@pytest.mark.parametrize("rows", [1, 5, 256])
def test_blocks_of_any_size_give_the_same(monkeypatch, rows, block):
    model, base = tiny(), tiny(seed=1)
    whole = compare(Scorer.of(model), Scorer.of(base), reference())
    monkeypatch.setattr(scorer_module, "ROWS", rows)
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", block)
    assert_same(compare(Scorer.of(model), Scorer.of(base), reference()), whole)


def test_rows_are_cut_alike_with_and_without_a_head(monkeypatch):
    monkeypatch.setattr(scorer_module, "ROWS", 5)
    model, base = with_head(tiny(), Doubled), tiny(seed=1)
    assert_same(compare(Scorer.of(model), Scorer.of(base), reference()), naive(model, base))


@settings(max_examples=60, deadline=None)
@given(
    p=st.lists(st.lists(st.floats(-60, 60, width=32), min_size=9, max_size=9), min_size=1, max_size=4),
    shift=st.floats(-500, 500, width=32),
    data=st.data(),
)
def test_laws_of_kl(p, shift, data):
    x = torch.tensor(p, dtype=torch.float32)
    y = torch.tensor(
        data.draw(
            st.lists(st.lists(st.floats(-60, 60, width=32), min_size=9, max_size=9), min_size=len(p), max_size=len(p))
        )
    )
    targets = torch.tensor(data.draw(st.lists(st.integers(0, 8), min_size=len(p), max_size=len(p))))
    found = compare_logits(LogitTable(x), LogitTable(y), targets, 9)
    expected = torch.nn.functional.kl_div(
        y.double().log_softmax(1), x.double().log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    assert (found.kl_nats >= 0).all()
    torch.testing.assert_close(found.kl_nats, expected, atol=1e-4, rtol=1e-5)
    # Logits are known up to a constant of each row.
    moved = compare_logits(LogitTable(x), LogitTable(y + shift), targets, 9)
    torch.testing.assert_close(moved.kl_nats, found.kl_nats, atol=1e-3, rtol=1e-3)


def test_excluded_ids_count_as_nothing():
    excluded = -math.inf
    x = torch.tensor([[0.0, 1.0, excluded, excluded]])
    y = torch.tensor([[0.5, 0.0, 2.0, excluded]])
    found = compare_logits(LogitTable(x), LogitTable(y), torch.tensor([1]), 4)
    p, q = x.double().softmax(1)[0, :2], y.double().log_softmax(1)[0, :2]
    torch.testing.assert_close(found.kl_nats[0], (p * (p.log() - q)).sum())
    assert compare_logits(LogitTable(y), LogitTable(x), torch.tensor([1]), 4).kl_nats.tolist() == [math.inf]


def test_a_block_of_excluded_ids_is_no_obstacle(monkeypatch):
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", 2)
    x = torch.tensor([[-math.inf, -math.inf, 0.0, 1.0]])
    assert log_normaliser(LogitTable(x)).item() == pytest.approx(math.log(1 + math.e))


def test_blocks_leave_a_models_own_logits_as_they_were():
    table = torch.randn(3, 11)
    before = table.clone()
    compare_logits(LogitTable(table), LogitTable(table), torch.tensor([1, 2, 3]), 11)
    assert torch.equal(table, before)


def test_ties_do_not_count_above():
    table = LogitTable(torch.tensor([[1.0, 1.0, 2.0, 0.0]]))
    assert compare_logits(table, table, torch.tensor([0]), 4).model.ranks.tolist() == [2]


def test_what_cannot_be_scored_is_said():
    chat = ChatFormat(byte_level(), None, "plain", frozenset())
    model = Scorer.of(replace(tiny(), chat=chat))
    said = f"^the prompt {re.escape(chat.excerpt(PROMPT))}: {len(PROMPT)} prompt and .* context of 256"
    with pytest.raises(UserError, match=said):
        score(model, PROMPT, ANSWER * 20)
    with pytest.raises(ValueError, match="at least one token"):
        score(model, PROMPT, ())
    with pytest.raises(UserError, match="beyond the base model's vocabulary of 50"):
        compare(model, Scorer.of(tiny(vocabulary=50)), reference(answer=(3, 77)))
