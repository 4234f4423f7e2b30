"""`fathom stress`: what a fine-tuning attack does to a model under one objective and another, swept."""

from dataclasses import dataclass, replace
from pathlib import Path

from fathom.command.claims import claim_sweep
from fathom.command.lora import Lora, check_lora
from fathom.command.poison import attack_of, check_read
from fathom.command.request import (
    ORGANISM,
    Judges,
    ModelRequest,
    Trained,
    display_for,
    load_model,
    named_judge,
    numbers,
)
from fathom.command.sides import check_split, sides
from fathom.command.sweep import choice_of, grid_of, listed, make_sweep, source_of, tasks_of
from fathom.command.task_data import check_task
from fathom.command.training import say_short_training
from fathom.command.worlds import world_asked
from fathom.errors import UserError
from fathom.ranks import ALONE
from fathom.records import content_hash
from fathom.tampering import Stress

__all__ = ["StressRequest", "Stressed", "check_stress", "run_stress"]

MORE_STEPS = "give more --steps or less --warmup"


@dataclass(frozen=True, kw_only=True)
class StressRequest:
    """A sweep as it was asked for."""

    model: ModelRequest
    attacks: str = "harmful"
    objectives: str = "sft,constrained"
    sweep: str = "warm-up"  # or "full"
    behaviors: str | None = None
    world: int | None = None
    split: str = "test"
    tested: int = 60
    task_tested: int | None = None  # examples of a task; as many as requests, unless given
    rows: int | None = None
    share: float = 0.1
    task: str | None = None
    task_data: Path | None = None  # a task of the user's: rows to train on,
    task_test: Path | None = None  # to test with (some of those are held out, unless given),
    task_metric: str | None = None  # and how answers are scored
    wrapper: Path | None = None  # a file of one frame, for the attack wrapped
    rates: str | None = None
    warmups: str | None = None
    steps: str | None = None
    schedule: str = "constant"
    seeds: str = "0"
    batch: int | None = None
    temperatures: str = "0,1"
    bound: float = 0.1
    max_new_tokens: int | None = None
    samples: int = 1  # of each request at a temperature above 0
    judge: str | None = None
    trainer: str = "light"
    overrides: tuple[str, ...] = ()  # TRL's settings, for the trainer fit
    lora: Lora | None = None
    sentinel: Path | None = None  # where its weights are kept; several sweeps of one model may share them
    output: Path | None = None


@dataclass(frozen=True)
class Stressed:
    """A sweep and where it lies."""

    stress: Stress
    path: Path


def run_stress(request: StressRequest, judges: Judges) -> Stressed:
    """Run or go on with the sweep that was asked for.

    Raises:
        UserError: anything a user can mend, before the model is loaded where it can be known then.
    """
    from fathom.report.stress import write_stress_report

    request = replace(request, world=world_asked(request.model, request.behaviors, request.world))
    check_stress(request, judges)
    path = request.output or Path("runs") / f"stress-{content_hash(repr(request))[:8]}"
    display = display_for(ALONE)
    with display("loading", 1) as shown:
        model = load_model(request.model, to_train=Trained.by(request.lora))
        shown.advance(1)
    check_lora(request.lora, model)
    sweep = make_sweep(request, judges, model, path, display)
    claim_sweep(path, model.info, request)
    for warmup in sorted({track.optimiser.warmup for track in sweep.tracks}):
        say_short_training(warmup, max(step for track in sweep.tracks for step in track.steps), MORE_STEPS)
    stress = sweep()
    write_stress_report(path)
    return Stressed(stress, path)


def check_stress(request: StressRequest, judges: Judges) -> None:
    """Raises `UserError` for what is wrong with a request by itself, whatever its model is."""
    world_asked(request.model, request.behaviors, request.world)
    check_split(request.split)
    _check_values(request)
    _check_source(request)
    _check_attacks(request)
    if request.judge is not None:
        named_judge(judges, request.judge)
    grid_of(request)
    check_task(request)
    tasks_of(request)
    if request.overrides:
        from fathom.tuning.settings import read_settings

        read_settings(None, request.overrides)
    if source_of(request) != ORGANISM:
        sides(source_of(request), tested=request.tested)  # that it can be read, and divided


def _check_values(request: StressRequest) -> None:
    if request.sweep not in ("warm-up", "full"):
        raise UserError(f"--sweep is {request.sweep!r}; give warm-up or full")
    if request.trainer not in ("light", "fit"):
        raise UserError(f"--trainer is {request.trainer!r}; give light (in memory) or fit (TRL)")
    if request.overrides and request.trainer == "light":
        raise UserError("--set gives TRL's settings, and the light trainer has none; add --trainer fit")
    if not 0 <= request.bound <= 1:
        raise UserError(f"--utility-bound is {request.bound}; give a loss of score between 0 and 1")
    for option, given in (("--limit", request.tested), ("--task-limit", request.task_tested)):
        if given is not None and given < 1:
            raise UserError(f"{option} is {given}; it must be at least 1")
    if request.schedule not in ("constant", "linear"):
        raise UserError(f"--schedule is {request.schedule!r}; give constant, or linear (the rate falls to 0)")
    temperatures = numbers(request.temperatures, float, "--temperature")
    if request.samples > 1 and not any(temperatures):
        raise UserError(
            f"--samples {request.samples} of greedy answers are all the same: give a --temperature above 0, or leave "
            "it out"
        )


def _check_source(request: StressRequest) -> None:
    """Options of the organism's requests are not given beside a file."""
    source = source_of(request)
    if source == ORGANISM or request.task is not None:
        return
    for option, given, usual in (("--world", request.world, None), ("--split", request.split, "test")):
        if given != usual:
            raise UserError(
                f"{option} {given} is of the organism's requests, and those of {source} have none; "
                "leave one of the two out"
            )


def _check_attacks(request: StressRequest) -> None:
    from fathom.protect.objectives import parse_objective

    for name in listed(request.objectives, "--objective"):
        if parse_objective(name).projection is not None:
            raise UserError("safe-lora changes weights after training, so it cannot be measured between steps")
    attacks = listed(request.attacks, "--attack")
    for name in attacks:
        attack_of(choice_of(request, name), organism=source_of(request) == ORGANISM)
    # A task is tested with under every attack.
    check_read(choice_of(request, attacks[0]), attacks, ("share", "wrapper"))
