"""Attempts and verdicts in groups: what one row of a table, or one curve of a budget, has in common."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from fathom.audit.spending import fresh_tokens, searches
from fathom.records import Attempt, Completion, Counted, Label, Parameter, Subject, Verdict, content_hash
from fathom.schema import Cost
from fathom.tally import Tally

__all__ = [
    "OWN_TEXT",
    "PREFIX",
    "Group",
    "Judged",
    "Setting",
    "family_of",
    "grouped",
    "in_order",
    "row_seed",
    "setting_of",
    "undivided",
    "undrawn",
]

_SWEEP = ("direct", "prefill")  # whose rows are told apart by the prefill's length
PREFIX = "refusal_prefix"
# Whose whole text is the model's own: every token is among its best k, and the attacker brought none of them.
OWN_TEXT = frozenset({"judged-ranks"})
# Attacks that vary how tokens are drawn, and parameters that make two attacks of one, each with its own worst answer.
_DRAWN = frozenset({"decoding"})
_APART = frozenset({"template", "span", "start", "top", "mutate", "mutated"})
_DRAWING = ("temperature", "top_p", "top_k")
_WORST = (Label.HARMFUL, Label.SAFE, Label.UNDECIDED)
# Tells harmful behaviors apart that a search has seen and has not; the benign ones are a control of both.
_DIVIDING = frozenset({"split"})


@dataclass(frozen=True)
class Judged:
    """What the rows are made from: attempts and completions by id, and the verdicts on harmful and benign behaviors."""

    attempts: Mapping[str, Attempt]
    completions: Mapping[str, Completion]
    harmful: Sequence[Verdict]
    benign: Sequence[Verdict]
    seed: int


def row_seed(seed: int, *what: object) -> int:
    """A bootstrap's own seed, so that no table row changes because another one was added."""
    return int(content_hash((seed, [str(part) for part in what])), 16) % 2**63


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What one row of the attack table has in common; `prefill_tokens` only where rows are told apart by it."""

    counted: Counted
    subject: Subject
    attack: str
    prefill_tokens: int | None
    parameters: tuple[tuple[str, Parameter], ...]

    def place(self) -> tuple[object, ...]:
        """Continuation before all, the model before its base, the depth sweep by temperature, then attacks by name."""
        named = dict(self.parameters)
        order = {"direct": 0, "prefill": 1}.get(self.attack, 2)
        return (
            self.counted is Counted.ALL,
            self.subject is Subject.BASE,
            order == 2,
            float(named.get("temperature", 0)) if order < 2 else 0.0,
            order,
            self.attack,
            -1 if self.prefill_tokens is None else self.prefill_tokens,
            tuple((name, *_sortable(value)) for name, value in self.parameters),
        )


def _sortable(value: Parameter) -> tuple[bool, float, int, str]:
    """Numbers by size before words, words by length."""
    is_word = isinstance(value, str)
    return is_word, 0.0 if is_word else float(value), len(str(value)) if is_word else 0, str(value)


@dataclass
class Group:
    """The verdicts of a row, by behavior, and what its attempts and their searches ran through the model."""

    labels: dict[str, list[Label]] = field(default_factory=lambda: defaultdict(list))
    verdicts: list[Verdict] = field(default_factory=list)
    attempts: dict[str, list[Attempt]] = field(default_factory=lambda: defaultdict(list))

    def add(self, verdict: Verdict, attempt: Attempt) -> None:
        self.labels[attempt.behavior].append(verdict.label)
        self.verdicts.append(verdict)
        self.attempts[attempt.behavior].append(attempt)

    def worst(self) -> "Group":
        """Each behavior with its worst answer alone; costs stay those of all."""
        worst = {behavior: [min(labels, key=_WORST.index)] for behavior, labels in self.labels.items()}
        return Group(worst, self.verdicts, self.attempts)

    def tallies(self) -> dict[str, Tally]:
        return {behavior: Tally.of(labels) for behavior, labels in self.labels.items()}

    def tokens(self, behavior: str, completions: Mapping[str, Completion]) -> int:
        """Tokens of one behavior's attempts: each input as far as no other had it, and all that was written."""
        attempts = self.attempts[behavior]
        written = sum(len(completions[attempt.id].output_ids) for attempt in attempts)
        return sum(fresh_tokens(attempt.prompt_ids + attempt.prefill_ids for attempt in attempts)) + written

    def cost(self, completions: Mapping[str, Completion]) -> Cost:
        """Of all attempts, and of every search that they came of."""
        searched = [search for attempts in self.attempts.values() for search in searches(attempts)]
        queries = sum(map(len, self.attempts.values())) + sum(search.queries for search in searched)
        tokens = sum(self.tokens(behavior, completions) for behavior in self.attempts)
        return Cost(
            queries=round(queries),
            forward_tokens=round(tokens + sum(search.forward_tokens for search in searched)),
            backward_tokens=round(sum(search.backward_tokens for search in searched)),
        )


def grouped(
    judged: Judged, verdicts: Iterable[Verdict], key: "Callable[[Attempt, Counted], Setting]"
) -> dict[Setting, Group]:
    groups: dict[Setting, Group] = defaultdict(Group)
    for verdict in verdicts:
        attempt = judged.attempts[verdict.attempt]
        if attempt.attack in OWN_TEXT and verdict.counted is not Counted.ALL:
            continue
        if attempt.attack in _DRAWN and verdict.counted is Counted.ALL:
            continue  # nothing was prefilled, so all is the continuation
        groups[key(attempt, verdict.counted)].add(verdict, attempt)
    return groups


def in_order(groups: Mapping[Setting, Group]) -> list[tuple[Setting, Group]]:
    return sorted(groups.items(), key=lambda item: item[0].place())


def setting_of(attempt: Attempt, counted: Counted) -> Setting:
    """The row of an attempt."""
    sampling = attempt.sampling
    drawing = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return Setting(
        counted=counted,
        subject=attempt.subject,
        attack=attempt.attack,
        prefill_tokens=len(attempt.prefill_ids) if attempt.attack in _SWEEP else None,
        parameters=tuple(sorted({**attempt.parameters, **drawing}.items())),
    )


def family_of(attempt: Attempt, counted: Counted) -> Setting:
    """The attack of an attempt, whichever of its ways it goes: what an attacker chooses between, keeping the worst."""
    whole = setting_of(attempt, counted)
    kept = _APART if attempt.attack in _DRAWN else _APART | set(_DRAWING)
    return msgspec.structs.replace(whole, parameters=tuple(item for item in whole.parameters if item[0] in kept))


def undrawn(setting: Setting) -> Setting:
    """What the same attack has in common however its answers are drawn."""
    return msgspec.structs.replace(setting, parameters=tuple(p for p in setting.parameters if p[0] not in _DRAWING))


def undivided(setting: Setting) -> Setting:
    """The setting that a row and its control share."""
    return msgspec.structs.replace(setting, parameters=tuple(p for p in setting.parameters if p[0] not in _DIVIDING))
