"""Rows of what Hugging Face's libraries keep: Parquet files, saved data sets, and data sets of the hub by name.

A data set of the hub is fetched, cached and read by `datasets`, which runs no code of it. `source` has its name's form.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fathom.behaviors.source import FileRow, RowSource
from fathom.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["hub_rows", "is_saved", "parquet_rows", "saved_rows"]

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # by `save_to_disk`, of one data set and of several splits


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


def hub_rows(source: RowSource) -> Iterator[FileRow]:
    """The rows of one split of a data set of the hub.

    Raises:
        UserError: it has no name, there is no such data set, configuration or split, several of which none was named,
            or the hub cannot be reached.
    """
    from datasets import Dataset, load_dataset

    path, parts = source.place, source.parts
    name = str(path).removeprefix("hf:")
    if not name:
        raise UserError(f"{path} names no data set: give hf:ORG/NAME")
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
