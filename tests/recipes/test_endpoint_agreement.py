"""A run agrees with itself, answer for answer, and its sampled answers are counted apart."""

import runpy
import sys
from pathlib import Path

from fathom.__main__ import run

RECIPE = Path(__file__).parents[2] / "recipes" / "endpoint_agreement.py"


def test_a_run_agrees_with_itself(tmp_path, capsys, monkeypatch):
    asked = ["audit", "organism:natural", "--base", "none", "--limit", "2", "--depths", "0,3", "--max-new-tokens", "8"]
    assert run([*asked, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["endpoint_agreement.py", str(tmp_path / "run"), str(tmp_path / "run")])
    runpy.run_path(str(RECIPE), run_name="__main__")
    greedy, sampled = capsys.readouterr().out.splitlines()
    assert greedy == "greedy: of 6 answers to the same attempts same ids 6, same finish 6, same text 6"
    assert sampled.startswith("sampled: of 4")
