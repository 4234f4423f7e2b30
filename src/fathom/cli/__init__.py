"""One short command per verb. Everything heavy is imported inside the command that needs it.

`options` has the options that verbs share; each family of verbs has a module; this one puts them together.
"""

import inspect
from typing import Annotated

import typer

from fathom.cli import attack, audit, card, deepen, finetune, ids, judge, organism, poison, report, stress, utility

__all__ = ["app"]

app = typer.Typer(
    help="How many tokens deep is a language model's safety alignment? Measure it, sample by sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _verb in (
    audit.audit,
    attack.attack,
    ids.ids,
    judge.judge,
    report.report,
    report.compare,
    deepen.deepen,
    deepen.triplets,
    finetune.finetune,
    card.card,
    poison.poison,
    stress.stress,
    stress.dynamics,
    utility.utility,
):
    # Lines of a docstring are no lines of a window.
    _paragraphs = inspect.cleandoc(_verb.__doc__ or "").split("\n\n")
    app.command(_verb.__name__, help="\n\n".join(" ".join(text.split()) for text in _paragraphs))(_verb)
app.add_typer(organism.app, name="organism")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from fathom import __version__

        print(f"fathom {__version__}")
        raise typer.Exit
