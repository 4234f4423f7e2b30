"""`fathom utility --data`: how well a model does a user's own task."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fathom.behaviors.source import source_name
from fathom.command.request import ModelRequest, choice, connect_model, display_for, load_model, positive
from fathom.command.training import say
from fathom.errors import UserError
from fathom.journal import read_whole, write_whole
from fathom.provenance import git_state, versions
from fathom.ranks import ALONE
from fathom.records import content_hash
from fathom.run import RunLock, holds_others
from fathom.tuning.examples import Example, harmless, load_examples
from fathom.utility import Metric
from fathom.utility.records import TaskManifest, TaskUtility

if TYPE_CHECKING:
    from fathom.engine.endpoint import ServedModel
    from fathom.model import ChatModel

__all__ = ["Scored", "TaskRequest", "check_wanted", "metrics_of", "run_task", "task_examples"]

ORGANISM_NEW_TOKENS, NEW_TOKENS = 140, 512


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """A task of a user's, as it was asked for."""

    model: ModelRequest
    data: Path
    metrics: str  # by name, with commas
    limit: int | None = None
    max_new_tokens: int | None = None
    endpoint: str | None = None
    endpoint_model: str | None = None
    endpoint_requests: int | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Scored:
    """The scores and where they lie."""

    utility: TaskUtility
    path: Path


def run_task(request: TaskRequest) -> Scored:
    """Ask the model every row, or go on with it, and score its answers.

    Raises:
        UserError: anything a user can mend, before the model is loaded where it can be known then.
    """
    metrics = metrics_of(request.metrics, "--metric")
    usual = ORGANISM_NEW_TOKENS if request.model.is_organism else NEW_TOKENS
    new_tokens = positive(request.max_new_tokens, usual, "--max-new-tokens")
    examples = task_examples(request.data)
    wanted = examples[: positive(request.limit, len(examples), "--limit")]
    check_wanted(wanted, metrics, request.data)
    name, data = source_name(request.data), content_hash([(one.messages, one.response) for one in examples])
    place = content_hash((msgspec.to_builtins(request.model, enc_hook=str), data, new_tokens, request.endpoint))
    path = request.output or Path("runs") / f"utility-{place[:8]}"
    _check_place(path)
    from fathom.utility.task import TaskRun, Wanted

    display = display_for(ALONE)
    with display("loading", 1) as shown:
        model = _loaded(request)
        shown.advance(1)
    with RunLock(path):
        _claim(path, _asked(request, model, name, data, new_tokens))
        rows = [Wanted(one.messages, one.response, one.source) for one in wanted]
        return Scored(TaskRun(path, model, name, rows, metrics, new_tokens, display)(), path)


def task_examples(path: Path) -> tuple[Example, ...]:
    """The rows of a task, to be learned or asked; what is left out of them is said.

    Raises:
        UserError: as `load_examples`, or all rows are marked as harmful.
    """
    loaded = harmless(load_examples(path), path)
    for note in loaded.notes:
        say(note)
    return loaded.examples


def metrics_of(text: str, option: str) -> tuple[Metric, ...]:
    """Metrics by name, each once.

    Raises:
        UserError: there is none, or one of another name.
    """
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UserError(f"{option} is empty; give one of {', '.join(Metric)}, or several by commas")
    return tuple(choice(Metric, option, name) for name in names)


def check_wanted(examples: Sequence[Example], metrics: Sequence[Metric], data: Path) -> None:
    """That every wanted answer can be met: else a row would count as wrong, whatever the model answers.

    Raises:
        UserError: one cannot.
    """
    for metric in metrics:
        bad = [one for one in examples if not metric.can_be_met(one.response)]
        if bad:
            lacking = "number" if metric is Metric.NUMBER else "word"
            raise UserError(
                f"{len(bad)} of {len(examples)} answers of {data} have no {lacking}, so nothing can be right by "
                f"{metric}; the first is {bad[0].source}: leave such rows out, or choose another metric"
            )


def _loaded(request: TaskRequest) -> "ChatModel | ServedModel":
    given = {"--endpoint-model": request.endpoint_model, "--endpoint-requests": request.endpoint_requests}
    for option, value in given.items():
        if value is not None and request.endpoint is None:
            raise UserError(f"{option} {value} without --endpoint: give the server's URL with --endpoint, too")
    if request.endpoint is None:
        return load_model(request.model)
    return connect_model(request.model, request.endpoint, request.endpoint_model, request.endpoint_requests)


def _asked(
    request: TaskRequest, model: "ChatModel | ServedModel", name: str, data: str, new_tokens: int
) -> TaskManifest:
    info = model.info
    asked: dict[str, object] = {
        "weights": info.weights_hash,
        "tokenizer": info.tokenizer_hash,
        "template": info.template_hash,
        "dtype": info.dtype,
        "quantisation": info.quantisation,
        "endpoint_model": info.endpoint_model,
        "system": request.model.system,
        "prefill_at": request.model.prefill_at,
        "data": f"{name} ({data})",
        "max_new_tokens": new_tokens,
    }
    return TaskManifest(asked={key: str(value) for key, value in asked.items()}, versions=versions(), git=git_state())


def _check_place(path: Path) -> None:
    if path.exists() and (not path.is_dir() or (not (path / "manifest.json").exists() and holds_others(path))):
        raise UserError(f"{path} holds something else than scores of a task; give a new or empty directory with -o")


def _claim(path: Path, manifest: TaskManifest) -> None:
    """Write the manifest, or check that the directory's asks the same.

    Raises:
        UserError: it asks something else.
    """
    kept = path / "manifest.json"
    if not kept.exists():
        write_whole(kept, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        return
    found = read_whole(kept, TaskManifest).asked
    changed = [name for name, value in manifest.asked.items() if found.get(name) != value]
    if changed:
        raise UserError(
            f"{path} holds the scores of another model or task ({', '.join(changed)} differ); give the same options to "
            "go on with it, or another directory with -o"
        )
