"""`fathom finetune`: from a user's data and an objective to a model that loads in plain transformers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.command.defence import own_requests, requests, sentinel
from fathom.command.known import benign_behaviors, check_told, file_hash, known_behaviors
from fathom.command.lora import default_rate
from fathom.command.outcome import Auditing, finish_card
from fathom.command.request import Judges, ModelRequest, display_for, keeps_parts, load_model, named_judge, numbers
from fathom.command.training import Training, TrainingRequest, asked_in, check_warmup, run_job, training_ranks
from fathom.errors import UserError
from fathom.ranks import ALONE
from fathom.records import Judge, content_hash

if TYPE_CHECKING:
    from fathom.model import ChatModel
    from fathom.protect.objectives import Objective
    from fathom.protect.weights import SafeLora
    from fathom.tuning.directory import TuningDirectory, WrittenPlan
    from fathom.tuning.examples import Example
    from fathom.tuning.settings import Settings

__all__ = ["FinetuneRequest", "run_finetune"]

DEFAULT = "gate+answers+rehearse"
# A model of 178 368 parameters learns nothing at the paper's rate for 7 B.
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

    loaded = load_examples(request.data)
    objective = _objective(request)
    training = request.training
    judge = named_judge(judges, request.judge or ("guild-refusal" if training.model.is_organism else "refusal"))
    auditing = Auditing.of(training, judges)
    _check_requests(request, objective, compared=auditing is not None and auditing.compared)
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
    job = Finetuning(request, objective, judge, loaded.examples, settings, loaded.notes)
    with training_ranks(training.model.device) as ranks:
        directory = run_job(training, job, ranks, None if auditing is None else auditing.check)
        finish_card(directory, auditing, ranks)
    return directory.path


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


def _check_requests(request: FinetuneRequest, objective: "Objective", *, compared: bool) -> None:
    wants = any(part is not None for part in (objective.replay, objective.rehearsal, objective.mass, objective.answers))
    if wants and request.harmful is None and not request.training.model.is_organism:
        raise UserError(
            f"--objective {objective.name} repeats or holds the reference's refusals: give prompts that it refuses "
            "with --harmful FILE (and some that it answers with --benign FILE), or choose --objective gate"
        )
    _check_projected(objective, request.training.model.quantisation)
    if objective.projection is None and request.base is not None and not compared:
        raise UserError(
            f"--base {request.base} is read by safe-lora, and by audits with --behaviors FILE: give one of these, or "
            "leave --base out"
        )
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


@dataclass(frozen=True)
class Finetuning:
    """A `TrainingJob`: the data under an objective, with what that adds to it."""

    request: FinetuneRequest
    objective: "Objective"
    judge: Judge
    examples: "Sequence[Example]"
    settings: "Settings"
    notes: tuple[str, ...] = ()

    def check(self, model: "ChatModel") -> None:
        _check_projected(self.objective, model.info.quantisation)

    def configuration(self) -> dict[str, object]:
        request, objective = self.request, self.objective
        values = self.settings.values
        return {
            "objective": objective.name,
            "objective_parts": repr(objective),
            "data": content_hash([(example.messages, example.response) for example in self.examples]),
            "harmful": None if request.harmful is None else file_hash(request.harmful),
            "benign": None if request.benign is None else file_hash(request.benign),
            "judge": (self.judge.name, self.judge.version),
            "lora": repr(request.training.lora),
            "settings": {name: value for name, value in values.items() if isinstance(value, str | int | float | bool)},
            "batch": self.settings.batch,
            **asked_in(request.training.model),
            **({} if request.base is None or objective.projection is None else {"base": request.base}),
        }

    def write_plan(self, model: "ChatModel", directory: "TuningDirectory") -> None:
        from fathom.protect.prepare import prepare
        from fathom.tuning.directory import TuningPlan
        from fathom.tuning.rows import fit_length, make_row, rows_hash

        settings, judge = self.settings, self.judge
        rows = [make_row(model.chat, one.messages, one.response, source=one.source) for one in self.examples]
        fitted = fit_length(rows, context=model.context, max_length=settings.max_length, chat=model.chat)
        gated = self.objective.answers is not None
        prepared = prepare(
            self.objective,
            model,
            fitted.rows,
            [example.messages for example in self.examples],
            judge,
            requests(self.request),
            sentinel=sentinel(self.request, judge, model, directory, settings.seed) if gated else None,
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
            notes=self.notes,
        )
        directory.write_plan(prepared.rows, plan)

    def summary(self, written: "WrittenPlan") -> Iterator[str]:
        plan, gates = written.plan, (self.objective.gate, self.objective.answers)
        yield (
            f"objective {self.objective.name}: {plan.rows} rows"
            + (f", {plan.gated} held by the gates" if any(gate is not None for gate in gates) else "")
            + (f", {plan.replayed} added of what the model itself refuses and answers" if plan.replayed else "")
            + (f", {plan.cut} cut to max_length" if plan.cut else "")
        )
        data = plan.rows - plan.replayed
        if 2 * plan.gated >= data:
            yield (
                f"warning: {plan.gated} of {data} rows of data are held, so little is learned. If they are harmless, "
                "the gates are mistaken: give benign answers of their kind with --benign, or another --objective"
            )

    def training(self, model: "ChatModel", written: "WrittenPlan") -> Training:
        from fathom.protect.weights import Anchor

        objective = self.objective
        return Training(
            objective.per_token(written.plan.safety_ids),
            self.settings,
            calm=written.plan.calm,
            before_step=None if objective.proximal is None else Anchor(objective.proximal),
            finish=None if objective.projection is None else self._projection(model, objective.projection),
        )

    def _projection(self, model: "ChatModel", projection: "SafeLora") -> "Callable[[ChatModel], ChatModel]":
        """What projects the trained weights on the way from the base to the model as it is now."""
        from fathom.model import check_pair

        aligned = {name: value.detach().cpu().clone() for name, value in model.model.state_dict().items()}
        name = self.request.base or "organism:base"
        dtype = self.request.training.model.dtype
        base_request = ModelRequest(name=name, dtype=dtype, device="cpu", plain=True)
        check_pair(model, load_model(base_request))  # before training: a base of another tokenizer has no direction

        def project(trained: "ChatModel") -> "ChatModel":
            base = load_model(base_request).model.state_dict()
            tuned = {key: value.cpu() for key, value in trained.model.state_dict().items()}
            trained.model.load_state_dict(projection(tuned, aligned, base))
            return trained

        return project
