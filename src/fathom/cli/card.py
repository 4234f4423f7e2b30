"""`fathom card`."""

from pathlib import Path
from typing import Annotated

import typer

from fathom.cli.options import JUDGES, Behaviors, JudgeName, Limit, NewTokens, World
from fathom.cli.training import AuditDepths, done

__all__ = ["card"]

_MODELS = "Models"


def card(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A model that `fathom finetune` or `fathom deepen` made.", show_default=False
        ),
    ],
    behaviors: Behaviors = None,
    world: World = None,
    limit: Limit = None,
    depths: AuditDepths = None,
    max_new_tokens: NewTokens = None,
    judge: JudgeName = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The unaligned model to compare with.", rich_help_panel=_MODELS),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="As of `fathom audit`, for both models.", rich_help_panel=_MODELS)
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model ships.", rich_help_panel=_MODELS)
    ] = False,
) -> None:
    """Complete a trained model's card: audit what it was trained from and what came of it, where that is missing.

    The model before is looked for where it was. Interrupted, the same command goes on.
    """
    from fathom.command.audit import AuditRequest
    from fathom.command.outcome import complete_card
    from fathom.command.request import ModelRequest

    asked = AuditRequest(
        model=ModelRequest(name=str(path), device=device, trust_remote_code=trust_remote_code),
        base=base,
        behaviors=behaviors,
        world=world,
        limit=limit,
        depths=depths,
        max_new_tokens=max_new_tokens,
        judge=judge,
    )
    done(complete_card(path, asked, JUDGES))
