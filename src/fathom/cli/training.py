"""Options of the verbs that train a model, and the end that they share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fathom.command.lora import Lora

__all__ = [
    "AuditDepths",
    "AuditLimit",
    "AuditTokens",
    "AuditedWith",
    "Config",
    "LoraFlag",
    "LoraRank",
    "LoraTargets",
    "Out",
    "Set",
    "WithAudit",
    "done",
    "lora_of",
]

_TRAINING, _RUN, _AUDIT = "Training", "Run", "Audit before and after"

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
    typer.Option(
        "--audit/--no-audit",
        help="Audit before and after (default: with --behaviors, and on the organism).",
        rich_help_panel=_AUDIT,
    ),
]
AuditedWith = Annotated[
    str | None,
    typer.Option(
        "--behaviors",
        metavar="FILE",
        help="Requests that MODEL and what comes of it are asked, as of `fathom audit`; the model card tells both.",
        rich_help_panel=_AUDIT,
    ),
]
AuditLimit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        help="At most so many harmful and half as many benign ones (default: all; 60 of the organism's).",
        rich_help_panel=_AUDIT,
    ),
]
AuditDepths = Annotated[
    str | None,
    typer.Option("--depths", metavar="K,K,…", help="Prefill lengths in tokens.", rich_help_panel=_AUDIT),
]
AuditTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", help="Per answer (default 256; 130 for the organism).", rich_help_panel=_AUDIT),
]


def lora_of(wanted: object, rank: int, targets: str) -> "Lora | None":
    """The adapter that was asked for, if one was.

    Raises:
        UserError: there is to be none, and its rank or layers are given: all weights would be trained.
    """
    from fathom.command.lora import Lora
    from fathom.errors import UserError

    usual = Lora()
    if not wanted and (rank, targets) != (usual.rank, usual.targets):
        option = f"--lora-rank {rank}" if rank != usual.rank else f"--lora-targets {targets}"
        raise UserError(f"{option} without --lora: all weights would be trained; add --lora, or leave it out")
    return Lora(rank=rank, targets=targets) if wanted else None


def done(path: Path) -> None:
    """Print where the result is, once."""
    if os.environ.get("RANK", "0") == "0":
        print(path)
