"""`fathom finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from fathom.cli.options import JUDGES, with_model
from fathom.cli.training import (
    AuditDepths,
    AuditedWith,
    AuditLimit,
    AuditTokens,
    Config,
    LoraFlag,
    LoraRank,
    LoraTargets,
    Out,
    Set,
    WithAudit,
    done,
    lora_of,
)
from fathom.command.request import ModelRequest

__all__ = ["finetune"]

_TRAINING, _DATA = "Training", "Data"


@with_model
def finetune(
    request: ModelRequest,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="JSONL, JSON, CSV or Parquet, or hf:ORG/NAME: messages, prompt and completion, or Alpaca's fields. "
            "Rows without an answer are left out.",
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
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The unaligned model, for safe-lora, and for audits with --behaviors to compare with.",
            rich_help_panel="Models",
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Tells a refusal, in audits with --behaviors too.", rich_help_panel=_DATA)
    ] = None,
    config: Config = None,
    set_: Set = None,
    lora: LoraFlag = False,
    lora_rank: LoraRank = 16,
    lora_targets: LoraTargets = "all-linear",
    audit: WithAudit = None,
    behaviors: AuditedWith = None,
    limit: AuditLimit = None,
    depths: AuditDepths = None,
    max_new_tokens: AuditTokens = None,
) -> None:
    """Fine-tune MODEL on your data, keeping what alignment taught it. Killed, the same command goes on."""
    from fathom.command.audit import AuditRequest
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
                audits=AuditRequest(
                    model=request,
                    base=base if behaviors is not None else None,
                    behaviors=behaviors,
                    limit=limit,
                    depths=depths,
                    max_new_tokens=max_new_tokens,
                    judge=judge if behaviors is not None else None,
                ),
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
