"""`fathom finetune`: from a user's data and an objective to a model that loads in plain transformers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.command.defence import own_requests, requests, sentinel
from fathom.command.known import benign_behaviors, check_told, file_hash, known_behaviors
from fathom.command.lora import check_lora, default_rate
from fathom.command.request import Judges, ModelRequest, display_for, keeps_parts, load_model, named_judge, numbers
from fathom.command.training import (
    Training,
    TrainingRequest,
    asked_in,
    audit_both,
    check_warmup,
    load_to_train,
    say,
    show_settings,
    train,
    training_ranks,
)
from fathom.errors import UserError
from fathom.ranks import ALONE, Ranks
from fathom.records import Judge, content_hash
from fathom.run import RunLock, write_whole

if TYPE_CHECKING:
    from fathom.model import ChatModel
    from fathom.protect.objectives import Objective
    from fathom.tuning.directory import TuningDirectory, TuningPlan
    from fathom.tuning.examples import Example
    from fathom.tuning.settings import Settings

__all__ = ["FinetuneRequest", "run_finetune"]

DEFAULT = "gate+answers+rehearse"
# A model of 0.2 M parameters learns nothing at the paper's rate for 7 B.
ORGANISM_RATE = 5e-4


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """Fine-tuning as it was asked for."""

    training: TrainingRequest
    data: Path
    objective: str | None = None  # default: the strongest that what was given allows
    beta: str | None = None  # three numbers: the first position, the next four, the rest
    harmful: Path | None = None  # prompts that the reference should refuse, for replay and mass
    benign: Path | None = None  # prompts that it should answer
    base: str | None = None  # for safe-lora
    judge: str | None = None  # tells a refusal, for gate, replay and mass


def run_finetune(request: FinetuneRequest, judges: Judges) -> Path:
    """Fine-tune, or go on with it; the directory of the model.

    Raises:
        UserError: anything a user can mend, before the model is loaded where it can be known then.
    """
    from fathom.tuning.examples import load_examples

    examples = load_examples(request.data)
    objective = _objective(request)
    training = request.training
    audited = training.audited()
    judge = named_judge(judges, request.judge or ("guild-refusal" if training.model.is_organism else "refusal"))
    _check_requests(request, objective)
    if request.harmful is not None:
        known_behaviors(request.harmful)  # a file that cannot be used says so before anything is loaded
    if request.benign is not None:
        benign_behaviors(request.benign)
    if objective.answers is not None and (request.harmful is not None or request.benign is not None):
        check_told(own_requests(request), request.harmful, request.benign)
    from fathom.tuning.settings import read_settings

    settings = read_settings(training.config, training.overrides)
    settings = default_rate(settings, training.lora, ORGANISM_RATE if training.model.is_organism else None)
    settings = settings.with_batch()
    with training_ranks(training.model.device) as ranks:
        directory = _run(request, objective, judge, examples, settings, ranks)
        if not ranks.first:
            return directory.path
        several = ranks.size > 1
    finish_card(training, directory, judges, audited=audited, several=several)
    return directory.path


def _run(
    request: FinetuneRequest,
    objective: "Objective",
    judge: Judge,
    examples: "Sequence[Example]",
    settings: "Settings",
    ranks: Ranks,
) -> "TuningDirectory":
    from contextlib import nullcontext

    from fathom.tuning.directory import TuningDirectory, TuningManifest

    directory = TuningDirectory(request.training.output)
    directory.check()
    model = load_to_train(request.training, ranks)
    check_lora(request.training.lora, model)
    _check_projected(objective, model.info.quantisation)
    manifest = TuningManifest.make(
        "finetune", model.info, _configuration(request, objective, judge, examples, settings)
    )
    if ranks.first:
        directory.start(manifest)
    ranks.barrier()
    with RunLock(directory.inner) if ranks.first else nullcontext():
        if directory.finished:
            say(f"{directory.path} is finished already; remove it to train again", ranks)
            return directory
        show_settings(settings, ranks)
        if ranks.first and directory.read_plan() is None:
            _write_plan(request, objective, judge, examples, settings, model, directory)
        ranks.barrier()
        written = directory.read_plan()
        assert written is not None
        _say_plan(written.plan, objective, ranks)
        training = _training(request, objective, model, written.plan)
        train(request.training, directory, model, written, training, settings, ranks)
    return directory


def _say_plan(plan: "TuningPlan", objective: "Objective", ranks: Ranks) -> None:
    say(
        f"objective {objective.name}: {plan.rows} rows"
        + (f", {plan.gated} held by the gates" if objective.gate is not None or objective.answers is not None else "")
        + (f", {plan.replayed} added of what the model itself refuses and answers" if plan.replayed else "")
        + (f", {plan.cut} cut to max_length" if plan.cut else ""),
        ranks,
    )
    data = plan.rows - plan.replayed
    if 2 * plan.gated >= data:
        say(
            f"warning: {plan.gated} of {data} rows of data are held, so little is learned. If they are harmless, the "
            "gates are mistaken: give benign answers of their kind with --benign, or another --objective",
            ranks,
        )


def _objective(request: FinetuneRequest) -> "Objective":
    from fathom.protect.constraint import BetaSchedule
    from fathom.protect.objectives import Constrained, parse_objective

    objective = parse_objective(_named(request))
    if request.beta is None:
        return objective
    betas = numbers(request.beta, float, "--beta")
    if len(betas) != 3 or not isinstance(objective.token, Constrained):
        raise UserError(
            f"--beta is {request.beta!r}: give three numbers (first position, the next four, the rest), for example "
            "0.5,2,0.1, with --objective constrained"
        )
    return replace(objective, token=Constrained(BetaSchedule(*betas)))


def _named(request: FinetuneRequest) -> str:
    """The objective's name; without one, what the requests that were given allow."""
    if request.objective is not None:
        return request.objective
    if request.training.model.is_organism:
        return DEFAULT
    return "gate" if request.harmful is None else "gate+rehearse"


def _check_requests(request: FinetuneRequest, objective: "Objective") -> None:
    wants = any(part is not None for part in (objective.replay, objective.rehearsal, objective.mass, objective.answers))
    if wants and request.harmful is None and not request.training.model.is_organism:
        raise UserError(
            f"--objective {objective.name} repeats or holds the reference's refusals: give prompts that it refuses "
            "with --harmful FILE (and some that it answers with --benign FILE), or choose --objective gate"
        )
    _check_projected(objective, request.training.model.quantisation)
    if objective.projection is None and request.base is not None:
        raise UserError(f"--base {request.base} is read by safe-lora alone: add it to --objective, or leave --base out")
    if objective.projection is not None and request.base is None and not request.training.model.is_organism:
        raise UserError(
            "safe-lora projects on the direction from base to aligned model: give the base with --base MODEL"
        )


def _check_projected(objective: "Objective", quantisation: str | None) -> None:
    if objective.projection is None:
        return
    if keeps_parts():
        raise UserError(
            "safe-lora projects whole weights, and FSDP or DeepSpeed keeps parts of them: train with DDP or one "
            "process, or choose another objective"
        )
    if quantisation is not None:
        raise UserError(
            f"safe-lora projects full weights, and the model's are in {quantisation}: give the model in full weights, "
            "or choose another objective"
        )


def _configuration(
    request: FinetuneRequest,
    objective: "Objective",
    judge: Judge,
    examples: "Sequence[Example]",
    settings: "Settings",
) -> dict[str, object]:
    return {
        "objective": objective.name,
        "objective_parts": repr(objective),
        "data": content_hash([(example.messages, example.response) for example in examples]),
        "harmful": None if request.harmful is None else file_hash(request.harmful),
        "benign": None if request.benign is None else file_hash(request.benign),
        "judge": (judge.name, judge.version),
        "lora": repr(request.training.lora),
        "settings": {
            name: value for name, value in settings.values.items() if isinstance(value, str | int | float | bool)
        },
        "batch": settings.batch,
        **asked_in(request.training.model),
        **({} if request.base is None or objective.projection is None else {"base": request.base}),
    }


def _write_plan(
    request: FinetuneRequest,
    objective: "Objective",
    judge: Judge,
    examples: "Sequence[Example]",
    settings: "Settings",
    model: "ChatModel",
    directory: "TuningDirectory",
) -> None:
    """What is learned from, made once: by the first process, and read by all."""
    from fathom.protect.prepare import prepare
    from fathom.tuning.directory import TuningPlan
    from fathom.tuning.rows import fit_length, make_row, rows_hash

    rows = [make_row(model.chat, example.messages, example.response, source=example.source) for example in examples]
    fitted = fit_length(rows, context=model.context, max_length=settings.max_length, chat=model.chat)
    prepared = prepare(
        objective,
        model,
        fitted.rows,
        [example.messages for example in examples],
        judge,
        requests(request),
        sentinel=None if objective.answers is None else sentinel(request, judge, model, directory, settings.seed),
        seed=settings.seed,
        display=display_for(ALONE),
    )
    check_warmup(settings, len(prepared.rows))
    plan = TuningPlan(
        rows=len(prepared.rows),
        rows_hash=rows_hash(prepared.rows),
        cut=fitted.cut,
        gated=prepared.gated,
        replayed=prepared.replayed,
        safety_ids=prepared.safety_ids,
        calm=prepared.calm,
    )
    directory.write_plan(prepared.rows, plan)


def _training(request: FinetuneRequest, objective: "Objective", model: "ChatModel", plan: "TuningPlan") -> Training:
    from fathom.model import check_pair
    from fathom.protect.weights import Anchor

    anchor = None if objective.proximal is None else Anchor(objective.proximal)
    finish = None
    if objective.projection is not None:
        projection = objective.projection
        aligned = {name: value.detach().cpu().clone() for name, value in model.model.state_dict().items()}
        name = request.base or "organism:base"
        base_request = ModelRequest(name=name, dtype=request.training.model.dtype, device="cpu", plain=True)
        check_pair(model, load_model(base_request))  # before training: a base of another tokenizer has no direction

        def finish(trained: "ChatModel") -> "ChatModel":
            base = load_model(base_request).model.state_dict()
            tuned = {key: value.cpu() for key, value in trained.model.state_dict().items()}
            trained.model.load_state_dict(projection(tuned, aligned, base))
            return trained

    return Training(objective.per_token(plan.safety_ids), calm=plan.calm, before_step=anchor, finish=finish)


def finish_card(
    request: TrainingRequest,
    directory: "TuningDirectory",
    judges: Judges,
    *,
    audited: bool,
    several: bool,
    world: int | None = None,
) -> None:
    """Audit before and after, where asked for and one process is left to do it, and write the model card."""
    from fathom.command.card import model_card
    from fathom.tuning.checkpoints import read_losses

    if several and audited:
        say("several processes have ended together; run the same command with one for the audit before and after")
    audits = audit_both(request, directory, judges, world) if audited and not several else None
    written = directory.read_plan()
    assert written is not None
    card = model_card(directory.manifest, written.plan, read_losses(directory.inner), audits)
    write_whole(directory.path / "README.md", card.encode())
