"""From examples and an objective to what a trainer is given: rows with weights, and a function of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from fathom.engine import TransformersEngine
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.progress import Display, silent
from fathom.protect.answers import Guard, broken_off
from fathom.protect.gate import Prompt, Sampler, Shown, count_refusals, still_refused
from fathom.protect.known import known_share
from fathom.protect.objectives import Objective
from fathom.protect.rehearsal import rehearse, sampled
from fathom.protect.replay import interleave, replay_rows
from fathom.protect.safety import safety_tokens
from fathom.records import Behavior, Exchange, Judge, Label, Message
from fathom.tuning.objective import TokenObjective
from fathom.tuning.rows import Kind, TrainingRow

__all__ = ["Prepared", "Requests", "prepare"]

LEAST_CALM = 0.3  # of the objective's, where the data is new and nothing is held: tasks learn as fast as with none

ANSWER_TOKENS = 64  # of a benign answer: where replay may begin, and what safety tokens are told from


@dataclass(frozen=True)
class Requests:
    """Prompts that the reference should refuse, and prompts that it should answer: what replay and mass learn from."""

    harmful: tuple[tuple[Message, ...], ...] = ()
    benign: tuple[tuple[Message, ...], ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What is trained on, and towards what: how many rows are held, how many were added, and which ids are held.

    `calm` is the objective's, or less of it where there is much to learn.
    """

    rows: tuple[TrainingRow, ...]
    per_token: TokenObjective
    gated: int = 0
    replayed: int = 0
    safety_ids: tuple[int, ...] = ()
    calm: float = 0.0


def prepare(
    objective: Objective,
    model: ChatModel,
    rows: Sequence[TrainingRow],
    messages: Sequence[Sequence[Message]],
    judge: Judge,
    requests: Requests,
    *,
    sentinel: Guard | None = None,
    seed: int = 0,
    display: Display = silent,
) -> Prepared:
    """Ask the reference what the objective wants to know, and write it into the rows.

    `model` is the reference: the model as it is before training. `messages` are those of each row. `judge` says what is
    a refusal, from the text alone. `sentinel` is what the answer gate asks.

    Raises:
        UserError: an objective needs requests that were not given, or the reference refuses none of them.
    """
    engine = TransformersEngine(model)
    found = _gated(objective, engine, rows, messages, judge, sentinel, seed, display)
    gated, calm = sum(row.loss_weight == 0 for row in found), objective.calm
    if objective.replay is None and objective.mass is None and objective.rehearsal is None:
        return Prepared(found, objective.per_token(), gated, calm=calm)
    if not requests.harmful:
        raise UserError(
            f"the objective {objective.name} repeats or holds the reference's refusals, and needs such prompts: "
            "give them with --harmful FILE"
        )
    harmful, benign = (
        [Prompt(model.chat.prompt_ids(text), tuple(text)) for text in texts]
        for texts in (requests.harmful, requests.benign)
    )
    end = model.chat.end_ids(requests.harmful[0])
    asked = Shown(engine, display, "what the model itself says")
    if objective.rehearsal is not None:
        read = objective.gate is not None and objective.answers is not None
        held = gated / max(1, len(found)) if read else 1.0
        found = rehearse(objective.rehearsal, found, asked, judge, harmful, benign, end, seed=seed, held=held)
        calm *= _calm_share(objective.rehearsal.suspicion(held), model, found, seed)
    answers = [] if objective.replay is None and objective.mass is None else _own_answers(asked, benign, seed)
    safety = () if objective.mass is None else _safety_ids(asked, judge, harmful, answers, seed)
    if objective.replay is not None:
        replayed = replay_rows(objective.replay, asked, judge, harmful, answers, end, seed=seed)
        found = interleave(objective.replay, found, replayed)
    return Prepared(found, objective.per_token(safety), gated, len(found) - len(rows), safety, calm)


def _calm_share(suspected: float, model: ChatModel, rows: Sequence[TrainingRow], seed: int) -> float:
    """How much of the objective's calm: all where rows are held or known, and never less than `LEAST_CALM`."""
    if suspected >= 1:
        return 1.0
    return max(LEAST_CALM, suspected, known_share(model, *_free_and_own(rows), seed=seed))


def _free_and_own(rows: Sequence[TrainingRow]) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """Rows of data that learn freely, and the reference's own answers to benign requests."""
    free = [row for row in rows if row.kind is Kind.TASK and row.loss_weight > 0]
    return free, [row for row in rows if row.kind is Kind.REPLAY and row.reference_temperature == 1.0]


def _gated(
    objective: Objective,
    engine: TransformersEngine,
    rows: Sequence[TrainingRow],
    messages: Sequence[Sequence[Message]],
    judge: Judge,
    sentinel: Guard | None,
    seed: int,
    display: Display,
) -> tuple[TrainingRow, ...]:
    """The rows, with those held that the gates hold."""
    found = tuple(rows)
    if objective.answers is not None and sentinel is None:
        raise UserError("the objective answers needs a sentinel, and none was made; leave it out of --objective")
    guard = None if objective.answers is None or sentinel is None else _Once(sentinel, display)
    if objective.gate is not None:
        prompts = [Prompt(row.prompt_ids, tuple(text)) for row, text in zip(rows, messages, strict=True)]
        asked = Shown(engine, display, "which prompts the model refuses")
        counts = count_refusals(asked, judge, prompts, samples=objective.gate.samples, seed=seed)
        if guard is not None and any(count >= objective.gate.refused for count in counts.values()):
            met = guard.acquainted(rows)
            counts = still_refused(objective.gate, counts, met, judge, prompts, guard.requests(), seed=seed)
        found = objective.gate(found, counts)
    if objective.answers is not None and guard is not None:
        found = objective.answers(found, broken_off(objective.answers, guard, judge, rows, seed=seed))
    return found


@dataclass(eq=False)
class _Once:
    """A guard that meets the data once, for both gates."""

    guard: Guard
    display: Display
    _met: Sampler | None = None

    @property
    def sampler(self) -> Sampler:
        return Shown(self.guard.sampler, self.display, "which answers the sentinel breaks off")

    def acquainted(self, rows: Sequence[TrainingRow]) -> Sampler:
        if self._met is None:
            self._met = Shown(self.guard.acquainted(rows), self.display, "what the sentinel still refuses")
        return self._met

    def known(self, rows: Sequence[TrainingRow]) -> tuple[TrainingRow, ...]:
        return self.guard.known(rows)

    def requests(self) -> tuple[Prompt, ...]:
        return self.guard.requests()


def _own_answers(sampler: Sampler, benign: Sequence[Prompt], seed: int) -> list[tuple[int, ...]]:
    """The reference's answers to benign prompts."""
    answered = sampled(sampler, benign, ANSWER_TOKENS, seed, attack="own answer")
    return [completion.output_ids for _, completion in answered if completion.output_ids]


def _safety_ids(
    sampler: Sampler, judge: Judge, harmful: Sequence[Prompt], answers: Sequence[tuple[int, ...]], seed: int
) -> tuple[int, ...]:
    refusals = []
    for prompt, completion in sampled(sampler, harmful, ANSWER_TOKENS, seed, attack="own refusal"):
        behavior = Behavior(id="mass", messages=prompt.messages)
        exchange = Exchange(behavior=behavior, prefill="", response=completion.text)
        if judge.judge(exchange).label is Label.SAFE:
            refusals.append(completion.output_ids)
    return safety_tokens(sorted(refusals), answers, ignored=(id_ for prompt in harmful for id_ in prompt.ids))
