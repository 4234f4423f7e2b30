"""`fathom dynamics`: cross-entropy, gradient norm and KL to the start by response position, as fine-tuning proceeds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import msgspec

from fathom.command.claims import claim_anew, contents_of
from fathom.command.lora import Lora, check_lora
from fathom.command.request import Judges, ModelRequest, Trained, display_for, load_model, numbers
from fathom.command.stress import MORE_STEPS, StressRequest, check_stress
from fathom.command.sweep import make_sweep
from fathom.command.training import say_short_training
from fathom.command.worlds import world_asked
from fathom.errors import UserError
from fathom.journal import Journal, read_journal, write_whole
from fathom.ranks import ALONE
from fathom.records import content_hash
from fathom.run import RunLock, holds_others
from fathom.tampering import Dynamics, DynamicsRow

if TYPE_CHECKING:
    from fathom.depth.dynamics import Norms, Positions
    from fathom.model import ChatModel
    from fathom.stress.execute import Sweep
    from fathom.tuning.adapter import Adapter

__all__ = ["DynamicsRequest", "run_dynamics"]


@dataclass(frozen=True, kw_only=True)
class DynamicsRequest:
    """Dynamics as they were asked for."""

    model: ModelRequest
    attack: str = "harmful"
    objective: str = "sft"
    behaviors: str | None = None
    world: int | None = None
    rows: int | None = None
    task: str | None = None
    rate: float | None = None
    warmup: int = 10
    steps: str = "0,2,4,6,8,16,32"
    batch: int | None = None
    seed: int = 0
    directions: int = 16  # 0: exact norms
    measured: int = 48
    share: float = 0.1
    wrapper: Path | None = None
    lora: Lora | None = None
    output: Path | None = None


def run_dynamics(request: DynamicsRequest, judges: Judges) -> Path:
    """Fine-tune in memory and measure, or go on with it; the directory with dynamics.json and report.html.

    Raises:
        UserError: anything a user can mend.
    """
    request = replace(request, world=world_asked(request.model, request.behaviors, request.world))
    steps = _checked_steps(request)
    check_stress(_as_stress(request, steps), judges)
    asked = _asked(request)
    path = request.output or Path("runs") / f"dynamics-{content_hash(asked)[:8]}"
    display = display_for(ALONE)
    with display("loading", 1) as shown:
        model = load_model(request.model, to_train=Trained.by(request.lora))
        shown.advance(1)
    check_lora(request.lora, model)
    from fathom.report.stress import write_dynamics_report

    sweep = make_sweep(_as_stress(request, steps), judges, model, path, display)
    attack, track = sweep.attacks[0], sweep.tracks[0]
    if steps[-1]:
        say_short_training(request.warmup, steps[-1], MORE_STEPS)
    contents = contents_of(request.behaviors, request.wrapper)
    _claim(path, content_hash((asked, model.info.weights_hash, *([contents] if contents else []))))
    with RunLock(path), Journal(path / "positions.jsonl") as journal, display("fine-tuning", len(steps)) as shown:
        done = {row.step for row in read_journal(path / "positions.jsonl", DynamicsRow)}
        pending = [step for step in steps if step not in done]
        shown.advance(len(done))
        with _memory_errors(request):
            for rows in _measured(request, sweep, model, pending) if pending else ():
                journal.append(rows)
                shown.advance(1)
    curve = tuple(sorted(read_journal(path / "positions.jsonl", DynamicsRow), key=lambda row: (row.step, row.position)))
    dynamics = Dynamics(
        model=model.info.name,
        attack=attack.name,
        objective=track.objective,
        parameters={
            **track.parameters,
            "rows": len(attack.rows),
            "measured rows": len(attack.rows[: request.measured]),
        },
        seed=request.seed,
        rows=curve,
        notes=tuple(_notes(request, track.adapter, model.info.quantisation)),
    )
    write_whole(path / "dynamics.json", msgspec.json.format(msgspec.json.encode(dynamics), indent=2) + b"\n")
    write_dynamics_report(path)
    return path


@contextmanager
def _memory_errors(request: DynamicsRequest) -> Iterator[None]:
    """A model that does not fit, even with one row at once, as one line that says what would."""
    from fathom.engine.memory import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if request.lora is None:
            why, ways = "all weights are trained in a copy, four times the model's memory in all", "--lora (no copy), "
        else:
            why, ways = "the model and one row at a time do not fit", ""
        raise UserError(
            f"out of memory while fine-tuning {request.model.name}: {why}. Give {ways}--dtype bfloat16, or --lora with "
            "--quantise 4bit; what was measured is kept"
        ) from error


def _asked(request: DynamicsRequest) -> str:
    """What was asked for, in one text: what determines the result, and names its directory.

    Options that came later are named where they are given, so that older directories can be gone on with.
    """
    later = {"share": 0.1, "wrapper": None, "lora": None}
    named = {field.name: getattr(request, field.name) for field in fields(request)} | {"output": None}
    kept = {name: value for name, value in named.items() if name not in later or value != later[name]}
    return f"{type(request).__name__}({', '.join(f'{name}={value!r}' for name, value in kept.items())})"


def _checked_steps(request: DynamicsRequest) -> tuple[int, ...]:
    steps = tuple(sorted(set(numbers(request.steps, int, "--steps"))))
    if not steps or steps[0] < 0:
        raise UserError(f"--steps is {request.steps!r}; give numbers of 0 or more")
    for option, given in (("--attack", request.attack), ("--objective", request.objective)):
        if "," in given:
            raise UserError(
                f"{option} is {given}; dynamics are of one at a time: give one, and another directory with -o"
            )
    for option, number, least in (("--directions", request.directions, 0), ("--measured", request.measured, 1)):
        if number < least:
            raise UserError(f"{option} is {number}; give {least} or more")
    return steps


def _measured(
    request: DynamicsRequest, sweep: "Sweep", model: "ChatModel", pending: Sequence[int]
) -> Iterator[list[DynamicsRow]]:
    """What is measured after each pending step, before the next one is trained."""
    from fathom.depth.dynamics import ExactNorms, ProjectedNorms, TrainedRow, positions
    from fathom.stress.apart import apart
    from fathom.stress.light import order_of
    from fathom.tuning.adapter import AdapterOff

    attack, track = sweep.attacks[0], sweep.tracks[0]
    norms: Norms = ProjectedNorms(request.directions, request.seed) if request.directions else ExactNorms()
    watched = [TrainedRow(row.prompt_ids, row.response_ids) for row in attack.rows[: request.measured]]
    learnt = sweep.learn(attack, track.objective)
    order = order_of(len(learnt.rows), track.optimiser.batch, max(pending), request.seed)
    with apart(model, track.adapter, request.seed) as (further, wrapped):
        trained, start = further.model, model.model if wrapped is None else AdapterOff(wrapped)
        trained.train(False)
        fit = learnt.training(trained, track.optimiser)
        for step in chain((0,), (after.step for after in fit.run(order))):
            if step in pending:
                yield list(_rows(step, list(positions(trained, start, watched, norms))))


def _as_stress(request: DynamicsRequest, steps: Sequence[int]) -> StressRequest:
    """The same training, as a sweep of one track."""
    return StressRequest(
        model=request.model,
        attacks=request.attack,
        objectives=request.objective,
        behaviors=request.behaviors,
        world=request.world,
        rows=request.rows,
        shares=str(request.share),
        task=request.task,
        wrapper=request.wrapper,
        rates=None if request.rate is None else str(request.rate),
        warmups=str(request.warmup),
        steps=str(max(1, *steps)),
        seeds=str(request.seed),
        batch=request.batch,
        lora=request.lora,
        depths="0",
        bound=1.0,  # no model is kept or left for its utility
    )


def _rows(step: int, found: "Sequence[Positions]") -> Iterator[DynamicsRow]:
    """Means over rows, by position."""
    for t in range(max(len(row.kl) for row in found)):
        here = [row for row in found if len(row.kl) > t]
        yield DynamicsRow(
            step=step,
            position=t + 1,
            n=len(here),
            cross_entropy=fmean(float(row.cross_entropy[t]) for row in here),
            gradient_norm=fmean(float(row.gradient_norm[t]) for row in here),
            kl_nats=fmean(max(0.0, float(row.kl[t])) for row in here),
        )


def _notes(request: DynamicsRequest, adapter: "Adapter | None", quantisation: str | None) -> Iterator[str]:
    """What a reader must know before quoting a number."""
    if adapter is not None:
        layers = "all linear layers" if isinstance(adapter.targets, str) else ", ".join(adapter.targets)
        yield (
            f"An adapter was trained (LoRA, rank {adapter.rank}, on {layers}), and gradient norms are by its weights "
            "alone: they are not to be compared with those by all weights. At step 0 one of its two factors is zero, "
            "so that the other has no gradient yet."
        )
    if quantisation is not None:
        yield f"The model's weights are in {quantisation}; the adapter was trained beside them."
    if request.directions:
        spread = 100 / (2 * request.directions) ** 0.5
        yield (
            f"Gradient norms are unbiased estimates from {request.directions} random directions: the relative standard "
            f"error is about {spread:.0f} % for one row. A mean of rows is nearer, but not by the root of their "
            "number: rows share directions."
        )


def _claim(path: Path, identity: str) -> None:
    kept, content = path / "asked", f"{identity}\n".encode()
    if kept.exists():
        if kept.read_bytes().strip() != content.strip() and not claim_anew(path, kept, content):
            raise UserError(f"{path} holds dynamics of another model or setting; give another directory with -o")
        return
    if path.exists() and (not path.is_dir() or holds_others(path, kept.name)):
        raise UserError(f"{path} holds other files; give a new or empty directory with -o")
    write_whole(kept, content)
