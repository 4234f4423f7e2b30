"""A run that is killed at any moment goes on with the same command, loses nothing, repeats nothing, ends the same."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from forked import Child, lines, start, together, until

AUDIT = ["audit", "--limit", "4", "--depths", "0,1,3", "--max-new-tokens", "40", "-o", "run"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(AUDIT, folder).wait() == 0
    return folder / "run"


@pytest.fixture
def whole(undisturbed: Path) -> bytes:
    return (undisturbed / "audit.json").read_bytes()


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged."""
    return shutil.copytree(undisturbed, tmp_path / "run")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children write at every moment, so that there are many moments, and make no page, which is tested elsewhere."""
    monkeypatch.setattr("fathom.audit.execute.WRITE_EVERY", 0.0)
    monkeypatch.setattr("fathom.command.audit.write_run_report", lambda _path: None)


def ended(folder: Path, child: Child) -> bytes:
    assert child.wait() == 0, child.err.read_text()
    repeated = Counter(line["attempt"] for path in folder.glob("run/completions*.jsonl") for line in records(path))
    assert set(repeated.values()) == {1}, "an attempt was run twice"
    return (folder / "run/audit.json").read_bytes()


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in lines(path)]


def holds(path: Path, count: int):
    return lambda: sum(1 for _ in lines(path)) >= count


@pytest.mark.parametrize(
    ("file", "count"),
    [
        (".lock", 0),
        ("manifest.json", 1),
        ("behaviors.jsonl", 1),
        ("attempts.jsonl", 1),
        ("completions.jsonl", 1),
        ("verdicts.organism.jsonl", 1),
        ("refusals.json", 1),
        ("divergence.jsonl", 2),
        ("recovery.jsonl", 2),
        ("audit.json", 1),
    ],
)
def test_killed_as_soon_as_a_file_has_so_many_lines(tmp_path: Path, whole: bytes, file: str, count: int) -> None:
    child = start(AUDIT, tmp_path)
    path = tmp_path / "run" / file
    until(lambda: path.exists() and holds(path, count)(), child)
    child.kill()
    assert ended(tmp_path, start(AUDIT, tmp_path)) == whole


def test_killed_again_and_again_at_random_moments(tmp_path: Path, whole: bytes) -> None:
    moments = random.Random(5)
    kills = 0
    for _ in range(40):
        child = start(AUDIT, tmp_path)
        time.sleep(moments.uniform(0.0, 0.5))
        if child.poll():
            break
        child.kill()
        kills += 1
    assert kills >= 1, "never killed: the moments are too late"
    assert ended(tmp_path, start(AUDIT, tmp_path)) == whole


@pytest.mark.parametrize(
    "file", ["behaviors", "attempts", "completions", "verdicts.organism", "divergence", "recovery"]
)
def test_a_torn_last_line_is_healed(tmp_path: Path, finished: Path, whole: bytes, file: str) -> None:
    path = finished / f"{file}.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: content[:-1].rindex(b"\n") + 8])
    (finished / "audit.json").unlink()
    assert ended(tmp_path, start(AUDIT, tmp_path)) == whole
    assert path.read_bytes() == content


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, finished: Path, whole: bytes) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert ended(tmp_path, start(AUDIT, tmp_path)) == whole
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_interrupted_by_the_keyboard_it_says_so_and_goes_on(tmp_path: Path, whole: bytes) -> None:
    child = start(AUDIT, tmp_path)
    assert until(holds(tmp_path / "run/completions.jsonl", 3), child)
    child.kill(signal.SIGINT)
    assert child.wait() == 130
    said = child.err.read_text()
    assert said.splitlines()[-1] == "fathom: interrupted; what was done is kept, and the same command goes on from here"
    assert "Traceback" not in said
    kept = list(lines(tmp_path / "run/completions.jsonl"))
    assert len(kept) >= 3
    assert ended(tmp_path, start(AUDIT, tmp_path)) == whole
    assert list(lines(tmp_path / "run/completions.jsonl"))[: len(kept)] == kept


def test_two_processes_do_not_share_a_directory(tmp_path: Path, whole: bytes) -> None:
    first = start(AUDIT, tmp_path)
    assert until(holds(tmp_path / "run/completions.jsonl", 1), first)
    os.kill(first.pid, signal.SIGSTOP)
    second = start(AUDIT, tmp_path)
    assert second.wait() == 2
    (line,) = [line for line in second.err.read_text().splitlines() if line.startswith("fathom:")]
    assert "run is in use by another fathom process" in line
    os.kill(first.pid, signal.SIGCONT)
    assert ended(tmp_path, first) == whole


def test_another_configuration_is_refused_and_nothing_is_changed(tmp_path: Path, finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    other = start([*AUDIT, "--seed", "1"], tmp_path)
    assert other.wait() == 2
    assert "another configuration" in other.err.read_text()
    assert "seed: 0 there, 1 now" in other.err.read_text()
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


# --- several processes ---


def test_two_processes_that_share_the_work_end_as_one(tmp_path: Path, whole: bytes) -> None:
    first, second = together(AUDIT, tmp_path, 2)
    assert second.wait() == 0, second.err.read_text()
    assert ended(tmp_path, first) == whole
    assert records(tmp_path / "run/completions.rank1.jsonl"), "the second process did nothing"
    assert second.out.read_text() == ""
    assert "fathom:" not in first.err.read_text() + second.err.read_text()


def test_torchrun_starts_them(tmp_path: Path, whole: bytes) -> None:
    """The documented command, with nothing of the tests' own in it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fathom", *AUDIT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/audit.json").read_bytes() == whole
    assert records(tmp_path / "run/completions.rank1.jsonl")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_the_number_of_processes_may_change_after_a_kill(tmp_path: Path, whole: bytes, before: int, after: int) -> None:
    children = together(AUDIT, tmp_path, before) if before > 1 else [start(AUDIT, tmp_path)]
    file = tmp_path / ("run/completions.rank1.jsonl" if before > 1 else "run/completions.jsonl")
    assert until(holds(file, 2), children[0])
    for child in children:
        child.kill()
    children = together(AUDIT, tmp_path, after) if after > 1 else [start(AUDIT, tmp_path)]
    for child in children[1:]:
        assert child.wait() == 0, child.err.read_text()
    assert ended(tmp_path, children[0]) == whole


def test_a_mistake_is_said_once_by_all(tmp_path: Path) -> None:
    children = together([*AUDIT, "--depths", "0,9999"], tmp_path, 2)
    assert [child.wait() for child in children] == [2, 2]
    said = "".join(child.err.read_text() for child in children)
    assert said.count("lies beyond every reference answer") == 1
    assert "Traceback" not in said


def test_a_failure_of_one_process_ends_the_others(tmp_path: Path, finished: Path) -> None:
    # The second process cannot write its own file, since a directory stands in its place.
    (finished / "completions.jsonl").unlink()
    (finished / "completions.rank1.jsonl").mkdir()
    first, second = together(AUDIT, tmp_path, 2)
    assert (second.wait(), first.wait()) == (2, 2)
    assert "process 1 of 2: cannot " in second.err.read_text()
    assert "completions.rank1.jsonl" in second.err.read_text()
    assert "Traceback" not in first.err.read_text() + second.err.read_text()


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    first, second = together(AUDIT, tmp_path, 2)
    assert until(holds(tmp_path / "run/completions.rank1.jsonl", 1), second)
    second.kill()
    assert first.wait() == 2
    (line,) = [line for line in first.err.read_text().splitlines() if line.startswith("fathom:")]
    assert "another of the processes has ended" in line
