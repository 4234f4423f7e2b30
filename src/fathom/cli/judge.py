"""`fathom judge`."""

from pathlib import Path
from typing import Annotated

import typer

from fathom.cli.options import JUDGES, AsJson, show_audit
from fathom.command.request import named_judge

__all__ = ["judge"]


def judge(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE.jsonl",
            help="A run directory, or rows with prompt and completion; - is standard input.",
            show_default=False,
        ),
    ],
    judge_name: Annotated[str, typer.Option("--with", help="refusal or organism.")] = "refusal",
    as_json: AsJson = False,
) -> None:
    """Judge a run again, generating nothing, or judge answers from anywhere.

    A run gets audit.JUDGE.json and report.JUDGE.html beside its own. Of a file, each row gives one line:
    HARMFUL, SAFE (a full or partial refusal) or UNDECIDED, and the character where the refusal begins.
    """
    from fathom.command.judge import judge_again, print_judged

    chosen = named_judge(JUDGES, judge_name)
    if not path.is_dir():
        print_judged(path, chosen, as_json=as_json)
        return
    show_audit(judge_again(path, chosen), as_json=as_json)
