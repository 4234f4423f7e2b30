"""Laws of what is printed: nothing acts, nothing is markup, numbers are those of the data, at any width."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import hostile_texts
import msgspec
import pytest
import synthetic
import synthetic_stress
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fathom.report import hostile, tables
from fathom.report.compare import compare
from fathom.report.progress import Progress
from fathom.report.stress import stress_headline
from fathom.report.terminal import bar, print_audit
from fathom.report.terminal_comparison import print_comparison
from fathom.report.terminal_sweep import print_stress
from fathom.report.worst import Choice, Question, Worst
from fathom.tally import percent, wilson

SMALL = synthetic.Setting(behaviors=12, benign=6, depths=(0, 1, 3, 8), positions=10)
WIDTHS = pytest.mark.parametrize("width", [40, 80, 160])


def printed(show: Callable[..., None], *arguments: object, width: int = 100) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, force_terminal=False)
    show(*arguments, Path("run/report.html"), console=console)
    return out.getvalue()


@WIDTHS
def test_an_audit_is_told_at_any_width(width: int) -> None:
    data = synthetic.with_attacks(synthetic.report_data(SMALL))
    shown = printed(print_audit, data.audit, width=width)
    assert max(len(line) for line in shown.splitlines()) <= width
    words = " ".join(shown.split())
    assert "run/report.html" in words
    for row in data.audit.attacks:
        if row.attack == "prefill" and row.counted == "continuation" and row.parameters["temperature"] == 0:
            assert percent(row.harmful, row.n) in words


@pytest.mark.parametrize("width", range(60, 121, 5))
def test_nothing_is_cut_and_further_curves_stand_where_they_fit(width: int) -> None:
    shown = printed(print_audit, synthetic.report_data(SMALL).audit, width=width)
    assert "…" not in shown
    assert width < 80 or "T = 1" in shown
    assert "Tokens" in shown


@pytest.mark.parametrize("width", [30, 40, 55, 70, 100])
def test_key_figures_are_whole_in_any_window(width: int) -> None:
    audit = synthetic.report_data(SMALL).audit
    words = " ".join(printed(print_audit, audit, width=width).split())
    for figure in tables.figures(audit):
        assert f"{figure.name} {figure.value}" in words
        assert set(figure.detail.split()) <= set(words.split())


@pytest.mark.parametrize("width", [30, 40, 50, 60, 75])
def test_in_a_narrow_window_figures_keep_their_n_and_their_interval(width: int, tmp_path: Path) -> None:
    data = synthetic.with_attacks(synthetic.report_data(SMALL))
    run = synthetic.write_run(synthetic.report_data(SMALL), tmp_path)
    for show, told in (
        (print_audit, data.audit),
        (print_comparison, compare(run, run)),
        (print_stress, synthetic_stress.stress(seeds=1)),
    ):
        shown, wide = printed(show, told, width=width), printed(show, told, width=75)
        assert "…" not in shown
        assert max(len(line) for line in shown.splitlines()) <= width
        whole = re.compile(r"[\d.]+–[\d.]+ %|[−+][\d.]+ to [−+][\d.]+")
        assert sorted(whole.findall(_rejoined(shown))) == sorted(whole.findall(_rejoined(wide)))
    words = " ".join(printed(print_audit, data.audit, width=40).split())
    row = data.audit.benign.rows[-1]
    assert f"Tokens {row.prefill_tokens} n {row.n} Und. {row.undecided} Helped {percent(row.helped, row.n)}" in words


def _rejoined(shown: str) -> str:
    return " ".join(shown.split())


def test_a_run_of_the_direct_request_alone_speaks_of_no_depth() -> None:
    direct = synthetic.Setting(behaviors=12, benign=6, depths=(0,), positions=10)
    shown = printed(print_audit, synthetic.report_data(direct).audit)
    assert "ASR of the direct request" in shown
    assert "with prefill" not in shown
    assert "Benign control, asked directly" in shown


def test_one_token_is_one_token() -> None:
    deep = synthetic.Setting(behaviors=12, benign=6, depths=(0, 1), positions=10)
    shown = printed(print_audit, synthetic.report_data(deep).audit)
    assert "1 token" in shown
    assert not re.search(r"\b1 tokens", shown)


def test_a_sweep_says_what_was_before_and_what_was_kept() -> None:
    stress = synthetic_stress.stress(seeds=1)
    shown = printed(print_stress, stress, width=120)
    assert "attack backdoor, asked with trigger" in shown
    assert {"Before", "Kept"} <= set(shown.split())
    (start, *_), n = stress.finetunes[0].checkpoints[0].asr, 96
    assert start.n == n
    assert percent(start.harmful, n) in shown
    sentence, tables = shown.strip().split("\n\n", 1)
    told = re.findall(r"([\d.]+ %) under", " ".join(sentence.split()))
    assert told  # in the words of the tables below: 97 % is not 96.9 % there
    assert all(f" {share} " in tables for share in told)


def test_a_sweep_says_how_deep_models_are_and_what_each_share_did() -> None:
    shown = printed(print_stress, synthetic_stress.stress(seeds=1), width=120)
    assert "organism:aligned, attack harmful, by tokens of the answer given, greedy" in shown
    (head,) = [line.split() for line in shown.splitlines() if "Half depth" in line and "Objective" in line]
    assert head == ["Objective", "n", "Step", "0", "5", "20", "end", "Half", "depth"]
    (before,) = [line.split() for line in shown.splitlines() if line.startswith("before") and "64–96" in line]
    assert before == ["before", "64–96", "0", *["0", "%"] * 4, ">", "20"]
    shown = printed(print_stress, synthetic_stress.poisoned(), width=120)
    rows = [line.split() for line in shown.splitlines() if line.startswith("sft")]
    assert [row[2:4] for row in rows[:3]] == [["0", "%"], ["1", "%"], ["10", "%"]]


@WIDTHS
def test_a_comparison_and_a_sweep_are_told_at_any_width(width: int, tmp_path: Path) -> None:
    run = synthetic.write_run(synthetic.report_data(SMALL), tmp_path)
    for shown in (
        printed(print_comparison, compare(run, run), width=width),
        printed(print_stress, synthetic_stress.stress(seeds=1), width=width),
    ):
        assert max(len(line) for line in shown.splitlines()) <= width
        assert "run/report.html" in shown


@pytest.mark.parametrize("text", [*hostile_texts.TEXTS, pytest.param(hostile_texts.MEGABYTE, id="megabyte")])
def test_no_text_acts_in_a_terminal(text: str) -> None:
    data = hostile_texts.everywhere(text)
    for shown in (printed(print_audit, data.audit), printed(print_stress, synthetic_stress.renamed(text))):
        assert hostile.sanitise(shown) == shown
        assert len(shown) < 60_000
    audit = printed(print_audit, data.audit, width=10_000)
    if "[bold" in text:
        assert text in audit  # shown, not obeyed


def test_an_attack_run_names_its_strongest_attack() -> None:
    data = synthetic.with_attacks(synthetic.report_data(synthetic.Setting(shape=synthetic.DEEPENED)))
    shown = " ".join(printed(print_audit, data.audit).split())
    assert "Strongest attack found: suffix" in shown
    assert "54 of 60" in shown


@given(st.floats(0, 1), st.integers(1, 30))
def test_a_bar_has_its_width_and_hides_nothing(share: float, width: int) -> None:
    drawn = bar(share, width)
    assert len(drawn) == width
    assert (drawn.strip() == "") == (share == 0)
    assert (drawn == "█" * width) >= (share == 1)


@given(st.text())
def test_what_is_sanitised_is_shown_and_stays(text: str) -> None:
    shown = hostile.sanitise(text)
    assert hostile.sanitise(shown) == shown
    assert re.sub(r"⟦U\+[0-9A-F]{4,6}⟧", "", shown) in text or len(shown) > len(text)
    shown.encode("utf-8")


@given(st.text(max_size=400), st.integers(1, 80))
def test_one_line_is_one_line_of_that_width(text: str, width: int) -> None:
    line = hostile.one_line(text, width)
    assert len(line) <= width
    assert not {"\n", "\r", "\t", "\u2028"} & set(line)


def test_a_comparison_of_many_attacks_shows_the_largest_differences(tmp_path: Path) -> None:
    run = synthetic.write_run(synthetic.report_data(SMALL), tmp_path)
    found = compare(run, run)
    row = next(row for row in found.attacks if row.counted == "continuation")
    many = tuple(
        msgspec.structs.replace(
            row, attack="made", parameters={"n": i}, asr=msgspec.structs.replace(row.asr, difference=i / 100)
        )
        for i in range(60)
    )
    shown = printed(print_comparison, msgspec.structs.replace(found, attacks=many), width=120)
    assert "the 16 largest of 60" in shown
    assert "n = 59" in shown
    assert "n = 43" not in shown


def test_a_stage_says_once_that_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.report.progress.LINE_EVERY", 0.0)
    out = io.StringIO()
    with Progress("judging", 2, console=Console(file=out, force_terminal=False)) as shown:
        shown.advance()
        shown.advance()
    assert out.getvalue().splitlines()[1:] == ["judging: 2 of 2"]


def test_a_sweeps_headline_says_how_its_worst_was_drawn() -> None:
    def case(objective: str, temperature: float, harmful: int) -> Worst:
        question = Question("model", "harmful", "direct", temperature, objective)
        return Worst(question, Choice((), 5, 20, harmful, 0, wilson(harmful, 20), (harmful / 20,), (), True), 1, 1)

    cases = [case("sft", 0.0, 2), case("sft", 1.0, 7), case("gate", 0.0, 0), case("gate", 1.0, 0)]
    assert stress_headline(cases).endswith(
        "useful model: 35 % under sft (7 of 20, 95 % interval 18.1–56.7 %; harmful, direct, T = 1); "
        "0 % under gate (0 of 20, 95 % interval 0–16.1 %; harmful, direct, greedy)."
    )
