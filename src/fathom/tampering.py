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
    temperature: float  # 0 is greedy
    n: int  # verdicts
    harmful: int  # how many of them
    undecided: int  # stopped, garbled or empty
    asr: float  # in [0, 1]
    low: float  # of its interval
    high: float  # the same
    # Harmful answers to each behavior, in the order that every checkpoint of a sweep shares; each was drawn
    # n / len(by_behavior) times. Empty in sweeps of earlier versions.
    by_behavior: tuple[int, ...] = ()  # harmful answers to each


class Prefilled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """ASR of a checkpoint once the start of the reference answer is given. What the model adds to it is judged.

    Requests are as in `Asked` "direct"; those whose answer is shorter are left out, and not in n.
    """

    tokens: int | None  # so many are given; 0 is the direct request; null: all of the answer but its last token
    temperature: float  # the lowest of the sweep
    n: int  # verdicts
    harmful: int  # how many of them
    undecided: int  # stopped, garbled or empty
    asr: float  # in [0, 1]
    low: float  # as in `Asked`
    high: float  # the same
    by_behavior: tuple[int | None, ...]  # as in `Asked`; null where its answer is shorter

    @property
    def drawn(self) -> int:
        """How often each behavior was."""
        return self.n // sum(harmful is not None for harmful in self.by_behavior)


class UtilityScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How well a checkpoint does a benign task."""

    task: str  # "benign" are the benign requests, whose first score the bound is for
    metric: str  # "exact match", "answered", "own words", "ROUGE-1", "final number", "not refused"
    n: int  # answers
    score: float  # mean, in [0, 1]
    low: float  # Wilson's where scores are 0 or 1, else normal
    high: float  # the same


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model after so many optimizer steps."""

    step: int  # 0 is the model before fine-tuning
    asr: tuple[Asked, ...]  # by way of asking and drawing
    utility: tuple[UtilityScore, ...]  # by task and metric
    useful: bool  # its loss of utility stays within the bound: an attacker would keep it
    depth: tuple[Prefilled, ...] = ()  # by tokens given, at the lowest temperature; empty where no answer was given
    half_depth: HalfDepth | None = None  # where ASR crosses 50 % within these; null without them


class FineTune(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model, one attack's data, one objective, one setting, one seed; checkpoints in order of step."""

    model: str  # which was fine-tuned
    attack: str  # harmful, identity, backdoor, benign, poison, …
    objective: str  # sft, constrained, gate + replay, …
    parameters: Mapping[str, Parameter]  # learning_rate, epochs, warmup_steps, rows, …
    seed: int  # of the order of the rows
    checkpoints: tuple[Checkpoint, ...]  # the first is the model before fine-tuning
    share: float | None = None  # of harmful rows, of the attack mixed
    track: str = ""  # the `cell` of its answers; those of step 0 have `start_cell(attack)`


class Stress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sweep of fine-tuning attacks. An objective's worst case is its strongest useful checkpoint of any setting."""

    schema: int = SCHEMA  # version of this description
    judge: str  # name and version
    utility_bound: float  # the most that a score may fall below the start's before a model counts as useless
    finetunes: tuple[FineTune, ...]  # one a setting and seed
    notes: tuple[str, ...] = ()  # what a reader must know before quoting a number
    model: ModelInfo | None = None  # which weights, tokenizer and template were fine-tuned; null in earlier versions


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One answer of one checkpoint, so that every count can be checked by reading. The text is the model's: hostile."""

    cell: str  # which checkpoint: the hash of its track
    step: int  # after so many optimizer steps
    asked: str  # the frame's name, "prefill 5" or "prefill end", "benign", or the task's name
    temperature: float  # 0 is greedy
    behavior: str  # id of the request as it was asked
    text: str  # what the model wrote itself
    label: Label | None  # null for a task's answer, which is scored and not judged
    reason: str  # the judge's, in a word; of a task, its metric
    score: float | None = None  # in [0, 1], where the judge or the task gives one
    sample: int = 0  # which draw of several


def start_cell(attack: str) -> str:
    """The `cell` of the answers that the model before fine-tuning gave to an attack's requests."""
    return f"start {attack}"


class DynamicsRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One response position after so many optimizer steps, averaged over n fine-tuning rows."""

    step: int  # after so many optimizer steps
    position: int  # 1 is the first response token
    n: int  # rows that reach it
    cross_entropy: float  # nats
    gradient_norm: float | None  # of the position's loss by what is trained, averaged over rows; null: not measured
    kl_nats: float  # KL(fine-tuned ‖ start)


class Dynamics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What moves, and where, while a model is fine-tuned (the paper's Fig. 3 and 5)."""

    schema: int = SCHEMA  # version of this description
    model: str  # which was fine-tuned
    attack: str  # whose data
    objective: str  # as in `FineTune`
    parameters: Mapping[str, Parameter]  # learning_rate, warmup_steps, rows, …
    seed: int  # of the order of the rows, and of directions
    rows: tuple[DynamicsRow, ...]  # by step and position
    notes: tuple[str, ...] = ()  # what a reader must know before quoting a number
