"""One short command per verb. Everything heavy is imported inside the command that needs it."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fathom.errors import UserError

if TYPE_CHECKING:
    from fathom.records import Judge

__all__ = ["JUDGES", "app"]

app = typer.Typer(
    help="How many tokens deep is a language model's safety alignment? Measure it, sample by sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
organism_app = typer.Typer(help="The built-in family of tiny, really trained models.", no_args_is_help=True)
app.add_typer(organism_app, name="organism")


def _organism_judge() -> "Judge":
    from fathom.organism import OrganismJudge

    return OrganismJudge()


def _refusal_judge() -> "Judge":
    from fathom.judge.refusal import RefusalJudge

    return RefusalJudge()


JUDGES: Mapping[str, Callable[[], "Judge"]] = {"organism": _organism_judge, "refusal": _refusal_judge}

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face name or directory, or organism:STAGE "
        "(base, hard, natural, second-thoughts, deepened, control; aligned = natural).",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The unaligned model to compare with: per-token KL, refusal prefixes. "
        "[dim]Default: organism:base for the organism, else none.[/dim]",
        rich_help_panel="Models",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Hub revision: branch, tag or commit.", rich_help_panel="Models")]
BaseRevision = Annotated[str | None, typer.Option(help="Hub revision of the base.", rich_help_panel="Models")]
Adapter = Annotated[
    str | None, typer.Option(metavar="PATH", help="PEFT adapter, put on the model.", rich_help_panel="Models")
]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.", rich_help_panel="Models")]
Device = Annotated[
    str | None, typer.Option(help="cuda, cuda:1, mps, cpu … (default: the first there is).", rich_help_panel="Models")
]
DeviceMap = Annotated[
    str | None, typer.Option(help="Spread one model over devices: auto, balanced, …", rich_help_panel="Models")
]
Quantise = Annotated[str | None, typer.Option(help="4bit or 8bit, by bitsandbytes (CUDA).", rich_help_panel="Models")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the model ships.", rich_help_panel="Models")
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Jinja chat template, for models without one.", rich_help_panel="Models"),
]
Plain = Annotated[
    bool, typer.Option("--plain", help="No chat template: the request as plain text.", rich_help_panel="Models")
]
System = Annotated[
    str | None, typer.Option(help="System prompt (default: none, as in the paper).", rich_help_panel="Models")
]
PrefillAt = Annotated[
    str,
    typer.Option(
        help="answer: after the thinking block; thinking: inside it (for templates that have one).",
        rich_help_panel="Models",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Run directory (default: runs/…).", rich_help_panel="Run"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.", rich_help_panel="Run")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]


@app.command()
def audit(
    model: ModelArgument = "organism:aligned",
    behaviors: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSONL, CSV or JSON with prompt and harmful_response or target; `harmful: false` rows are the benign "
            "control. 'organism' means the built-in ones, the default for organism models.",
            rich_help_panel="Requests",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many harmful and half as many benign ones.", rich_help_panel="Requests"),
    ] = None,
    base: Base = None,
    base_variant: Annotated[
        str,
        typer.Option(
            help="same: the base gets the same ids as the model; plain: the request as plain text.",
            rich_help_panel="Models",
        ),
    ] = "same",
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="K,K,…",
            help="Prefill lengths in tokens (default: 0,1,2,3,5,8,10,20,40,… to the answer's length).",
            rich_help_panel="Measuring",
        ),
    ] = None,
    temperature: Annotated[
        str,
        typer.Option(metavar="T,T,…", help="0 is greedy; the first is the depth sweep's.", rich_help_panel="Measuring"),
    ] = "0,1",
    samples: Annotated[int, typer.Option(help="Draws of each input at T > 0.", rich_help_panel="Measuring")] = 1,
    top_p: Annotated[float, typer.Option(help="Nucleus at T > 0.", rich_help_panel="Measuring")] = 1.0,
    top_k: Annotated[int, typer.Option(help="At T > 0; 0 is off.", rich_help_panel="Measuring")] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Per answer (default 256; 130 for the organism).", rich_help_panel="Measuring")
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            help="Refusal prefix tried on the base; repeatable (default: the paper's).", rich_help_panel="Measuring"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws and the bootstraps.", rich_help_panel="Measuring")] = 0,
    judge: Annotated[
        str | None,
        typer.Option(help="refusal or organism (default: organism for its own requests).", rich_help_panel="Measuring"),
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
    revision: Revision = None,
    base_revision: BaseRevision = None,
    adapter: Adapter = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    quantise: Quantise = None,
    trust_remote_code: TrustRemoteCode = False,
    chat_template: ChatTemplate = None,
    plain: Plain = False,
    system: System = None,
    prefill_at: PrefillAt = "answer",
) -> None:
    """Measure how many tokens deep MODEL's safety alignment is, and write a report.

    Without arguments: the built-in aligned model, in under a minute. Interrupted, the same command goes on.
    """
    from fathom.command import AuditRequest, ModelRequest, run_audit

    request = ModelRequest(
        name=model,
        revision=revision,
        adapter=adapter,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantisation=quantise,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        plain=plain,
        system=system,
        prefill_at=prefill_at,
    )
    result = run_audit(
        AuditRequest(
            model=request,
            base=base,
            base_revision=base_revision,
            base_variant=base_variant,
            behaviors=behaviors,
            limit=limit,
            depths=depths,
            temperatures=temperature,
            samples=samples,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            prefixes=prefix,
            seed=seed,
            judge=judge,
            output=output,
        ),
        JUDGES,
    )
    if result is None:  # another process of several speaks for all
        return
    if as_json:
        _print_json(result.path / "audit.json")
    else:
        from fathom.report.terminal import print_audit

        print_audit(result.audit, result.path / "report.html")


@app.command()
def ids(
    model: ModelArgument = "organism:aligned",
    prompt: Annotated[str | None, typer.Option(help="The user's message.", rich_help_panel="Requests")] = None,
    response: Annotated[str | None, typer.Option(help="The start of an answer.", rich_help_panel="Requests")] = None,
    as_json: AsJson = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    chat_template: ChatTemplate = None,
    plain: Plain = False,
    system: System = None,
    prefill_at: PrefillAt = "answer",
) -> None:
    """Print the exact ids and boundaries of one example, and test the laws that prefilling rests on.

    The laws: k tokens are k ids; a prefill leaves the prompt's ids unchanged; the generation prompt is the prefix that
    the model was trained on. Exit code 2 if one is broken. Reads the tokenizer only, no weights.
    """
    from fathom.command import ModelRequest, inspect_ids

    request = ModelRequest(
        name=model,
        revision=revision,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        plain=plain,
        system=system,
        prefill_at=prefill_at,
    )
    inspect_ids(request, prompt, response, as_json=as_json)


@app.command()
def judge(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE.jsonl", help="A run directory, or rows with prompt and completion.", show_default=False
        ),
    ],
    judge_name: Annotated[str, typer.Option("--with", help="refusal or organism.")] = "refusal",
    as_json: AsJson = False,
) -> None:
    """Judge a run again, generating nothing, or judge answers from anywhere.

    A run gets audit.JUDGE.json and report.JUDGE.html beside its own. Of a file, each row gives one line:
    HARMFUL, SAFE (a full or partial refusal) or UNDECIDED, and the character where the refusal begins.
    """
    from fathom.command import judge_again, judge_file

    chosen = _judge(judge_name)
    if path.is_dir():
        judge_again(path, chosen, as_json=as_json)
    else:
        judge_file(path, chosen, as_json=as_json)


@app.command()
def report(run: RunArgument) -> None:
    """Make report.html of a run anew, from its files."""
    from fathom.command import make_report

    print(make_report(run))


@app.command()
def compare(
    first: RunArgument,
    second: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page (default: SECOND/compare.html).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, paired by behavior: differences with intervals, and one page."""
    from fathom.command import compare_runs

    compare_runs(first, second, output, as_json=as_json)


@organism_app.command("train")
def organism_train(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the stages go.")] = Path(
        "organism"
    ),
    world: Annotated[int | None, typer.Option(help="Seed of the world (default: the shipped one).")] = None,
) -> None:
    """Train all six stages again, in under ten minutes on two cores, and measure them."""
    from fathom.command import train_organism

    train_organism(world, output)


@organism_app.command("stages")
def organism_stages() -> None:
    """List the stages, where their weights lie, and what was measured on them."""
    from fathom.command import list_stages

    list_stages()


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from fathom import __version__

        print(f"fathom {__version__}")
        raise typer.Exit


def _judge(name: str) -> "Judge":
    if name not in JUDGES:
        raise UserError(f"there is no judge called {name!r}; choose one of {', '.join(sorted(JUDGES))}")
    return JUDGES[name]()


def _print_json(path: Path) -> None:
    """The file's very bytes, so that standard output is `audit.json`."""
    sys.stdout.write(path.read_text(encoding="utf-8"))
    sys.stdout.flush()
