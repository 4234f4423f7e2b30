"""`make bench` runs: every benchmark on a small real case, results equal to their baselines', one table."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
def test_all_benchmarks_on_a_small_case() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--quick", "--threads", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[0].split("|")[1].strip() == "figure"
    assert not any("NO" in row for row in rows)
    for expected in (
        "per-token KL",
        "prefilling sweep",
        "rows with the same output",
        "refusal mass",
        "`fathom --help`",
    ):
        assert any(expected in row for row in rows), expected


def test_one_that_cannot_run_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import run
    from common import Figure

    other = types.SimpleNamespace(figures=lambda effort, threads: [Figure("of the other one", 1)])
    monkeypatch.setitem(sys.modules, "fine", other)
    monkeypatch.setattr(run, "BENCHMARKS", {"first": "no_such_module", "second": "fine"})
    monkeypatch.setattr(sys, "argv", ["run.py", "--threads", str(torch.get_num_threads())])
    assert run.main() == 1
    said = capsys.readouterr().out
    assert "| of the other one" in said
    assert "not measured: first: No module named 'no_such_module'" in said


def test_a_missed_target_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from common import Figure, Goal, table

    missed = Figure("speed", 2.9, goal=Goal.AT_LEAST, target=3, baseline="2.9 s", ours="1.0 s")
    met = Figure("memory", 1.9, goal=Goal.AT_MOST, target=2)
    assert (missed.reached, met.reached, Figure("plain", 1).reached) == ("NO", "yes", "")
    assert "≥ 3.00 x" in table([missed, met])
