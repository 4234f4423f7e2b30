"""One short command per verb. Everything heavy is imported inside the command that needs it.

`options` has the options that verbs share; each family of verbs has a module; this one puts them together.
"""

from typing import Annotated

import typer

from fathom.cli import attack, audit, deepen, finetune, ids, judge, organism, poison, report, stress, utility

__all__ = ["app"]

app = typer.Typer(
    help="How many tokens deep is a language model's safety alignment? Measure it, sample by sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("audit")(audit.audit)
app.command("attack")(attack.attack)
app.command("ids")(ids.ids)
app.command("judge")(judge.judge)
app.command("report")(report.report)
app.command("compare")(report.compare)
app.command("deepen")(deepen.deepen)
app.command("triplets")(deepen.triplets)
app.command("finetune")(finetune.finetune)
app.command("poison")(poison.poison)
app.command("stress")(stress.stress)
app.command("dynamics")(stress.dynamics)
app.command("utility")(utility.utility)
app.add_typer(organism.app, name="organism")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from fathom import __version__

        print(f"fathom {__version__}")
        raise typer.Exit
