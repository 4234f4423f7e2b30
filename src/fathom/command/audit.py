"""`fathom audit`: from options to a run directory and its report."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fathom.behaviors import load_behaviors
from fathom.behaviors.source import source_name
from fathom.command.attack import AttackRequest, draft_names, make_suite, show_costs
from fathom.command.report import write_run_report
from fathom.command.request import (
    ORGANISM,
    Judges,
    ModelRequest,
    check_judge,
    choice,
    connect_model,
    display_for,
    load_model,
    named_judge,
    numbers,
    positive,
)
from fathom.command.worlds import world_asked
from fathom.errors import UserError
from fathom.ranks import Ranks
from fathom.records import Judge, content_hash
from fathom.run import Run
from fathom.schema import Audit, Manifest

if TYPE_CHECKING:
    from fathom.audit.parts import Part
    from fathom.audit.plan import AuditOptions, BehaviorSet
    from fathom.chat import ChatFormat
    from fathom.engine.endpoint import ServedModel
    from fathom.model import ChatModel

__all__ = ["AuditRequest", "Finished", "behavior_set", "check_audit", "run_audit"]

NO_BASE = "none"
ORGANISM_HARMFUL, ORGANISM_BENIGN = 100, 50
ORGANISM_NEW_TOKENS, NEW_TOKENS = 130, 256


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """An audit as it was asked for."""

    model: ModelRequest
    base: str | None = None
    base_revision: str | None = None
    base_variant: str = "same"
    behaviors: str | None = None
    world: int | None = None  # of the organism's requests; None: the shipped one
    limit: int | None = None
    depths: str | None = None
    temperatures: str = "0,1"
    samples: int = 1
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int | None = None
    prefixes: Sequence[str] | None = None
    seed: int = 0
    judge: str | None = None
    output: Path | None = None
    attacks: AttackRequest | None = None  # beside the depth sweep
    endpoint: str | None = None  # URL of a server that runs the model
    endpoint_model: str | None = None  # its name there
    endpoint_requests: int | None = None  # in flight at once


@dataclass(frozen=True)
class Finished:
    """An audit and where it lies."""

    audit: Audit
    path: Path
    judge: str | None = None  # another judge than the run's own

    @property
    def audit_path(self) -> Path:
        return self.path / ("audit.json" if self.judge is None else f"audit.{self.judge}.json")

    @property
    def report_path(self) -> Path:
        return self.path / ("report.html" if self.judge is None else f"report.{self.judge}.html")


def check_audit(request: AuditRequest, judges: Judges, model: "ChatModel | None" = None) -> None:
    """That an audit of a model can be made, said before anything that takes longer.

    Without the model, what can be known of words and files; with it, whether requests and depths fit it.

    Raises:
        UserError: it cannot.
    """
    behaviors = behavior_set(request.model, request.behaviors, request.limit, _world(request))
    judge = _judge(request, behaviors, judges)
    options = _options(request, behaviors)
    if model is not None:
        from fathom.audit.plan import make_plan

        make_plan(options, behaviors, judge, model, None, None)


def run_audit(request: AuditRequest, judges: Judges, joined: Ranks | None = None) -> Finished | None:
    """Run or go on with the audit that was asked for; None in processes other than the first.

    `joined`: processes that have met for something else already, and share the work without meeting anew.

    Raises:
        UserError: anything a user can mend, before the model is loaded where it can be known then.
    """
    _check_endpoint(request)
    behaviors = behavior_set(request.model, request.behaviors, request.limit, _world(request))
    judge = _judge(request, behaviors, judges)
    options = _options(request, behaviors)
    base = _base_request(request)
    suited = (
        None
        if request.attacks is None
        else make_suite(request.attacks, behaviors.source == ORGANISM, options.max_new_tokens)
    )
    from fathom.audit.execute import Execution
    from fathom.audit.parts import depth_parts
    from fathom.audit.plan import make_plan
    from fathom.engine.endpoint import ServedModel
    from fathom.model import check_pair

    ranks = Ranks.of_environment() if joined is None else joined
    path = request.output or _default_path(request, base, options, behaviors, judge)
    if ranks.first:
        Run(path).check()
    display = display_for(ranks)
    with display("loading", 1 if base is None else 2) as shown:
        model = _subject(request, ranks)
        shown.advance(1)
        base_model = None if base is None else load_model(base, ranks)
        shown.advance(1)
    if base_model is not None and not isinstance(model, ServedModel):
        check_pair(model, base_model)
    suite = depth_parts if suited is None else suited(model)
    plan = make_plan(options, behaviors, judge, model, base_model, _base_chat(options, model), suite)
    if isinstance(model, ServedModel):
        _check_served(plan.parts)
    if suited is not None and ranks.first:
        show_costs(plan.parts)
    drafts = {} if isinstance(model, ServedModel) else _drafts(request, model, ranks)
    with ranks.met() if joined is None else contextlib.nullcontext():
        run = _start(path, plan.manifest, ranks)
        audit = Execution(run, plan, judge, model, base_model, ranks, display, drafts)()
    if audit is None:
        return None
    write_run_report(path)
    return Finished(audit, path)


def _world(request: AuditRequest) -> int | None:
    """As `world_asked`.

    Raises:
        UserError: a world was given beside a file of requests.
    """
    if request.world is not None and request.behaviors not in (None, ORGANISM):
        raise UserError(
            f"--world {request.world} with --behaviors {request.behaviors}: a world has requests of its own; leave out "
            "one of the two"
        )
    return world_asked(request.model, request.behaviors, request.world)


def _subject(request: AuditRequest, ranks: Ranks) -> "ChatModel | ServedModel":
    if request.endpoint is None:
        return load_model(request.model, ranks)
    return connect_model(request.model, request.endpoint, request.endpoint_model, request.endpoint_requests)


def _check_endpoint(request: AuditRequest) -> None:
    """Raises `UserError` for options of a server where there is none: the model would be run here instead."""
    given = {"--endpoint-model": request.endpoint_model, "--endpoint-requests": request.endpoint_requests}
    for option, value in given.items():
        if value is not None and request.endpoint is None:
            raise UserError(f"{option} {value} without --endpoint: give the server's URL with --endpoint, too")


def _drafts(request: AuditRequest, model: "ChatModel", ranks: Ranks) -> "dict[str, ChatModel]":
    """The models that searches rank candidates with, loaded as the base is: they are given the model's ids."""
    if request.attacks is None:
        return {}
    from fathom.attack.suffix.selection import check_draft

    loaded = {}
    for name in draft_names(request.attacks):
        loaded[name] = load_model(_beside(request.model, name), ranks)
        check_draft(model, loaded[name])
    return loaded


def _beside(model: ModelRequest, name: str, revision: str | None = None) -> ModelRequest:
    """Another model, loaded as this one is but for its adapter. Its chat format is never used, so it needs none."""
    usual = ModelRequest(name=name).prefill_at
    return replace(model, name=name, revision=revision, adapter=None, chat_template=None, plain=True, prefill_at=usual)


def _check_served(parts: "Sequence[Part]") -> None:
    """A server answers; it shows no weights, gradients or hidden states."""
    from fathom.attack.kinds import needs_model

    for part in parts:
        if needs_model(part.attack):
            raise UserError(
                f"{part.attack.name} needs the model itself and --endpoint has only its answers: leave it out, or run "
                "it without --endpoint"
            )


def _start(path: Path, manifest: Manifest, ranks: Ranks) -> Run:
    """The first process creates or checks the run; the others find it made."""
    if ranks.first:
        Run.start(path, manifest)
    ranks.barrier()
    return Run.start(path, manifest)


def behavior_set(model: ModelRequest, source: str | None, limit: int | None, world: int | None = None) -> "BehaviorSet":
    """The requests of a file, or the organism's own of a world; at most `limit` harmful and half as many benign ones.

    Raises:
        UserError: there is no source, or its file cannot be used.
    """
    from fathom.audit.plan import BehaviorSet

    source = source or (ORGANISM if model.is_organism or world is not None else None)
    if source is None:
        from fathom.checkpoint import check_source, is_local

        if is_local(model.name):  # whoever mistyped a path is told that first
            check_source(model.name, model.revision)
        raise UserError(
            f"{model.name} needs requests to be audited with, and fathom ships none: give --behaviors FILE "
            "(JSONL, CSV, JSON or Parquet, or hf:ORG/NAME, with prompt and harmful_response or target; HarmBench, "
            "JailbreakBench and AdvBench files work as they are), or --behaviors organism for what was made of a "
            "built-in model"
        )
    if source == ORGANISM:
        from fathom.organism import behaviors

        harmful = limit or ORGANISM_HARMFUL
        benign = (limit + 1) // 2 if limit else ORGANISM_BENIGN
        return BehaviorSet(ORGANISM, behaviors(world, harmful=harmful, benign=benign))
    loaded = load_behaviors(Path(source))
    found = loaded.behaviors
    if limit is not None:
        kept = {behavior.id for behavior in [behavior for behavior in found if behavior.harmful][:limit]}
        kept |= {behavior.id for behavior in [b for b in found if not b.harmful][: (limit + 1) // 2]}
        found = tuple(behavior for behavior in found if behavior.id in kept)
    return BehaviorSet(source_name(Path(source)), found, loaded.skipped)


def _options(request: AuditRequest, behaviors: "BehaviorSet") -> "AuditOptions":
    from fathom.audit.plan import PAPER_PREFIXES, AuditOptions
    from fathom.depth.divergence import Variant
    from fathom.organism import STOCK_REFUSALS

    built_in = behaviors.source == ORGANISM
    usual = ("", *STOCK_REFUSALS) if built_in else PAPER_PREFIXES
    return AuditOptions(
        depths=None if request.depths is None else numbers(request.depths, int, "--depths"),
        max_new_tokens=positive(
            request.max_new_tokens, ORGANISM_NEW_TOKENS if built_in else NEW_TOKENS, "--max-new-tokens"
        ),
        temperatures=numbers(request.temperatures, float, "--temperature"),
        top_p=request.top_p,
        top_k=request.top_k,
        samples=request.samples,
        seed=request.seed,
        prefixes=usual if request.prefixes is None else tuple(request.prefixes),
        base_variant=choice(Variant, "--base-variant", request.base_variant),
    )


def _judge(request: AuditRequest, behaviors: "BehaviorSet", judges: Judges) -> Judge:
    name = request.judge or (ORGANISM if behaviors.source == ORGANISM else "refusal")
    judge = named_judge(judges, name)
    check_judge(judge, behaviors.source)
    return judge


def _base_request(request: AuditRequest) -> ModelRequest | None:
    """The base: as asked for, or `organism:base` for the other stages; loaded as the model is, but for its adapter.

    Its own chat format is never used (it gets the model's ids, or plain text), so it needs none.
    """
    base = _given_base(request)
    if base is None and request.base_revision is not None:
        raise UserError(f"--base-revision {request.base_revision} without a base: give --base MODEL, or leave it out")
    return base


def _given_base(request: AuditRequest) -> ModelRequest | None:
    if request.base == NO_BASE:
        return None
    if request.endpoint is not None:
        if request.base is None:
            return None
        raise UserError(
            f"--base {request.base} with --endpoint: the base is compared with the model's own probabilities, which a "
            "server does not give in full; leave out --base"
        )
    usual = f"{ORGANISM}:base" if request.model.is_organism and request.model.stage != "base" else None
    name = request.base or usual
    if name is None:
        return None
    return _beside(request.model, name, request.base_revision)


def _base_chat(options: "AuditOptions", model: "ChatModel | ServedModel") -> "ChatFormat":
    """What makes the base's prompts: the model's own format, or plain text with the same tokenizer."""
    from fathom.depth.divergence import Variant

    if options.base_variant is Variant.SAME:
        return model.chat
    return replace(model.chat, template=None, source="plain", system=None)


def _default_path(
    request: AuditRequest,
    base: ModelRequest | None,
    options: "AuditOptions",
    behaviors: "BehaviorSet",
    judge: Judge,
) -> Path:
    """The same command always names the same directory, so that it goes on with its own run."""
    attacks = () if request.attacks is None else (repr(request.attacks),)
    if request.endpoint is not None:
        attacks = (*attacks, request.endpoint, request.endpoint_model or "")
    asked = (repr(request.model), repr(base), msgspec.to_builtins(options), behaviors.info().hash, judge.name, *attacks)
    slug = "".join(char if char.isalnum() or char in "-._" else "-" for char in request.model.name).strip("-.")
    return Path("runs") / f"{slug[-60:]}-{content_hash(asked)[:8]}"
