"""`fathom deepen` and `fathom triplets`: recovery rows and an anchor, from files or from the models themselves."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.command.finetune import finish_card
from fathom.command.lora import check_lora, default_rate
from fathom.command.request import Judges, check_world, choice, display_for
from fathom.command.sources import LOOSE, ORGANISM_NEW_TOKENS, Sources, anchor_rows, load_sources, loosened_anchor
from fathom.command.training import (
    Training,
    TrainingRequest,
    asked_in,
    check_warmup,
    load_to_train,
    say,
    show_settings,
    train,
    training_ranks,
)
from fathom.errors import UserError
from fathom.ranks import ALONE, Ranks
from fathom.records import content_hash
from fathom.run import RunLock

if TYPE_CHECKING:
    from fathom.deepen.mixture import Mixture
    from fathom.deepen.resist import LookAhead, Resistance
    from fathom.deepen.starts import StartSampler
    from fathom.deepen.triplets import Triplet
    from fathom.model import ChatModel
    from fathom.tuning.directory import TuningDirectory, WrittenPlan
    from fathom.tuning.rows import TrainingRow
    from fathom.tuning.settings import Settings

__all__ = ["DeepenRequest", "run_deepen"]

ORGANISM_RATE = 1e-3  # of its own deepened stage
EPOCHS = 10.0  # the paper's section 3
RESISTANT_EPOCHS = 50.0  # resistance comes slower than depth, and at a strength that keeps benign answers
ATTACKERS = (0.3, 3.0)  # the rates that are simulated, as multiples of deepening's own
MINED_TRIPLETS = 64
MINED_DEPTHS = (1, 2, 3, 5, 8, 13, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480)


@dataclass(frozen=True, kw_only=True)
class DeepenRequest:
    """Deepening as it was asked for."""

    training: TrainingRequest
    triplets: Path | None = None
    utility: Path | None = None
    starts: str = "paper"
    p0: float = 0.5
    longest: str = "100"  # tokens, or "full"
    alpha: float = 0.2
    share: str = "exact"
    recovery_rows: int = 16
    utility_rows: int = 64
    resist: float = 0.0  # the weight of tamper resistance; 0: none
    world: int | None = None  # of an organism that `fathom organism train` made


def run_deepen(request: DeepenRequest, judges: Judges) -> Path:
    """Deepen, or go on with it; the directory of the model.

    Raises:
        UserError: anything a user can mend, before the model is loaded where it can be known then.
    """
    from fathom.deepen.mixture import Mixture, Share

    training = request.training
    mixture = Mixture(
        request.alpha, request.recovery_rows, request.utility_rows, choice(Share, "--share", request.share)
    )
    check_world(training.model, request.world)
    sources = load_sources(training.model, request.triplets, request.utility, request.world)
    sampler = None if request.starts == "mined" else _sampler(request)
    audited = training.audited(request.world)
    from fathom.tuning.settings import read_settings

    settings = read_settings(training.config, training.overrides)
    # The paper states betas and warm-up for section 4 alone; here they are TRL's defaults.
    settings = settings.with_defaults(
        num_train_epochs=RESISTANT_EPOCHS if request.resist else EPOCHS, adam_beta1=0.9, warmup_steps=0
    )
    built_in = training.model.is_organism or request.world is not None
    settings = default_rate(settings, training.lora, ORGANISM_RATE if built_in else None)
    settings = settings.with_batch(mixture.batch, most=mixture.batch)
    resistance = _resistance(request, settings)
    with training_ranks(training.model.device) as ranks:
        directory = _run(request, mixture, sampler, sources, settings, resistance, ranks)
        if not ranks.first:
            return directory.path
        several = ranks.size > 1
    finish_card(training, directory, judges, audited=audited, several=several, world=request.world)
    return directory.path


def _sampler(request: DeepenRequest) -> "StartSampler":
    from fathom.deepen.starts import EveryPosition, Insertion, PaperStarts

    paper = PaperStarts(request.p0, _longest(request.longest))
    samplers: dict[str, StartSampler] = {
        "paper": paper,
        "every-position": EveryPosition(),
        "insertion": Insertion(otherwise=paper),
    }
    if request.starts not in samplers:
        raise UserError(f"--starts is {request.starts!r}; choose one of {', '.join((*samplers, 'mined'))}")
    return samplers[request.starts]


def _longest(text: str) -> int | None:
    if text == "full":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--longest is {text!r}: give a number of tokens, or full for each answer's own length")
    return int(text)


def _run(
    request: DeepenRequest,
    mixture: "Mixture",
    sampler: "StartSampler | None",
    sources: Sources,
    settings: "Settings",
    resistance: "Resistance | None",
    ranks: Ranks,
) -> "TuningDirectory":
    from fathom.tuning.directory import TuningDirectory, TuningManifest
    from fathom.tuning.objective import PlainNll

    directory = TuningDirectory(request.training.output)
    directory.check()
    model = load_to_train(request.training, ranks)
    check_lora(request.training.lora, model)
    manifest = TuningManifest.make(
        "deepen", model.info, _configuration(request, mixture, sampler, sources, settings, resistance)
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
            _write_plan(request, mixture, sampler, sources, settings, model, directory)
        ranks.barrier()
        written = directory.read_plan()
        assert written is not None
        _say_plan(written, mixture, directory, ranks)
        # The rows are all epochs, drawn ahead: one pass over them.
        steps = len(written.rows) // mixture.batch
        passes = settings.with_defaults(max_steps=steps)
        ahead = None if resistance is None else _look_ahead(resistance, sources, written, settings, model)
        training = Training(
            PlainNll(),
            divisor=mixture.divisor,
            ordered=1,
            before_step=ahead,
            save_every=1 if resistance is None else resistance.every,
        )
        train(request.training, directory, model, written, training, passes, ranks)
    return directory


def _configuration(
    request: DeepenRequest,
    mixture: "Mixture",
    sampler: "StartSampler | None",
    sources: Sources,
    settings: "Settings",
    resistance: "Resistance | None",
) -> dict[str, object]:
    beside = "" if resistance is None else f"; {resistance}"
    asked: dict[str, object] = {
        "objective": f"recovery rows ({'mined' if sampler is None else sampler.name}), {mixture.share} share of "
        f"alpha = {mixture.alpha:g}, {mixture.recovery} + {mixture.utility} rows a step{beside}",
        "sources": content_hash(repr(sources)),
        "mixture": repr(mixture),
        "starts": "mined" if sampler is None else repr(sampler),
        "lora": repr(request.training.lora),
        "settings": settings.plain,
        **asked_in(request.training.model),
    }
    if resistance is not None:
        asked["resistance"] = repr(resistance)
    return asked


def _resistance(request: DeepenRequest, settings: "Settings") -> "Resistance | None":
    if not request.resist:
        return None
    from fathom.deepen.resist import Attackers, Resistance

    rate = settings.values["learning_rate"]
    assert isinstance(rate, int | float)
    slowest, fastest = (rate * factor for factor in ATTACKERS)
    return Resistance(attackers=Attackers(slowest=slowest, fastest=fastest), strength=request.resist)


def _look_ahead(
    resistance: "Resistance", sources: Sources, written: "WrittenPlan", settings: "Settings", model: "ChatModel"
) -> "LookAhead":
    """What a simulated attacker trains on, and what becomes of it: the triplets, and the plan's anchor."""
    from msgspec.structs import replace

    from fathom.deepen.recovery import encode_triplets, recovery_row
    from fathom.deepen.resist import LookAhead
    from fathom.deepen.starts import Start
    from fathom.tuning.rows import Kind, fit_length, make_row

    answers = [make_row(model.chat, t.messages, t.answer, source=t.source) for t in sources.triplets]
    refusals = [recovery_row(model.chat, t, Start()) for t in encode_triplets(model.chat, sources.triplets)]
    anchor = [row for row in written.rows if row.kind is Kind.UTILITY and not row.source.endswith(LOOSE)]
    benign = dict.fromkeys(replace(row, loss_weight=1.0) for row in anchor)

    def fitting(rows: "Iterable[TrainingRow]") -> "tuple[TrainingRow, ...]":
        return fit_length(rows, context=model.context, max_length=settings.max_length, chat=model.chat).rows

    seen = {id_ for row in (*written.rows, *answers) for id_ in row.input_ids}
    size = model.model.config.get_text_config().vocab_size
    return LookAhead(
        resistance,
        fitting(answers),
        fitting(refusals),
        fitting(benign),
        seed=settings.seed,
        unseen=[id_ for id_ in range(size) if id_ not in seen],
    )


def _say_plan(written: "WrittenPlan", mixture: "Mixture", directory: "TuningDirectory", ranks: Ranks) -> None:
    for note in written.plan.notes:
        say(note, ranks)
    steps = written.plan.rows // mixture.batch
    say(f"{written.plan.rows} rows in {steps} steps, in {directory.inner / 'rows.jsonl'}", ranks)


def _write_plan(
    request: DeepenRequest,
    mixture: "Mixture",
    sampler: "StartSampler | None",
    sources: Sources,
    settings: "Settings",
    model: "ChatModel",
    directory: "TuningDirectory",
) -> None:
    from fathom.deepen.recovery import encode_triplets, recovery_rows
    from fathom.tuning.directory import TuningPlan
    from fathom.tuning.rows import fit_length, rows_hash

    triplets = encode_triplets(model.chat, sources.triplets)
    notes = []
    if sampler is None:
        sampler = _mined(request, model, sources.triplets)
        notes.append(f"starts: {sampler.name}")
    longest = _longest(request.longest)
    short = sum(len(triplet.answer_ids) < longest for triplet in triplets) if longest is not None else 0
    if short and request.starts in ("paper", "insertion"):
        notes.append(
            f"{short} of {len(triplets)} harmful answers are shorter than C = {longest} tokens: their k is drawn up to "
            "their own length"
        )
    steps = _steps(settings, len(triplets), mixture)
    check_warmup(settings.with_defaults(max_steps=steps), steps * mixture.batch)
    recoveries = recovery_rows(model.chat, triplets, sampler, steps * mixture.recovery, seed=settings.seed)
    utilities = anchor_rows(model, sources.utility, display=display_for(ALONE))
    if request.resist:
        loose = loosened_anchor(sources.utility, settings.seed)
        longest_answer = max((len(row.response_ids) for row in utilities), default=0)
        most = max(ORGANISM_NEW_TOKENS, longest_answer)
        utilities = (*utilities, *anchor_rows(model, loose, most, display=display_for(ALONE)))
        notes.append(f"anchor: {len(loose)} prompts were loosened for the model to answer once more")
    rows = mixture.mix(recoveries, utilities, seed=settings.seed)
    fitted = fit_length(rows, context=model.context, max_length=settings.max_length, chat=model.chat)
    directory.write_plan(
        fitted.rows,
        TuningPlan(rows=len(fitted.rows), rows_hash=rows_hash(fitted.rows), cut=fitted.cut, notes=tuple(notes)),
    )


def _steps(settings: "Settings", triplets: int, mixture: "Mixture") -> int:
    """An epoch is one pass over the triplets."""
    most, epochs = settings.values.get("max_steps", -1), settings.values["num_train_epochs"]
    if isinstance(most, int) and most > 0:
        return most
    assert isinstance(epochs, int | float)
    return max(1, round(epochs * triplets / mixture.recovery))


def _mined(request: DeepenRequest, model: "ChatModel", triplets: "Sequence[Triplet]") -> "StartSampler":
    """The depths at which the model, as it is, starts a refusal least, weighted by what is missing there."""
    from collections import defaultdict

    from fathom.deepen.starts import Mined
    from fathom.depth.recovery import recovery, refusal_set
    from fathom.scoring import ReferenceAnswer

    chosen = triplets[:MINED_TRIPLETS]
    items = [
        ReferenceAnswer(
            behavior=triplet.source,
            prompt_ids=model.chat.prompt_ids(triplet.messages),
            answer_ids=model.chat.response_ids(triplet.messages, triplet.answer),
        )
        for triplet in chosen
    ]
    references = [model.chat.response_ids(triplet.messages, triplet.refusal) for triplet in triplets]
    openings = refusal_set(model.chat, (), references, answers=[item.answer_ids for item in items])
    masses: dict[int, list[float]] = defaultdict(list)
    for record in recovery(model, items, openings, MINED_DEPTHS):
        for position, mass in zip(record.positions, record.refusal_mass, strict=True):
            masses[position].append(mass)
    missing = {depth: 1.0 - sum(found) / len(found) for depth, found in masses.items()}
    return Mined(missing, request.p0)
