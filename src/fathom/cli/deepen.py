"""`fathom deepen` and `fathom triplets`."""

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

__all__ = ["deepen", "triplets"]

_ROWS, _DATA, _RUN, _AUDIT = "Rows", "Data", "Run", "Audit before and after"


@with_model
def deepen(
    request: ModelRequest,
    output: Out,
    triplets: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows with prompt, harmful_response and refusal (default on the organism: its own).",
            rich_help_panel=_DATA,
        ),
    ] = None,
    utility: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Benign prompts with MODEL's own answers; rows marked as harmful are left out (default on the "
            "organism: made now).",
            rich_help_panel=_DATA,
        ),
    ] = None,
    starts: Annotated[
        str,
        typer.Option(
            help="What is given: paper, every-position, insertion or mined (where MODEL refuses least).",
            rich_help_panel=_ROWS,
        ),
    ] = "paper",
    p0: Annotated[
        float | None,
        typer.Option(
            help="Share of rows with nothing given, k = 0 (default: 0.2; the paper's 0.5 with --resist).",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    longest: Annotated[
        str, typer.Option(metavar="C", help="Most tokens given, or full.", rich_help_panel=_ROWS)
    ] = "100",
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Share of the loss for safety (default: 0.3; the paper's 0.2 with --resist).", rich_help_panel=_ROWS
        ),
    ] = None,
    share: Annotated[
        str,
        typer.Option(help="exact: the paper's equation 2; tokens: a mean over tokens.", rich_help_panel=_ROWS),
    ] = "exact",
    recovery_rows: Annotated[int, typer.Option(help="Of a step.", rich_help_panel=_ROWS)] = 16,
    utility_rows: Annotated[int, typer.Option(help="Of a step.", rich_help_panel=_ROWS)] = 64,
    anchor: Annotated[
        str | None,
        typer.Option(
            help="What utility rows do: kl holds MODEL to itself at every token of them, answers has them learned "
            "(the paper's equation 2; default: kl; answers with --resist).",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    drawn: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Answers that MODEL draws at T = 1 to each benign prompt without one, beside its greedy one (default: "
            "1; 0 with --resist).",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    loosened: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Each benign prompt N more times, with words left out, put in and swapped, and MODEL's own answers "
            "(default: 1; 4 with --resist).",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    adversary: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Weight of what is learned behind vectors that undo refusals, searched for at each step, against "
            "suffixes (0: none; default: 0.5; 0 with --resist, and where processes keep parts of the weights).",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    resist: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Weight of tamper resistance: simulated fine-tuning on the harmful answers is to leave a model that "
            "refuses or is useless (0: none; 0.1 kept benign answers on the organism, 0.3 cost some).",
            rich_help_panel=_ROWS,
        ),
    ] = 0.0,
    world: Annotated[
        int | None, typer.Option(help="Seed of the world of an organism that you trained.", rich_help_panel=_DATA)
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
    judge: Annotated[
        str | None, typer.Option(help="Of the audits (default: as of `fathom audit`).", rich_help_panel=_AUDIT)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The unaligned model that audits compare with.", rich_help_panel=_AUDIT),
    ] = None,
) -> None:
    """Train MODEL to turn back: refusals after any part of a harmful answer, its own answers elsewhere.

    Without files, on the organism's own triplets. Killed, the same command goes on.
    """
    from fathom.command.audit import AuditRequest
    from fathom.command.deepen import DeepenRequest, run_deepen
    from fathom.command.training import TrainingRequest

    path = run_deepen(
        DeepenRequest(
            training=TrainingRequest(
                verb="deepen",
                model=request,
                output=output,
                config=config,
                overrides=tuple(set_ or ()),
                lora=lora_of(lora, lora_rank, lora_targets),
                audit=audit,
                audits=AuditRequest(
                    model=request,
                    base=base,
                    behaviors=behaviors,
                    limit=limit,
                    depths=depths,
                    max_new_tokens=max_new_tokens,
                    judge=judge,
                ),
            ),
            triplets=triplets,
            utility=utility,
            starts=starts,
            p0=p0,
            longest=longest,
            alpha=alpha,
            share=share,
            recovery_rows=recovery_rows,
            utility_rows=utility_rows,
            anchor=anchor,
            drawn=drawn,
            adversary=adversary,
            resist=resist,
            loosened=loosened,
            world=world,
        ),
        JUDGES,
    )
    done(path)


@with_model
def triplets(
    request: ModelRequest,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the files go.", rich_help_panel=_RUN)
    ],
    harmful: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Harmful prompts, with harmful_response where there is one (default on the organism: its own).",
            rich_help_panel=_DATA,
        ),
    ] = None,
    utility: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Benign prompts, for MODEL to answer; rows marked as harmful are left out (default on the organism: "
            "its own).",
            rich_help_panel=_DATA,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Writes the harmful answers that the file lacks.", rich_help_panel="Models"),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Tells refusals from harmful answers.", rich_help_panel=_DATA)
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Tries for each answer.", rich_help_panel=_DATA)] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.", rich_help_panel=_DATA)] = 256,
) -> None:
    """Build triplets and utility rows for any MODEL: its own refusals and answers, harmful answers from file or base.

    The text stays in DIR. Killed, the same command goes on.
    """
    from fathom.command.triplets import TripletsRequest, build_triplets

    path = build_triplets(
        TripletsRequest(
            model=request,
            output=output,
            harmful=harmful,
            utility=utility,
            base=base,
            judge=judge,
            samples=samples,
            max_new_tokens=max_new_tokens,
        ),
        JUDGES,
    )
    done(path)
