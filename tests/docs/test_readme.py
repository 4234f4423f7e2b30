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


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command_lines(text: str = README) -> list[list[str]]:
    """Every `fathom …` that a reader could type, in blocks, in indented lines and in the text."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (.*\bfathom [a-z].*)$", prose, re.MULTILINE)
    inline = re.findall(r"`([^`\n]*\bfathom [^`\n]*)`", prose)
    typed = [line.split("#")[0] for block in blocks("sh", text) for line in block.splitlines()]
    found = []
    for line in (*typed, *(line.split("#")[0] for line in indented), *inline):
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
        check(commands, name, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_every_page_exist(page: Path, commands: dict[str, Any]) -> None:
    for words in command_lines(page.read_text(encoding="utf-8")):
        if words and words[0] not in ("COMMAND", "--help"):
            check(commands, words[0], words[1:])


def check(commands: dict[str, Any], name: str, words: list[str]) -> None:
    assert name in commands, name
    command = commands[name]
    if words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known | {"--help"}, (name, word)


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
