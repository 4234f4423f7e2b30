"""Which worlds the table of attacks may ask of which weights, and which stages it names."""

import runpy
import sys
from pathlib import Path

import pytest

from fathom.errors import UserError

RECIPE = Path(__file__).parents[2] / "recipes" / "attack_table.py"


def test_the_shipped_weights_are_asked_of_their_own_world_alone() -> None:
    worlds_of = runpy.run_path(str(RECIPE))["worlds_of"]
    assert worlds_of(["104", "105=worlds/105"]) == {104: None, 105: Path("worlds/105")}
    assert worlds_of(["104=mine"]) == {104: Path("mine")}
    with pytest.raises(UserError, match="world 1 has no directory, and the shipped weights are of world 104"):
        worlds_of(["1", "103=worlds/103"])
    with pytest.raises(UserError, match="no world"):
        worlds_of(["one"])


def test_a_seed_without_directory_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["attack_table.py", "-o", str(tmp_path / "runs"), "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert ended.value.code == 2
    assert "give 1=DIR" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_stages_are_any_directories_of_a_world(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["attack_table.py", "-o", str(tmp_path / "runs"), f"9={tmp_path}", "--stages", "natural,mine", "--suffix"]
    monkeypatch.setattr(sys, "argv", asked)
    runpy.run_path(str(RECIPE), run_name="__main__")
    out = capsys.readouterr().out
    assert "world 9, mine: left out" in out
    assert "| attack | worst of | drawn | natural | mine |" in out
