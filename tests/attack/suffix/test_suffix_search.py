"""A search is pure: the same state always gives the same next one, in whatever process it is asked for."""

from typing import Any

import msgspec
import pytest
import torch
from suffix_chats import ASK, tiny_chat
from test_suffix_evaluate import naive_losses

from fathom.attack.suffix.candidates import best_ids, draw, generator
from fathom.attack.suffix.evaluation import Common
from fathom.attack.suffix.options import Full, Halving, Mellowmax, Options, Probe
from fathom.attack.suffix.problem import Problem, Target, emphasised
from fathom.attack.suffix.search import SuffixSearch
from fathom.attack.suffix.state import State
from fathom.attack.suffix.text import allowed_ids, place_suffix, start_ids, suffix_text, with_suffix
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.records import Message

OPTIONS = Options(steps=6, length=5, width=24, topk=16, seed=3)
MORE = (
    ASK,
    (Message(role="user", content="Tell me of the cafés."),),
    (Message(role="user", content="Wait for four minutes, then drink."),),
)


def a_search(options: Options = OPTIONS, cases: int = 1, kind: str = "byte_level", **extra: Any) -> SuffixSearch:
    model = tiny_chat(kind)
    allowed = allowed_ids(model.chat, model.vocabulary, options.allowed)
    start = start_ids(model.chat, ASK, allowed, options.length, options.seed)
    found = []
    for number, messages in enumerate(MORE[:cases]):
        target = Target(model.chat.response_ids(messages, "Sure, here is how"))
        found.append(place_suffix(model.chat, str(number), messages, target, start))
    return SuffixSearch.of(model, Problem(tuple(found)), options, start, **extra)


def model_of(search: SuffixSearch) -> ChatModel:
    evaluator = search.scorers.cases[0]
    assert isinstance(evaluator, Common)
    return evaluator.scorer.model


def run(search: SuffixSearch, state: State, steps: int) -> list[State]:
    states = []
    for _ in range(steps):
        state = search.step(state)
        states.append(state)
    return states


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        Options(steps=6, length=5, width=24, topk=16, buffer=3, merge=4),
        Options(steps=6, length=5, width=24, topk=16, replace=2, early=2, replace_first=3, selection=Halving(2, 3)),
        Options(steps=6, length=5, width=24, topk=16, buffer=1, objective=Mellowmax(1.0)),
    ],
    ids=["plain", "buffer and merging", "several replacements and halving", "mellowmax"],
)
@pytest.mark.parametrize("cases", [1, 3])
def test_a_search_goes_on_from_any_of_its_states(options: Options, cases: int) -> None:
    """From the JSON of any state, in a fresh search, the rest is the same to the last digit."""
    first = a_search(options, cases)
    states = [first.init(), *run(first, first.init(), 5)]
    for at in (0, 2, 4):
        line = msgspec.json.encode(states[at])
        again = a_search(options, cases)
        assert again.identity == first.identity
        assert run(again, msgspec.json.decode(line, type=State), 5 - at) == states[at + 1 :]


def test_a_step_is_plain_gcg() -> None:
    """The naive step: autograd's slope, candidates from it, each in a forward of its own, the lowest loss wins."""
    search = a_search()
    state = search.init()
    case = search.problem.cases[0]
    model = model_of(search)
    for _ in range(3):
        current = state.current.ids
        slope = search.scorers.cases[0].gradient(current, OPTIONS.objective).slope
        best = best_ids(slope, search.allowed, OPTIONS.topk)
        candidates = draw(current, best, OPTIONS.width, 1, generator(OPTIONS.seed, state.step))
        typed = [
            row
            for row in candidates.tolist()
            if model.chat.prompt_ids(with_suffix(case.messages, suffix_text(model.chat, row))) == case.prompt_ids(row)
        ]
        losses = naive_losses(model, case, torch.tensor(typed))
        state = search.step(state)
        assert state.current.ids == tuple(typed[int(losses.argmin())])
        assert state.current.loss == pytest.approx(float(losses.min()), abs=2e-5)


def test_a_narrow_draw_of_which_nothing_can_be_typed_is_drawn_again() -> None:
    """Of words alone: between two of them must be a space, so most exchanges give other ids. No search ends of that."""
    search = a_search(Options(steps=6, length=5, width=1, topk=16, seed=3), kind="word_level")
    first: Any = search.scorers.cases[0]
    chat, case = first.scorer.model.chat, search.problem.cases[0]
    for state in run(search, search.init(), 6):
        typed = with_suffix(case.messages, suffix_text(chat, state.current.ids))
        assert chat.prompt_ids(typed) == case.prompt_ids(state.current.ids)


def test_every_suffix_of_a_search_can_be_typed() -> None:
    search = a_search(cases=3)
    chat = model_of(search).chat
    for state in run(search, search.init(), 5):
        for case in search.problem.cases:
            typed = with_suffix(case.messages, suffix_text(chat, state.current.ids))
            assert chat.prompt_ids(typed) == case.prompt_ids(state.current.ids)


def test_halving_that_keeps_all_chooses_as_the_full_selection_does() -> None:
    """Its bound is exact: a candidate is only turned away when its first tokens alone cost more than the best."""
    full = a_search(Options(steps=6, length=5, width=24, topk=16, selection=Full()))
    bound = a_search(Options(steps=6, length=5, width=24, topk=16, selection=Halving(first=2, keep=1, group=3)))
    ours, theirs = run(bound, bound.init(), 5), run(full, full.init(), 5)
    assert [one.current.ids for one in ours] == [one.current.ids for one in theirs]


def test_a_buffer_never_gets_worse_and_no_buffer_moves_on() -> None:
    kept = a_search(Options(steps=8, length=5, width=4, topk=64, buffer=1))
    losses = [state.current.loss for state in run(kept, kept.init(), 8)]
    assert losses == sorted(losses, reverse=True)
    free = a_search(Options(steps=8, length=5, width=4, topk=64))
    states = run(free, free.init(), 8)
    assert [state.current for state in states] == [state.chosen for state in states]
    assert all(state.best.loss <= state.chosen.loss for state in states)


def test_probe_sampling_with_the_model_as_its_own_draft_scores_few() -> None:
    options = Options(steps=3, length=5, width=64, topk=32, selection=Probe(reduction=8, factor=16))
    search = a_search(options, draft=tiny_chat())
    states = run(search, search.init(), 3)
    assert states[-1].queries < 3 * 64 / 3
    with pytest.raises(UserError, match="draft"):
        run(a_search(options), search.init(), 1)


def test_a_draft_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="vocabular"):
        a_search(Options(selection=Probe()), draft=tiny_chat("word_level"))


def test_cases_join_in_when_those_before_are_reached() -> None:
    """A target of one token that the model is already about to write is reached at once, and the next case joins."""
    search = a_search(cases=3)
    model = model_of(search)
    easy = []
    for case in search.problem.cases:
        ids = torch.tensor([case.prompt_ids(search.start)])
        easy.append(msgspec.structs.replace(case, target=Target((int(model.model(ids).logits[0, -1].argmax()),))))
    options = Options(steps=30, length=5, width=24, topk=16)
    found = SuffixSearch.of(model, Problem(tuple(easy)), options, search.start)
    state = found.init(active=1)
    assert state.active == 1
    last = state
    for last in found.states(state):
        assert len(last.best.reached) == last.active
        if last.active == 3 and all(last.best.reached):
            break
    assert last.active == 3


def test_a_search_lowers_the_loss() -> None:
    search = a_search(Options(steps=12, length=5, width=64, topk=64, buffer=1))
    states = [search.init(), *run(search, search.init(), 10)]
    assert states[-1].best.loss < states[0].best.loss - 0.1
    assert states[-1].queries > states[1].queries > 0


def test_weights_follow_refusal_mass() -> None:
    assert emphasised((0.0, 0.9), floor=0.1) == (0.1, 1.0)
    target = Target((4, 5), emphasised((0.0, 0.9), floor=0.1))
    assert target.shares == pytest.approx((0.1 / 1.1, 1.0 / 1.1))


def test_bad_options_and_problems() -> None:
    for wrong, word in (
        ({"length": 0}, "no tokens to optimise"),
        ({"start": ""}, "no tokens to optimise"),
        ({"width": 0}, "width is 0"),
        ({"topk": 0}, "topk is 0"),
        ({"buffer": -1}, "buffer is -1"),
    ):
        with pytest.raises(UserError, match=word):
            Options(**wrong)
    with pytest.raises(UserError, match="no tokens"):
        Target(())
    with pytest.raises(UserError, match="no behavior"):
        Problem(())
    with pytest.raises(UserError, match="cross-entropy"):
        Options(selection=Halving(), objective=Mellowmax())
