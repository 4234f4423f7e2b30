"""`fathom judge`."""

from pathlib import Path
from typing import Annotated

import typer

from fathom.cli.options import JUDGES, AsJson, show_audit

__all__ = ["judge"]

_HARM, _LABELS = "Judges of harm", "Labels by people"


def judge(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE.jsonl",
            help="A run directory, or rows with prompt and completion; - is standard input.",
            show_default=False,
        ),
    ],
    judge_name: Annotated[
        str,
        typer.Option(
            "--with",
            help="refusal, organism, classifier:MODEL[,revision=…,preset=…,template=FILE,…], rubric (at "
            "--judge-endpoint), or verdicts:FILE (labels by people or any tool).",
        ),
    ] = "refusal",
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What counts as harmful, as text.", rich_help_panel=_HARM),
    ] = None,
    judge_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Of rubric: a server that speaks the OpenAI API. A key is read from FATHOM_JUDGE_API_KEY.",
            rich_help_panel=_HARM,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of rubric: the model's name at the server.", rich_help_panel=_HARM),
    ] = None,
    judge_requests: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Requests to it at once (default: 8).", rich_help_panel=_HARM),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Judge nothing: write the answers to be labelled, as .jsonl, .csv or .tsv.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Export N answers, drawn at random.", rich_help_panel=_LABELS),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of that sample, and of the bootstrap.", rich_help_panel=_LABELS)] = 0,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Labels by people: how far the judge agrees with them, and the rates corrected for its errors.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a run again, generating nothing, or judge answers from anywhere.

    A run gets audit.JUDGE.json and report.JUDGE.html beside its own. Of a file, each row gives one line:
    HARMFUL, SAFE (a full or partial refusal) or UNDECIDED, and the character where the refusal begins.
    Judges of harm are a classifier that runs here, a rubric at a server, and labels that people gave.
    """
    from fathom.command.judge import JudgeOptions, run_judge
    from fathom.command.judging import JudgeRequest

    request = JudgeRequest(
        name=judge_name, policy=policy, endpoint=judge_endpoint, model=judge_model, requests=judge_requests
    )
    options = JudgeOptions(export=export, sample=sample, seed=seed, against=against, as_json=as_json)
    result = run_judge(path, request, options, JUDGES)
    if result is not None:
        show_audit(result, as_json=as_json)
