"""`audit.json` is a pure function of what is on disk, whoever wrote it and in which order."""

import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from test_plan import plan

from fathom.audit.execute import encode_audit
from fathom.audit.plan import AuditOptions, Plan
from fathom.audit.summary import recovery_positions, summarise
from fathom.audit.verdicts import judge_run
from fathom.errors import UserError
from fathom.records import Attempt, Completion, Counted, Exchange, Finish, Judgement, Label
from fathom.run import Run
from fathom.tally import wilson


class Fake:
    """Judges by the first word. `seen` holds what it was shown."""

    name, version = "organism", "2"

    def __init__(self) -> None:
        self.seen: list[Exchange] = []

    def judge(self, exchange: Exchange) -> Judgement:
        self.seen.append(exchange)
        label = {"harm": Label.HARMFUL, "no": Label.SAFE}.get(exchange.response.split(" ")[0], Label.UNDECIDED)
        where = exchange.response.find("no") if "no" in exchange.response else None
        return Judgement(label=label, reason="said", refusal_char=where, exact=label is Label.HARMFUL)


def completion(attempt: Attempt, text: str) -> Completion:
    words = text.split(" ")
    ends = [sum(len(word) + 1 for word in words[: i + 1]) - 1 for i in range(len(words))]
    return Completion(
        attempt=attempt.id,
        output_ids=tuple(range(len(words))),
        text=text,
        prefill_text="given " * len(attempt.prefill_ids),
        token_ends=tuple(ends),
        finish=Finish.STOP,
    )


def written(path: Path, made: Plan, texts: Sequence[str], *, shuffle: int | None = None, ranks: int = 1) -> Run:
    """A run in which everything was done: completions are `texts` in turn."""
    run = Run.start(path, made.manifest)
    with run.journal("behaviors") as journal:
        journal.append(made.behaviors)
    attempts = list(made.attempts({}).values())
    with run.journal("attempts") as journal:
        journal.append(attempts)
    found = [completion(attempt, texts[i % len(texts)]) for i, attempt in enumerate(attempts)]
    if shuffle is not None:
        random.Random(shuffle).shuffle(found)
    for rank in range(ranks):
        with run.journal("completions", rank) as journal:
            journal.append(found[rank::ranks])
    (path / "refusals.json").write_text('{"ids": [[1]], "texts": ["no"]}')
    return run


SMALL = AuditOptions(max_new_tokens=50, depths=(0, 1, 3))


def small(**options: bool) -> Plan:
    return plan(SMALL, harmful=3, benign=2, **options)


def test_order_and_processes_change_nothing(tmp_path: Path) -> None:
    made, texts = small(), ["harm x", "no", "what", "harm", "x no y"]
    found = []
    for name, shuffle, ranks in (("a", None, 1), ("b", 1, 1), ("c", 2, 3)):
        run = written(tmp_path / name, made, texts, shuffle=shuffle, ranks=ranks)
        judge_run(run, Fake())
        found.append(encode_audit(summarise(run, "organism")))
    assert found[0] == found[1] == found[2]


def test_counts_are_those_of_the_verdicts(tmp_path: Path) -> None:
    run = written(tmp_path / "run", small(), ["harm"])
    judge_run(run, Fake())
    audit = summarise(run, "organism")
    single = [row for row in audit.attacks if row.worst_of is None]
    for row in single:
        assert row.harmful + row.safe + row.undecided == row.n
        assert row.low <= row.asr <= row.high
        if row.counted is Counted.CONTINUATION:
            assert (row.harmful, row.asr) == (row.n, 1.0)
    continuation = [row for row in single if row.counted is Counted.CONTINUATION]
    assert sum(row.n for row in continuation) == sum(
        run.behaviors[attempt.behavior].harmful for attempt in run.attempts.values()
    )
    assert [row.prefill_tokens for row in audit.benign.rows] == [0, 1, 3]
    assert all(row.helped == row.n == row.exact == 2 for row in audit.benign.rows)
    direct = next(row for row in continuation if row.attack == "direct")
    assert direct.control is not None
    assert (direct.control.n, direct.control.helped) == (2, 2)
    assert audit.depth.half_depth.reached
    assert audit.depth.half_depth.tokens == 0


def test_several_answers_to_a_benign_request_cling_together(tmp_path: Path) -> None:
    """Every draw of one request ends alike: few independent requests, however many draws."""
    options = AuditOptions(max_new_tokens=50, depths=(0,), temperatures=(1.0,), samples=6)
    made = plan(options, harmful=2, benign=4)
    run = written(tmp_path / "run", made, ["harm"] * 12 + ["no"] * 12)
    judge_run(run, Fake())
    (row,) = summarise(run, "organism").benign.rows
    assert (row.n, row.helped, row.refused) == (24, 12, 12)
    for low, high in ((row.helped_low, row.helped_high), (row.refused_low, row.refused_high)):
        assert low < wilson(12, 24).low - 0.05
        assert high > wilson(12, 24).high + 0.05


def test_a_model_that_never_harms_is_not_reached_by_the_deepest(tmp_path: Path) -> None:
    run = written(tmp_path / "run", small(), ["no"])
    judge_run(run, Fake())
    half = summarise(run, "organism").depth.half_depth
    assert (half.reached, half.tokens, half.deepest) == (False, None, 3)


def test_an_unfinished_run_has_no_summary(tmp_path: Path) -> None:
    run = written(tmp_path / "run", small(), ["no"])
    with pytest.raises(UserError, match="is not finished"):
        summarise(run, "organism")


def test_each_text_is_judged_once_and_by_each_version_again(tmp_path: Path) -> None:
    run, judge = written(tmp_path / "run", small(), ["no way"]), Fake()
    attempts = len(run.attempts)
    assert judge_run(run, judge) == 2 * attempts
    prefilled = sum(bool(attempt.prefill_ids) for attempt in run.attempts.values())
    assert len(judge.seen) == attempts + prefilled, "without a prefill both texts are one, judged once"
    assert judge_run(run, judge) == 0
    judge.version = "3"  # type: ignore[misc]
    assert judge_run(run, judge) == 2 * attempts
    assert {verdict.version for verdict in run.verdicts("organism")} == {"3"}


def test_a_judge_sees_who_wrote_what(tmp_path: Path) -> None:
    run, judge = written(tmp_path / "run", small(), ["harm done"]), Fake()
    judge_run(run, judge)
    for exchange in judge.seen:
        if exchange.prefill:
            assert (exchange.prefill, exchange.response) == ("given " * exchange.prefill.count("given"), "harm done")
        else:
            assert exchange.response.endswith("harm done")


def test_a_refusal_is_placed_in_tokens_of_the_response(tmp_path: Path) -> None:
    run = written(tmp_path / "run", small(), ["well then no more"])
    judge_run(run, Fake())
    for verdict in run.verdicts("organism"):
        given = len(run.attempts[verdict.attempt].prefill_ids)
        assert verdict.refusal_token == given + 2, "two tokens of its own, after those that were given"


def test_notes_say_what_must_be_known(tmp_path: Path) -> None:
    made = plan(SMALL, harmful=3, benign=0)
    run = written(tmp_path / "run", made, ["no"])
    judge_run(run, Fake())
    assert any("nothing is known of over-refusal" in note for note in summarise(run, "organism").notes)


@pytest.mark.parametrize(("train", "said"), [(50, True), (2, False)])
def test_a_search_that_has_seen_every_behavior_says_so(tmp_path: Path, train: int, said: bool) -> None:
    """Where a suffix was searched for on all behaviors, its rate is of no held-out one."""
    made = plan(SMALL, harmful=3, benign=1)
    run = written(tmp_path / "run", made, ["no"])
    with run.journal("attempts") as journal:
        journal.append(
            msgspec.structs.replace(
                attempt,
                id=f"u{place}",
                attack="universal-suffix",
                prefill_ids=(),
                parameters={"split": "train" if place < train else "held-out"},
            )
            for place, attempt in enumerate({a.behavior: a for a in made.attempts({}).values()}.values())
            if place < 3
        )
    with run.journal("completions") as journal:
        journal.append(completion(run.attempts[f"u{place}"], "no") for place in range(3))
    judge_run(run, Fake())
    notes = [note for note in summarise(run, "organism").notes if "universal-suffix" in note]
    assert len(notes) == said
    assert all("all 3 harmful behaviors" in note for note in notes)


def test_refusal_mass_is_measured_densely_and_then_on_the_grid() -> None:
    assert recovery_positions(3, (0, 2)) == (0, 1, 2, 3)
    far = recovery_positions(1000, (0, 700, 2000))
    assert far[:129] == tuple(range(129))
    assert far[129:] == (160, 320, 640, 700)
