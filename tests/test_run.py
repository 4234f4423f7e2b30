"""The run directory: one writer, one configuration, the records of all processes."""

from pathlib import Path

import msgspec
import pytest

from fathom.errors import UserError
from fathom.records import Behavior, Message, Sampling, content_hash
from fathom.run import Run, RunLock
from fathom.schema import BehaviorsInfo, Manifest
from model_infos import model_info

MODEL = model_info(vocabulary=2)


def manifest(**configuration: object) -> Manifest:
    return Manifest(
        created="2026-01-01T00:00:00+00:00",
        command=("fathom",),
        configuration=configuration,
        configuration_hash=content_hash(configuration),
        model=MODEL,
        base=None,
        behaviors=BehaviorsInfo(source="s", hash="h", harmful=1, benign=0, categories={}, skipped=()),
        judge="refusal",
        sampling=Sampling(max_new_tokens=1),
        seed=0,
        versions={},
        git=None,
        hardware="none",
    )


def test_a_directory_has_one_writer(tmp_path: Path) -> None:
    second = RunLock(tmp_path / "run")
    with RunLock(tmp_path / "run"), pytest.raises(UserError, match="is in use by another fathom process"):
        second.__enter__()
    with RunLock(tmp_path / "run"):
        pass  # released


def test_a_run_begins_once_and_goes_on_only_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run"
    Run.start(path, manifest(seed=0, options={"depths": [0, 1], "top_k": 0}))
    written = (path / "manifest.json").read_bytes()
    again = manifest(options={"top_k": 0, "depths": [0, 1]}, seed=0)
    Run.start(path, msgspec.structs.replace(again, created="later", command=("other",)))
    with pytest.raises(UserError, match=r"depths: \[0,1\] there, \[0,2\] now; seed: 0 there, 1 now"):
        Run.start(path, manifest(seed=1, options={"depths": [0, 2], "top_k": 0}))
    assert (path / "manifest.json").read_bytes() == written


def test_a_run_begins_where_one_was_killed_before_its_manifest_was_whole(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.k3x9a_").write_bytes(b'{"sch')
    (tmp_path / ".lock").touch()
    Run.start(tmp_path, manifest())
    assert Run.open(tmp_path).manifest.configuration == manifest().configuration


def test_a_run_does_not_begin_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files but no run"):
        Run.start(tmp_path, manifest())
    with pytest.raises(UserError, match="is a file"):
        Run.start(tmp_path / "thesis.tex", manifest())
    with pytest.raises(UserError, match="is not a run directory"):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="is not finished"):
        _ = Run.start(tmp_path / "new", manifest()).audit


def test_a_manifest_that_was_edited_is_named(tmp_path: Path) -> None:
    Run.start(tmp_path / "run", manifest())
    (tmp_path / "run/manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not a Manifest of this version"):
        Run.start(tmp_path / "run", manifest())


def test_records_of_all_processes_are_read(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", manifest())
    for rank, name in ((0, "a"), (2, "c"), (1, "b")):
        with run.journal("behaviors", rank) as journal:
            journal.append([Behavior(id=name, messages=(Message("user", name),))])
    assert [item.id for item in run.records("behaviors", Behavior)] == ["a", "b", "c"]
