"""`fathom audit`."""

from typing import Annotated

import typer

from fathom.cli.attack import Budget, Frames, SuiteName, WithAttack
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

__all__ = ["audit"]


@with_model
def audit(
    request: ModelRequest,
    behaviors: Behaviors = None,
    world: World = None,
    limit: Limit = None,
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
    samples: Samples = 1,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_new_tokens: NewTokens = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            help="Refusal prefix tried on the base; repeatable (default: the paper's).", rich_help_panel="Measuring"
        ),
    ] = None,
    seed: Seed = 0,
    judge: JudgeName = None,
    output: Output = None,
    as_json: AsJson = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The unaligned model to compare with: per-token KL, refusal prefixes. "
            "Default: organism:base for the organism, else none; 'none' leaves it out.",
            rich_help_panel="Models",
        ),
    ] = None,
    base_variant: Annotated[
        str,
        typer.Option(
            help="same: the base gets the same ids as the model; plain: the request as plain text.",
            rich_help_panel="Models",
        ),
    ] = "same",
    base_revision: Annotated[
        str | None, typer.Option(help="Hub revision of the base.", rich_help_panel="Models")
    ] = None,
    endpoint: Endpoint = None,
    endpoint_model: EndpointModel = None,
    endpoint_requests: EndpointRequests = None,
    suite: SuiteName = None,
    attacks: WithAttack = None,
    budget: Budget = None,
    frames: Frames = None,
) -> None:
    """Measure how many tokens deep MODEL's safety alignment is, and write a report.

    Without arguments: the built-in aligned model, in under a minute. Interrupted, the same command goes on.
    """
    from fathom.command.attack import AttackRequest
    from fathom.command.audit import AuditRequest, run_audit

    result = run_audit(
        AuditRequest(
            model=request,
            base=base,
            base_revision=base_revision,
            base_variant=base_variant,
            behaviors=behaviors,
            world=world,
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
            endpoint=endpoint,
            endpoint_model=endpoint_model,
            endpoint_requests=endpoint_requests,
            attacks=None
            if suite is None and not attacks and frames is None and budget is None
            else AttackRequest(suite=suite, attacks=attacks or (), budget=budget, frames=frames),
        ),
        JUDGES,
    )
    show_audit(result, as_json=as_json)
