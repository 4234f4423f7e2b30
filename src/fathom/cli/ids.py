"""`fathom ids`."""

from typing import Annotated

import typer

from fathom.cli.options import AsJson, with_model
from fathom.command.request import ModelRequest

__all__ = ["ids"]


@with_model
def ids(
    request: ModelRequest,
    prompt: Annotated[str | None, typer.Option(help="The user's message.", rich_help_panel="Requests")] = None,
    response: Annotated[str | None, typer.Option(help="The start of an answer.", rich_help_panel="Requests")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the exact ids and boundaries of one example, and test the laws that prefilling rests on.

    The laws: k tokens are k ids; a prefill leaves the prompt's ids unchanged; the generation prompt is the prefix that
    the model was trained on. Exit code 2 if one is broken. Reads the tokenizer only, no weights.
    """
    from fathom.command.ids import show_ids

    show_ids(request, prompt, response, as_json=as_json)
