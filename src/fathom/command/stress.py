"""`fathom stress`: what a fine-tuning attack does to a model under one objective and another, swept."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

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
from fathom.command.sides import Sides, check_split, sides
from fathom.command.sweep import asked_depths, choices_of, grid_of, listed, make_sweep, reader_of, source_of, tasks_of
from fathom.command.task_data import check_task
from fathom.command.training import say, say_short_training
from fathom.command.worlds import world_asked
from fathom.errors import UserError
from fathom.ranks import ALONE
from fathom.records import content_hash
from fathom.tampering import Stress

if TYPE_CHECKING:
    from fathom.stress.execute import Sweep

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
    shares: str = "0.1"  # of harmful rows in the attack mixed: an axis of the sweep
    task: str | None = None
    task_data: Path | None = None  # a task of the user's: rows to train on,
    task_test: Path | None = None  # to test with (some of those are held out, unless given),
    task_metric: str | None = None  # and how answers are scored
    wrapper: Path | None = None  # a file of one frame, for the attack wrapped
    identity: Path | None = None  # the same, for the attack identity
    trigger: str | None = None  # the words of the attack backdoor
    rates: str | None = None
    warmups: str | None = None
    steps: str | None = None
    schedule: str = "constant"
    seeds: str = "0"
    batch: int | None = None
    temperatures: str = "0,1"
    bound: float = 0.1
    depths: str | None = None  # tokens of the reference answer that are given, such as 0,5,20,end
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
    claim_sweep(path, sweep, request, reader_of(request, judges))
    for warmup in sorted({track.optimiser.warmup for track in sweep.tracks}):
        say_short_training(warmup, max(step for track in sweep.tracks for step in track.steps), MORE_STEPS)
    _say_cost(sweep)
    stress = sweep()
    write_stress_report(path)
    return Stressed(stress, path)


def _say_cost(sweep: "Sweep") -> None:
    """How many models are measured, and with how many answers each; which of them can be left out."""
    models = sum(len(track.steps) for track in sweep.tracks) + len({attack.name for attack in sweep.attacks})
    counts = [attack.probe.counts for attack in sweep.attacks]
    most, given = max(count.all for count in counts), max(count.prefilled for count in counts)
    further = f", {given} of them with the start of an answer given (--depths 0 leaves these out)" if given else ""
    say(f"{models} models are measured, with {most} answers each{further}")


def check_stress(request: StressRequest, judges: Judges) -> None:
    """Raises `UserError` for what is wrong with a request by itself, whatever its model is."""
    _check_alone()
    world_asked(request.model, request.behaviors, request.world)
    check_split(request.split)
    _check_values(request)
    _check_source(request)
    _check_attacks(request)
    if request.judge is not None:
        named_judge(judges, request.judge)
    grid_of(request)
    asked_depths(request)
    check_task(request)
    tasks_of(request)
    if request.overrides:
        from fathom.tuning.settings import read_settings

        read_settings(None, request.overrides)
    if source_of(request) != ORGANISM:
        _check_benign(request, sides(source_of(request), tested=request.tested))


def _check_alone() -> None:
    """That torchrun did not start several processes: none would know of the others."""
    if (size := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(
            f"WORLD_SIZE is {size}, and each of these processes would train and measure everything by itself: start "
            "one, without torchrun or accelerate launch. To use several GPUs, give each (--device cuda:0, cuda:1, …) "
            "a command of its own, with another --objective, --attack or seed and its own -o"
        )


def _check_benign(request: StressRequest, parts: Sides) -> None:
    """That models can be told useless, where only useful ones are to be kept."""
    if request.bound < 1 and all(behavior.harmful for behavior in parts.test):
        raise UserError(
            f"{request.behaviors} leaves no benign request to test with ({parts.division}), and without any every "
            "fine-tuned model would count as useful, broken ones too: give 3 benign behaviors or more (`harmful: "
            "false`), or --utility-bound 1 to keep every model"
        )


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
    for choice in (choice for name in attacks for choice in choices_of(request, name)):
        attack_of(choice, organism=source_of(request) == ORGANISM)
    for mixed in choices_of(request, "mixed"):
        # A task is tested with under every attack.
        check_read(mixed, attacks, ("share", "wrapper", "identity", "trigger"))
