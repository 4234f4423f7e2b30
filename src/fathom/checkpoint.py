"""Where a model's files are, and whether there is a model at all: said before transformers says so in many lines."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

from fathom.errors import UserError

__all__ = ["check_source", "has_template", "is_local", "one_line", "place", "quiet"]


def is_local(name: str) -> bool:
    """Whether a name means a directory: it exists, or could be no `owner/name` on the hub."""
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or name.endswith("/"):
        return True
    return "/" in name and path.parent.is_dir()


def place(name: str) -> str:
    """A name as transformers takes it."""
    return str(Path(name).expanduser()) if is_local(name) else name


def check_source(name: str, revision: str | None) -> None:
    """Whether a model is there and may be read.

    Raises:
        UserError: it is not, or may not.
    """
    if not name.strip():
        raise UserError("the model's name is empty: give a model's directory, or a name on the hub (owner/name)")
    if not is_local(name):
        _fetch_config(name, revision)
        return
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"there is no directory {name}: give a model's directory, or a name on the hub (owner/name)")
    if not path.is_dir():
        raise UserError(f"{name} is a file: give the directory that holds config.json and the weights")
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise UserError(f"{name} holds a PEFT adapter, not a model: give its base model, and this as --adapter")
        raise UserError(f"{name} has no config.json: give a directory in Hugging Face format (save_pretrained)")
    if revision is not None:
        raise UserError(f"a revision was given, but {name} is a directory: revisions are for names on the hub")


def has_template(name: str) -> bool:
    """Whether a model's directory holds a chat template, in any of the places where transformers keeps one."""
    path = Path(name).expanduser()
    if any((path / file).is_file() for file in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool(json.loads((path / "tokenizer_config.json").read_bytes()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _fetch_config(name: str, revision: str | None) -> None:
    where = name if revision is None else f"{name} (revision {revision})"
    try:
        huggingface_hub.hf_hub_download(name, "config.json", revision=revision)
    except hub_errors.GatedRepoError as error:
        raise UserError(f"{where} is gated on the hub: ask for access there, then run `hf auth login`") from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision} on the hub: give a branch, tag or commit of it") from error
    except (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError) as error:
        raise UserError(
            f"there is no model {where} on the hub and no such directory: check the name "
            "(a private model needs `hf auth login`)"
        ) from error
    except hub_errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{where} is not in the local cache and the hub cannot be reached: check the network, or give a directory"
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise UserError(f"{where} has no config.json on the hub: it is not a model in Hugging Face format") from error
    except Exception as error:  # the network has many ways to fail, each with a class of its own
        raise UserError(f"{where} cannot be fetched from the hub: {one_line(error)}") from error


def one_line(message: object, width: int = 200) -> str:
    """A message of another library, shortened to one line."""
    text = " ".join(str(message).split())
    return text if len(text) <= width else text[: width - 1] + "…"


@contextmanager
def quiet() -> Iterator[None]:
    """No advice, report or bar of transformers; downloads keep their bars."""
    verbosity = transformers_logging.get_verbosity()
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if hub_bars:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if not hub_bars:
            disable_progress_bars()
