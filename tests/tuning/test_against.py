"""Deepening against suffixes that an attack found: what stands behind the requests, and which runs cannot be used."""

import json
from pathlib import Path

import pytest

from fathom.__main__ import run
from fathom.command.against import found_suffixes
from fathom.errors import UserError
from fathom.journal import read_journal
from fathom.organism import behaviors
from fathom.records import Attempt
from fathom.tuning.rows import Kind, read_rows
from few_rows import organism

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.timeout(600)]


def written(path: Path, count: int) -> Path:
    rows = [
        {"prompt": one.messages[-1].content, "harmful_response": one.answer, "refusal": one.refusal}
        for one in behaviors(split="training", harmful=count, benign=0)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished attack on three requests, the triplets beside it."""
    path = tmp_path_factory.mktemp("against")
    triplets = written(path / "triplets.jsonl", 3)
    attack = ["attack", "organism:natural", "--behaviors", str(triplets), "--max-new-tokens", "8"]
    assert run([*attack, "--with", "suffix steps=2 width=4 chain=1", "-o", str(path / "found")]) == 0
    return path


def test_suffixes_stand_behind_half_of_the_requests(
    attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fathom.command import sources

    monkeypatch.setattr(sources, "ORGANISM_UTILITY", 4)
    found = {attempt.found["suffix"] for attempt in read_journal(attacked / "found" / "attempts.jsonl", Attempt)
             if "suffix" in attempt.found}  # fmt: skip
    assert len(found) == 3
    command = ["deepen", "organism:natural", "--triplets", str(attacked / "triplets.jsonl"), "--no-audit"]
    command += ["--recovery-rows", "20", "--utility-rows", "1", "--set", "max_steps=2", "-o", str(tmp_path / "deep")]
    assert run([*command, "--against", str(attacked / "found")]) == 0
    said = capsys.readouterr().err
    assert "3 suffixes, found for 3 requests, stand behind half of the harmful prompts" in said
    assert "not among the triplets" not in said
    recoveries = [row for row in read_rows(tmp_path / "deep" / "fathom" / "rows.jsonl") if row.kind is Kind.RECOVERY]
    suffixed = [row for row in recoveries if row.source.endswith(", suffixed")]
    assert 8 <= len(suffixed) <= 32  # of 40, at a half: beyond these once in ten thousand times
    plain = {row.source: row.prompt_ids for row in recoveries if row not in suffixed}
    chat = organism().chat
    for row in suffixed:
        request = row.source.removesuffix(", suffixed")
        if request in plain:
            text, before = (chat.tokenizer.decode(list(ids)) for ids in (row.prompt_ids, plain[request]))
            assert any(text == before.replace(" <end>", f" {suffix} <end>") for suffix in found)
    assert run(command) == 2  # without them it would be another model
    assert "against" in capsys.readouterr().err


def test_requests_that_are_no_longer_held_out_are_named(attacked: Path) -> None:
    found = found_suffixes([attacked / "found"], set())
    assert len(found.suffixes) == 3
    assert all(text.startswith(" ") for text in found.suffixes)
    assert "3 of these requests are not among the triplets" in found.notes[-1]
    twice = found_suffixes([attacked / "found", attacked / "found"], set())
    assert twice.suffixes == found.suffixes


def test_runs_that_hold_no_suffix_or_have_not_ended(attacked: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        found_suffixes([tmp_path], ())
    command = ["attack", "organism:natural", "--behaviors", str(attacked / "triplets.jsonl"), "--max-new-tokens", "4"]
    assert run([*command, "--with", "best-of-n n=1", "-o", str(tmp_path / "draws")]) == 0
    with pytest.raises(UserError, match="holds no suffix that was searched for"):
        found_suffixes([tmp_path / "draws"], ())
    (tmp_path / "draws" / "audit.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        found_suffixes([tmp_path / "draws"], ())
