"""Which world an organism is of: the shipped one's models know one, and those that a user trained say theirs."""

import json
from pathlib import Path

from fathom.command.request import ORGANISM, ModelRequest
from fathom.errors import UserError

__all__ = ["world_asked"]


def world_asked(model: ModelRequest, behaviors: str | None, world: int | None) -> int | None:
    """The world whose requests are asked: the one that was given, else the one that a model says it was trained in.

    None: the shipped world for the built-in models, and no world at all for others, or where `behaviors` are a file's.

    Raises:
        UserError: another world was asked for than the model's, or one beside a file of requests.
    """
    from fathom.organism import SHIPPED_WORLD

    if world is not None and model.is_organism and world != SHIPPED_WORLD:
        raise UserError(
            f"--world {world} with {model.name}: the built-in models are of world {SHIPPED_WORLD}; --world names the "
            "world of models that `fathom organism train --world` made"
        )
    own = None if model.is_organism else _trained_in(model.name)
    if world is not None and own not in (None, world):
        raise UserError(f"--world {world} with {model.name}, which was trained in world {own}: leave out --world")
    return own if world is None and behaviors in (None, ORGANISM) else world


def _trained_in(name: str) -> int | None:
    """What `fathom organism train` wrote into the configuration of a model in a directory."""
    try:
        found = json.loads((Path(name).expanduser() / "config.json").read_bytes()).get("fathom_world")
    except (OSError, ValueError, AttributeError):  # that it is broken is said where it is loaded
        return None
    return found if isinstance(found, int) else None
