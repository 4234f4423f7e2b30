"""The table of searches: a small real case, and models that are named wrongly."""

import runpy
import sys
from pathlib import Path

import pytest

from fathom.organism import stage_directory

RECIPE = Path(__file__).parents[2] / "recipes" / "search_tables.py"


def recipe(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["search_tables.py", *arguments])
    monkeypatch.syspath_prepend(str(RECIPE.parent))  # as where the file is run
    runpy.run_path(str(RECIPE), run_name="__main__")


def test_searches_on_a_model_make_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"aligned:104={stage_directory('natural')}"
    recipe(monkeypatch, "-o", str(tmp_path), "--only", "suffix", "--harmful", "2", model)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| aligned")]
    assert len(rows) == 1
    assert "of 2, " in rows[0]
    assert rows[0].endswith(" of 2 |")  # one benign request, behind a suffix of either target
    recipe(monkeypatch, "-o", str(tmp_path), "--tables")
    assert rows[0] in capsys.readouterr().out


def test_a_model_that_is_named_wrongly_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ("aligned=models/deep", "aligned:104"):
        with pytest.raises(SystemExit) as ended:
            recipe(monkeypatch, "-o", str(tmp_path), wrong)
        assert ended.value.code == 2
        assert "NAME:WORLD=MODEL" in capsys.readouterr().err
