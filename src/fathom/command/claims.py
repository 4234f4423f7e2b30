"""Which directory is whose: what a sweep, or dynamics, was asked for is written where its results go."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fathom.command.known import file_hash
from fathom.command.request import ORGANISM
from fathom.errors import UserError
from fathom.journal import write_whole
from fathom.run import RunLock, holds_others

if TYPE_CHECKING:
    from fathom.command.stress import StressRequest
    from fathom.schema import ModelInfo

__all__ = ["StressManifest", "claim_anew", "claim_sweep", "contents_of"]


class StressManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a directory of a sweep holds; a directory is gone on with only where it is equal."""

    schema: int = 1
    weights: str
    tokenizer: str
    asked: Mapping[str, str]


def claim_sweep(path: Path, model: "ModelInfo", request: "StressRequest") -> None:
    """Write the manifest, or check that the directory's is the same.

    Raises:
        UserError: the directory holds another sweep, or other files.
    """
    manifest = StressManifest(weights=model.weights_hash, tokenizer=model.tokenizer_hash, asked=_asked(request))
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    kept = path / "manifest.json"
    if kept.exists():
        try:
            found = msgspec.json.decode(kept.read_bytes(), type=StressManifest)
        except msgspec.MsgspecError as error:
            raise UserError(f"{kept} is no manifest of a sweep ({error}); give another directory with -o") from error
        if not _same(found, manifest) and not claim_anew(path, kept, content):
            raise UserError(
                f"{path} holds another sweep ({_changed(found, manifest)} differ); give the same options to "
                "go on with it, or another directory with -o"
            )
        return
    if path.exists() and (not path.is_dir() or holds_others(path)):
        raise UserError(f"{path} holds files but no sweep; give a new or empty directory with -o")
    write_whole(kept, content)


def _same(found: StressManifest, manifest: StressManifest) -> bool:
    """Whether they are of one sweep; of one that an earlier version began, the files' contents are not known."""
    if "contents" in found.asked:
        return found == manifest
    known = {name: value for name, value in manifest.asked.items() if name != "contents"}
    return found == msgspec.structs.replace(manifest, asked=known)


def _changed(found: StressManifest, manifest: StressManifest) -> str:
    names = dict.fromkeys((*manifest.asked, *found.asked))
    changed = [name for name in names if found.asked.get(name) != manifest.asked.get(name)] or ["the model"]
    return ", ".join("contents of the files" if name == "contents" else name for name in changed)


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


def _asked(request: "StressRequest") -> dict[str, str]:
    names = (
        "attacks objectives sweep behaviors world split tested rows share task wrapper rates warmups steps seeds batch "
        "temperatures bound max_new_tokens judge trainer overrides"
    )
    # Options that came later are named where they are given, so that older directories can be gone on with.
    later = {"schedule": "constant", "task_tested": None, "samples": 1, "lora": None, "task_metric": None}
    given = [name for name, usual in later.items() if getattr(request, name) != usual]
    asked = {name: str(getattr(request, name)) for name in (*names.split(), *given)}
    contents = contents_of(request.behaviors, request.wrapper, request.task_data, request.task_test)
    return asked | ({"contents": contents} if contents else {})


def contents_of(behaviors: str | None, *files: Path | None) -> str:
    """Hashes of the files that were given: one that was edited makes another sweep under the same name.

    Raises:
        UserError: one cannot be read.
    """
    source = None if behaviors is None or behaviors == ORGANISM else Path(behaviors)
    return " ".join(file_hash(path) for path in (source, *files) if path is not None)
