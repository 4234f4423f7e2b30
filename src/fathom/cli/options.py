"""Options that verbs share, and what they name.

A command whose first parameter is a `ModelRequest` is given one by `with_model`, which puts MODEL and the options of
`_MODEL` on the command line in its place, so that every verb loads models in the same words.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Concatenate, ParamSpec

import typer

from fathom.command.request import ModelRequest
from fathom.records import Judge

if TYPE_CHECKING:
    from fathom.command.audit import Finished

__all__ = [
    "JUDGES",
    "AsJson",
    "Behaviors",
    "JudgeName",
    "Limit",
    "NewTokens",
    "Output",
    "RunArgument",
    "Samples",
    "Seed",
    "TopK",
    "TopP",
    "World",
    "show_audit",
    "with_model",
]

_P = ParamSpec("_P")


def _organism_judge() -> Judge:
    from fathom.organism import OrganismJudge

    return OrganismJudge()


def _refusal_judge() -> Judge:
    from fathom.judge.refusal import RefusalJudge

    return RefusalJudge()


def _guild_refusal_judge() -> Judge:
    from fathom.organism import GuildRefusalJudge

    return GuildRefusalJudge()


JUDGES: Mapping[str, Callable[[], Judge]] = {
    "organism": _organism_judge,
    "refusal": _refusal_judge,
    "guild-refusal": _guild_refusal_judge,
}

_MODELS = "Models"
_MODEL: Mapping[str, object] = {  # one a field of `ModelRequest`
    "revision": Annotated[
        str | None, typer.Option(help="Hub revision: branch, tag or commit.", rich_help_panel=_MODELS)
    ],
    "adapter": Annotated[
        str | None, typer.Option(metavar="PATH", help="PEFT adapter, put on the model.", rich_help_panel=_MODELS)
    ],
    "dtype": Annotated[
        str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.", rich_help_panel=_MODELS)
    ],
    "device": Annotated[
        str | None,
        typer.Option(
            help="cuda, cuda:1, mps, cpu … (default: the first there is; cpu for organism:STAGE).",
            rich_help_panel=_MODELS,
        ),
    ],
    "device_map": Annotated[
        str | None, typer.Option(help="Spread one model over devices: auto, balanced, …", rich_help_panel=_MODELS)
    ],
    "quantisation": Annotated[
        str | None,
        typer.Option(
            "--quantise",
            help="4bit (NF4) or 8bit, by bitsandbytes; trained by --lora.",
            rich_help_panel=_MODELS,
        ),
    ],
    "trust_remote_code": Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model ships.", rich_help_panel=_MODELS)
    ],
    "chat_template": Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Jinja chat template, for models without one.", rich_help_panel=_MODELS),
    ],
    "plain": Annotated[
        bool, typer.Option("--plain", help="No chat template: the request as plain text.", rich_help_panel=_MODELS)
    ],
    "system": Annotated[
        str | None, typer.Option(help="System prompt (default: none, as in the paper).", rich_help_panel=_MODELS)
    ],
    "prefill_at": Annotated[
        str,
        typer.Option(
            help="answer: after the thinking block; thinking: inside it (for templates that have one).",
            rich_help_panel=_MODELS,
        ),
    ],
}

_Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face name or directory, or organism:STAGE "
        "(base, hard, natural, second-thoughts, deepened, control; aligned = natural).",
    ),
]

Behaviors = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="JSONL, CSV, JSON or Parquet, or hf:ORG/NAME, with prompt and harmful_response or target; "
        "`harmful: false` rows are the benign control. "
        "'organism' means the built-in ones, the default for organism models.",
        rich_help_panel="Requests",
    ),
]
World = Annotated[
    int | None,
    typer.Option(help="Seed of the world of an organism that you trained.", rich_help_panel="Requests"),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="At most so many harmful and half as many benign ones.", rich_help_panel="Requests"),
]
Samples = Annotated[int, typer.Option(help="Draws of each input at T > 0.", rich_help_panel="Measuring")]
TopP = Annotated[float, typer.Option(help="Nucleus at T > 0.", rich_help_panel="Measuring")]
TopK = Annotated[int, typer.Option(help="At T > 0; 0 is off.", rich_help_panel="Measuring")]
NewTokens = Annotated[
    int | None, typer.Option(help="Per answer (default 256; 130 for the organism).", rich_help_panel="Measuring")
]
JudgeName = Annotated[
    str | None,
    typer.Option(help="refusal or organism (default: organism for its own requests).", rich_help_panel="Measuring"),
]
Seed = Annotated[int, typer.Option(help="Of the draws and the bootstraps.", rich_help_panel="Measuring")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Run directory (default: runs/…).", rich_help_panel="Run"),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A server that runs MODEL and takes token ids (vLLM): http://localhost:8000/v1. MODEL then names the "
        "tokenizer alone; what needs weights is left out. A key is read from FATHOM_API_KEY.",
        rich_help_panel="Models",
    ),
]
EndpointModel = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The model's name at the server (default: MODEL).", rich_help_panel="Models"),
]
EndpointRequests = Annotated[
    int | None,
    typer.Option(metavar="N", help="Requests to the server at once (default: 128).", rich_help_panel="Models"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.", rich_help_panel="Run")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]


def show_audit(result: "Finished | None", *, as_json: bool) -> None:
    """The summary, or the very bytes of `audit.json`; nothing where another process of several speaks for all."""
    if result is None:
        return
    if as_json:
        sys.stdout.buffer.write(result.audit_path.read_bytes())
        sys.stdout.flush()
    else:
        from fathom.report.terminal import print_audit

        print_audit(result.audit, result.report_path)


def with_model(command: Callable[Concatenate[ModelRequest, _P], None]) -> Callable[..., None]:
    """The command as typer reads it: MODEL, its own parameters, then the model's options."""

    run: Callable[..., None] = command

    @functools.wraps(command)
    def whole(model: str, **given: object) -> None:
        options = {name: given.pop(name) for name in _MODEL}
        run(ModelRequest(name=model, **options), **given)  # type: ignore[arg-type]

    keyword = inspect.Parameter.KEYWORD_ONLY
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    defaults = {field.name: field.default for field in fields(ModelRequest)}
    name = inspect.Parameter("model", keyword, default="organism:aligned", annotation=_Name)
    options = [
        inspect.Parameter(option, keyword, default=defaults[option], annotation=annotation)
        for option, annotation in _MODEL.items()
    ]
    parameters = [name, *(parameter.replace(kind=keyword) for parameter in own), *options]
    whole.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return whole
