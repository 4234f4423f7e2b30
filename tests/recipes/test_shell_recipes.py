"""The shell recipes: every command line of each is one that the command line takes, and the shortest are run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fathom.behaviors.source import row_source
from fathom.cli import app
from fathom.organism.tasks import jsonl, task_rows

RECIPES = Path(__file__).parents[2] / "recipes"
ARGUMENTS = {
    "t3_deepen.sh": ["organism:natural", "organism:base", "harmful.jsonl", "utility.jsonl", "tests.jsonl", "out"],
    "t4_protect.sh": ["org/model", "tests.jsonl", "out", "5e-6"],
    "t4_tasks.sh": ["org/model", "tests.jsonl", "out", "5e-6"],
    "t8_beta.sh": ["org/model", "tests.jsonl", "out"],
    "t9_warmup.sh": ["org/model", "tests.jsonl", "out"],
    "t10_augmented.sh": ["out/deepened", "tests.jsonl", "out"],
}
SMALL = "--rows 8 --batch 4 --steps 2 --warmup 0,1 --limit 4 --max-new-tokens 16 --temperature 0 --device cpu"


def ran(recipe: str, arguments: list[str], environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [str(RECIPES / recipe), *arguments], env=os.environ | environment, cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done.stdout.decode()


def recorder(folder: Path) -> dict[str, str]:
    """A `fathom` that writes down what it was given and does nothing."""
    script = folder / "bin" / "fathom"
    script.parent.mkdir()
    script.write_text(f'#!/usr/bin/env bash\n(printf "%s\\x1f" "$@"; printf "\\x1e") >> "{folder}/given"\n')
    script.chmod(0o755)
    return {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}"}


def real(folder: Path) -> dict[str, str]:
    script = folder / "bin" / "fathom"
    script.parent.mkdir()
    script.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -m fathom "$@"\n')
    script.chmod(0o755)
    return {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}


def test_every_shell_recipe_is_tested() -> None:
    assert {path.name for path in RECIPES.glob("*.sh")} == ARGUMENTS.keys()
    assert all(os.access(path, os.X_OK) for path in RECIPES.glob("*.sh"))


@pytest.mark.parametrize("recipe", ARGUMENTS)
@pytest.mark.parametrize("further", ["", "--device cpu --max-new-tokens 16"])
def test_the_command_line_takes_every_line(recipe: str, further: str, tmp_path: Path) -> None:
    ran(recipe, ARGUMENTS[recipe], recorder(tmp_path) | {"STRESS": further, "AUDIT": further}, tmp_path)
    commands: dict[str, Any] = dict(typer.main.get_group(app).commands)
    lines = [line.split("\x1f")[:-1] for line in (tmp_path / "given").read_text().split("\x1e")[:-1]]
    assert lines
    for name, *rest in lines:
        commands[name].make_context(name, rest)  # raises where an option is unknown or lacks its value


def test_an_option_that_is_none_is_found_out() -> None:
    commands: dict[str, Any] = dict(typer.main.get_group(app).commands)
    with pytest.raises(Exception, match="No such option"):
        commands["stress"].make_context("stress", ["organism:natural", "--learning-rates", "1"])


def test_table_4_runs(tmp_path: Path) -> None:
    shown = ran(
        "t4_protect.sh", ["organism:natural", "organism", "out", "3e-4"], real(tmp_path) | {"STRESS": SMALL}, tmp_path
    )
    assert {"sft", "constrained"} <= set(shown.split())
    measured = (tmp_path / "out" / "checkpoints.jsonl").read_bytes()
    assert measured.count(b"\n") == 5  # the start, and two objectives with and without warm-up


def test_table_4s_tasks_are_of_the_hub_or_of_files(tmp_path: Path) -> None:
    recording = recorder(tmp_path)
    ran("t4_tasks.sh", ARGUMENTS["t4_tasks.sh"], recording, tmp_path)
    told = (tmp_path / "given").read_text().split("\x1f")
    data = [row_source(Path(told[at + 1])) for at, word in enumerate(told) if word in ("--task-data", "--task-test")]
    assert [(str(one.place), one.parts["split"], one.parts.get("config"), sorted(one.columns)) for one in data] == [
        ("hf:knkarthick/samsum", "train", None, ["answer", "prompt"]),
        ("hf:knkarthick/samsum", "test", None, ["answer", "prompt"]),
        ("hf:b-mc2/sql-create-context", "train", None, ["answer", "prompt"]),
        ("hf:openai/gsm8k", "train", "main", []),
        ("hf:openai/gsm8k", "test", "main", []),
    ]
    assert data[2].columns["prompt"].endswith("\n\n{context}\n\n{question}")
    (tmp_path / "given").unlink()
    own = {"SAMSUM": "a.jsonl", "SQL": "b.jsonl", "GSM8K": "c.jsonl"}
    ran("t4_tasks.sh", ARGUMENTS["t4_tasks.sh"], recording | own, tmp_path)
    told = (tmp_path / "given").read_text().split("\x1f")
    assert [told[at + 1] for at, word in enumerate(told) if word == "--task-data"] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert "--task-test" not in told


def test_a_task_of_table_4_runs_on_rows_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text(jsonl(task_rows(None, "arithmetic", "training", 12)))
    small = f"{SMALL} --task-limit 3 --objective sft --warmup 0 --trainer light"
    given = {"TASKS": "gsm8k", "GSM8K": "sums.jsonl", "STRESS": small}
    shown = ran("t4_tasks.sh", ["organism:natural", "organism", "out", "1e-3"], real(tmp_path) | given, tmp_path)
    assert "what was learned of sums.jsonl (n = 3)" in " ".join(shown.split())
    assert (tmp_path / "out" / "gsm8k" / "checkpoints.jsonl").read_bytes().count(b"\n") == 2
