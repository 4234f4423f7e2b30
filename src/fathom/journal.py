"""Files that outlive a kill: JSONL that is only ever appended to, and JSON that is replaced as a whole.

A line that ends in a newline is whole; a last line without one was torn by a kill and is dropped when the file is
opened for appending. Readers pass over it.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from fathom.errors import UserError
from fathom.records import decode_line, encode_line

__all__ = ["Journal", "read_journal", "read_whole", "write_whole", "writing"]

_Record = TypeVar("_Record")


class Journal:
    """One append-only JSONL file, opened for appending. Each `append` is on disk when it returns.

    Raises:
        UserError: the file cannot be written (disk full, no permission). What was appended before is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            _heal(path)
            self._file = path.open("ab")

    def append(self, records: Iterable[object]) -> None:
        lines = b"".join(encode_line(record) for record in records)
        if not lines:
            return
        with writing(self.path):
            self._file.write(lines)
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        # Closing flushes what a failed write left in the buffer, and would fail for the same reason a second time.
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path, kind: type[_Record]) -> Iterator[_Record]:
    """The records of a JSONL file, oldest first; none if the file does not exist. A torn last line is passed over.

    Raises:
        UserError: a whole line is not such a record (the file was edited, or is of another version).
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; restore it, or start a run elsewhere") from error
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode_line(line, kind)
            except (msgspec.ValidationError, msgspec.DecodeError) as error:
                raise UserError(
                    f"{path}, line {number} is not a {kind.__name__} of this version of fathom ({error}); "
                    "restore the file, or start a run in another directory"
                ) from error


def read_whole(path: Path, kind: type[_Record], mend: str = "start a run in another directory") -> _Record:
    """The record that a JSON file is; `mend` tells what to do where it is none.

    Raises:
        UserError: the file cannot be read, or is of another version.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; restore it, or start a run elsewhere") from error
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError(f"{path} is not a {kind.__name__} of this version of fathom ({error}); {mend}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by new content, wholly or not at all: written beside it, synced, then renamed over it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _heal(path: Path) -> None:
    """Cut a torn last line off, so that the next record starts on a line of its own."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        position, block = end, 1 << 16
        while position > 0:
            start = max(0, position - block)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                if keep < end:
                    file.truncate(keep)
                return
            position = start
        if end > 0:
            file.truncate(0)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of writing that a user can mend into one line.

    Raises:
        UserError: there is no space left, or `path` is no place to write to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk while writing {path}; all that was written before is kept: free some space "
                "and run the same command again"
            ) from error
        if error.errno in (
            errno.ENOENT,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,  # a file stands where a directory would have to be
            errno.ENAMETOOLONG,
            errno.ELOOP,
            errno.EFBIG,
        ):
            raise UserError(f"cannot write {path}: {error.strerror}; give another place with -o") from error
        raise
