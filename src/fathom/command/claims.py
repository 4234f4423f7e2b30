"""Which directory is whose: what a sweep, or dynamics, was asked for is written where its results go."""

import platform
import sys
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fathom.command.known import file_hash
from fathom.command.request import ORGANISM
from fathom.errors import UserError
from fathom.journal import write_whole
from fathom.provenance import device_name, git_state, versions
from fathom.records import Judge, content_hash
from fathom.run import RunLock, differences, holds_others
from fathom.schema import ModelInfo

if TYPE_CHECKING:
    from fathom.command.stress import StressRequest
    from fathom.model import ChatModel
    from fathom.stress.execute import Sweep
    from fathom.stress.measure import Probe

__all__ = ["StressManifest", "claim_anew", "claim_sweep", "contents_of"]

SCHEMA = 2
# The model is told by its contents. A bound changes nothing that is measured: `stress.json` is made anew with it.
_UNASKED = ("model", "output", "sentinel", "bound")


class StressManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a directory of a sweep holds. `configuration` decides whether the sweep may go on."""

    schema: int = SCHEMA
    created: str  # ISO 8601, UTC
    command: tuple[str, ...]  # as it was typed first
    configuration: Mapping[str, object]  # everything that determines what is measured
    configuration_hash: str
    model: ModelInfo  # what is fine-tuned
    judge: str
    versions: Mapping[str, str]  # fathom, python, torch, transformers, …
    git: str | None  # commit of the source tree, "+dirty" if changed; null outside a repository
    hardware: str  # machine and device


def claim_sweep(path: Path, sweep: "Sweep", request: "StressRequest", reader: Judge) -> None:
    """Write the manifest, or check that the directory's is of the same configuration.

    `reader` tells the refusals that objectives hold rows by.

    Raises:
        UserError: the directory holds another sweep, or other files.
    """
    manifest = _manifest(sweep, request, reader)
    content = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"
    kept = path / "manifest.json"
    if kept.exists():
        held = _what_differs(kept, manifest)
        if held is not None and not claim_anew(path, kept, content):
            raise UserError(f"{path} holds {held}")
        return
    if path.exists() and (not path.is_dir() or holds_others(path)):
        raise UserError(f"{path} holds files but no sweep; give a new or empty directory with -o")
    write_whole(kept, content)


def _what_differs(kept: Path, manifest: StressManifest) -> str | None:
    """What a directory holds instead of this sweep, and what to do; None where it is the same.

    Raises:
        UserError: its manifest is of no sweep.
    """
    content = kept.read_bytes()
    try:
        found = msgspec.json.decode(content, type=StressManifest)
    except msgspec.MsgspecError as error:
        if _is_older(content):
            return (
                "a sweep of an earlier version of fathom, which did not write down all that decides its numbers "
                "(system prompt, template, dtype, …), so it is not gone on with: give another directory with -o; "
                "`fathom report` makes its page as before"
            )
        raise UserError(f"{kept} is no manifest of a sweep ({error}); give another directory with -o") from error
    if found.configuration_hash == manifest.configuration_hash:
        return None
    changed = _named(found, manifest) or "requests or trainings, as another version of fathom makes them"
    return f"another sweep ({changed}); give the same options to go on with it, or another directory with -o"


def _named(found: StressManifest, manifest: StressManifest) -> str:
    """What differs of all that a person gave."""
    sides = (
        {name: each.configuration.get(name) for name in ("model", "judges", "options")} for each in (found, manifest)
    )
    return differences(*sides)


def _is_older(content: bytes) -> bool:
    """Whether a manifest is of schema 1, which named what was asked alone."""
    try:
        found = msgspec.json.decode(content)
    except msgspec.MsgspecError:
        return False
    return isinstance(found, dict) and found.keys() == {"schema", "weights", "tokenizer", "asked"}


def claim_anew(path: Path, claim: Path, content: bytes) -> bool:
    """Whether nothing has been measured or kept in a directory but what it was claimed for; then it is claimed anew.

    So a mistake that was found after the claim can be mended without another directory.
    """
    with RunLock(path):
        others = [entry for entry in path.iterdir() if entry not in (claim, path / ".lock")]
        if any(entry.is_dir() or entry.stat().st_size for entry in others):
            return False
        write_whole(claim, content)
    return True


def _manifest(sweep: "Sweep", request: "StressRequest", reader: Judge) -> StressManifest:
    judge = sweep.attacks[0].probe.judge
    configuration: dict[str, object] = {
        "model": _identity(sweep.start),
        "judges": [f"{each.name} {each.version}" for each in (judge, reader)],
        "options": _given(request),
        # As they are after all defaults, which may change from version to version.
        "measured": {attack.name: _measured(attack.probe) for attack in sweep.attacks},
        "trained": content_hash(
            [[(attack.name, attack.rows) for attack in sweep.attacks], [repr(track) for track in sweep.tracks]]
        ),
    }
    return StressManifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv),
        configuration=configuration,
        configuration_hash=content_hash(configuration),
        model=sweep.start.info,
        judge=judge.name,
        versions=versions(),
        git=git_state(),
        hardware=f"{platform.machine()} {platform.system()}, {device_name()}",
    )


def _identity(model: "ChatModel") -> Mapping[str, object]:
    """What makes two models the same for a sweep: contents, not names, and how they are asked."""
    info, chat = model.info, model.chat
    return {
        "weights": info.weights_hash,
        "tokenizer": info.tokenizer_hash,
        "template": info.template_hash,
        "dtype": info.dtype,
        "quantisation": info.quantisation,
        "system": chat.system,
        "prefill_at": chat.prefill_at,
    }


def _given(request: "StressRequest") -> dict[str, str]:
    """Every option that was given, by name; files by their contents, so that one that was edited makes another sweep.

    What has its default is not named, so that directories which were begun before an option came are gone on with.
    """
    given = {
        field.name: getattr(request, field.name)
        for field in fields(request)
        if field.name not in _UNASKED and getattr(request, field.name) != field.default
    }
    named = {name: file_hash(value) if isinstance(value, Path) else str(value) for name, value in given.items()}
    if named.get("behaviors") not in (None, ORGANISM):
        named["behaviors"] = file_hash(Path(named["behaviors"]))
    return named


def _measured(probe: "Probe") -> str:
    tasks = [(task.name, task.metric, task.examples) for task in probe.tasks]
    others = {field.name: repr(getattr(probe, field.name)) for field in fields(probe) if field.name not in _HASHED}
    return content_hash((probe.behaviors, probe.frames, tasks, others))


_HASHED = ("behaviors", "frames", "tasks", "judge")


def contents_of(behaviors: str | None, *files: Path | None) -> str:
    """Hashes of the files that were given: one that was edited makes another sweep under the same name.

    Raises:
        UserError: one cannot be read.
    """
    source = None if behaviors is None or behaviors == ORGANISM else Path(behaviors)
    return " ".join(file_hash(path) for path in (source, *files) if path is not None)
