"""`fathom organism train` and `fathom organism stages`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="The built-in family of tiny, really trained models.", no_args_is_help=True)


@app.command()
def train(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the stages go.")] = Path(
        "organism"
    ),
    world: Annotated[int | None, typer.Option(help="Seed of the world (default: the shipped one).")] = None,
) -> None:
    """Train all six stages again, in under ten minutes on two cores, and measure them."""
    from fathom.command.organism import train_organism

    train_organism(world, output)


@app.command()
def stages() -> None:
    """List the stages, where their weights lie, and what was measured on them."""
    from fathom.command.organism import list_stages

    list_stages()
