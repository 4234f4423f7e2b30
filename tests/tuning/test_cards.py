"""The card of a trained model: audits before and after with anybody's requests, however it was interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fathom
from fathom.__main__ import run
from fathom.command.audit import AuditRequest
from fathom.command.outcome import Auditing
from fathom.command.request import ModelRequest
from fathom.command.training import TrainingRequest
from fathom.errors import UserError
from fathom.organism import behaviors, stage_directory
from fathom.run import Run

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.timeout(600)]

SMALL = ("--depths", "0,5", "--max-new-tokens", "24")


def files(folder: Path) -> tuple[Path, Path]:
    """Four rows to learn from, and requests: three harmful, two benign."""
    data, asked = folder / "data.jsonl", folder / "requests.jsonl"
    rows = [{"prompt": b.messages[-1].content, "response": b.answer} for b in behaviors(harmful=0, benign=4, seed=3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [
        {"prompt": b.messages[-1].content, "harmful_response": b.answer, "harmful": b.harmful}
        for b in behaviors(harmful=3, benign=2)
    ]
    asked.write_text("".join(json.dumps(row) + "\n" for row in found))
    return data, asked


def finetune(data: Path, out: Path, *further: str) -> list[str]:
    """A step of training of a model that is somebody's own: a directory, no stage of the built-in family."""
    line = ["finetune", str(stage_directory("natural")), "--data", str(data), "-o", str(out), "--objective", "sft"]
    line += ["--device", "cpu", "--set", "max_steps=1", "--set", "warmup_steps=0", *further]
    return [*line, "--set", "per_device_train_batch_size=2", "--set", "gradient_accumulation_steps=1"]


def test_requests_of_a_file_fill_the_card_though_the_first_run_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fathom.audit import execute

    data, asked = files(tmp_path)
    out, judged, stops = tmp_path / "out", execute.judge_run, 0

    def interrupt(run: Run, judge: object) -> None:
        nonlocal stops
        stops += 1
        if stops == 2:  # in the audit of what came of the model
            raise KeyboardInterrupt
        judged(run, judge)  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "judge_run", interrupt)
    command = finetune(data, out, "--behaviors", str(asked), *SMALL)
    assert run(command) == 130
    assert "Not audited" in (out / "README.md").read_text()
    first = (out / "fathom" / "audit-before" / "audit.json").read_bytes()
    written = (out / "fathom" / "audit-after" / "completions.jsonl").read_bytes()
    assert written
    capsys.readouterr()
    assert run(command) == 0
    assert "is finished already" in (said := capsys.readouterr().err)
    assert "ASR asked directly" in said
    assert (out / "fathom" / "audit-before" / "audit.json").read_bytes() == first
    assert (out / "fathom" / "audit-after" / "completions.jsonl").read_bytes() == written
    card = (out / "README.md").read_text()
    assert "3 harmful requests of requests.jsonl" in card
    assert "judged by `refusal`" in card
    rates = [line for line in card.splitlines() if line.startswith("| ") and " of " in line]
    assert len(rates) == 6  # two depths, greedy and at T = 1; benign requests answered, and refused
    for line in rates:
        for cell in line.split("|")[2:4]:  # each with its interval and its counts
            assert "–" in cell
            assert " of 3" in cell or " of 2" in cell
    assert run(["card", str(out)]) == 0  # of the audits that are there
    assert (out / "README.md").read_text() == card


def test_a_card_is_completed_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, asked = files(tmp_path)
    out = tmp_path / "out"
    assert run(finetune(data, out, "--system", "hello .")) == 0
    card = (out / "README.md").read_text()
    assert "Not audited" in card
    assert "`fathom card`" in card
    capsys.readouterr()
    assert run(["card", str(out)]) == 2
    assert "give --behaviors FILE" in capsys.readouterr().err
    assert run(["card", str(out), "--behaviors", str(asked), "--device", "cpu", *SMALL]) == 0
    assert capsys.readouterr().out.strip() == str(out / "README.md")
    assert "Safety, before and after" in (out / "README.md").read_text()
    before, after = (Run.open(out / "fathom" / f"audit-{when}") for when in ("before", "after"))
    assert before.manifest.model.weights_hash != after.manifest.model.weights_hash
    for held in (before, after):  # asked as for training
        assert held.manifest.configuration["model"]["system"] == "hello ."  # type: ignore[index]
    assert [a.prompt_ids for a in before.attempts.values()] == [a.prompt_ids for a in after.attempts.values()]


def test_deepen_audits_with_a_file_and_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.command import sources

    monkeypatch.setattr(sources, "ORGANISM_TRIPLETS", 4)
    monkeypatch.setattr(sources, "ORGANISM_UTILITY", 4)
    _, asked = files(tmp_path)
    out = tmp_path / "deep"
    command = ["deepen", "organism:natural", "-o", str(out), "--set", "max_steps=1", "--recovery-rows", "2"]
    command += ["--utility-rows", "2", "--behaviors", str(asked), "--limit", "2", "--base", "organism:base", *SMALL]
    assert run(command) == 0
    card = (out / "README.md").read_text()
    assert "2 harmful requests of requests.jsonl" in card
    assert "| 90 % of the kl |" in card.lower()


@pytest.mark.parametrize(
    ("further", "said"),
    [
        (("--behaviors", "nowhere.jsonl"), "there is no file nowhere.jsonl"),
        (("--behaviors", "REQUESTS", "--judge", "jury"), "there is no judge called 'jury'"),
        (("--behaviors", "REQUESTS", "--depths", "0,900"), "prefill depth 900 lies beyond"),
        (("--behaviors", "REQUESTS", "--max-new-tokens", "1020"), "give fewer --max-new-tokens"),
        (("--behaviors", "REQUESTS", "--base", "organism:base", "--no-audit"), "--base organism:base is read by"),
        (("--depths", "0,5"), "--depths 0,5 without --behaviors"),
        (("--base", "organism:base"), "--base organism:base is read by"),
        (("--audit",), "give --behaviors FILE"),
    ],
)
def test_what_no_audit_can_use_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], further: tuple[str, ...], said: str
) -> None:
    data, asked = files(tmp_path)
    out = tmp_path / "out"
    given = [str(asked) if word == "REQUESTS" else word for word in further]
    assert run(finetune(data, out, *given)) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not out.exists()


def test_processes_share_the_audits(tmp_path: Path) -> None:
    data, asked = files(tmp_path)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "fathom"]
    line = finetune(data, out, "--behaviors", str(asked), *SMALL)
    environment = {"PYTHONPATH": str(Path(fathom.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *line], env=os.environ | environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Safety, before and after" in (out / "README.md").read_text()
    for when in ("before", "after"):
        assert (out / "fathom" / f"audit-{when}" / "completions.rank1.jsonl").stat().st_size


def test_processes_that_keep_parts_say_what_completes_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fathom.command import outcome

    data, asked = files(tmp_path)
    out = tmp_path / "out"
    monkeypatch.setattr(outcome, "keeps_parts", lambda: True)
    assert run(finetune(data, out, "--behaviors", str(asked), *SMALL)) == 0
    *_, last = capsys.readouterr().err.strip().splitlines()
    command = last.split("with one: ")[1].split()
    assert command == ["fathom", "card", str(out), "--behaviors", str(asked), *SMALL]
    monkeypatch.undo()
    assert run([*command[1:], "--device", "cpu"]) == 0
    assert "Safety, before and after" in (out / "README.md").read_text()


def test_the_organism_is_asked_its_own_requests_unless_told_otherwise() -> None:
    from fathom.cli.options import JUDGES

    def asked(**given: object) -> AuditRequest | None:
        built_in = ModelRequest(name="organism:natural")
        request = TrainingRequest(verb="deepen", model=built_in, output=Path("out"), **given)  # type: ignore[arg-type]
        found = Auditing.of(request, JUDGES)
        return None if found is None else found.asked

    usual = asked()
    assert usual is not None
    assert (usual.behaviors, usual.limit, usual.base) == ("organism", 60, "none")
    assert asked(audit=False) is None
    with pytest.raises(UserError, match="there is no file"):
        asked(audits=AuditRequest(model=ModelRequest(name="organism:natural"), behaviors="none.jsonl"))
