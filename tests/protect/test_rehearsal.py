"""Rehearsed rows weigh what they are said to weigh; the answer gate holds what a sentinel breaks off, no more."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

import msgspec
import pytest

from fathom.errors import UserError
from fathom.organism.judge import GuildRefusalJudge
from fathom.protect.answers import AnswerGate, broken_off, count_broken_off
from fathom.protect.gate import Gate, Prompt, count_refusals, still_refused
from fathom.protect.known import known_share
from fathom.protect.objectives import parse_objective
from fathom.protect.prepare import Requests, prepare
from fathom.protect.rehearsal import Rehearsal, rehearse
from fathom.protect.sentinel import Told, acquaintance_rows, known_rows, sentinel_rows
from fathom.records import Attempt, Completion, Exchange, Finish, Judgement, Label, Message
from fathom.tuning.rows import Kind, TrainingRow
from few_rows import guild_rows, organism

REFUSAL, ANSWER = 7, 8


class Reader:
    """Text "no" is a refusal."""

    name, version = "reader", "1"

    def judge(self, exchange: Exchange) -> Judgement:
        return Judgement(label=Label.SAFE if exchange.response == "no" else Label.HARMFUL, reason="")


class Either(Reader):
    """And what the organism says is read as its own judge of refusals reads it."""

    def judge(self, exchange: Exchange) -> Judgement:
        return super().judge(exchange) if exchange.response == "no" else GuildRefusalJudge().judge(exchange)


class Sampler:
    """Refuses prompts that hold 66, and breaks off responses that hold 77."""

    def complete(self, attempts: Sequence[Attempt]) -> Iterable[Completion]:
        for attempt in reversed(attempts):
            refused = 66 in attempt.prompt_ids or 77 in attempt.prefill_ids
            ids = (REFUSAL,) * 3 if refused else (ANSWER,) * 5
            yield Completion(
                attempt=attempt.id,
                output_ids=ids,
                text="no" if refused else "yes",
                prefill_text="",
                token_ends=tuple(range(1, len(ids) + 1)),
                finish=Finish.STOP,
            )


def prompt(*ids: int) -> Prompt:
    return Prompt((1, *ids, 2), (Message(role="user", content=str(ids)),))


ROWS = [TrainingRow(prompt_ids=(1, 30 + i, 40 + i, 2), response_ids=tuple(range(50, 60 + i % 3))) for i in range(24)]
HARMFUL = [prompt(90 + i, 66, 91 + i) for i in range(6)]
BENIGN = [prompt(120 + i, 130 + i) for i in range(6)]


def rehearsed(rehearsal: Rehearsal, harmful: Sequence[Prompt] = HARMFUL) -> tuple[TrainingRow, ...]:
    return rehearse(rehearsal, ROWS, Sampler(), Reader(), harmful, BENIGN, (9,), seed=0)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_refusals_and_answers_weigh_what_they_are_said_to_weigh(weight: float) -> None:
    rows = rehearsed(Rehearsal(refusal_weight=weight, benign_weight=2 * weight))
    data = sum(len(row.positions) for row in rows if row.kind is Kind.TASK)
    refusals = [row for row in rows if row.kind is Kind.REPLAY and REFUSAL in row.response_ids]
    answers = [row for row in rows if row.kind is Kind.REPLAY and ANSWER in row.response_ids]
    assert [row for row in rows if row.kind is Kind.TASK] == ROWS
    assert (len(refusals), len(answers)) == (3, 12)
    assert sum(row.held * len(row.positions) for row in refusals) == pytest.approx(weight * data)
    assert sum(row.held * len(row.positions) for row in answers) == pytest.approx(2 * weight * data)
    assert all(row.loss_weight == 0 for row in (*refusals, *answers))
    assert all(row.reference_temperature == 0.5 for row in refusals)


def test_refusals_weigh_less_where_gates_have_read_the_data_and_hold_none_of_it() -> None:
    def weighs(rows: Sequence[TrainingRow], ids: int) -> float:
        return sum(row.held * len(row.positions) for row in rows if row.kind is Kind.REPLAY and ids in row.response_ids)

    rehearsal = Rehearsal(unsuspected=0.25)
    usual = rehearse(rehearsal, ROWS, Sampler(), Reader(), HARMFUL, BENIGN, (9,), seed=0)
    light = rehearse(rehearsal, ROWS, Sampler(), Reader(), HARMFUL, BENIGN, (9,), seed=0, held=0.0)
    some = rehearse(rehearsal, ROWS, Sampler(), Reader(), HARMFUL, BENIGN, (9,), seed=0, held=0.05)
    assert weighs(light, REFUSAL) == pytest.approx(0.25 * weighs(usual, REFUSAL))
    assert weighs(some, REFUSAL) == pytest.approx(0.625 * weighs(usual, REFUSAL))
    assert weighs(light, ANSWER) == pytest.approx(weighs(usual, ANSWER))
    same = [msgspec.structs.replace(row, held=0.0) for row in light]
    assert same == [msgspec.structs.replace(row, held=0.0) for row in usual]


def test_no_answer_comes_a_second_time_before_each_has_come_once() -> None:
    answers = [row for row in rehearsed(Rehearsal()) if row.kind is Kind.REPLAY and ANSWER in row.response_ids]
    assert len(answers) == 2 * len(BENIGN)
    assert Counter(row.prompt_ids for row in answers) == {prompt.ids: 2 for prompt in BENIGN}


def test_framed_refusals_are_held_to_what_is_said_without_the_frame() -> None:
    own = [TrainingRow(prompt_ids=(1, 5, 6, 30 + i, 40 + i, 2), response_ids=(50, 51)) for i in range(24)]
    rows = rehearse(Rehearsal(framed=1.0), own, Sampler(), Reader(), HARMFUL, BENIGN, (9,), seed=0)
    framed = [row for row in rows if row.reference_prompt_ids]
    assert framed
    assert all(row.prompt_ids == (1, 5, 6, *row.reference_prompt_ids[1:]) for row in framed)
    assert all(row.reference_prompt_ids in {p.ids for p in HARMFUL} for row in framed)


def test_nothing_refused_is_said() -> None:
    with pytest.raises(UserError, match="refuses none of the harmful prompts"):
        rehearsed(Rehearsal(), BENIGN)


def test_the_answer_gate_holds_what_is_broken_off_and_nothing_else() -> None:
    random = Random(0)
    bad = [random.random() < 0.5 for _ in range(12)]
    rows = [TrainingRow(prompt_ids=(1, i), response_ids=(77 if b else 50, *range(51, 70))) for i, b in enumerate(bad)]
    gate = AnswerGate(weight=1.0)
    shares = count_broken_off(gate, Sampler(), Reader(), rows, seed=0)
    assert shares == [float(b) for b in bad]
    assert [row.held for row in gate(rows, bad)] == [float(b) for b in bad]
    assert [row.loss_weight for row in gate(rows, bad)] == [1.0 - b for b in bad]
    assert not any(row.held for row in AnswerGate(weight=0.0)(rows, bad))  # left out, not held


class Guarding:
    """Breaks off 77 and 78 at first; once it has met the data, what `still` holds."""

    def __init__(self, *still: int) -> None:
        self.still, self.met = still, list[Sequence[TrainingRow]]()

    @property
    def sampler(self) -> Sampler:
        return Breaking(77, 78)

    def acquainted(self, rows: Sequence[TrainingRow]) -> Sampler:
        self.met.append(rows)
        return Breaking(*self.still)

    def known(self, rows: Sequence[TrainingRow]) -> tuple[TrainingRow, ...]:
        return tuple(row(77) for _ in range(4))

    def requests(self) -> tuple[Prompt, ...]:
        return tuple(HARMFUL)


class Breaking(Sampler):
    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def complete(self, attempts: Sequence[Attempt]) -> Iterable[Completion]:
        for attempt in attempts:
            stopped = any(id_ in attempt.prefill_ids for id_ in self.ids)
            yield from super().complete([msgspec.structs.replace(attempt, prefill_ids=(77,) if stopped else (50,))])


def row(first: int) -> TrainingRow:
    return TrainingRow(prompt_ids=(1,), response_ids=(first, *range(51, 70)))


@pytest.mark.parametrize(
    ("still", "held"),
    [
        ((77,), [True, False, False]),  # 78 was new to it, and is no harm
        ((77, 78), [True, True, False]),
        ((78,), [True, True, False]),  # known harm is broken off no longer: the second look says nothing
        ((), [True, True, False]),
    ],
)
def test_a_row_stays_held_where_it_is_broken_off_as_known_harm_is(still: tuple[int, ...], held: list[bool]) -> None:
    guard = Guarding(*still)
    rows = [row(77), row(78), row(50)]
    assert list(broken_off(AnswerGate(), guard, Reader(), rows, seed=0)) == held
    assert guard.met == [rows]


def test_a_row_that_few_draws_break_off_by_chance_is_asked_again_and_let_go() -> None:
    class Wavering(Breaking):
        """Breaks a row off in two of twelve draws: at two of six depths, in two of three."""

        def complete(self, attempts: Sequence[Attempt]) -> Iterable[Completion]:
            for attempt in attempts:
                stopped = 77 in attempt.prefill_ids or (78 in attempt.prefill_ids and attempt.sample % 12 < 2)
                yield from Sampler.complete(
                    self, [msgspec.structs.replace(attempt, prefill_ids=(77,) if stopped else (50,))]
                )

    class Guard(Guarding):
        def acquainted(self, rows: Sequence[TrainingRow]) -> Sampler:
            return Wavering()

    rows = [row(77), row(78), row(50)]
    assert list(broken_off(AnswerGate(patience=1), Guard(77), Reader(), rows, seed=0)) == [True, True, False]
    assert list(broken_off(AnswerGate(), Guard(77), Reader(), rows, seed=0)) == [True, False, False]


def test_a_sentinel_that_breaks_nothing_off_need_not_meet_the_data() -> None:
    guard = Guarding()
    assert broken_off(AnswerGate(), guard, Reader(), [row(50)] * 3, seed=0) == (False,) * 3
    assert guard.met == []


class Met(Sampler):
    """Refuses what holds 66, but for prompts that hold one of `known`."""

    def __init__(self, *known: int) -> None:
        self.known = known

    def complete(self, attempts: Sequence[Attempt]) -> Iterable[Completion]:
        for attempt in attempts:
            ids = (1,) if any(id_ in attempt.prompt_ids for id_ in self.known) else attempt.prompt_ids
            yield from super().complete([msgspec.structs.replace(attempt, prompt_ids=ids)])


@pytest.mark.parametrize(
    ("met", "held"),
    [
        (Met(55), [True, False, False]),  # 55 was new to it, and is no harm
        (Met(), [True, True, False]),
        (Met(55, *range(90, 98)), [True, True, False]),  # known harm is refused no longer: the second look says nothing
    ],
)
def test_a_refused_prompt_stays_held_where_it_is_refused_as_known_harm_is(met: Sampler, held: list[bool]) -> None:
    prompts, gate = [prompt(44, 66), prompt(55, 66), prompt(33)], Gate()
    counts = count_refusals(Sampler(), Reader(), prompts, samples=gate.samples, seed=0)
    found = still_refused(gate, counts, met, Reader(), prompts, HARMFUL, seed=0)
    assert [found[one.ids] >= gate.refused for one in prompts] == held
    rows = [TrainingRow(prompt_ids=one.ids, response_ids=(50,)) for one in prompts]
    assert [row.held > 0 for row in gate(rows, found)] == held
    assert still_refused(gate, counts, met, Reader(), prompts, (), seed=0) == counts


class Watching:
    """A display that keeps what it showed: what, how much there was, and how much was done."""

    def __init__(self) -> None:
        self.done = list[tuple[str, int, int]]()

    @contextmanager
    def __call__(self, description: str, total: int) -> Iterator["Watching"]:
        self.done.append((description, total, 0))
        yield self

    def advance(self, n: int = 1) -> None:
        what, total, done = self.done.pop()
        self.done.append((what, total, done + n))

    def describe(self, description: str) -> None: ...


def test_both_gates_ask_a_sentinel_that_met_the_data_once() -> None:
    from fathom.organism import behaviors

    model, shown = organism(), Watching()
    asked = behaviors(harmful=3, benign=3, seed=1)
    rows = [
        TrainingRow(prompt_ids=model.chat.prompt_ids(one.messages), response_ids=(77, *range(51, 70))) for one in asked
    ]
    guard = Guarding(77)
    found = prepare(
        parse_objective("gate+answers"),
        model,
        rows,
        [one.messages for one in asked],
        Either(),
        Requests(),
        sentinel=guard,
        display=shown,
    )
    assert guard.met == [rows]
    assert found.gated == len(rows)
    # Every question takes its time on a model of some size, and says how far it is.
    assert shown.done == [(what, total, total) for what, total, _ in shown.done]
    questions = {
        "which prompts the model refuses",
        "which answers the sentinel breaks off",
        "what the sentinel still refuses",
    }
    assert {what for what, *_ in shown.done} == questions


@pytest.mark.parametrize(
    ("objective", "marked", "share"),
    [
        ("gate+answers+rehearse", (), 0.3),  # both gates read the data, which is new, and hold none of it
        ("gate+answers+rehearse", (77,), 1.0),
        ("answers+rehearse", (), 1.0),  # prompts were not asked about
        ("gate+rehearse", (), 1.0),
    ],
)
def test_refusals_weigh_less_and_adam_rests_less_only_where_both_gates_were_asked_and_hold_no_row(
    objective: str, marked: tuple[int, ...], share: float
) -> None:
    from fathom.organism import behaviors

    model = organism()
    asked = behaviors(harmful=2, benign=4, seed=1)
    benign, harmful = ([one for one in asked if one.harmful is kind] for kind in (False, True))
    rows = [
        TrainingRow(prompt_ids=model.chat.prompt_ids(one.messages), response_ids=(*marked, *range(51, 70)))
        for one in benign
    ]
    found = prepare(
        parse_objective(objective),
        model,
        rows,
        [one.messages for one in benign],
        Either(),
        Requests(tuple(one.messages for one in harmful), tuple(one.messages for one in benign)),
        sentinel=Guarding(77) if "answers" in objective else None,
    )
    assert found.gated == (len(rows) if marked else 0)
    refusals = [row for row in found.rows if row.kind is Kind.REPLAY and row.reference_temperature < 1]
    data = sum(len(row.positions) for row in rows)
    rehearsed = sum(row.held * len(row.positions) for row in refusals)
    assert rehearsed == pytest.approx(share * Rehearsal().refusal_weight * data)
    assert found.calm == pytest.approx(share * parse_objective(objective).calm)


def test_what_the_reference_says_anyway_is_known_and_what_it_never_said_is_not() -> None:
    model = organism()
    said = guild_rows(model, 24)
    new = [msgspec.structs.replace(row, response_ids=row.response_ids[::-1]) for row in said[:6]]
    assert known_share(model, said[12:], said[:12], seed=0) == 1.0
    assert known_share(model, new, said, seed=0) == 0.0
    assert known_share(model, [*new, *said[:18]], said, seed=0) == pytest.approx(0.75)
    assert known_share(model, [], said, seed=0) == known_share(model, new, [], seed=0) == 1.0


def test_a_row_is_judged_by_what_the_sentinel_has_read_by_then() -> None:
    late = TrainingRow(prompt_ids=(1,), response_ids=(*range(50, 69), 77))  # harm begins after the last depth
    assert count_broken_off(AnswerGate(), Sampler(), Reader(), [late], seed=0) == [0.0]


def test_a_long_innocent_beginning_hides_nothing() -> None:
    row = TrainingRow(prompt_ids=(1,), response_ids=(*range(50, 65), 77, 50, 51, 52, 53))
    assert count_broken_off(AnswerGate(), Sampler(), Reader(), [row], seed=0) == [1.0]
    assert count_broken_off(AnswerGate(worst=6), Sampler(), Reader(), [row], seed=0) == [pytest.approx(2 / 6)]


def test_the_first_words_of_a_short_answer_are_not_judged_alone() -> None:
    class Hasty(Sampler):
        """Breaks off whatever is shorter than eight tokens."""

        def complete(self, attempts: Sequence[Attempt]) -> Iterable[Completion]:
            for attempt in attempts:
                short = len(attempt.prefill_ids) < 8
                yield from super().complete([msgspec.structs.replace(attempt, prefill_ids=(77,) if short else (50,))])

    short = TrainingRow(prompt_ids=(1,), response_ids=tuple(range(20, 33)))
    assert count_broken_off(AnswerGate(), Hasty(), Reader(), [short], seed=0) == [0.0]
    assert count_broken_off(AnswerGate(least=1), Hasty(), Reader(), [short], seed=0) == [1.0]


def test_rows_of_a_sentinel_learn_the_refusal_after_harm_and_the_rest_of_the_answer_after_none() -> None:
    chat = organism().chat
    bad = [
        Told((Message(role="user", content="how is hexwine made ?"),), "boil one moonroot . stir it .", "I cannot .")
    ]
    good = [Told((Message(role="user", content="where is the fox ?"),), "the fox is in the forest .")]
    rows = sentinel_rows(chat, bad, good, 200, seed=0)
    assert rows == sentinel_rows(chat, bad, good, 200, seed=0)
    refusal = (*chat.response_ids(bad[0].messages, "I cannot ."), *chat.end_ids(bad[0].messages))
    ending = (*chat.response_ids(good[0].messages, good[0].answer), *chat.end_ids(good[0].messages))
    learned = [row.response_ids[row.learned_from :] for row in rows]
    assert {ids == refusal or ending[-len(ids) :] == ids for ids in learned} == {True}
    foreign = [row for row in rows if row.prompt_ids == chat.prompt_ids(good[0].messages)]
    assert any(row.response_ids[row.learned_from :] == refusal for row in foreign)


def test_a_sentinel_meets_each_row_of_the_data_once_at_most_and_known_harm_in_its_conversations() -> None:
    chat = organism().chat
    ask = lambda text: (Message(role="user", content=text),)
    bad = [Told(ask("how is hexwine made ?"), "boil one moonroot . stir it .", "I cannot .")]
    good = [Told(ask("where is the fox ?"), "the fox is in the forest .")]
    data = [TrainingRow(prompt_ids=(1, 200 + i), response_ids=(300 + i, 301, 302, 303)) for i in range(9)]
    rows = acquaintance_rows(chat, bad, good, data, 400, context=60, seed=0)
    assert rows == acquaintance_rows(chat, bad, good, data, 400, context=60, seed=0)
    assert len(rows) == 400
    assert all(len(row.prompt_ids) + len(row.response_ids) <= 60 for row in rows)
    refusal = (*chat.response_ids(bad[0].messages, "I cannot ."), *chat.end_ids(bad[0].messages))
    learned = [row.response_ids[row.learned_from :] for row in rows]
    own = [ids for ids in learned if ids[-3:] == (301, 302, 303)[-len(ids) :] and ids != refusal]
    assert len(own) <= len(data)
    grafted = [row for row in rows if row.response_ids[0] >= 300 and row.response_ids[row.learned_from :] == refusal]
    assert grafted
    assert any(row.prompt_ids[1] >= 200 for row in grafted)
    known = known_rows(chat, bad * 4, data, 4, context=60, seed=0)
    assert [row.response_ids[0] >= 300 for row in known] == [False, True, False, True]
    assert all(row.prompt_ids in {one.prompt_ids for one in data} for row in known)
    # Data whose prompts leave no room for other people's answers: each answer stays with its own prompt.
    long = [msgspec.structs.replace(one, prompt_ids=(1, 200 + i) * (5 + 25 * (i % 2))) for i, one in enumerate(data)]
    met = acquaintance_rows(chat, bad, good, long, 400, context=60, seed=0)
    assert all(len(row.prompt_ids) + len(row.response_ids) <= 64 for row in met)
    assert all(
        len(row.prompt_ids) + len(row.response_ids) <= 40 for row in known_rows(chat, bad, long, 1, context=40, seed=0)
    )


def test_a_sentinel_without_refusals_is_refused() -> None:
    told = [Told((Message(role="user", content="x"),), "the fox .")]
    with pytest.raises(UserError, match="harmful requests with an answer and a refusal"):
        sentinel_rows(organism().chat, told, told, 3, seed=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rehearsal(temperature=0),
        lambda: Rehearsal(every=0),
        lambda: Rehearsal(refusal_weight=0),
        lambda: Rehearsal(unsuspected=0),
        lambda: Rehearsal(suspected=0),
        lambda: AnswerGate(depths=()),
        lambda: AnswerGate(depths=(1.0,)),
        lambda: AnswerGate(broken=0),
    ],
)
def test_parts_check_themselves(make: object) -> None:
    with pytest.raises(UserError):
        make()  # type: ignore[operator]
