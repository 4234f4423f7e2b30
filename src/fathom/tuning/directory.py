"""The directory of a model that was trained further: the model itself, and how it came to be.

    config.json, model.safetensors, tokenizer…      the model, as transformers loads it
    README.md                                       the model card
    fathom/manifest.json                            what was asked for; guards what may go on here
    fathom/rows.jsonl                               what was learned from, row by row
    fathom/plan.json                                what the objective found out beforehand
    fathom/losses.jsonl, fathom/checkpoints/        how training went
    fathom/adapter/                                 the adapter alone, if one was trained

The model is written last: a directory without config.json is not finished, and the same command goes on.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import msgspec

from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.journal import write_whole
from fathom.provenance import device_name, git_state, versions
from fathom.records import content_hash
from fathom.run import RunLock
from fathom.schema import ModelInfo
from fathom.tuning.rows import TrainingRow, read_rows, rows_hash, write_rows

__all__ = ["TuningDirectory", "TuningManifest", "TuningPlan"]

SCHEMA = 1


class TuningManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was asked for. `configuration` is everything that determines the result."""

    schema: int = SCHEMA
    verb: str  # finetune or deepen
    created: str  # ISO 8601, UTC
    command: tuple[str, ...]
    configuration: Mapping[str, object]
    configuration_hash: str
    model: ModelInfo  # what it was trained from
    versions: Mapping[str, str]
    git: str | None
    hardware: str

    @classmethod
    def make(cls, verb: str, model: ModelInfo, configuration: Mapping[str, object]) -> "TuningManifest":
        identity = (model.weights_hash, model.tokenizer_hash, model.template_hash, model.dtype)
        whole = {**configuration, "model": identity}
        return cls(
            verb=verb,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=tuple(sys.argv),
            configuration=whole,
            configuration_hash=content_hash(whole),
            model=model,
            versions=versions(),
            git=git_state(),
            hardware=device_name(),
        )


class TuningPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was found out before training: how many rows there are of which kind, and their hash."""

    rows: int
    rows_hash: str
    cut: int = 0  # rows that were shortened to max_length
    gated: int = 0  # rows that are held because the reference refuses their prompt
    replayed: int = 0  # rows of the reference's own refusals
    safety_ids: tuple[int, ...] = ()
    calm: float = 0.0  # see `tuning.settings.calm_epsilon`
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TuningDirectory:
    """Where a model is trained to."""

    path: Path

    @property
    def inner(self) -> Path:
        """What is not the model itself."""
        return self.path / "fathom"

    @property
    def finished(self) -> bool:
        """Whether the model is there."""
        return (self.path / "config.json").is_file()

    @cached_property
    def manifest(self) -> TuningManifest:
        return msgspec.json.decode((self.inner / "manifest.json").read_bytes(), type=TuningManifest)

    def check(self) -> None:
        """That a training may begin or go on here, as far as can be said before the model is loaded.

        Raises:
            UserError: the directory is a file, or holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; give a directory with -o")
        if (self.inner / "manifest.json").exists() or not self.path.is_dir():
            return
        held = [entry.name for entry in self.path.iterdir()]
        if any(name != "fathom" for name in held):
            what = "another model" if "config.json" in held else "files that no training of fathom's made"
            raise UserError(f"{self.path} holds {what}; nothing was overwritten: give a new directory with -o")

    def start(self, manifest: TuningManifest) -> None:
        """Begin here, or go on with what was begun by the same command.

        Raises:
            UserError: the directory holds something else, or was begun with another configuration.
        """
        self.check()
        if not (self.inner / "manifest.json").exists():
            write_whole(self.inner / "manifest.json", _json(manifest))
            return
        try:
            existing = self.manifest
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise UserError(f"{self.inner / 'manifest.json'} is of another version of fathom; give a new -o") from error
        if existing.configuration_hash != manifest.configuration_hash:
            if self._begin_anew(manifest):
                return
            raise UserError(
                f"{self.path} holds a model trained another way ({_changed(existing, manifest)}); nothing was "
                "overwritten: give the same options to go on with it, or another directory with -o"
            )

    def _begin_anew(self, manifest: TuningManifest) -> bool:
        """Whether nothing had been made here yet, as where the data held a mistake; then this begins, it mended."""
        with RunLock(self.inner):
            made = {entry.name for entry in self.inner.iterdir()} - {"manifest.json", ".lock"}
            if made or self.finished:
                return False
            write_whole(self.inner / "manifest.json", _json(manifest))
        self.__dict__.pop("manifest", None)  # which was read before
        return True

    def write_plan(self, rows: tuple[TrainingRow, ...], plan: TuningPlan) -> None:
        """Fix what is learned from, once."""
        write_rows(self.inner / "rows.jsonl", rows)
        write_whole(self.inner / "plan.json", _json(plan))

    def read_plan(self) -> "WrittenPlan | None":
        """What was fixed by an earlier call of the same command, if it was.

        Raises:
            UserError: the rows were edited.
        """
        if not (self.inner / "plan.json").exists():
            return None
        plan = msgspec.json.decode((self.inner / "plan.json").read_bytes(), type=TuningPlan)
        rows = read_rows(self.inner / "rows.jsonl")
        if rows_hash(rows) != plan.rows_hash:
            raise UserError(
                f"{self.inner / 'rows.jsonl'} is not what was written there: restore it, or give another -o"
            )
        return WrittenPlan(rows, plan)

    def put_model(self, scratch: Path, chat: ChatFormat) -> None:
        """Move a saved model here, with its tokenizer and the chat template that made the rows; config.json last."""
        tokenizer = chat.tokenizer
        if chat.template is not None:
            tokenizer.chat_template = chat.template
        tokenizer.save_pretrained(scratch)
        files = sorted(scratch.iterdir(), key=lambda file: file.name == "config.json")
        for file in files:
            if file.name not in ("training_args.bin", "README.md"):
                file.chmod(0o644)  # weights are saved for their owner's eyes alone
                file.replace(self.path / file.name)
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class WrittenPlan:
    """Rows and plan, as they were written."""

    rows: tuple[TrainingRow, ...]
    plan: TuningPlan


def _json(content: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content, order="sorted"), indent=2) + b"\n"


def _changed(old: TuningManifest, new: TuningManifest) -> str:
    parts = []
    for key in sorted({*old.configuration, *new.configuration}):
        before, after = (
            msgspec.json.encode(side.configuration.get(key), order="sorted").decode() for side in (old, new)
        )
        if before != after:
            parts.append(f"{key}: {before} there, {after} now" if len(before) + len(after) < 100 else key)
    return "; ".join(parts)
