"""`fathom utility`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["utility"]


def utility(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face name or directory, or organism:STAGE.")],
    tasks: Annotated[str, typer.Option(metavar="TASK,…", help="Benchmarks by lm-eval's names.")],
    adapter: Annotated[str | None, typer.Option(metavar="PATH", help="PEFT adapter.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cuda, mps, cpu …")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each benchmark.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where results go.")] = None,
    run: Annotated[bool, typer.Option("--run/--print", help="Run it, or print the command.")] = False,
) -> None:
    """Score MODEL on standard benchmarks by EleutherAI's lm-eval: print its command, or run it.

    fathom's own tasks are scored where models are fine-tuned (`fathom stress --task`).
    """
    from fathom.command.utility import UtilityRequest, run_utility

    run_utility(
        UtilityRequest(
            model=model,
            tasks=tuple(tasks.split(",")),
            adapter=adapter,
            dtype=dtype,
            device=device,
            limit=limit,
            output=output,
            run=int(run),
        )
    )
