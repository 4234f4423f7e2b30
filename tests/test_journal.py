"""Journals that a kill does not hurt, and files that are replaced whole."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import UserError
from fathom.journal import Journal, read_journal, write_whole
from fathom.records import Behavior, Message, encode_line


def behavior(text: str) -> Behavior:
    return Behavior(id=text, messages=(Message("user", text),))


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=6)


@given(texts, st.integers(0, 400), texts)
def test_cut_anywhere_a_journal_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, first: list[str], cut: int, second: list[str]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "behaviors.jsonl"
    with Journal(path) as journal:
        journal.append(map(behavior, first))
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    whole = content.count(b"\n")
    assert [item.id for item in read_journal(path, Behavior)] == first[:whole]
    with Journal(path) as journal:
        journal.append(map(behavior, second))
    assert [item.id for item in read_journal(path, Behavior)] == [*first[:whole], *second]


def test_a_torn_line_longer_than_a_block_is_healed(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(encode_line(behavior("kept")) + b'{"id":"' + b"x" * 200_000)
    with Journal(path) as journal:
        journal.append([behavior("new")])
    assert [item.id for item in read_journal(path, Behavior)] == ["kept", "new"]
    path.write_bytes(b"x" * 200_000)  # nothing but a torn line
    with Journal(path) as journal:
        journal.append([behavior("new")])
    assert [item.id for item in read_journal(path, Behavior)] == ["new"]


def test_nothing_to_append_writes_nothing_and_no_file_reads_as_empty(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "none.jsonl", Behavior)) == []
    with Journal(tmp_path / "empty.jsonl") as journal:
        journal.append([])
    assert (tmp_path / "empty.jsonl").read_bytes() == b""


def test_a_whole_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "behaviors.jsonl"
    path.write_bytes(encode_line(behavior("a")) + b'{"id":1}\n')
    with pytest.raises(UserError, match=r"behaviors\.jsonl, line 2 is not a Behavior"):
        list(read_journal(path, Behavior))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        list(read_journal(tmp_path / "folder.jsonl", Behavior))


def test_a_file_is_replaced_wholly_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.json"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(UserError, match="no space left on the disk while writing"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["audit.json"], "a half-written file was left behind"


def test_an_error_that_no_user_can_mend_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _handle: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        write_whole(tmp_path / "audit.json", b"new")


def test_what_was_written_before_the_disk_was_full_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "behaviors.jsonl"
    with Journal(path) as journal:
        journal.append([behavior("kept")])
        monkeypatch.setattr(os, "fsync", lambda _handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(UserError, match="all that was written before is kept"):
            journal.append([behavior("lost")])
    assert next(read_journal(path, Behavior)).id == "kept"
