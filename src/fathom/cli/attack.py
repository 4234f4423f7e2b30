"""`fathom attack`."""

from pathlib import Path
from typing import Annotated

import typer

from fathom.cli.options import (
    JUDGES,
    AsJson,
    Behaviors,
    Endpoint,
    EndpointModel,
    EndpointRequests,
    JudgeName,
    Limit,
    NewTokens,
    Output,
    Samples,
    Seed,
    TopK,
    TopP,
    World,
    show_audit,
    with_model,
)
from fathom.command.request import ModelRequest

__all__ = ["Budget", "Frames", "SuiteName", "WithAttack", "attack"]

_ATTACKS = "Attacks"

SuiteName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="quick, standard, paper, adaptive, or a TOML or JSON file that names attacks and parameters.",
        rich_help_panel=_ATTACKS,
    ),
]
WithAttack = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="NAME",
        help="insertion, own-insertion, deep-prefill, multi-turn, framing, decoding, best-of-n, reference-ranks, "
        "judged-ranks, refusal-direction, suffix, universal-suffix, typed-suffix, embedding; with parameters: "
        "'best-of-n n=32'. Repeatable.",
        rich_help_panel=_ATTACKS,
    ),
]
Budget = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS", help="Forward tokens that an attack may spend on a behavior.", rich_help_panel=_ATTACKS
    ),
]
Frames = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Frames for framing: JSON list of name, user, system, prefill with {prompt} and {target}, or one .jinja.",
        rich_help_panel=_ATTACKS,
    ),
]


@with_model
def attack(
    request: ModelRequest,
    attacks: WithAttack = None,
    suite: SuiteName = None,
    budget: Budget = None,
    frames: Frames = None,
    behaviors: Behaviors = None,
    world: World = None,
    limit: Limit = None,
    temperature: Annotated[
        str,
        typer.Option(metavar="T,T,…", help="0 is greedy; sampling attacks have theirs.", rich_help_panel="Measuring"),
    ] = "0,1",
    samples: Samples = 1,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_new_tokens: NewTokens = None,
    seed: Seed = 0,
    judge: JudgeName = None,
    output: Output = None,
    as_json: AsJson = False,
    endpoint: Endpoint = None,
    endpoint_model: EndpointModel = None,
    endpoint_requests: EndpointRequests = None,
) -> None:
    """Attack MODEL where its safety alignment is thin, each attack with its benign control and what it costs.

    Without --with or --suite: the quick suite. The run is a directory as an audit's. Costs are shown first;
    interrupted, the same command goes on.
    """
    from fathom.command.attack import AttackRequest
    from fathom.command.audit import AuditRequest, run_audit

    if suite is None and not attacks and frames is None:
        suite = "quick"
    asked = AttackRequest(suite=suite, attacks=attacks or (), budget=budget, frames=frames, with_depth=False)
    result = run_audit(
        AuditRequest(
            model=request,
            base="none",
            behaviors=behaviors,
            world=world,
            limit=limit,
            depths="0",
            temperatures=temperature,
            samples=samples,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            prefixes=(),
            seed=seed,
            judge=judge,
            output=output,
            attacks=asked,
            endpoint=endpoint,
            endpoint_model=endpoint_model,
            endpoint_requests=endpoint_requests,
        ),
        JUDGES,
    )
    show_audit(result, as_json=as_json)
