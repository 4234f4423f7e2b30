"""What `finetune` and `deepen` share: processes that meet, settings shown, a plan made once, and a model at the end."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fathom.command.audit import AuditRequest
from fathom.command.lora import Lora, check_lora
from fathom.command.request import ModelRequest, Trained, display_for, load_model
from fathom.errors import UserError
from fathom.ranks import ALONE, Ranks
from fathom.report.hostile import one_line
from fathom.run import RunLock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fathom.model import ChatModel
    from fathom.tuning.directory import TuningDirectory, WrittenPlan
    from fathom.tuning.objective import TokenObjective
    from fathom.tuning.settings import Settings

__all__ = [
    "Training",
    "TrainingJob",
    "TrainingRequest",
    "asked_in",
    "check_warmup",
    "run_job",
    "say",
    "say_short_training",
    "training_ranks",
]

SHOWN = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "weight_decay",
    "seed",
)


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """Training as it was asked for, whatever it learns."""

    verb: str
    model: ModelRequest
    output: Path
    config: Path | None = None
    overrides: Sequence[str] = ()
    lora: Lora | None = None
    audit: bool | None = None  # default: where there are requests, of a file or the organism's
    audits: AuditRequest | None = None  # of the model before; the one after is asked the same


@dataclass(frozen=True)
class Training:
    """How a plan is trained on."""

    objective: "TokenObjective"
    settings: "Settings"
    divisor: str = "tokens"
    ordered: int = 0
    calm: float = 0.0
    before_step: "Callable[[PreTrainedModel, int], None] | None" = None
    save_every: int = 1  # steps; checkpoints are made at multiples of it
    finish: "Callable[[ChatModel], ChatModel] | None" = None  # what is done to the trained weights


class TrainingJob(Protocol):
    """What a command trains: how it was configured, the plan that its first process writes, and what comes of it."""

    @property
    def settings(self) -> "Settings": ...

    @property
    def notes(self) -> Sequence[str]:
        """What is to be known of the data: rows of them that are left out."""
        ...

    def check(self, model: "ChatModel") -> None:
        """Raises `UserError` where the model, once loaded, cannot be trained in this way."""
        ...

    def configuration(self) -> dict[str, object]:
        """Everything that determines the result, besides the model."""
        ...

    def write_plan(self, model: "ChatModel", directory: "TuningDirectory") -> None:
        """Make the rows and write them: once, by the first process."""
        ...

    def summary(self, written: "WrittenPlan") -> Iterable[str]:
        """What a reader is told of the plan, line by line."""
        ...

    def training(self, model: "ChatModel", written: "WrittenPlan") -> Training:
        """How the plan is trained on."""
        ...


def say(line: str, ranks: Ranks = ALONE) -> None:
    """A line on standard error, from the first process alone; what a file has put into it does nothing there."""
    if ranks.first:
        print(f"fathom: {one_line(line)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def training_ranks(device: str | None) -> Iterator[Ranks]:
    """The processes that torchrun or accelerate started, joined as a trainer joins them.

    Raises:
        UserError: fewer processes met than were started.
    """
    import os

    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {size} but RANK and MASTER_ADDR are not set; start several processes with "
            f"`torchrun --nproc_per_node {size} -m fathom finetune …`"
        )
    import torch.distributed as dist
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=timedelta(days=1))
    if state.num_processes != size:
        raise UserError(
            f"{state.num_processes} processes met, but {size} were started: each would train on its own. Start them "
            "with torchrun (accelerate's --cpu runs one)"
        )
    try:
        yield Ranks(rank=state.process_index, size=size, local_rank=state.local_process_index)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_job(
    request: TrainingRequest, job: TrainingJob, ranks: Ranks, ready: "Callable[[ChatModel], None] | None" = None
) -> "TuningDirectory":
    """Train, or go on with it; the directory, which says whether the model is there.

    `ready` raises where what comes after training could not be done with the model: that is said before.

    Raises:
        UserError: the directory holds something else, or the model cannot be loaded, planned for or trained.
    """
    from fathom.tuning.directory import TuningDirectory, TuningManifest

    directory = TuningDirectory(request.output)
    directory.check()
    model = _load(request, ranks)
    check_lora(request.lora, model)
    job.check(model)
    if ready is not None:
        ready(model)
    manifest = TuningManifest.make(request.verb, model.info, job.configuration())
    if ranks.first:
        directory.start(manifest)
    ranks.barrier()
    with RunLock(directory.inner) if ranks.first else contextlib.nullcontext():
        if directory.finished:
            say(f"{directory.path} is finished already; remove it to train again", ranks)
            return directory
        for note in job.notes:
            say(note, ranks)
        _show_settings(job.settings, ranks)
        if ranks.first and directory.read_plan() is None:
            job.write_plan(model, directory)
        ranks.barrier()
        written = directory.read_plan()
        assert written is not None
        for line in job.summary(written):
            say(line, ranks)
        _train(request, directory, model, written, job.training(model, written), ranks)
    return directory


def _show_settings(settings: "Settings", ranks: Ranks) -> None:
    """One line of what a reader would ask for; the defaults are the paper's."""
    values: Mapping[str, object] = settings.values
    most = values.get("max_steps", -1)
    moot = "num_train_epochs" if isinstance(most, int) and most > 0 else "max_steps"
    parts = [f"{name} {values[name]}" for name in SHOWN if name in values and name != moot]
    accumulation = values["gradient_accumulation_steps"]
    say(
        f"{settings.batch} rows a step ({accumulation} × {values['per_device_train_batch_size']}); " + ", ".join(parts),
        ranks,
    )


def check_warmup(settings: "Settings", rows: int) -> None:
    """Say where training on so many rows ends before the learning rate is what it was set to.

    Raises:
        UserError: its only step has a rate of 0.
    """
    steps = settings.steps(rows)
    warmup = settings.warmup(steps)
    if steps == 1 and warmup:
        raise UserError(
            f"training has one step, and a warm-up of {warmup} begins at a learning rate of 0: nothing would be "
            "learned. Give --set warmup_steps=0, or more rows, epochs or steps"
        )
    say_short_training(warmup, steps, "--set warmup_steps=0 leaves it out")


def say_short_training(warmup: int, steps: int, remedy: str) -> None:
    """A warning where a warm-up takes as many steps as all of the training, or more."""
    if warmup >= steps:
        say(
            f"warning: warm-up takes {warmup} steps and training ends after {steps}, so the learning rate gets to "
            f"{100 * (steps - 1) / warmup:.0f} % of what was asked for: {remedy}"
        )


def _load(request: TrainingRequest, ranks: Ranks) -> "ChatModel":
    with display_for(ranks)("loading", 1) as shown:
        model = load_model(request.model, ranks, to_train=Trained.by(request.lora))
        shown.advance(1)
    return model


def asked_in(model: ModelRequest) -> dict[str, object]:
    """How the model is asked, besides its template: what rows are made with. Only what was given is named.

    So directories that were begun without can be gone on with.
    """
    usual = ModelRequest(name=model.name)
    given = {"system": model.system, "prefill_at": model.prefill_at}
    return {name: value for name, value in given.items() if value != getattr(usual, name)}


def _train(
    request: TrainingRequest,
    directory: "TuningDirectory",
    model: "ChatModel",
    written: "WrittenPlan",
    training: Training,
    ranks: Ranks,
) -> None:
    """Train on the plan, and put the model into its directory."""
    from fathom.tuning.checkpoints import latest_checkpoint, step_of
    from fathom.tuning.fit import fit

    if (checkpoint := latest_checkpoint(directory.inner)) is not None:
        say(f"{directory.path} was left after step {step_of(checkpoint)}: goes on from there", ranks)
    scratch = directory.inner / "model"
    fitted = fit(
        model,
        written.rows,
        training.objective,
        training.settings,
        output=directory.inner,
        divisor=training.divisor,
        ordered=training.ordered,
        calm=training.calm,
        adapter=None if request.lora is None else request.lora.adapter(),
        cache=directory.inner,
        save=scratch,
        before_step=training.before_step,
        save_every=training.save_every,
        ranks=ranks,
        display=display_for(ranks),
    )
    if ranks.first:
        if training.finish is not None:
            training.finish(fitted.model).model.save_pretrained(scratch)
        directory.put_model(scratch, model.chat)
        _clear(directory)
    ranks.barrier()


def _clear(directory: "TuningDirectory") -> None:
    """What served to come here, and is as large as the model or larger."""
    for path in (directory.inner / "checkpoints", *directory.inner.glob("reference-*")):
        shutil.rmtree(path, ignore_errors=True)
    (directory.inner / "sentinel.pt").unlink(missing_ok=True)
