"""A suite of the user's own: a TOML or JSON file of `[[attack]]` tables, read strictly.

Nothing in it is ignored: a key that no one reads would leave a run that is not the one that was written down.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from fathom.audit.suites import ATTACKS, SUITES, NamedAttack
from fathom.errors import UserError

__all__ = ["load_suite"]

# What a whole run is given, which a suite file has no place for.
_RUN_OPTIONS = (
    "behaviors",
    "frames",
    "judge",
    "limit",
    "max_new_tokens",
    "output",
    "samples",
    "seed",
    "temperature",
)


def load_suite(path: Path) -> tuple[NamedAttack, ...]:
    """The attacks of a TOML or JSON file: `[[attack]]` tables, each with a `name`, its parameters, perhaps a `budget`.

    Frames that it names are looked for beside it, then in the working directory.

    Raises:
        UserError: the file cannot be read, is not such a list, or has anything beside it.
    """
    whole = _content(path)
    if isinstance(whole, dict):
        _check_keys(path, whole)
    listed = whole.get("attack") if isinstance(whole, dict) else whole
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise UserError(f'the suite {path} lists no attacks: give [[attack]] tables, each with name = "…"')
    return tuple(_from_table(path, number, table) for number, table in enumerate(listed, start=1))


def _content(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known = ", ".join(SUITES)
        raise UserError(f"there is no suite {str(path)!r}: give {known}, or a TOML or JSON file") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(f"the suite {path} cannot be read ({reason}): give a TOML or JSON file") from error
    try:
        content: object = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the suite {path} cannot be used ({' '.join(str(error).split())}): mend it there") from error
    return content


def _check_keys(path: Path, whole: Mapping[str, object]) -> None:
    for key in whole:
        if key == "attack":
            continue
        option = key.replace("-", "_")
        if option == "budget":
            remedy = "give --budget on the command line, or a budget in an attack's own table"
        elif option in _RUN_OPTIONS:
            remedy = f"give --{option.replace('_', '-')} on the command line"
        else:
            remedy = "attacks stand in [[attack]] tables, and their parameters inside these"
        raise UserError(f"the suite {path} has {key!r} beside its attacks, where it has no meaning: {remedy}")


def _from_table(path: Path, number: int, table: Mapping[str, object]) -> NamedAttack:
    name, budget = table.get("name"), table.get("budget")
    if not isinstance(name, str):
        raise UserError(f"the suite {path}: attack {number} has no name; choose one of {', '.join(sorted(ATTACKS))}")
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
        raise UserError(f"the suite {path}: the budget of {name} is {budget!r}; give forward tokens, 1 or more")
    parameters = {key: value for key, value in table.items() if key not in ("name", "budget")}
    if isinstance(frames := parameters.get("frames"), str):
        beside = path.parent / frames
        parameters["frames"] = frames if Path(frames).exists() and not beside.exists() else str(beside)
    return NamedAttack(name, parameters, budget)
