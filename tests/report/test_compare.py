"""Laws of the comparison of two runs: pairing, differences against a naive twin, intervals, and what is refused."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import synthetic
from hypothesis import example, given
from hypothesis import strategies as st

from fathom.errors import UserError
from fathom.records import Counted, Label, Message, Subject
from fathom.report import contrast
from fathom.report.compare import AttackDifference, Comparison, Pair, compare, paired_difference
from fathom.report.paired_depth import OF_PAIRS
from fathom.report.samples import ReportData, Sample
from fathom.run import Run
from fathom.tally import bootstrap

Change = Callable[[ReportData], ReportData]
SMALL = synthetic.Setting(behaviors=24, benign=10, depths=(0, 1, 3, 8, 20), positions=12)


def small(shape: synthetic.Shape, seed: int = 0) -> ReportData:
    return synthetic.report_data(dataclasses.replace(SMALL, shape=shape, seed=seed))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportData, ReportData, Comparison]:
    where = tmp_path_factory.mktemp("runs")
    first, second = small(synthetic.SHALLOW), small(synthetic.DEEPENED, seed=1)
    found = compare(synthetic.write_run(first, where / "a"), synthetic.write_run(second, where / "b"))
    return first, second, found


def _mean_of(values: Sequence[float], drawn: Sequence[int]) -> float:
    return sum(values[i] for i in drawn) / len(values)


def naive_rate(data: ReportData, behavior: str, row: AttackDifference, counted: Counted) -> float:
    """Share of harmful answers of a behavior at one setting, by looking at every sample."""
    labels = [
        verdict.label
        for sample in data.samples
        for verdict in sample.verdicts
        if sample.behavior.id == behavior
        and sample.attempt.subject is Subject.MODEL
        and sample.attempt.attack == row.attack
        and len(sample.attempt.prefill_ids) == row.prefill_tokens
        and sample.attempt.sampling.temperature == row.temperature
        and verdict.counted is counted
    ]
    return sum(label is Label.HARMFUL for label in labels) / len(labels)


def test_each_difference_is_that_of_its_naive_twin(runs: tuple[ReportData, ReportData, Comparison]) -> None:
    first, second, found = runs
    names = sorted({sample.behavior.id for sample in first.samples if sample.behavior.harmful})
    assert len(found.attacks) == len(SMALL.depths) * len(SMALL.temperatures) * len(Counted)
    for row in found.attacks:
        pairs = [[naive_rate(data, name, row, row.counted) for data in (first, second)] for name in names]
        differences = [after - before for before, after in pairs]
        assert row.asr.behaviors == len(names) == found.behaviors
        assert row.asr.first == pytest.approx(sum(before for before, _ in pairs) / len(names))
        assert row.asr.second == pytest.approx(sum(after for _, after in pairs) / len(names))
        assert row.asr.difference == pytest.approx(sum(differences) / len(names))
        assert row.asr.rose == sum(difference > 0 for difference in differences)
        assert row.asr.fell == sum(difference < 0 for difference in differences)


def test_the_interval_is_the_bootstraps_of_pairs(runs: tuple[ReportData, ReportData, Comparison]) -> None:
    first, second, found = runs
    names = sorted({sample.behavior.id for sample in first.samples if sample.behavior.harmful})
    spread = [row for row in found.attacks if row.counted is Counted.CONTINUATION and row.asr.rose + row.asr.fell]
    assert spread
    for row in spread:
        pairs = [[naive_rate(data, name, row, row.counted) for data in (first, second)] for name in names]
        differences = [after - before for before, after in pairs]
        if len(set(differences)) == 1:
            continue
        twins = [
            bootstrap(len(d), partial(_mean_of, d), seed=7, draws=4000)
            for d in (differences, [*differences, 1.0, -1.0])
        ]
        # Both are drawn: their ends may lie one behavior apart.
        assert row.asr.low == pytest.approx(min(twin.low for twin in twins), abs=2.1 / len(names))
        assert row.asr.high == pytest.approx(max(twin.high for twin in twins), abs=2.1 / len(names))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=4))
def test_a_small_interval_lies_within_all_resamples(values: list[tuple[float, float]]) -> None:
    found = paired_difference([Pair(*value) for value in values], seed=3, shares=False)
    differences = [after - before for before, after in values]
    if len(set(differences)) > 1:
        means = sorted(sum(drawn) / len(drawn) for drawn in itertools.product(differences, repeat=len(differences)))
        inside = [mean for mean in means if found.low - 1e-9 <= mean <= found.high + 1e-9]
        assert any(math.isclose(found.low, mean) or found.low == mean for mean in means)
        assert len(inside) / len(means) >= 0.92  # 95 % less what a thousand draws miss
    assert found.low <= found.difference + 1e-12
    assert found.difference <= found.high + 1e-12
    assert -1 <= found.low <= found.high <= 1
    shares = paired_difference([Pair(*value) for value in values], seed=3, shares=True)
    assert -1 <= shares.low <= found.low
    assert found.high <= shares.high <= 1


def test_few_pairs_that_differ_are_no_certainty():
    """Of 30 pairs 3 rise and 1 falls on average: of 300 such comparisons 95 % hold the truth, a bootstrap 89 %."""
    random, held = np.random.default_rng(0), 0
    for seed in range(300):
        drawn = random.choice([1.0, -1.0, 0.0], p=[0.05, 0.02, 0.93], size=30)
        found = paired_difference([Pair(max(0.0, -d), max(0.0, d)) for d in drawn], seed=seed, shares=True)
        held += found.low <= 0.03 <= found.high
    assert held >= 0.95 * 300


@given(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), st.integers(1, 500))
def test_where_all_pairs_agree_the_interval_is_exact(change: float, n: int) -> None:
    """The share of other pairs that n pairs without one allow: its upper end u has (1 - u)^n = 2.5 %."""
    found = paired_difference([Pair(max(0.0, -change), max(0.0, change))] * n, seed=0, shares=True)
    unseen = 1 - 0.025 ** (1 / n)
    assert found.low == pytest.approx(max(-1, (1 - unseen) * change - unseen))
    assert found.high == pytest.approx(min(1, (1 - unseen) * change + unseen))
    assert found.low <= change <= found.high
    assert found.high > found.low


def test_a_run_beside_itself_differs_nowhere_and_claims_no_certainty(tmp_path: Path) -> None:
    run = synthetic.write_run(small(synthetic.SHALLOW), tmp_path / "a")
    found = compare(run, run)
    for row in found.attacks:
        assert row.asr.difference == 0
        assert row.asr.low < 0 < row.asr.high
    assert {row.value.difference for row in (*found.divergence, *found.recovery)} == {0.0}


def test_exchanging_the_runs_changes_the_sign(tmp_path: Path, runs: tuple[ReportData, ReportData, Comparison]) -> None:
    first, second, found = runs
    turned = compare(synthetic.write_run(second, tmp_path / "b"), synthetic.write_run(first, tmp_path / "a"))
    for row, other in zip(found.attacks, turned.attacks, strict=True):
        assert (row.attack, row.prefill_tokens) == (other.attack, other.prefill_tokens)
        assert row.asr.difference == -other.asr.difference
        assert (row.asr.rose, row.asr.fell) == (other.asr.fell, other.asr.rose)


def test_the_order_of_lines_says_nothing(tmp_path: Path, runs: tuple[ReportData, ReportData, Comparison]) -> None:
    first, second, found = runs
    a, b = synthetic.write_run(first, tmp_path / "a"), synthetic.write_run(second, tmp_path / "b")
    for name in ("attempts", "completions", "verdicts.organism", "divergence", "recovery"):
        path = b.path / f"{name}.jsonl"
        path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    assert compare(a, b) == found


def test_behaviors_of_one_run_alone_are_left_out_and_said(
    tmp_path: Path, runs: tuple[ReportData, ReportData, Comparison]
) -> None:
    first, second, _ = runs
    gone = {"forbidden-003", "forbidden-004"}
    part = dataclasses.replace(second, samples=tuple(s for s in second.samples if s.behavior.id not in gone))
    both = [
        dataclasses.replace(data, samples=tuple(s for s in data.samples if s.behavior.id not in gone))
        for data in (first, second)
    ]
    found = compare(synthetic.write_run(first, tmp_path / "a"), synthetic.write_run(part, tmp_path / "b"))
    same = compare(synthetic.write_run(both[0], tmp_path / "c"), synthetic.write_run(both[1], tmp_path / "d"))
    assert found.attacks == same.attacks
    assert found.behaviors == SMALL.behaviors - len(gone)
    assert any("2 behaviors are in one run only" in note for note in found.notes)


def test_what_is_printed_can_be_read_back(runs: tuple[ReportData, ReportData, Comparison]) -> None:
    found = runs[2]
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found
    assert json.loads(msgspec.json.encode(found))["attacks"][0]["asr"]["behaviors"] == SMALL.behaviors


def test_kl_to_another_base_is_left_out_and_said(tmp_path: Path) -> None:
    first, second = small(synthetic.SHALLOW), small(synthetic.DEEPENED)
    other = msgspec.structs.replace(second.audit.base, weights_hash="another")
    second = dataclasses.replace(
        second,
        audit=msgspec.structs.replace(second.audit, base=other),
        manifest=msgspec.structs.replace(second.manifest, base=other),
    )
    found = compare(synthetic.write_run(first, tmp_path / "a"), synthetic.write_run(second, tmp_path / "b"))
    assert found.divergence == ()
    assert found.recovery
    assert any("different bases" in note for note in found.notes)


def judged_by(data: ReportData, judge: str, version: str = "1") -> ReportData:
    samples = tuple(
        dataclasses.replace(
            sample,
            verdicts=tuple(msgspec.structs.replace(v, judge=judge, version=version) for v in sample.verdicts),
        )
        for sample in data.samples
    )
    return dataclasses.replace(data, samples=samples, audit=msgspec.structs.replace(data.audit, judge=judge))


def asking(data: ReportData, *, ids: str = "", words: str = "") -> ReportData:
    """Other ids, or other words under the same ids."""

    def other(sample: Sample) -> Sample:
        behavior = sample.behavior
        messages = tuple(Message(role=m.role, content=m.content + words) for m in behavior.messages)
        behavior = msgspec.structs.replace(behavior, id=ids + behavior.id, messages=messages)
        attempt = msgspec.structs.replace(sample.attempt, behavior=behavior.id)
        return dataclasses.replace(sample, behavior=behavior, attempt=attempt)

    return dataclasses.replace(data, samples=tuple(other(sample) for sample in data.samples))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: judged_by(data, "refusal"), "judged by organism and .* by refusal"),
        (lambda data: judged_by(data, "organism", "2"), "version 1 of organism and .* by version 2"),
        (lambda data: asking(data, ids="x"), "no behavior in common"),
        (lambda data: asking(data, words=" please"), "same ids for different requests"),
        (
            lambda data: dataclasses.replace(
                data, samples=tuple(s for s in data.samples if s.attempt.subject is Subject.BASE)
            ),
            "no attack on them",
        ),
    ],
)
def test_runs_that_cannot_be_paired_are_refused_in_one_line(tmp_path: Path, change: Change, says: str) -> None:
    first, second = small(synthetic.SHALLOW), change(small(synthetic.DEEPENED))
    runs = synthetic.write_run(first, tmp_path / "a"), synthetic.write_run(second, tmp_path / "b")
    with pytest.raises(UserError, match=says) as raised:
        compare(*runs)
    assert "\n" not in str(raised.value)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    first = synthetic.write_run(small(synthetic.SHALLOW), tmp_path / "a")
    second = synthetic.write_run(small(synthetic.DEEPENED), tmp_path / "b")
    (second.path / "audit.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        compare(first, second)


@given(st.floats(-1, 1))
@example(0.9995)
@example(-0.99999)
@example(0.0005)
def test_points_are_zero_only_where_they_are(difference: float) -> None:
    shown = contrast.points(difference)
    assert (shown == "0") == (difference == 0)
    assert (shown in ("+100", "−100")) == (abs(difference) == 1)
    assert (difference > 0) == ("+" in shown)
    assert (difference < 0) == ("−" in shown)


def _with_configuration(data: ReportData, **configuration: object) -> ReportData:
    manifest = msgspec.structs.replace(data.manifest, configuration=configuration)
    return dataclasses.replace(data, manifest=manifest)


def test_what_was_asked_or_searched_otherwise_is_said(tmp_path: Path) -> None:
    """A search is paired by what it aims at; how hard it tried stands in the configuration alone."""

    def run(name: str, steps: int, system: str | None) -> Run:
        attacks = [
            {"attack": "prefill", "steps": steps, "subject": "model", "draws": [], "behaviors": "h"},
            {"attack": "direct", "steps": steps, "subject": "model", "draws": [], "behaviors": "h"},
        ]
        data = _with_configuration(small(synthetic.SHALLOW), attacks=attacks, model={"system": system})
        samples = tuple(
            dataclasses.replace(sample, attempt=msgspec.structs.replace(sample.attempt, found={"steps": 1}))
            if sample.attempt.attack == "prefill"
            else sample
            for sample in data.samples
        )
        return synthetic.write_run(dataclasses.replace(data, samples=samples), tmp_path / name)

    once, twice, briefly = run("once", 1, None), run("twice", 2, None), run("briefly", 1, "Be brief.")
    assert not any("search" in note or "system" in note for note in compare(once, once).notes)
    (said,) = (note for note in compare(once, twice).notes if "search" in note)
    assert said.startswith("the search prefill was not the same in the two runs (steps = 1; steps = 2)")
    (said,) = (note for note in compare(once, briefly).notes if "system" in note)
    assert said == "the two models were asked under different system prompts"


def test_depth_is_compared_over_what_both_runs_have(tmp_path: Path) -> None:
    """A run of few requests beside one of many: half depth and area are of the few in both, and a note says so."""
    whole, few = small(synthetic.SHALLOW), small(synthetic.SHALLOW)
    kept = sorted({sample.behavior.id for sample in few.samples if sample.behavior.harmful})[:6]
    few = dataclasses.replace(
        few, samples=tuple(s for s in few.samples if s.behavior.id in kept or not s.behavior.harmful)
    )
    runs = synthetic.write_run(whole, tmp_path / "a"), synthetic.write_run(few, tmp_path / "b")
    found = compare(*runs)
    assert found.behaviors == len(kept)
    assert found.first.depth.half_depth == found.second.depth.half_depth != whole.audit.depth.half_depth
    assert found.first.depth.area == found.second.depth.area
    assert found.first.depth.kl_90 == whole.audit.depth.kl_90
    assert OF_PAIRS in found.notes
    alike = compare(runs[0], runs[0])
    assert alike.first.depth == whole.audit.depth
    assert OF_PAIRS not in alike.notes
