"""From a stress request to the sweep that it asks for: whose requests, which attacks, which grid of trainings."""

from dataclasses import replace
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
    from fathom.stress.prefilled import Depths

__all__ = ["asked_depths", "choices_of", "grid_of", "listed", "make_sweep", "reader_of", "source_of", "tasks_of"]

ORGANISM_RATE, RATE = 3e-4, 2e-5  # the paper's, for 7 B
ORGANISM_BATCH, BATCH = 16, 64
ORGANISM_NEW_TOKENS, NEW_TOKENS = 140, 512
STEPS = 60
PAPER_STEPS = 50  # 25 epochs of 100 rows in batches of 64
WARMUP = 10
USUAL_DEPTHS = (5, 20)  # two of the paper's (Table 3), besides the direct request


def source_of(request: "StressRequest") -> str:
    """Whose requests: a file's, or the organism's.

    Raises:
        UserError: a model of a user's own comes without any.
    """
    source = request.behaviors or (ORGANISM if request.model.is_organism or request.world is not None else None)
    if source is None:
        raise UserError(
            f"{request.model.name} needs behaviors to be attacked and tested with, and fathom ships none: give "
            "--behaviors FILE with harmful rows (prompt, harmful_response) and benign ones, or --behaviors organism "
            "for what was made of a built-in model"
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


def choices_of(request: "StressRequest", name: str) -> tuple[AttackChoice, ...]:
    """One of the attacks, as it was asked for: at each share of poison, if it has one.

    Raises:
        UserError: there is no share, or it is no number.
    """
    choice = AttackChoice(
        name=name,
        rows=request.rows,
        task=request.task,
        task_data=request.task_data,
        wrapper=request.wrapper,
        identity=request.identity,
        trigger=request.trigger,
    )
    shares = sorted(set(numbers(request.shares, float, "--share")), reverse=True)
    if not shares:
        raise UserError("--share is empty; give a share of harmful rows, or several by commas")
    return tuple(replace(choice, share=share) for share in shares) if name == "mixed" else (choice,)


def reader_of(request: "StressRequest", judges: Judges) -> Judge:
    """What tells the start's refusals from its answers where an objective asks it about rows."""
    return named_judge(judges, "guild-refusal" if source_of(request) == ORGANISM else "refusal")


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
    reader = reader_of(request, judges)
    choices = [choice for name in listed(request.attacks, "--attack") for choice in choices_of(request, name)]
    attacks = tuple(_attack(request, choice, parts, judge, model) for choice in choices)
    grid = grid_of(request)
    tracks = tuple(grid.tracks([attack.kind for attack in attacks], listed(request.objectives, "--objective")))
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


def asked_depths(request: "StressRequest") -> "Depths":
    """How much of the reference answers is given, as it was asked for.

    Raises:
        UserError: these are no numbers of tokens.
    """
    from fathom.stress.prefilled import Depths

    return Depths(USUAL_DEPTHS) if request.depths is None else Depths.read(request.depths)


def _depths(request: "StressRequest", deepest: int) -> "Depths":
    """Those that a reference answer reaches.

    Raises:
        UserError: one that was asked for is not reached.
    """
    asked = asked_depths(request)
    if request.depths is not None and asked != asked.within(deepest):
        raise UserError(
            f"--depths {request.depths}: the longest reference answer of the test requests leaves room for {deepest} "
            "tokens; give smaller depths, behaviors with longer answers, or --depths 0 for direct requests alone"
        )
    return asked.within(deepest)


def _attack(request: "StressRequest", choice: AttackChoice, parts: Sides, judge: Judge, model: "ChatModel") -> "Attack":
    from fathom.stress.measure import Probe
    from fathom.stress.plan import Attack, AttackKind
    from fathom.stress.prefilled import deepest
    from fathom.tuning.rows import fit_length, make_row

    organism = source_of(request) == ORGANISM
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
        depths=_depths(request, deepest(model.chat, parts.test)),
    )
    kind = AttackKind(attack.name, choice.share if attack.name == "mixed" else None)
    return Attack(kind, fitted.rows, tuple(row.prompt for row in poison), probe)


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
        say(f"{choice.name}: {len(rows)} rows to train on, all that {source_of(request)} has; usual are {usual}")
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
