"""The run directory: append-only JSONL (`journal`), and a manifest that guards what may be added to it.

manifest.json               what the run is; written first, never changed
behaviors.jsonl             the requests, as used
attempts.jsonl              every input, exact ids
search.<attack>.jsonl       states of the attacks that look for something before they have inputs
completions.jsonl           what the models wrote (completions.rank1.jsonl, … from further processes)
divergence.jsonl            per-token KL of each behavior;  recovery.jsonl  its refusal mass
verdicts.<judge>.jsonl      what a judge said;  judge.<judge>.json  which judge of harm it was
times.jsonl                 seconds spent, by attack
audit.json, report.html     made from the files above, at any time, by pure functions
"""

import errno
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from fathom.errors import UserError
from fathom.journal import Journal, read_journal, read_whole, write_whole, writing
from fathom.records import Attempt, Behavior, Completion, Verdict
from fathom.schema import Audit, Manifest

__all__ = ["Run", "RunLock", "differences", "holds_others"]

_Record = TypeVar("_Record")


def holds_others(path: Path, claim: str = "manifest.json") -> bool:
    """Whether a directory holds more than a lock and what a first write of its `claim` left, killed before its end."""
    return any(entry.name != ".lock" and not entry.name.startswith(f".{claim}.") for entry in path.iterdir())


class RunLock:
    """One writer at a time: an advisory lock that the operating system drops when the process dies, however it dies."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / ".lock"
        self._handle: int | None = None

    def __enter__(self) -> Self:
        import fcntl  # Unix only, where the lock is wanted; everything else here reads anywhere

        if self._path.parent.is_file():
            raise UserError(f"{self._path.parent} is a file; give a directory with -o")
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            self._handle = None
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise UserError(
                f"{self._path.parent} is in use by another fathom process; wait for it, or give another "
                "directory with -o"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class Run:
    """A run directory, read. Every property reads its file once; nothing here writes but the `journal` it hands out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run.

        Raises:
            UserError: there is no run at `path`.
        """
        if not (path / "manifest.json").is_file():
            raise UserError(f"{path} is not a run directory (it has no manifest.json); `fathom audit` makes one")
        return cls(path)

    @classmethod
    def start(cls, path: Path, manifest: Manifest) -> "Run":
        """Create a run, or go on with the one at `path` if its configuration is the same.

        Raises:
            UserError: `path` holds something else, or a run of another configuration; says what differs.
        """
        run = cls(path)
        run.check()
        if not (path / "manifest.json").exists():
            write_whole(path / "manifest.json", msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
            return run
        existing = run.manifest
        if existing.configuration_hash != manifest.configuration_hash:
            changed = differences(existing.configuration, manifest.configuration)
            raise UserError(
                f"{path} holds a run of another configuration ({changed}); give the same options to go on with it, "
                "or another directory with -o"
            )
        return run

    def check(self) -> None:
        """That a run may begin or go on here, as far as can be said before its configuration is known.

        Raises:
            UserError: the path is a file, or a directory with other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; give a directory with -o")
        begun = (self.path / "manifest.json").exists()
        if not begun and self.path.is_dir() and holds_others(self.path):
            raise UserError(f"{self.path} holds files but no run; give a new or empty directory with -o")

    @cached_property
    def manifest(self) -> Manifest:
        return read_whole(self.path / "manifest.json", Manifest)

    @cached_property
    def audit(self) -> Audit:
        if not (self.path / "audit.json").exists():
            raise UserError(f"{self.path} is not finished (no audit.json); run the same `fathom audit` command again")
        path = self.path / "audit.json"
        return read_whole(path, Audit, mend="remove it and run the same `fathom audit` command again, which makes it")

    @cached_property
    def behaviors(self) -> dict[str, Behavior]:
        return {behavior.id: behavior for behavior in read_journal(self.path / "behaviors.jsonl", Behavior)}

    @cached_property
    def attempts(self) -> dict[str, Attempt]:
        return {attempt.id: attempt for attempt in read_journal(self.path / "attempts.jsonl", Attempt)}

    @property
    def completions(self) -> dict[str, Completion]:
        """By attempt id, in the order of the attempts, from the files of all processes. Read anew at each call."""
        found = {record.attempt: record for record in self.records("completions", Completion)}
        return {identity: found[identity] for identity in self.attempts if identity in found}

    def verdicts(self, judge: str, version: str | None = None) -> list[Verdict]:
        """The last verdict on each completion and text; of `version` alone, if one is given."""
        last = {
            (verdict.attempt, verdict.counted): verdict
            for verdict in read_journal(self.path / f"verdicts.{judge}.jsonl", Verdict)
            if version in (None, verdict.version)
        }
        return list(last.values())

    def records(self, stem: str, kind: type[_Record]) -> Iterator[_Record]:
        """The records of `<stem>.jsonl` and then of the files that further processes wrote, `<stem>.rank<r>.jsonl`."""
        yield from read_journal(self.path / f"{stem}.jsonl", kind)
        for path in sorted(self.path.glob(f"{stem}.rank*.jsonl")):
            yield from read_journal(path, kind)

    def journal(self, stem: str, rank: int = 0) -> Journal:
        """Open `<stem>.jsonl` for appending; each further process has a file of its own."""
        return Journal(self.path / (f"{stem}.jsonl" if rank == 0 else f"{stem}.rank{rank}.jsonl"))


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """The names and values of what differs, short enough for one line."""
    parts = list[str]()
    for key in sorted({*old, *new}):
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            parts += filter(None, [differences(left, right)])
            continue
        a, b = (msgspec.json.encode(side, order="sorted").decode() for side in (left, right))
        if a != b:
            parts.append(f"{key}: {a} there, {b} now" if len(a) + len(b) < 120 else key)
    return "; ".join(parts)
