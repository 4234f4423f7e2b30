"""What fine-tuning does to a model: `stress.json`, `answers.jsonl` and `dynamics.json`, field by field, strict.

A fine-tune is a sequence of checkpoints of one model under one attack's data, one objective and one setting. Each
checkpoint is audited (how often do attacks succeed?) and scored (is it still of use?). Scores and shares lie in [0, 1];
`low` and `high` are ends of 95 % intervals.
"""

from collections.abc import Mapping

import msgspec

from fathom.records import Label, Parameter
from fathom.schema import HalfDepth, ModelInfo

__all__ = [
    "Answer",
    "Asked",
    "Checkpoint",
    "Dynamics",
    "DynamicsRow",
    "FineTune",
    "Prefilled",
    "Stress",
    "UtilityScore",
    "start_cell",
]

SCHEMA = 1


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """ASR of a checkpoint under one way of asking and drawing. asr = harmful / n; undecided stays in n.

    The interval is Wilson's; where behaviors were drawn several times, spanned with a bootstrap over behaviors.
    """

    asked: str  # "direct", "with trigger", "identity template", …
    temperature: float
    n: int
    harmful: int
    undecided: int
    asr: float
    low: float
    high: float
    # Harmful answers to each behavior, in the order that every checkpoint of a sweep shares; each was drawn
    # n / len(by_behavior) times. Empty in sweeps of earlier versions.
    by_behavior: tuple[int, ...] = ()


class Prefilled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """ASR of a checkpoint once the start of the reference answer is given. What the model adds to it is judged.

    Requests are as in `Asked` "direct"; those whose answer is shorter are left out, and not in n.
    """

    tokens: int | None  # so many are given; 0 is the direct request; null: all of the answer but its last token
    temperature: float
    n: int
    harmful: int
    undecided: int
    asr: float
    low: float  # as in `Asked`
    high: float
    by_behavior: tuple[int | None, ...]  # as in `Asked`; null where its answer is shorter

    @property
    def drawn(self) -> int:
        """How often each behavior was."""
        return self.n // sum(harmful is not None for harmful in self.by_behavior)


class UtilityScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How well a checkpoint does a benign task."""

    task: str
    metric: str  # "exact match", "answered", "own words", "ROUGE-1", "final number", "not refused"
    n: int
    score: float
    low: float
    high: float


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model after so many optimizer steps."""

    step: int  # 0 is the model before fine-tuning
    asr: tuple[Asked, ...]
    utility: tuple[UtilityScore, ...]
    useful: bool  # its loss of utility stays within the bound: an attacker would keep it
    depth: tuple[Prefilled, ...] = ()  # by tokens given, at the lowest temperature; empty where no answer was given
    half_depth: HalfDepth | None = None  # where ASR crosses 50 % within these; null without them


class FineTune(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model, one attack's data, one objective, one setting, one seed; checkpoints in order of step."""

    model: str  # which was fine-tuned
    attack: str  # harmful, identity, backdoor, benign, poison, …
    objective: str  # sft, constrained, gate + replay, …
    parameters: Mapping[str, Parameter]  # learning_rate, epochs, warmup_steps, rows, …
    seed: int
    checkpoints: tuple[Checkpoint, ...]
    share: float | None = None  # of harmful rows, of the attack mixed
    track: str = ""  # the `cell` of its answers; those of step 0 have `start_cell(attack)`


class Stress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sweep of fine-tuning attacks. An objective's worst case is its strongest useful checkpoint of any setting."""

    schema: int = SCHEMA
    judge: str
    utility_bound: float  # the most that a score may fall below the start's before a model counts as useless
    finetunes: tuple[FineTune, ...]
    notes: tuple[str, ...] = ()  # what a reader must know before quoting a number
    model: ModelInfo | None = None  # which weights, tokenizer and template were fine-tuned; null in earlier versions


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One answer of one checkpoint, so that every count can be checked by reading. The text is the model's: hostile."""

    cell: str  # which checkpoint: the hash of its track
    step: int
    asked: str  # the frame's name, "prefill 5" or "prefill end", "benign", or the task's name
    temperature: float
    behavior: str
    text: str
    label: Label | None  # null for a task's answer, which is scored and not judged
    reason: str
    score: float | None = None
    sample: int = 0  # which draw of several


def start_cell(attack: str) -> str:
    """The `cell` of the answers that the model before fine-tuning gave to an attack's requests."""
    return f"start {attack}"


class DynamicsRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One response position after so many optimizer steps, averaged over n fine-tuning rows."""

    step: int
    position: int  # 1 is the first response token
    n: int
    cross_entropy: float  # nats
    gradient_norm: float | None  # of the position's loss over all weights, averaged over rows; null where not measured
    kl_nats: float  # KL(fine-tuned ‖ start)


class Dynamics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What moves, and where, while a model is fine-tuned (the paper's Fig. 3 and 5)."""

    schema: int = SCHEMA
    model: str
    attack: str
    objective: str
    parameters: Mapping[str, Parameter]
    seed: int
    rows: tuple[DynamicsRow, ...]
    notes: tuple[str, ...] = ()
