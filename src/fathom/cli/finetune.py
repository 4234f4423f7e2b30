"""`fathom finetune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fathom.cli.options import JUDGES, with_model
from fathom.command.request import ModelRequest

if TYPE_CHECKING:
    from fathom.command.training import Lora

__all__ = ["Config", "LoraFlag", "LoraRank", "LoraTargets", "Out", "Set", "WithAudit", "done", "finetune", "lora_of"]

_TRAINING, _DATA, _RUN = "Training", "Data", "Run"

Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE.yaml", help="Fields of TRL's SFTConfig, one a line.", rich_help_panel=_TRAINING),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="One such field; repeatable.", rich_help_panel=_TRAINING),
]
LoraFlag = Annotated[bool, typer.Option("--lora", help="Train a LoRA adapter.", rich_help_panel=_TRAINING)]
LoraRank = Annotated[int, typer.Option(min=1, help="Of the adapter.", rich_help_panel=_TRAINING)]
LoraTargets = Annotated[
    str, typer.Option(help="Layers of the adapter, by name, separated by commas.", rich_help_panel=_TRAINING)
]
Out = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the model goes.", rich_help_panel=_RUN)]
WithAudit = Annotated[
    bool | None,
    typer.Option("--audit/--no-audit", help="Audit before and after (default: on the organism).", rich_help_panel=_RUN),
]


@with_model
def finetune(
    request: ModelRequest,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="JSONL, JSON or CSV with messages, with prompt and completion, or Alpaca's fields.",
            rich_help_panel=_DATA,
        ),
    ],
    output: Out,
    objective: Annotated[
        str | None,
        typer.Option(
            help="sft, constrained (the paper's), uniform:BETA; gate, answers, replay, rehearse, mass, "
            "lisa, safe-lora; joined by +. Default: gate, and what --harmful allows.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    beta: Annotated[
        str | None,
        typer.Option(
            metavar="B,B,B",
            help="Constraint at the first position, the next four, and the rest (default: 0.5,2,0.1).",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    harmful: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts that MODEL refuses (answers: with answers and refusals).",
            rich_help_panel=_DATA,
        ),
    ] = None,
    benign: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts that MODEL answers (answers: with answers).", rich_help_panel=_DATA),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The unaligned model, for safe-lora.", rich_help_panel="Models")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Tells a refusal.", rich_help_panel=_DATA)] = None,
    config: Config = None,
    set_: Set = None,
    lora: LoraFlag = False,
    lora_rank: LoraRank = 16,
    lora_targets: LoraTargets = "all-linear",
    audit: WithAudit = None,
) -> None:
    """Fine-tune MODEL on your data, keeping what alignment taught it. Killed, the same command goes on."""
    from fathom.command.finetune import FinetuneRequest, run_finetune
    from fathom.command.training import TrainingRequest

    path = run_finetune(
        FinetuneRequest(
            training=TrainingRequest(
                verb="finetune",
                model=request,
                output=output,
                config=config,
                overrides=tuple(set_ or ()),
                lora=lora_of(lora, lora_rank, lora_targets),
                audit=audit,
            ),
            data=data,
            objective=objective,
            beta=beta,
            harmful=harmful,
            benign=benign,
            base=base,
            judge=judge,
        ),
        JUDGES,
    )
    done(path)


def lora_of(wanted: object, rank: int, targets: str) -> "Lora | None":
    """The adapter that was asked for, if one was."""
    from fathom.command.training import Lora

    return Lora(rank=rank, targets=targets) if wanted else None


def done(path: Path) -> None:
    """Print where the result is, once."""
    import os

    if os.environ.get("RANK", "0") == "0":
        print(path)
