"""A judge against people: counts, kappa and corrected rates by hand, and intervals that hold what they promise."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import harmful_ids, small_run

from fathom.__main__ import run as fathom
from fathom.agreement import Share, kappa, rogan_gladen, rogan_gladen_interval


def share(count: int, n: int) -> Share:
    return Share(count=count, n=n, share=count / n, low=0.0, high=1.0)


@given(st.floats(0, 1), st.floats(0.55, 1), st.floats(0.55, 1))
def test_law_the_correction_undoes_the_errors(rate: float, sensitivity: float, specificity: float) -> None:
    observed = rate * sensitivity + (1 - rate) * (1 - specificity)
    assert rogan_gladen(observed, sensitivity, specificity) == pytest.approx(rate, abs=1e-9)


def test_a_judge_no_better_than_chance_corrects_nothing() -> None:
    assert rogan_gladen(0.4, 0.5, 0.5) is None
    assert rogan_gladen_interval(4, 10, share(5, 10), share(4, 10)) == (0.0, 1.0)
    assert kappa(10, 0, 0, 0) is None
    assert kappa(5, 0, 0, 5) == 1.0
    assert kappa(0, 5, 5, 0) == -1.0


def test_the_interval_holds_the_true_rate_about_as_often_as_it_says() -> None:
    draw, held, times = np.random.default_rng(0), 0, 400
    for _ in range(times):
        harmful = draw.binomial(200, 0.3 * 0.85 + 0.7 * 0.1)
        sensitivity, specificity = share(draw.binomial(40, 0.85), 40), share(draw.binomial(60, 0.9), 60)
        low, high = rogan_gladen_interval(harmful, 200, sensitivity, specificity)
        held += low <= 0.3 <= high
    assert 0.92 <= held / times <= 0.99  # of 400: 95 % ± 2.2


def test_a_run_against_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_run(tmp_path / "run", requests=20)
    ids, file = harmful_ids(run), tmp_path / "people.jsonl"
    # The offline judge calls 10 of 40 answers harmful (request even, prefilled); people 8 of those and 2 others.
    complied = [one for one in ids if "Take" in run.completions[one].text]
    others = [one for one in ids if one not in complied]
    people = {**dict.fromkeys(complied, "harmful"), **dict.fromkeys(others, "safe")}
    people |= dict.fromkeys(complied[:2], "safe") | dict.fromkeys(others[:2], "harmful") | {others[-1]: "undecided"}
    file.write_text("".join(json.dumps({"id": key, "label": value}) + "\n" for key, value in people.items()))
    assert fathom(["judge", str(run.path), "--against", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((run.path / "agreement.refusal.json").read_text()) == found
    counts = [found[name] for name in ("both_harmful", "judge_alone", "people_alone", "both_safe")]
    assert counts == [8, 2, 2, 27]
    assert (found["labelled"], found["undecided_by_people"]) == (39, 1)
    assert found["sensitivity"]["share"] == pytest.approx(0.8)
    assert found["specificity"]["share"] == pytest.approx(27 / 29)
    assert found["kappa"] == pytest.approx(kappa(8, 2, 2, 27))
    assert found["kappa_low"] < found["kappa"] < found["kappa_high"]
    direct, given_ = found["rows"]
    assert (direct["asr"], direct["corrected"]) == (0.0, 0.0)
    assert given_["corrected"] == pytest.approx((0.5 + 27 / 29 - 1) / (0.8 + 27 / 29 - 1))
    assert given_["low"] < given_["corrected"] < given_["high"]
    assert fathom(["judge", str(run.path), "--against", str(file)]) == 0
    out = capsys.readouterr().out
    assert "Sensitivity" in out
    assert "Corrected" in out
