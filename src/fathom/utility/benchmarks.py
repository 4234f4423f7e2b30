"""The hand-off to EleutherAI's lm-evaluation-harness, which knows hundreds of benchmarks, by its command."""

import importlib.util
import shlex
import sys
from collections.abc import Sequence

from fathom.errors import UserError

__all__ = ["CHAT", "has_lm_eval", "lm_eval_command", "shown_command"]

CHAT = ("--apply_chat_template",)


def lm_eval_command(
    model: str,
    tasks: Sequence[str],
    *,
    adapter: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    limit: int | None = None,
    output: str | None = None,
    python: str = sys.executable,
    chat: Sequence[str] = CHAT,
) -> tuple[str, ...]:
    """The command that runs lm-eval on a Hugging Face model with its chat template, as arguments.

    `chat` is empty for a model that has no template: lm-eval would end where it looks for one.

    Raises:
        UserError: no task is named, or a value holds a comma or an equals sign, which lm-eval's arguments cannot.
    """
    if not tasks or not all(task.strip() for task in tasks):
        raise UserError("no benchmark was named; give --tasks mmlu,gsm8k (`lm-eval ls tasks` lists them)")
    values = {"pretrained": model, "dtype": dtype} | ({"peft": adapter} if adapter else {})
    for name, value in values.items():
        if "," in value or "=" in value:
            raise UserError(f"{name} is {value!r}: lm-eval's arguments cannot hold a comma or =; rename the directory")
    found = [python, "-m", "lm_eval", "--model", "hf", *chat]
    found += ["--model_args", ",".join(f"{name}={value}" for name, value in values.items())]
    found += ["--tasks", ",".join(task.strip() for task in tasks)]
    for option, given in (("--device", device), ("--limit", limit), ("--output_path", output)):
        found += [option, str(given)] if given is not None else []
    return tuple(found)


def shown_command(command: Sequence[str]) -> str:
    """The command as it can be pasted into a shell."""
    return shlex.join(command)


def has_lm_eval() -> bool:
    """Whether lm-eval is installed."""
    return importlib.util.find_spec("lm_eval") is not None
