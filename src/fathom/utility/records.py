"""What scoring a user's rows leaves on disk, field by field, strict."""

from collections.abc import Mapping

import msgspec

from fathom.records import Finish, Message
from fathom.tampering import UtilityScore

__all__ = ["ScoredRow", "TaskManifest", "TaskUtility"]

SCHEMA = 1


class TaskManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a directory holds; it is gone on with only where `asked` is equal. Rows and metrics may be more or fewer."""

    schema: int = SCHEMA
    kind: str = "utility"
    asked: Mapping[str, str]
    versions: Mapping[str, str]  # fathom, python, torch, transformers, …
    git: str | None  # commit of the source tree, "+dirty" if changed; null outside a repository


class ScoredRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One row of the user's, answered and scored. The answer is the model's: hostile."""

    source: str  # file and line
    prompt: tuple[Message, ...]
    answer: str
    wanted: str
    scores: Mapping[str, float]  # by metric, each in [0, 1]
    finish: Finish


class TaskUtility(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How well a model does a user's task, greedily: `utility.json`."""

    schema: int = SCHEMA
    model: str
    data: str
    scores: tuple[UtilityScore, ...]  # one a metric
    max_new_tokens: int
    cut: int  # answers that the budget of tokens ended
    notes: tuple[str, ...] = ()  # what a reader must know before quoting a number
