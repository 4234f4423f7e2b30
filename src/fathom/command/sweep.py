"""From a stress request to the sweep that it asks for: whose requests, which attacks, which grid of trainings."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.attack.poison import Poison, PoisonRow, TooFewError
from fathom.command.learning import Learner
from fathom.command.lora import LORA_RATE
from fathom.command.poison import AttackChoice, attack_of, attack_rows, usual_rows
from fathom.command.request import ORGANISM, Judges, named_judge, numbers
from fathom.command.sides import Sides, sides
from fathom.command.task_data import learned_of, probe_of, say_division
from fathom.command.training import say
from fathom.errors import UserError
from fathom.progress import Display, silent
from fathom.records import Judge

if TYPE_CHECKING:
    from fathom.command.stress import StressRequest
    from fathom.model import ChatModel
    from fathom.stress.execute import Sweep
    from fathom.stress.measure import TaskProbe
    from fathom.stress.plan import Attack, Grid

__all__ = ["choice_of", "grid_of", "listed", "make_sweep", "source_of", "tasks_of"]

ORGANISM_RATE, RATE = 3e-4, 2e-5  # the paper's, for 7 B
ORGANISM_BATCH, BATCH = 16, 64
ORGANISM_NEW_TOKENS, NEW_TOKENS = 140, 512
STEPS = 60
PAPER_STEPS = 50  # 25 epochs of 100 rows in batches of 64
WARMUP = 10


def source_of(request: "StressRequest") -> str:
    """Whose requests: a file's, or the organism's.

    Raises:
        UserError: a model of a user's own comes without any.
    """
    source = request.behaviors or (ORGANISM if request.model.is_organism or request.world is not None else None)
    if source is None:
        raise UserError(
            f"{request.model.name} needs behaviors to be attacked and tested with, and fathom ships none: give "
            "--behaviors FILE with harmful rows (prompt, harmful_response) and benign ones"
        )
    return source


def listed(text: str, option: str) -> tuple[str, ...]:
    """The names of a list with commas, each once.

    Raises:
        UserError: there is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{option} is empty; give at least one name")
    return names


def choice_of(request: "StressRequest", name: str) -> AttackChoice:
    """One of the attacks, as it was asked for."""
    return AttackChoice(
        name=name,
        rows=request.rows,
        share=request.share,
        task=request.task,
        task_data=request.task_data,
        wrapper=request.wrapper,
    )


def make_sweep(
    request: "StressRequest", judges: Judges, model: "ChatModel", path: Path, display: Display = silent
) -> "Sweep":
    """The sweep of a loaded model, ready to run.

    Raises:
        UserError: data, judge or settings cannot be used.
    """
    from fathom.stress.execute import Sweep
    from fathom.stress.trainers import Fit, Light

    source = source_of(request)
    organism = source == ORGANISM
    parts = sides(source, world=request.world, split=request.split, tested=request.tested)
    if not organism:
        say(f"{source} has {parts.division}")
    say_division(request)
    judge = named_judge(judges, request.judge or (ORGANISM if organism else "refusal"))
    reader = named_judge(judges, "guild-refusal" if organism else "refusal")
    attacks = tuple(_attack(request, name, parts, judge, model) for name in listed(request.attacks, "--attack"))
    grid = grid_of(request)
    tracks = tuple(grid.tracks([attack.name for attack in attacks], listed(request.objectives, "--objective")))
    adapter = None if request.lora is None else request.lora.adapter()
    learn = Learner(model, parts, reader, request.sentinel or path / "sentinel.pt", display, organism, adapter)
    trainer = Light() if request.trainer == "light" else Fit(request.overrides)
    return Sweep(path, model, attacks, tracks, learn, trainer, request.bound, display)


def grid_of(request: "StressRequest") -> "Grid":
    """The trainings of the sweep.

    Raises:
        UserError: its numbers make none.
    """
    from fathom.stress.plan import Grid, Schedule, sweep_steps

    built_in = source_of(request) == ORGANISM
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


def _attack(request: "StressRequest", name: str, parts: Sides, judge: Judge, model: "ChatModel") -> "Attack":
    from fathom.stress.measure import Probe
    from fathom.stress.plan import Attack
    from fathom.tuning.rows import fit_length, make_row

    choice, organism = choice_of(request, name), source_of(request) == ORGANISM
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
        tasks=tasks_of(request),
    )
    return Attack(attack.name, fitted.rows, tuple(row.prompt for row in poison), probe)


def _poison(choice: AttackChoice, attack: Poison, parts: Sides, request: "StressRequest") -> tuple[PoisonRow, ...]:
    """The attack's rows; where a file has too few for them, the error says that not all of it is trained on."""
    try:
        rows = attack_rows(choice, attack, parts.attacker, request.world, learned_of(request))
    except TooFewError as error:
        if request.behaviors in (None, ORGANISM):
            raise
        raise UserError(f"{error}; {request.behaviors} has {parts.division}") from error
    usual = usual_rows(choice)
    if choice.task_data is None and choice.rows is None and len(rows) < usual:
        say(f"{attack.name}: {len(rows)} rows to train on, all that {source_of(request)} has; usual are {usual}")
    return rows


def tasks_of(request: "StressRequest") -> "tuple[TaskProbe, ...]":
    """What models are also tested with: the task that they are trained on, if there is one.

    Raises:
        UserError: the task, or its split, has no such examples.
    """
    if request.task_data is not None:
        return probe_of(request)
    if request.task is None:
        return ()
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
