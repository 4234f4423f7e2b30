"""`fathom ids`: the exact ids of one example, and whether the format keeps its laws."""

import sys

import msgspec

from fathom.command.request import ModelRequest
from fathom.errors import UserError
from fathom.records import Behavior, Message

__all__ = ["show_ids"]


def show_ids(request: ModelRequest, prompt: str | None, response: str | None, *, as_json: bool) -> None:
    """Print one example's ids and the result of the self-test.

    Raises:
        UserError: a law is broken, after all have been printed.
    """
    options = request.options()
    from fathom.ids import inspect_format, self_test
    from fathom.model import load_chat

    chat = load_chat(options)
    example = _example(request)
    messages = example.messages if prompt is None else (Message(role="user", content=prompt),)
    answer = (example.answer or "") if response is None else response
    found = inspect_format(chat, messages, answer)
    laws = self_test(chat, messages, answer)
    if as_json:
        content = {"model": request.name, "ids": found, "laws": laws}
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    else:
        from fathom.report.ids import print_ids

        print_ids(request.name, found, laws)
    broken = [law for law in laws if not law.passed]
    if broken:
        raise UserError(
            f"{request.name}: the law that {broken[0].name} does not hold ({broken[0].why}); prefills in this format "
            "would not be what they say: give a template with --chat-template FILE, or another text with --prompt and "
            "--response where the tokenizer cannot write this one"
        )


def _example(request: ModelRequest) -> Behavior:
    """A neutral example, in words that the organism's tiny vocabulary has."""
    if request.is_organism:
        from fathom.organism import behaviors

        return behaviors(harmful=0, benign=1)[0]
    return Behavior(
        id="example",
        messages=(Message(role="user", content="How do I make a cup of tea?"),),
        harmful=False,
        answer="Sure, here is how to make a cup of tea. First, boil some water.",
    )
