"""`fathom utility --tasks`: a model handed to lm-eval."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from fathom.command.request import ModelRequest
from fathom.command.training import say
from fathom.errors import UserError
from fathom.utility import CHAT, has_lm_eval, lm_eval_command, shown_command

__all__ = ["UtilityRequest", "run_utility"]


@dataclass(frozen=True, kw_only=True)
class UtilityRequest:
    """Benchmarks as they were asked for."""

    model: str
    tasks: tuple[str, ...]
    adapter: str | None = None
    dtype: str = "auto"
    device: str | None = None
    limit: int | None = None
    output: Path | None = None
    run: int = 0  # 1: run it here


def run_utility(request: UtilityRequest) -> None:
    """Print lm-eval's command, or run it.

    Raises:
        UserError: it is to be run and is not installed, it failed, or its arguments cannot be made.
    """
    named = ModelRequest(name=request.model)
    chat: tuple[str, ...] = CHAT
    if named.is_organism:
        from fathom.organism import stage_directory

        name = str(stage_directory(named.stage))
    else:
        from fathom.checkpoint import check_source, has_template, is_local

        name = request.model
        if is_local(name):  # names on the hub may be for another machine
            check_source(name, None)
            if not has_template(name):
                say(f"{name} has no chat template: benchmarks ask it in plain text")
                chat = ()
    command = lm_eval_command(
        name,
        request.tasks,
        adapter=request.adapter,
        dtype=request.dtype,
        device=request.device,
        limit=request.limit,
        output=None if request.output is None else str(request.output),
        chat=chat,
    )
    if not request.run:
        print(shown_command(command))
        return
    if not has_lm_eval():
        raise UserError(
            f"lm-eval is not installed: pip install lm-eval, or run this where it is: {shown_command(command)}"
        )
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise UserError(f"lm-eval ended with code {done.returncode}; its own message is above")
