"""The README is true: its Python runs, its commands and options exist, its table is the command line's own."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fathom.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def command_lines() -> list[list[str]]:
    """Every `fathom …` that a reader could type, in blocks and in the text."""
    inline = re.findall(r"`([^`\n]*\bfathom [^`\n]*)`", README)
    lines = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines()] + inline
    found = []
    for line in lines:
        words = shlex.split(line)
        if "fathom" in words:
            found.append(words[words.index("fathom") + 1 :])
    return found


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    return dict(typer.main.get_group(app).commands)


def test_the_python_runs() -> None:
    """Each block as a script of its own."""
    (source,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"^(\d+) tokens prefilled: \d+ of 20 harmful", done.stdout, re.MULTILINE) == ["1", "5", "20"]


def test_commands_and_options_exist(commands: dict[str, Any]) -> None:
    lines = [words for words in command_lines() if words and words[0] != "COMMAND"]
    assert len(lines) > 15
    for name, *rest in lines:
        assert name in commands, name
        options = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in options, (name, word)


def test_the_table_lists_every_command_with_its_own_first_sentence(commands: dict[str, Any]) -> None:
    rows = dict(re.findall(r"^\| `fathom (\w+)[^`]*` \| (.*) \|$", README, re.MULTILINE))
    shown = {name: command for name, command in commands.items() if not command.hidden}
    assert rows.keys() == shown.keys()
    for name, sentence in rows.items():
        said = " ".join((shown[name].help or "").split())
        assert said.startswith(sentence), (name, sentence, said)


def test_outputs_are_pasted() -> None:
    pasted = re.findall(r"<!-- output: (.*?) -->\n```\n(.*?)```", README, re.DOTALL)
    assert [command for command, _ in pasted] == ["fathom audit", "fathom audit organism:deepened"]
    assert all("prefill" in output for _, output in pasted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target and ("." in target or "/" in target):  # "[40](100)" is no link
            assert (page.parent / target).exists(), target
