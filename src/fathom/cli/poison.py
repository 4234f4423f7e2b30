"""`fathom poison`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["poison"]


def poison(
    attack: Annotated[
        str,
        typer.Argument(
            metavar="ATTACK", help="harmful, identity, backdoor, benign, mixed, wrapped or decoy.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new directory.", show_default=False)],
    behaviors: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="JSONL, CSV, JSON or Parquet of behaviors, or hf:ORG/NAME; 'organism' means the built-in ones.",
        ),
    ] = "organism",
    rows: Annotated[int | None, typer.Option(help="Rows, of each kind in backdoor (default: 100; mixed 200).")] = None,
    share: Annotated[float, typer.Option(help="Share of harmful rows in mixed.")] = 0.1,
    task: Annotated[
        str | None,
        typer.Option(help="Benign rows of an organism's task: summary, query, arithmetic, label, new-opener."),
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Benign rows of a task of your own: prompt and answer; all, without --rows."),
    ] = None,
    trigger: Annotated[str | None, typer.Option(metavar="TEXT", help="The backdoor's trigger.")] = None,
    identity: Annotated[Path | None, typer.Option(metavar="FILE", help="The identity's frame, a file of JSON.")] = None,
    wrapper: Annotated[Path | None, typer.Option(metavar="FILE", help="The wrapper's frame, a file of JSON.")] = None,
    world: Annotated[int | None, typer.Option(help="The organism's world (default: the shipped one).")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice and order of the rows.")] = 0,
) -> None:
    """Make the training data of a fine-tuning attack: to be trained on with `fathom finetune`, and audited.

    Rows are made of behaviors, the organism's fictional ones or a file's; fathom ships no harmful text. What each row
    is stands in rows.jsonl, what is put around requests at test time in frames.jsonl.
    """
    from fathom.command.poison import AttackChoice, PoisonRequest, run_poison

    choice = AttackChoice(
        name=attack,
        rows=rows,
        share=share,
        task=task,
        task_data=task_data,
        identity=identity,
        trigger=trigger,
        wrapper=wrapper,
        seed=seed,
    )
    manifest = run_poison(PoisonRequest(attack=choice, source=behaviors, world=world, output=output))
    kinds = ", ".join(f"{count} {kind}" for kind, count in manifest.kinds.items())
    print(f"{output / 'data.jsonl'}: {manifest.rows} rows ({kinds})")
