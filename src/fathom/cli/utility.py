"""`fathom utility`."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from fathom.cli.options import AsJson, Endpoint, EndpointModel, EndpointRequests, Output, with_model
from fathom.command.request import ModelRequest
from fathom.errors import UserError

__all__ = ["utility"]

_OWN, _BENCHMARKS = "A task of your own", "Benchmarks"


@with_model
def utility(
    request: ModelRequest,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows with prompt and answer, as `fathom finetune --data` reads them. F,prompt=COLUMN,answer=COLUMN "
            "names columns.",
            rich_help_panel=_OWN,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC,…",
            help="rouge1 (F1 of shared words), exact (the same words), number (the same last number).",
            rich_help_panel=_OWN,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Per answer (default 512; 140 for the organism).", rich_help_panel=_OWN)
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="TASK,…", help="Benchmarks by lm-eval's names.", rich_help_panel=_BENCHMARKS),
    ] = None,
    run: Annotated[
        bool, typer.Option("--run/--print", help="Run lm-eval, or print its command.", rich_help_panel=_BENCHMARKS)
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows, or examples of each benchmark.")] = None,
    endpoint: Endpoint = None,
    endpoint_model: EndpointModel = None,
    endpoint_requests: EndpointRequests = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Score MODEL on rows of your own (--data), or on standard benchmarks by EleutherAI's lm-eval (--tasks).

    Rows are answered greedily and scored beside their answers; interrupted, the same command goes on. Of benchmarks
    lm-eval's command is printed, or run. `fathom stress --task-data` fine-tunes on such rows.
    """
    if (data is None) == (tasks is None):
        raise UserError(
            "give either --data FILE with --metric, to score rows of your own, or --tasks NAME,… for benchmarks"
        )
    if data is None:
        _benchmarks(request, tasks or "", limit, output, run=int(run), others=(metric, max_new_tokens, endpoint))
        return
    if metric is None:
        raise UserError(f"--data {data} needs a --metric to be scored by: rouge1, exact, number, or several by commas")
    if run:
        raise UserError(f"--run is of --tasks, and --data {data} is scored here: leave one of the two out")
    from fathom.command.task import TaskRequest, run_task

    done = run_task(
        TaskRequest(
            model=request,
            data=data,
            metrics=metric,
            limit=limit,
            max_new_tokens=max_new_tokens,
            endpoint=endpoint,
            endpoint_model=endpoint_model,
            endpoint_requests=endpoint_requests,
            output=output,
        )
    )
    if as_json:
        sys.stdout.buffer.write((done.path / "utility.json").read_bytes())
    else:
        from fathom.report.terminal_utility import print_utility

        print_utility(done.utility, done.path / "rows.jsonl")


def _benchmarks(
    request: ModelRequest, tasks: str, limit: int | None, output: Path | None, *, run: int, others: tuple[object, ...]
) -> None:
    """By lm-eval, which loads the model itself."""
    usual = ModelRequest(name=request.name)
    read = ("name", "adapter", "dtype", "device")
    given = [field.name for field in fields(request) if getattr(request, field.name) != getattr(usual, field.name)]
    unread = [name for name in given if name not in read]
    if unread or any(other is not None for other in others):
        named = ", ".join(unread) or "--metric, --max-new-tokens and --endpoint"
        raise UserError(
            f"--tasks hands the model to lm-eval, which is not told of {named}: leave that out, or add it to the "
            "command that is printed"
        )
    from fathom.command.utility import UtilityRequest, run_utility

    run_utility(
        UtilityRequest(
            model=request.name,
            tasks=tuple(tasks.split(",")),
            adapter=request.adapter,
            dtype=request.dtype,
            device=request.device,
            limit=limit,
            output=output,
            run=run,
        )
    )
