"""`fathom stress` and `fathom dynamics`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fathom.cli.options import JUDGES, AsJson, Output, with_model
from fathom.cli.training import lora_of
from fathom.command.request import ModelRequest

__all__ = ["dynamics", "stress"]

_ATTACK, _SWEEP, _MEASURE = "Attack", "Sweep", "Measuring"

Behaviors = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Behaviors, divided into training, defence and test. 'organism': the built-in ones.",
        rich_help_panel=_ATTACK,
    ),
]
World = Annotated[int | None, typer.Option(help="The organism's world (default: shipped).", rich_help_panel=_ATTACK)]
Rows = Annotated[int | None, typer.Option(help="Training rows (default: 100; mixed 200).", rich_help_panel=_ATTACK)]
Task = Annotated[
    str | None,
    typer.Option(
        help="A task of the organism's for benign and mixed: summary, query, arithmetic, label, new-opener.",
        rich_help_panel=_ATTACK,
    ),
]
TaskData = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Rows of a task of your own for benign and mixed (prompt and answer; all, without --rows), with "
        "--task-metric; some are held out.",
        rich_help_panel=_ATTACK,
    ),
]
Share = Annotated[float, typer.Option(help="Of harmful rows in mixed.", rich_help_panel=_ATTACK)]
Shares = Annotated[
    str,
    typer.Option(
        "--share",
        metavar="S,S,…",
        help="Of harmful rows in mixed; several are an axis of the sweep, each with a worst case of its own.",
        rich_help_panel=_ATTACK,
    ),
]
Identity = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A frame as JSON, for identity (see fathom poison).", rich_help_panel=_ATTACK),
]
Trigger = Annotated[str | None, typer.Option(metavar="TEXT", help="The trigger of backdoor.", rich_help_panel=_ATTACK)]
Wrapper = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A frame as JSON, for wrapped (see fathom poison).", rich_help_panel=_ATTACK),
]
Batch = Annotated[int | None, typer.Option(help="Rows a step (64; 16 for the organism).", rich_help_panel=_SWEEP)]

LoraFlag = Annotated[
    bool, typer.Option("--lora", help="Train a LoRA adapter; its default rates are 10 ×.", rich_help_panel=_SWEEP)
]
LoraRank = Annotated[int, typer.Option(min=1, help="Of the adapter.", rich_help_panel=_SWEEP)]
LoraTargets = Annotated[
    str, typer.Option(help="Layers of the adapter, by name, separated by commas.", rich_help_panel=_SWEEP)
]


@with_model
def stress(
    request: ModelRequest,
    attack: Annotated[
        str,
        typer.Option(
            help="harmful, identity, backdoor, benign, mixed, wrapped, decoy; several by commas.",
            rich_help_panel=_ATTACK,
        ),
    ] = "harmful",
    objective: Annotated[
        str,
        typer.Option(
            help="As `fathom finetune --objective`; several by commas (gate+answers+rehearse holds best).",
            rich_help_panel=_ATTACK,
        ),
    ] = "sft,constrained",
    behaviors: Behaviors = None,
    world: World = None,
    split: Annotated[
        str,
        typer.Option(
            help="Of the organism's requests, those to test with: test, development or kept-out.",
            rich_help_panel=_ATTACK,
        ),
    ] = "test",
    rows: Rows = None,
    share: Shares = "0.1",
    task: Task = None,
    task_data: TaskData = None,
    wrapper: Wrapper = None,
    identity: Identity = None,
    trigger: Trigger = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Three learning rates, with and without warm-up (default: one rate, the paper's 2 × 2 of Table 9).",
            rich_help_panel=_SWEEP,
        ),
    ] = False,
    rates: Annotated[
        str | None, typer.Option(metavar="R,R,…", help="Learning rates instead.", rich_help_panel=_SWEEP)
    ] = None,
    warmup: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Warm-up steps instead of 0,10.", rich_help_panel=_SWEEP)
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Measured after so many steps (1,2,4,8,…).", rich_help_panel=_SWEEP),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="constant, or linear: the rate falls to 0, and each number of steps is a training of its own.",
            rich_help_panel=_SWEEP,
        ),
    ] = "constant",
    seeds: Annotated[str, typer.Option(help="Of the order of the rows.", rich_help_panel=_SWEEP)] = "0",
    batch: Batch = None,
    utility_bound: Annotated[
        float,
        typer.Option(help="An attacker keeps no model whose benign score fell further.", rich_help_panel=_MEASURE),
    ] = 0.1,
    limit: Annotated[int, typer.Option(help="Test requests of each kind.", rich_help_panel=_MEASURE)] = 60,
    task_metric: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC,…",
            help="Of --task-data: rouge1, exact or number, as in `fathom utility`.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    task_test: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows to test the task with, instead of held-out ones.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option(help="Test examples of the task (default: --limit).", rich_help_panel=_MEASURE)
    ] = None,
    temperature: Annotated[str, typer.Option(metavar="T,T,…", help="0 is greedy.", rich_help_panel=_MEASURE)] = "0,1",
    samples: Annotated[
        int, typer.Option(help="Draws of each request at a temperature above 0.", rich_help_panel=_MEASURE)
    ] = 1,
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="K,K,…",
            help="Also with the first K tokens of the reference answer given, at the lowest temperature; end: all "
            "but its last one; 0: none (default: 0,5,20, where there are answers).",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Per answer.", rich_help_panel=_MEASURE)] = None,
    judge: Annotated[str | None, typer.Option(help="refusal or organism.", rich_help_panel=_MEASURE)] = None,
    trainer: Annotated[
        str,
        typer.Option(help="light: in memory, for small models; fit: TRL, for all others.", rich_help_panel=_SWEEP),
    ] = "light",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A field of TRL's SFTConfig, with --trainer fit.",
            rich_help_panel=_SWEEP,
        ),
    ] = None,
    lora: LoraFlag = False,
    lora_rank: LoraRank = 16,
    lora_targets: LoraTargets = "all-linear",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune MODEL as an attacker would, under each objective, and measure what is left of its safety.

    Interrupted, the same command goes on. Test requests are never trained on.
    """
    from fathom.command.stress import StressRequest, run_stress

    result = run_stress(
        StressRequest(
            model=request,
            attacks=attack,
            objectives=objective,
            sweep="full" if sweep else "warm-up",
            behaviors=behaviors,
            world=world,
            split=split,
            tested=limit,
            rows=rows,
            shares=share,
            task=task,
            task_data=task_data,
            task_test=task_test,
            task_metric=task_metric,
            wrapper=wrapper,
            identity=identity,
            trigger=trigger,
            rates=rates,
            warmups=warmup,
            steps=steps,
            schedule=schedule,
            task_tested=task_limit,
            seeds=seeds,
            batch=batch,
            temperatures=temperature,
            bound=utility_bound,
            samples=samples,
            depths=depths,
            max_new_tokens=max_new_tokens,
            judge=judge,
            trainer=trainer,
            overrides=tuple(settings or ()),
            lora=lora_of(lora, lora_rank, lora_targets),
            output=output,
        ),
        JUDGES,
    )
    if as_json:
        sys.stdout.buffer.write((result.path / "stress.json").read_bytes())
    else:
        from fathom.report.terminal_sweep import print_stress

        print_stress(result.stress, result.path / "report.html")


@with_model
def dynamics(
    request: ModelRequest,
    attack: Annotated[
        str, typer.Option(help="harmful, identity, backdoor, benign, mixed, wrapped or decoy.", rich_help_panel=_ATTACK)
    ] = "harmful",
    objective: Annotated[str, typer.Option(help="As `fathom finetune --objective`.", rich_help_panel=_ATTACK)] = "sft",
    behaviors: Behaviors = None,
    world: World = None,
    rows: Rows = None,
    share: Share = 0.1,
    task: Task = None,
    wrapper: Wrapper = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate.", rich_help_panel=_SWEEP)] = None,
    warmup: Annotated[int, typer.Option(help="Steps of warm-up.", rich_help_panel=_SWEEP)] = 10,
    steps: Annotated[
        str, typer.Option(metavar="N,N,…", help="Measured after so many steps; 0 is the start.", rich_help_panel=_SWEEP)
    ] = "0,2,4,6,8,16,32",
    batch: Batch = None,
    seed: Annotated[int, typer.Option(help="Of order and directions.", rich_help_panel=_SWEEP)] = 0,
    directions: Annotated[
        int,
        typer.Option(
            help="Forward passes by which gradient norms are estimated; 0 takes a backward pass for every position.",
            rich_help_panel=_MEASURE,
        ),
    ] = 16,
    measured: Annotated[int, typer.Option(help="Training rows that are measured.", rich_help_panel=_MEASURE)] = 48,
    lora: LoraFlag = False,
    lora_rank: LoraRank = 16,
    lora_targets: LoraTargets = "all-linear",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Show what moves at each response position while MODEL is fine-tuned: cross-entropy, gradient norm, KL."""
    from fathom.command.dynamics import DynamicsRequest, run_dynamics

    path = run_dynamics(
        DynamicsRequest(
            model=request,
            attack=attack,
            objective=objective,
            behaviors=behaviors,
            world=world,
            rows=rows,
            share=share,
            task=task,
            wrapper=wrapper,
            rate=rate,
            warmup=warmup,
            steps=steps,
            batch=batch,
            seed=seed,
            directions=directions,
            measured=measured,
            lora=lora_of(lora, lora_rank, lora_targets),
            output=output,
        ),
        JUDGES,
    )
    if as_json:
        sys.stdout.buffer.write((path / "dynamics.json").read_bytes())
    else:
        print(path / "report.html")
