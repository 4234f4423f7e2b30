"""What a training leaves on disk to go on from: whole checkpoints, and the loss of every step.

A checkpoint is whole once `mark_whole` has been there; one without the mark was torn by a kill and is put away, with
the losses of the steps that will be done again.
"""

import shutil
from pathlib import Path

import msgspec

from fathom.journal import Journal, read_journal, write_whole
from fathom.ranks import Ranks
from fathom.records import encode_line

__all__ = [
    "CHECKPOINTS",
    "LossRecord",
    "go_on_from",
    "latest_checkpoint",
    "loss_journal",
    "mark_whole",
    "read_losses",
    "step_of",
    "where_to_go_on",
]

COMPLETE = "fathom.complete"  # written last into a checkpoint
CHECKPOINTS = "checkpoints"


class LossRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The loss of one optimizer step, in nats a token (a row, where the sum is divided by rows)."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float | None = None


def go_on_from(output: Path | None, ranks: Ranks) -> Path | None:
    """The checkpoint to go on from, with all that came after it put away; before the journal of losses is opened."""
    if output is None:
        return None
    if ranks.first:
        _drop_torn(output / CHECKPOINTS)
        if (last := latest_checkpoint(output)) is not None:
            _forget_after(output, step_of(last))
    ranks.barrier()
    return latest_checkpoint(output)


def step_of(checkpoint: Path) -> int:
    """After which optimizer step a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def latest_checkpoint(output: Path) -> Path | None:
    """The last whole checkpoint of a run, or None."""
    found = [path.parent for path in (output / CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=step_of, default=None)


def _drop_torn(directory: Path) -> None:
    for path in directory.glob("checkpoint-*"):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)


def read_losses(output: Path) -> tuple[LossRecord, ...]:
    """The loss of every step of a run, in order."""
    found = {record.step: record for record in read_journal(output / "losses.jsonl", LossRecord)}
    return tuple(found[step] for step in sorted(found))


def _forget_after(output: Path, step: int) -> None:
    """Losses of steps that will be done again."""
    kept = [record for record in read_losses(output) if record.step <= step]
    write_whole(output / "losses.jsonl", b"".join(encode_line(record) for record in kept))


def loss_journal(output: Path | None, ranks: Ranks) -> Journal | None:
    """The losses' file, opened for appending by the first process alone."""
    if output is None or not ranks.first:
        return None
    output.mkdir(parents=True, exist_ok=True)
    return Journal(output / "losses.jsonl")


def mark_whole(checkpoint: Path) -> None:
    """Say that all of a checkpoint has been written."""
    (checkpoint / COMPLETE).touch()


def where_to_go_on(output: Path | None) -> str:
    """A sentence for a user whose training stopped."""
    last = None if output is None else latest_checkpoint(output)
    if last is None:
        return "No checkpoint had been written yet"
    return f"The last checkpoint is {last}, a model to go on from"
