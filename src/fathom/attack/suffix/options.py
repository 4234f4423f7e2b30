"""The knobs of a suffix search, each with nanoGCG's meaning where nanoGCG has it."""

from dataclasses import dataclass, field
from enum import StrEnum

from fathom.errors import UserError

__all__ = ["Allowed", "CrossEntropy", "Full", "Halving", "Mellowmax", "Objective", "Options", "Probe", "Selection"]


class Allowed(StrEnum):
    """Which tokens a suffix may be made of; special and added tokens never."""

    ASCII = "ascii"  # those whose text is printable ASCII
    ALL = "all"


@dataclass(frozen=True)
class CrossEntropy:
    """Weighted mean of the target tokens' negative log-probabilities, in nats."""


@dataclass(frozen=True)
class Mellowmax:
    """Mellowmax of the target tokens' negative logits: a soft maximum, so the worst token counts most.

    Source: nanoGCG's `use_mellowmax`; weights enter as shares of the mean inside the logarithm.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise UserError(f"mellowmax alpha is {self.alpha}; it must be above 0")


Objective = CrossEntropy | Mellowmax


@dataclass(frozen=True)
class Full:
    """Every candidate on every target token: plain GCG."""


@dataclass(frozen=True)
class Halving:
    """Every candidate on the first target tokens; only the best go on to the whole target.

    `first` target tokens are scored for all, then the best 1 in `keep` candidates whole, in order and in groups of
    `group`. No candidate is scored whole whose first tokens alone already cost more than the best found so far: with
    `keep` 1 the choice is exactly that of `Full`, since no token's loss is negative.
    """

    first: int = 1
    keep: int = 4
    group: int = 8

    def __post_init__(self) -> None:
        if min(self.first, self.keep, self.group) < 1:
            raise UserError(f"early rejection needs first, keep and group of 1 or more, not {self}")


@dataclass(frozen=True)
class Probe:
    """Probe sampling: a small draft model ranks all candidates, the model itself a few, and their agreement says how
    many of the draft's best are scored.

    Source: Zhao et al., "Accelerating Greedy Coordinate Gradient via Probe Sampling", 2403.01251, as in nanoGCG:
    width / `factor` candidates are the probe set, (1 - agreement) · width / `reduction` are kept.
    """

    reduction: int = 8
    factor: int = 16

    def __post_init__(self) -> None:
        if min(self.reduction, self.factor) < 1:
            raise UserError(f"probe sampling needs a reduction and a factor of 1 or more, not {self}")


Selection = Full | Halving | Probe


@dataclass(frozen=True, kw_only=True)
class Options:
    """One suffix search.

    `length` tokens, or those of `start`, are optimised; `width` candidates are drawn a step, each with `replace` tokens
    (of `replace_first` in the first `early` steps) exchanged for one of the `topk` that the gradient favours.
    `buffer` 0 always moves to the best candidate; n keeps the n best suffixes seen and goes on from the best.
    `merge` of the best candidates are also tried together (1: not), as more than one exchange a step.
    """

    steps: int = 250
    length: int = 20
    start: str | None = None
    width: int = 512
    topk: int = 256
    replace: int = 1
    early: int = 0
    replace_first: int = 1
    buffer: int = 0
    merge: int = 1
    allowed: Allowed = Allowed.ASCII
    objective: Objective = field(default_factory=CrossEntropy)
    selection: Selection = field(default_factory=Full)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or self.start == "":
            raise UserError(
                "the suffix has no tokens to optimise: give a length of at least 1, or a start that has text"
            )
        for name, least in (("steps", 0), ("width", 1), ("topk", 1), ("replace", 1), ("replace_first", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name, least in (("buffer", 0), ("merge", 1), ("early", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if isinstance(self.selection, Halving) and not isinstance(self.objective, CrossEntropy):
            raise UserError("early rejection needs the cross-entropy objective, whose parts only add up")

    def exchanges(self, step: int) -> int:
        """How many tokens a candidate of this step (counted from 0) exchanges."""
        return self.replace_first if step < self.early else self.replace
