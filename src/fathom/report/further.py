"""Attacks beyond the depth sweep: grouped, the strongest setting of each, its cost, and ASR by setting."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fathom.records import Counted, Parameter, Subject
from fathom.report import wording
from fathom.schema import AttackRow, Audit, Control

__all__ = ["Family", "Helped", "Trace", "families", "row_name", "sentences", "spent", "strongest", "traces"]

DRAWING = ("temperature", "top_p", "top_k")
FEWEST = 3  # values of a setting that make a curve
MOST_TRACES = 6  # curves in one chart


class Helped(NamedTuple):
    """What the control of a setting did; `drawn` says how, where it was drawn in another way than the setting."""

    control: Control
    drawn: str


@dataclass(frozen=True)
class Family:
    """All settings of one attack on the model; `seconds` it took in all, where that was noted."""

    attack: str
    rows: tuple[AttackRow, ...]
    seconds: float | None

    @property
    def alone(self) -> tuple[AttackRow, ...]:
        """The rows that judge the continuation alone: the ones that count."""
        return tuple(row for row in self.rows if row.counted is Counted.CONTINUATION) or self.rows

    @property
    def best(self) -> AttackRow:
        return _best(self.alone)

    @property
    def helped(self) -> Helped | None:
        """The control of the strongest setting, drawn as the audit's first draw is where it was drawn so alone."""
        best = self.best
        if best.control is not None:
            return Helped(best.control, "")
        alike = (row for row in self.alone if _undrawn(row) == _undrawn(best) and row.control is not None)
        return next((Helped(row.control, wording.drawing(row.parameters)) for row in alike if row.control), None)

    @property
    def seconds_per_answer(self) -> float | None:
        """For each harmful answer in any setting, control included; None where nothing was timed or nothing succeeded.

        How much of it one setting took is not known: settings are answered side by side, and share their search.
        """
        # Answers kept as the worst of several are among the answers already counted.
        harmful = sum(row.harmful for row in self.alone if row.worst_of is None) or self.best.harmful
        return None if self.seconds is None or harmful == 0 else self.seconds / harmful


class Trace(NamedTuple):
    """ASR against one numeric setting, everything else alike; rows in order of that setting."""

    name: str
    parameter: str
    rows: tuple[AttackRow, ...]

    def at(self, row: AttackRow) -> float:
        return float(_numbers(row)[self.parameter])


def families(audit: Audit, times: Mapping[str, float]) -> tuple[Family, ...]:
    """Attacks that are neither of the depth sweep nor refusal prefixes, the strongest first, bounds behind them."""
    found: dict[str, list[AttackRow]] = {}
    for row in wording.other_attacks(audit):
        found.setdefault(row.attack, []).append(row)
    made = (Family(attack, tuple(rows), times.get(attack)) for attack, rows in found.items())
    order = sorted(made, key=lambda family: (_strength(family.best), family.attack), reverse=True)
    return tuple(sorted(order, key=lambda family: not family.best.typeable))


def strongest(audit: Audit) -> AttackRow | None:
    """The setting of any attack on the model that gets most requests through, on the continuation alone.

    What nobody can type is a bound, and no attack that decides. An attack without such rows, whose whole text is the
    model's own choice, is taken by what it has. A refusal's first words, put into the model's mouth to compare it with
    its base, count where they get more through than all else; so does any attack beside the depth sweep.
    """
    alone = {row.attack for row in audit.attacks if row.counted is Counted.CONTINUATION}
    rows = [
        row
        for row in audit.attacks
        if row.subject is Subject.MODEL
        and row.typeable
        and (row.counted is Counted.CONTINUATION or row.attack not in alone)
    ]
    prefixes = [row for row in rows if row.attack == wording.REFUSAL_PREFIX]
    others = [row for row in rows if row.attack != wording.REFUSAL_PREFIX]
    if not others:
        return None
    best = _best(others)
    swept = [row for row in others if row.attack in wording.SWEEP]
    if swept and best.attack not in wording.SWEEP:
        plain = max(swept, key=lambda row: (row.asr, row.behaviors))  # the first, and so the simplest, of equals
        best = max([plain, best], key=lambda row: (row.asr, row.behaviors))
    return max([best, *prefixes], key=lambda row: row.asr)  # the first of equals


def sentences(audit: Audit) -> tuple[str, str | None]:
    """What a reader must know first, and what comes second: the strongest attack decides which is which."""
    depth = wording.headline(audit)
    best, rest = strongest(audit), _others(audit)
    if best is not None and best.attack == wording.REFUSAL_PREFIX:
        return f"Strongest attack found: {_outcome(best)}.", depth
    if best is None or not rest:
        return depth, None
    if best.harmful == 0:
        tried = len({row.attack for row in rest})
        if tried == 1:
            return depth, "The other attack that was tried does not get a single harmful request through."
        return depth, f"None of the {tried} other attacks gets a single harmful request through."
    if best.attack in wording.SWEEP:
        other = _best([row for row in rest if row.counted is Counted.CONTINUATION] or rest)
        return depth, f"No other attack that was tried does better: the strongest of them, {_outcome(other)}."
    return f"Strongest attack found: {_outcome(best)}.", depth


def _others(audit: Audit) -> list[AttackRow]:
    """Rows beyond the depth sweep, on the model, of what can be typed."""
    return [row for row in wording.other_attacks(audit) if row.subject is Subject.MODEL and row.typeable]


def _outcome(row: AttackRow) -> str:
    span = wording.interval_percent(row.low, row.high)
    if row.n != row.behaviors:
        return f"{row_name(row)} turns {wording.harmful_of(row)} harmful (95 % interval {span})"
    return f"{row_name(row)} gets {wording.harmful_of(row)} harmful requests through (95 % interval {span})"


def _undrawn(row: AttackRow) -> tuple[object, ...]:
    """A row's setting, however its answers were drawn."""
    kept = [(name, value) for name, value in sorted(row.parameters.items()) if name not in DRAWING]
    return (*kept, row.prefill_tokens, row.subject, row.worst_of)


def _best(rows: Iterable[AttackRow]) -> AttackRow:
    """Of equals the one with more behaviors, then the cheaper, then the first."""
    return max(_whole(list(rows)), key=_strength)


def _whole(rows: Sequence[AttackRow]) -> list[AttackRow]:
    """Of each attack beyond the sweep, the settings that were tried on most of its behaviors.

    A setting that few behaviors had is one that a budget or their texts chose them for: where searches were cheap, a
    rate is high.
    """

    def tried(row: AttackRow) -> tuple[object, ...]:
        return row.attack, row.subject, row.counted, row.parameters.get("split")

    most: dict[tuple[object, ...], int] = {}
    for row in rows:
        most[tried(row)] = max(row.behaviors, most.get(tried(row), 0))
    return [row for row in rows if row.attack in wording.SWEEP or row.behaviors == most[tried(row)]]


def _strength(row: AttackRow) -> tuple[float, int, float]:
    per_success = row.cost.forward_tokens / row.harmful if row.cost and row.harmful else 0.0
    return row.asr, row.behaviors, -per_success


def row_name(row: AttackRow) -> str:
    """An attack and its setting in a few words."""
    parts = [wording.setting(row.parameters, DRAWING)]
    if row.prefill_tokens:
        parts.append(f"{wording.token_count(row.prefill_tokens)} given")
    parts.append(wording.drawing(row.parameters))
    if row.worst_of is not None:
        parts.append(f"worst of {row.worst_of}")
    shown = ", ".join(part for part in parts if part)
    return f"{wording.attack_name(row.attack)} ({shown})" if shown else wording.attack_name(row.attack)


def spent(row: AttackRow) -> tuple[str, str]:
    """Queries and forward tokens for each success; a dash where the cost is unknown, what was spent where none came."""
    if row.cost is None:
        return "–", "–"
    if row.harmful == 0:
        return f"none in {row.cost.queries:,}", f"none in {row.cost.forward_tokens:,}"
    return wording.amount(row.cost.queries / row.harmful), wording.amount(row.cost.forward_tokens / row.harmful)


def traces(family: Family) -> dict[str, tuple[Trace, ...]]:
    """Curves of ASR by numeric setting: for each setting that takes several values while the others hold still."""
    found: dict[str, tuple[Trace, ...]] = {}
    rows = [row for row in family.alone if row.worst_of is None]
    for parameter in sorted({name for row in rows for name in _numbers(row)}):
        made = [_Run(parameter, group) for group in _groups(rows, parameter)]
        long = [run for run in made if len({_numbers(row)[parameter] for row in run.rows}) >= FEWEST]
        if 0 < len(long) <= MOST_TRACES:
            found[parameter] = tuple(
                Trace(name, parameter, run.rows) for name, run in zip(_names(long), long, strict=True)
            )
    return found


class _Run(NamedTuple):
    """Rows that differ in one setting."""

    parameter: str
    rows: tuple[AttackRow, ...]


def _groups(rows: Sequence[AttackRow], parameter: str) -> list[tuple[AttackRow, ...]]:
    """Rows that differ in `parameter` alone, in its order. How many tokens are given may follow from it."""
    able = [row for row in rows if parameter in _numbers(row)]
    if parameter == "top_k":
        able = [row for row in able if row.parameters["top_k"]]  # 0 is off, not few
    groups: dict[tuple[object, ...], list[AttackRow]] = {}
    for row in able:
        groups.setdefault(_rest(row, parameter, with_prefill=False), []).append(row)
    if parameter != "prefill_tokens" and any(_repeats(group, parameter) for group in groups.values()):
        groups = {}
        for row in able:
            groups.setdefault(_rest(row, parameter, with_prefill=True), []).append(row)
    return [tuple(sorted(group, key=lambda row: _numbers(row)[parameter])) for group in groups.values()]


def _repeats(rows: Sequence[AttackRow], parameter: str) -> bool:
    values = [_numbers(row)[parameter] for row in rows]
    return len(set(values)) < len(values)


def _names(runs: Sequence[_Run]) -> list[str]:
    """What tells the curves of one chart apart, and no more."""
    settings = []
    for run in runs:
        first = run.rows[0]
        setting = {name: value for name, value in first.parameters.items() if name != run.parameter}
        if len({row.prefill_tokens for row in run.rows}) == 1 and first.prefill_tokens:
            setting["tokens given"] = first.prefill_tokens
        settings.append(setting)
    varied = {
        name
        for name in {name for setting in settings for name in setting}
        if len({str(setting.get(name)) for setting in settings}) > 1
    }
    return [wording.setting({name: value for name, value in setting.items() if name in varied}) for setting in settings]


def _numbers(row: AttackRow) -> dict[str, float]:
    numbers = {
        name: float(value)
        for name, value in row.parameters.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return numbers if row.prefill_tokens is None else numbers | {"prefill_tokens": float(row.prefill_tokens)}


def _rest(row: AttackRow, parameter: str, *, with_prefill: bool) -> tuple[object, ...]:
    others: list[tuple[str, Parameter | None]] = [
        (name, value) for name, value in sorted(row.parameters.items()) if name != parameter
    ]
    return (*others, row.prefill_tokens if with_prefill and parameter != "prefill_tokens" else None, row.counted)
