"""Rows of what Hugging Face's libraries keep: Parquet files, saved data sets, and data sets of the hub by name.

`hf:org/name` names a data set of the hub; `hf:org/name,config=C,split=S,revision=R` says which part of which state.
It is fetched, cached and read by `datasets`, which runs no code of a data set.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from fathom.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["FileRow", "hub_rows", "is_hub", "is_saved", "parquet_rows", "saved_rows"]

_HUB = "hf:"
_PARTS = ("config", "split", "revision")
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # by `save_to_disk`, of one data set and of several splits


class FileRow(NamedTuple):
    """What stands on a line, or in a row, of a file: a mapping, or why it could not be read."""

    line: int
    fields: object  # whatever the file has there, or an `UnusableError`
    unit: str = "line"  # what `line` counts

    @property
    def place(self) -> str:
        """Where it stands, for a person who looks for it."""
        return f"{self.unit} {self.line}"


def is_hub(path: Path) -> bool:
    """Whether this names a data set of the hub and no file."""
    return str(path).startswith(_HUB)


def is_saved(path: Path) -> bool:
    """Whether this is a directory that `Dataset.save_to_disk` wrote."""
    return any((path / name).is_file() for name in (_SAVED, _SAVED_SPLITS))


def parquet_rows(path: Path) -> Iterator[FileRow]:
    """The rows of a Parquet file.

    Raises:
        UserError: it is none, or a broken one.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
            for number, fields in enumerate(chain.from_iterable(batches), start=1):
                yield FileRow(number, fields, "row")
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file that can be read ({_first_line(error)}): write it again") from error


def saved_rows(path: Path) -> Iterator[FileRow]:
    """The rows of a data set that `save_to_disk` wrote.

    Raises:
        UserError: it has several splits, or cannot be read.
    """
    from datasets import load_from_disk

    if (path / _SAVED_SPLITS).is_file():
        splits = sorted(part.name for part in path.iterdir() if (part / _SAVED).is_file())
        named = ", ".join(str(path / split) for split in splits)
        raise UserError(f"{path} is a data set of several splits: give one of {named or 'them, of which none is here'}")
    try:
        return _rows(load_from_disk(str(path)))
    except Exception as error:  # of any of the many libraries beneath
        raise UserError(f"{path} is no saved data set that can be read ({_first_line(error)})") from error


def hub_rows(path: Path) -> Iterator[FileRow]:
    """The rows of one split of a data set of the hub.

    Raises:
        UserError: the name is not of the form above, there is no such data set, configuration or split, several of
            which none was named, or the hub cannot be reached.
    """
    from datasets import Dataset, load_dataset

    name, parts = _named(str(path))
    try:
        found = load_dataset(name, parts.get("config"), split=parts.get("split"), revision=parts.get("revision"))
    except Exception as error:  # of any of the many libraries beneath, and of what the hub answers
        _explain(path, name, parts, error)
    if isinstance(found, Dataset):
        return _rows(found)
    splits = sorted(str(split) for split in found)
    if len(splits) != 1:
        raise UserError(f"{path} has the splits {', '.join(splits)}: say which, as in {path},split={splits[0]}")
    return _rows(found[splits[0]])


def _named(text: str) -> tuple[str, dict[str, str]]:
    name, *given = text.removeprefix(_HUB).split(",")
    parts = dict[str, str]()
    for one in given:
        key, _, value = one.partition("=")
        if key not in _PARTS or not value or key in parts:
            raise UserError(
                f"{text} names no data set ({one!r} is not understood): a data set of the hub is "
                "hf:ORG/NAME,config=C,split=S,revision=R, of which all but the name can be left out"
            )
        parts[key] = value
    if not name:
        raise UserError(f"{text} names no data set: give hf:ORG/NAME")
    return name, parts


def _explain(path: Path, name: str, parts: Mapping[str, str], error: Exception) -> NoReturn:
    """What `datasets` says in many lines, in one."""
    from datasets import get_dataset_config_names

    if isinstance(error, ValueError) and "config" in str(error).lower() and "config" not in parts:
        try:
            configs = get_dataset_config_names(name, revision=parts.get("revision"))
        except Exception:  # then what was said first has to do
            configs = []
        if len(configs) > 1:
            raise UserError(
                f"{path} has the configurations {', '.join(configs)}: say which, as in {path},config={configs[0]}"
            ) from error
    raise UserError(
        f"{path} cannot be read ({_first_line(error)}): check the name, log in with `hf auth login` where it is gated, "
        "or give a file of rows"
    ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _rows(dataset: "Dataset") -> Iterator[FileRow]:
    return (FileRow(number, fields, "row") for number, fields in enumerate(dataset, start=1))
