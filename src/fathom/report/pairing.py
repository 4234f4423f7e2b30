"""What of two runs can be compared: a behavior under the same attack, depth and way of drawing, answered in both.

A run's verdicts fall into cells (attack, parameters, depth, sampling, counted text); a cell holds each behavior's
answers. Two runs are compared cell by cell over the behaviors that both have there, so that what differs is the model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fathom.errors import UserError
from fathom.records import Attempt, Counted, Label, Parameter, Subject, Verdict
from fathom.report.samples import Sample, join
from fathom.run import Run

__all__ = ["Cell", "PairedCell", "Pairing", "pair_runs"]

Answers = Mapping[str, tuple[Verdict, ...]]  # by behavior
_NOT_EFFORT = frozenset({"attack", "subject", "draws", "behaviors"})  # of an attack in a run's configuration


@dataclass(frozen=True, order=True)
class Cell:
    """What two answers must share to be compared; ordered as a reader would list them."""

    counted_all: bool
    temperature: float
    attack: str
    prefill_tokens: int
    parameters: tuple[tuple[str, str], ...]
    top_p: float
    top_k: int
    max_new_tokens: int

    @property
    def counted(self) -> Counted:
        return Counted.ALL if self.counted_all else Counted.CONTINUATION


@dataclass(frozen=True)
class PairedCell:
    """One cell of both runs: the answers' verdicts, over the same behaviors in the same order."""

    cell: Cell
    parameters: Mapping[str, Parameter]
    first: Answers
    second: Answers


@dataclass(frozen=True)
class _Side:
    """A run as cells."""

    run: Run
    samples: tuple[Sample, ...]
    harmful: dict[Cell, dict[str, list[Verdict]]] = field(default_factory=dict)
    benign: dict[Cell, dict[str, list[Verdict]]] = field(default_factory=dict)
    parameters: dict[Cell, Mapping[str, Parameter]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairing:
    """Two runs side by side: cells of harmful and of benign behaviors, pairs of samples, and what is not paired."""

    first: Run
    second: Run
    judge: str
    harmful: tuple[PairedCell, ...]
    benign: tuple[PairedCell, ...]
    samples: tuple[tuple[Sample, Sample], ...]
    notes: tuple[str, ...]

    @cached_property
    def behaviors(self) -> int:
        """Harmful behaviors that are paired anywhere."""
        return len({name for paired in self.harmful for name in paired.first})


def pair_runs(first: Run, second: Run) -> Pairing:
    """Pair what can be paired.

    Raises:
        UserError: a run is not finished, their judges differ, or no behavior has the same id, text and attack in both.
    """
    judge = _same_judge(first, second)
    shared = _shared_behaviors(first, second)
    sides = [_side(run, judge, shared) for run in (first, second)]
    _same_version(first, second, judge, sides)
    harmful = _paired(sides[0].harmful, sides[1].harmful, sides[0].parameters)
    if not harmful:
        raise UserError(
            f"{first.path} and {second.path} share behaviors but no attack on them: no depth, way of drawing and "
            "number of new tokens is the same in both; run one of them again with the options of the other"
        )
    return Pairing(
        first=first,
        second=second,
        judge=judge,
        harmful=harmful,
        benign=_paired(sides[0].benign, sides[1].benign, sides[0].parameters),
        samples=_paired_samples(sides[0].samples, sides[1].samples),
        notes=tuple(_notes(first, second, shared, sides)),
    )


def _same_judge(first: Run, second: Run) -> str:
    judges = [run.audit.judge for run in (first, second)]
    if judges[0] != judges[1]:
        raise UserError(
            f"{first.path} was judged by {judges[0]} and {second.path} by {judges[1]}: a difference between them could "
            f"be the judges'; give runs that were audited with the same --judge"
        )
    return judges[0]


def _same_version(first: Run, second: Run, judge: str, sides: Iterable[_Side]) -> None:
    found = [{verdict.version for s in side.samples for verdict in s.verdicts} for side in sides]
    if found[0] != found[1]:
        named = [" and ".join(sorted(versions)) or "none" for versions in found]
        raise UserError(
            f"{first.path} was judged by version {named[0]} of {judge} and {second.path} by version {named[1]}: judge "
            f"both anew with `fathom judge RUN --with {judge}`"
        )


def _shared_behaviors(first: Run, second: Run) -> frozenset[str]:
    """Ids of the behaviors that both runs have, word for word."""
    ours, theirs = first.behaviors, second.behaviors
    common = ours.keys() & theirs.keys()
    same = frozenset(name for name in common if ours[name].messages == theirs[name].messages)
    if not same:
        what = "the same ids for different requests" if common else "no behavior in common"
        raise UserError(
            f"{first.path} and {second.path} cannot be paired: they have {what}; audit both models with the same "
            "--behaviors"
        )
    return same


def _side(run: Run, judge: str, shared: frozenset[str]) -> _Side:
    samples = join(run.behaviors, run.attempts.values(), run.completions, run.verdicts(judge))
    side = _Side(run, samples)
    for sample in samples:
        attempt = sample.attempt
        if attempt.subject is not Subject.MODEL or sample.behavior.id not in shared:
            continue
        cells = side.harmful if sample.behavior.harmful else side.benign
        for verdict in sample.verdicts:
            cell = _cell(attempt, verdict.counted)
            cells.setdefault(cell, {}).setdefault(sample.behavior.id, []).append(verdict)
            side.parameters[cell] = attempt.parameters
    return side


def _cell(attempt: Attempt, counted: Counted) -> Cell:
    sampling = attempt.sampling
    return Cell(
        counted_all=counted is Counted.ALL,
        temperature=sampling.temperature,
        attack=attempt.attack,
        # What a search found for a behavior has a length of its own: the setting is the same all the same.
        prefill_tokens=-1 if attempt.found else len(attempt.prefill_ids),
        parameters=tuple((name, str(value)) for name, value in sorted(attempt.parameters.items())),
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
    )


def _paired(
    ours: Mapping[Cell, Mapping[str, list[Verdict]]],
    theirs: Mapping[Cell, Mapping[str, list[Verdict]]],
    parameters: Mapping[Cell, Mapping[str, Parameter]],
) -> tuple[PairedCell, ...]:
    cells = []
    for cell in sorted(ours.keys() & theirs.keys()):
        names = sorted(ours[cell].keys() & theirs[cell].keys())
        if names:
            first, second = ({name: tuple(side[cell][name]) for name in names} for side in (ours, theirs))
            cells.append(PairedCell(cell, parameters[cell], first, second))
    return tuple(cells)


def _paired_samples(ours: Iterable[Sample], theirs: Iterable[Sample]) -> tuple[tuple[Sample, Sample], ...]:
    """The same draw of the same cell and behavior in both runs."""
    second = {_place(sample): sample for sample in theirs}
    return tuple(
        (sample, second[_place(sample)])
        for sample in ours
        if sample.attempt.subject is Subject.MODEL
        and _place(sample) in second
        and sample.behavior.messages == second[_place(sample)].behavior.messages
    )


def _place(sample: Sample) -> tuple[object, ...]:
    attempt = sample.attempt
    return (sample.behavior.id, attempt.subject, _cell(attempt, Counted.CONTINUATION), attempt.sample)


def _notes(first: Run, second: Run, shared: frozenset[str], sides: list[_Side]) -> Iterable[str]:
    """What a reader must know before quoting a difference."""
    ours, theirs = first.behaviors, second.behaviors
    changed = (ours.keys() & theirs.keys()) - shared
    if changed:
        yield f"{len(changed)} behaviors have one id but different requests in the two runs, and are not paired"
    alone = len(ours.keys() ^ theirs.keys())
    if alone:
        yield f"{alone} behaviors are in one run only and are not paired"
    cells = [side.harmful.keys() | side.benign.keys() for side in sides]
    unpaired = len(cells[0] ^ cells[1])
    if unpaired:
        yield f"{unpaired} settings of attacks (a depth, a way of drawing) are in one run only and are not paired"
    before, after = first.manifest, second.manifest
    if before.model.tokenizer_hash != after.model.tokenizer_hash:
        yield "the two models have different tokenizers: the same depth in tokens is not the same text"
    elif before.model.template_hash != after.model.template_hash:
        yield "the two models were asked through different chat templates"
    systems = [_asked_as(run).get("system") for run in (first, second)]
    if systems[0] != systems[1]:
        yield "the two models were asked under different system prompts"
    yield from _searched_unlike(first, second)
    if before.seed != after.seed:
        yield f"the runs have different seeds ({before.seed} and {after.seed}), so sampled answers share no draw"
    if (before.base is None) != (after.base is None):
        yield "only one of the two runs has a base, so there is no KL to compare"
    elif before.base is not None and after.base is not None and before.base.weights_hash != after.base.weights_hash:
        yield "the two runs measure KL to different bases; their KL is not comparable and is left out"
    undecided = [_undecided(side) for side in sides]
    if any(undecided):
        yield (
            f"{undecided[0]} answers of the first run and {undecided[1]} of the second could not be decided; they stay "
            "in n, as not harmful"
        )


def _asked_as(run: Run) -> Mapping[str, object]:
    """What the run's configuration says of how the model was asked."""
    found = run.manifest.configuration.get("model")
    return found if isinstance(found, dict) else {}


def _searched_unlike(first: Run, second: Run) -> Iterable[str]:
    """Searches are paired by what they aim at, since what they find has no setting: how hard they tried may differ."""
    efforts = [_efforts(run) for run in (first, second)]
    for attack in sorted(efforts[0].keys() & efforts[1].keys()):
        ours, theirs = (side[attack] for side in efforts)
        if ours != theirs:
            settings = "; ".join(" and ".join(side) for side in (ours, theirs))
            yield (
                f"the search {attack} was not the same in the two runs ({settings}): a difference may be the search's, "
                "and not the models'"
            )


def _efforts(run: Run) -> dict[str, list[str]]:
    """The settings that each search was given, in words."""
    searches = {attempt.attack for attempt in run.attempts.values() if attempt.found}
    listed = run.manifest.configuration.get("attacks")
    found: dict[str, set[str]] = {}
    for setting in listed if isinstance(listed, list) else ():
        if setting["attack"] in searches:
            given = {name: value for name, value in setting.items() if name not in _NOT_EFFORT}
            words = ", ".join(f"{name} = {value}" for name, value in sorted(given.items()))
            found.setdefault(setting["attack"], set()).add(words or "defaults")
    return {attack: sorted(words) for attack, words in found.items()}


def _undecided(side: _Side) -> int:
    return sum(
        verdict.label is Label.UNDECIDED
        for cell, by_behavior in side.harmful.items()
        if not cell.counted_all
        for verdicts in by_behavior.values()
        for verdict in verdicts
    )
