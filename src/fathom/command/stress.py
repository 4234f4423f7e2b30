"""`fathom stress`: what a fine-tuning attack does to a model under one objective and another, swept."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.attack.poison import Poison, PoisonRow, TooFewError
from fathom.command.claims import claim_sweep
from fathom.command.learning import Learner
from fathom.command.lora import LORA_RATE, Lora, check_lora
from fathom.command.poison import AttackChoice, attack_of, attack_rows, check_read, usual_rows
from fathom.command.request import (
    ORGANISM,
    Judges,
    ModelRequest,
    Trained,
    check_world,
    display_for,
    load_model,
    named_judge,
    numbers,
)
from fathom.command.sides import Sides, check_split, sides
from fathom.command.training import say, say_short_training
from fathom.errors import UserError
from fathom.progress import Display, silent
from fathom.ranks import ALONE
from fathom.records import Judge, content_hash
from fathom.tampering import Stress

if TYPE_CHECKING:
    from fathom.model import ChatModel
    from fathom.stress.execute import Sweep
    from fathom.stress.measure import TaskProbe
    from fathom.stress.plan import Attack, Grid

__all__ = ["StressRequest", "Stressed", "check_stress", "make_sweep", "run_stress"]

ORGANISM_RATE, RATE = 3e-4, 2e-5  # the paper's, for 7 B
ORGANISM_BATCH, BATCH = 16, 64
ORGANISM_NEW_TOKENS, NEW_TOKENS = 140, 512
STEPS = 60
PAPER_STEPS = 50  # 25 epochs of 100 rows in batches of 64
WARMUP = 10
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
    check_world(request.model, request.world)
    check_split(request.split)
    _check_values(request)
    _check_source(request)
    _check_attacks(request)
    if request.judge is not None:
        named_judge(judges, request.judge)
    _grid(request)
    _tasks(request)
    if request.overrides:
        from fathom.tuning.settings import read_settings

        read_settings(None, request.overrides)
    if _source(request) != ORGANISM:
        sides(_source(request), tested=request.tested)  # that it can be read, and divided


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
    source = _source(request)
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

    for name in _names(request.objectives, "--objective"):
        if parse_objective(name).projection is not None:
            raise UserError("safe-lora changes weights after training, so it cannot be measured between steps")
    attacks = _names(request.attacks, "--attack")
    for name in attacks:
        attack_of(_choice(request, name), organism=_source(request) == ORGANISM)
    check_read(_choice(request, attacks[0]), attacks, ("share", "wrapper"))  # a task is tested with under every attack


def _source(request: StressRequest) -> str:
    source = request.behaviors or (ORGANISM if request.model.is_organism else None)
    if source is None:
        raise UserError(
            f"{request.model.name} needs behaviors to be attacked and tested with, and fathom ships none: give "
            "--behaviors FILE with harmful rows (prompt, harmful_response) and benign ones"
        )
    return source


def _names(text: str, option: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{option} is empty; give at least one name")
    return names


def _choice(request: StressRequest, name: str) -> AttackChoice:
    return AttackChoice(name=name, rows=request.rows, share=request.share, task=request.task, wrapper=request.wrapper)


def make_sweep(
    request: StressRequest, judges: Judges, model: "ChatModel", path: Path, display: Display = silent
) -> "Sweep":
    """The sweep of a loaded model, ready to run.

    Raises:
        UserError: data, judge or settings cannot be used.
    """
    from fathom.stress.execute import Sweep
    from fathom.stress.trainers import Fit, Light

    source = _source(request)
    organism = source == ORGANISM
    parts = sides(source, world=request.world, split=request.split, tested=request.tested)
    if not organism:
        say(f"{source} has {parts.division}")
    judge = named_judge(judges, request.judge or (ORGANISM if organism else "refusal"))
    reader = named_judge(judges, "guild-refusal" if organism else "refusal")
    attacks = tuple(_attack(request, name, parts, judge, model) for name in _names(request.attacks, "--attack"))
    grid = _grid(request)
    tracks = tuple(grid.tracks([attack.name for attack in attacks], _names(request.objectives, "--objective")))
    adapter = None if request.lora is None else request.lora.adapter()
    learn = Learner(model, parts, reader, request.sentinel or path / "sentinel.pt", display, organism, adapter)
    trainer = Light() if request.trainer == "light" else Fit(request.overrides)
    return Sweep(path, model, attacks, tracks, learn, trainer, request.bound, display)


def _grid(request: StressRequest) -> "Grid":
    from fathom.stress.plan import Grid, Schedule, sweep_steps

    built_in = _source(request) == ORGANISM
    rate = (ORGANISM_RATE if built_in else RATE) * (1 if request.lora is None else LORA_RATE)
    full = request.sweep == "full"
    usual = (rate / 3, rate, rate * 3) if full else (rate,)
    most = STEPS if built_in else PAPER_STEPS
    return Grid(
        rates=numbers(request.rates, float, "--rates") if request.rates else usual,
        warmups=numbers(request.warmups, int, "--warmup") if request.warmups else (0, WARMUP),
        steps=numbers(request.steps, int, "--steps") if request.steps else sweep_steps(most),
        seeds=numbers(request.seeds, int, "--seeds"),
        batch=(ORGANISM_BATCH if built_in else BATCH) if request.batch is None else request.batch,
        schedule=Schedule(request.schedule),
        adapter=None if request.lora is None else request.lora.adapter(),
    )


def _attack(request: StressRequest, name: str, parts: Sides, judge: Judge, model: "ChatModel") -> "Attack":
    from fathom.stress.measure import Probe
    from fathom.stress.plan import Attack
    from fathom.tuning.rows import fit_length, make_row

    choice, organism = _choice(request, name), _source(request) == ORGANISM
    usual = ORGANISM_NEW_TOKENS if organism else NEW_TOKENS
    attack = attack_of(choice, organism=organism)
    poison = _poison(choice, attack, parts, request)
    rows = tuple(make_row(model.chat, row.prompt, row.completion[0].content, source=row.behavior) for row in poison)
    fitted = fit_length(rows, context=model.context, max_length=None, chat=model.chat)
    probe = Probe(
        behaviors=parts.test,
        judge=judge,
        frames=attack.frames,
        temperatures=numbers(request.temperatures, float, "--temperature"),
        new_tokens=usual if request.max_new_tokens is None else request.max_new_tokens,
        samples=request.samples,
        tasks=_tasks(request),
    )
    return Attack(attack.name, fitted.rows, tuple(row.prompt for row in poison), probe)


def _poison(choice: AttackChoice, attack: Poison, parts: Sides, request: StressRequest) -> tuple[PoisonRow, ...]:
    """The attack's rows; where a file has too few for them, the error says that not all of it is trained on."""
    try:
        rows = attack_rows(choice, attack, parts.attacker, request.world)
    except TooFewError as error:
        if request.behaviors in (None, ORGANISM):
            raise
        raise UserError(f"{error}; {request.behaviors} has {parts.division}") from error
    usual = usual_rows(choice)
    if choice.rows is None and len(rows) < usual:
        say(f"{attack.name}: {len(rows)} rows to train on, all that {_source(request)} has; usual are {usual}")
    return rows


def _tasks(request: StressRequest) -> "tuple[TaskProbe, ...]":
    if request.task is None:
        return ()
    from functools import partial

    from fathom.organism.tasks import score, task_rows
    from fathom.stress.measure import TaskExample, TaskProbe

    metric = {"summary": "ROUGE-1", "arithmetic": "final number"}.get(request.task, "exact match")
    examples = task_rows(request.world, request.task, request.split, request.task_tested or request.tested)
    return (
        TaskProbe(
            name=request.task,
            metric=metric,
            examples=tuple(TaskExample(row.messages, row.answer) for row in examples),
            score=partial(score, request.task),
        ),
    )
