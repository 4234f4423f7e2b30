"""Which verb made a directory, so that a verb that needs another kind says what it was given."""

from enum import StrEnum
from pathlib import Path

from fathom.errors import UserError
from fathom.run import Run

__all__ = ["Made", "made_by", "open_audit", "own_audits"]


class Made(StrEnum):
    """The verb that a directory comes from."""

    AUDIT = "audit"
    STRESS = "stress"
    DYNAMICS = "dynamics"
    TRAINING = "training"
    POISON = "poison"
    TRIPLETS = "triplets"
    UTILITY = "utility"


def made_by(path: Path) -> Made:
    """What a directory holds, finished or not; of one that is none of fathom's, `AUDIT`, whose reader refuses it."""
    files = {
        Made.STRESS: ("stress.json", "checkpoints.jsonl"),
        Made.DYNAMICS: ("dynamics.json", "positions.jsonl"),
        Made.TRAINING: ("fathom/manifest.json",),
        Made.POISON: ("frames.jsonl",),
        Made.TRIPLETS: ("build.json",),
        Made.UTILITY: ("utility.json",),
    }
    return next((made for made, names in files.items() if any((path / name).is_file() for name in names)), Made.AUDIT)


def own_audits(path: Path) -> tuple[Path, ...]:
    """The runs that a trained model's directory holds: of the model before, and of itself."""
    found = (path / "fathom" / "audit-before", path / "fathom" / "audit-after")
    return tuple(run for run in found if (run / "audit.json").is_file())


def open_audit(path: Path) -> Run:
    """A run of `fathom audit` or `fathom attack`.

    Raises:
        UserError: there is none at `path`; says what there is instead.
    """
    made = made_by(path)
    if made is Made.TRAINING:
        runs = own_audits(path)
        held = f"its audits are {' and '.join(map(str, runs))}" if runs else f"`fathom audit {path}` makes one"
        raise UserError(f"{path} is a trained model and no run of `fathom audit`; {held}")
    if made is not Made.AUDIT:
        done = "measured" if made in (Made.STRESS, Made.DYNAMICS, Made.UTILITY) else "made"
        raise UserError(f"{path} holds what `fathom {made}` {done} and no run of `fathom audit`; give such a run")
    return Run.open(path)
