"""What fine-tuning does to a model: `stress.json` and `dynamics.json`, field by field, versioned and strict.

A fine-tune is a sequence of checkpoints of one model under one attack's data, one objective and one setting. Each
checkpoint is audited (how often do attacks succeed?) and scored (is it still of use?). Scores and shares lie in [0, 1];
`low` and `high` are ends of 95 % intervals.
"""

from collections.abc import Mapping

import msgspec

from fathom.records import Parameter

__all__ = ["Asked", "Checkpoint", "Dynamics", "DynamicsRow", "FineTune", "Stress", "UtilityScore"]

SCHEMA = 1


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """ASR of a checkpoint under one way of asking and drawing. asr = harmful / n; undecided stays in n."""

    asked: str  # "direct", "with trigger", "identity template", "prefill 5", …
    temperature: float
    n: int
    harmful: int
    undecided: int
    asr: float
    low: float
    high: float


class UtilityScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How well a checkpoint does a benign task."""

    task: str
    metric: str  # "exact match", "ROUGE-1", "final number", "not refused"
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


class FineTune(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model, one attack's data, one objective, one setting, one seed; checkpoints in order of step."""

    model: str  # which was fine-tuned
    attack: str  # harmful, identity, backdoor, benign, poison, …
    objective: str  # sft, constrained, gate + replay, …
    parameters: Mapping[str, Parameter]  # learning_rate, epochs, warmup_steps, rows, …
    seed: int
    checkpoints: tuple[Checkpoint, ...]


class Stress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sweep of fine-tuning attacks. An objective's worst case is its strongest useful checkpoint of any setting."""

    schema: int = SCHEMA
    judge: str
    utility_bound: float  # the most that a score may fall below the start's before a model counts as useless
    finetunes: tuple[FineTune, ...]
    notes: tuple[str, ...] = ()  # what a reader must know before quoting a number


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
