"""`stress.json` and `dynamics.json`, field by field: what fine-tuning does to a model's safety, for any renderer.

A *cell* is one fine-tuned model: an attack's rows, an objective, and one setting of the optimiser. Every cell holds
counts; rates and intervals stand beside them. Shares lie in [0, 1]; `low` and `high` are ends of 95 % intervals.
"""

import msgspec

from fathom.schema import BehaviorsInfo, ModelInfo

__all__ = [
    "Cell",
    "CellRate",
    "CellUtility",
    "Dynamics",
    "DynamicsRow",
    "Setting",
    "Stress",
    "WarmupRow",
    "WorstCase",
]

SCHEMA = 1


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a cell was trained with. Equal settings, rows, weights and seed give the same model."""

    attack: str  # harmful, identity, backdoor, benign, mixed, wrapped
    objective: str  # sft, constrained, or a composition, as `fathom finetune --objective` names it
    rate: float  # peak learning rate
    warmup: int  # steps of linear warm-up
    steps: int  # optimiser steps after which the model was measured
    seed: int  # of the order of the rows


class CellRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often harmful requests were answered, at one temperature and in one frame. asr = harmful / n."""

    frame: str  # "direct": the request as it is; else what the attack puts around it (template, trigger, wrapper)
    temperature: float
    n: int
    harmful: int
    safe: int
    undecided: int
    asr: float
    low: float
    high: float


class CellUtility(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How good answers to benign requests of one task still are."""

    task: str  # "benign": ordinary requests; else a task's name
    metric: str  # helped, exact, rouge1, number
    n: int
    score: float  # mean over n, in [0, 1]
    low: float
    high: float
    refused: int  # over-refusal: benign requests refused


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One fine-tuned model, measured. `useful`: it keeps the share of the start's utility that the bound asks for."""

    setting: Setting
    loss: float  # cross-entropy on the attack's rows, nats a token, mean over the last steps; 0 where steps = 0
    rates: tuple[CellRate, ...]
    utilities: tuple[CellUtility, ...]
    useful: bool


class WorstCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The strongest useful setting of one attack against one objective, as an attacker would keep it.

    Chosen by the same counts that it reports, so its interval speaks of that cell alone and not of the choice.

    Source: TamperBench's rule (2602.06911).
    """

    attack: str
    objective: str
    temperature: float
    frame: str
    setting: Setting | None  # null where no cell of it is useful
    n: int
    harmful: int
    asr: float | None
    low: float | None
    high: float | None
    cells: int  # cells compared
    useful: int  # of which useful


class WarmupRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The paper's 2 × 2 (Table 9): with and without warm-up, at the same rate and number of steps."""

    attack: str
    objective: str
    rate: float
    steps: int
    temperature: float
    frame: str
    n: int
    without: int  # harmful answers without warm-up
    with_warmup: int  # harmful answers with it
    warmup: int  # its steps


class Stress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole result of `fathom stress`: the start, every cell, and what an attacker would keep."""

    schema: int = SCHEMA
    model: ModelInfo
    judge: str
    behaviors: BehaviorsInfo  # the requests that cells were measured with; none of them was trained on
    utility_bound: float  # a cell is useful at `utility_bound` × the start's benign score or above
    trainer: str  # "fit": tuning.fit; "light": the loop in memory, equal to it
    rows: int  # training rows of each attack
    start: Cell  # the model before fine-tuning
    cells: tuple[Cell, ...]
    worst: tuple[WorstCase, ...]
    warmup: tuple[WarmupRow, ...]
    notes: tuple[str, ...]


class DynamicsRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One response position of the training rows after so many steps; normal 95 % intervals of the mean over rows."""

    step: int
    position: int  # 1 = the first response token
    n: int  # rows that reach so far
    cross_entropy: float  # nats
    cross_entropy_low: float
    cross_entropy_high: float
    kl: float  # KL(model ‖ the start) in nats
    kl_low: float
    kl_high: float
    gradient_norm: float  # of that position's loss with respect to all parameters, mean over rows
    gradient_norm_low: float
    gradient_norm_high: float


class Dynamics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole result of `fathom dynamics`.

    Source: Fig. 3 and Fig. 5 of the paper.
    """

    schema: int = SCHEMA
    model: ModelInfo
    judge: str | None  # null where no answers were judged
    attack: str
    objective: str
    rate: float
    warmup: int
    rows: int  # training rows measured
    curve: tuple[DynamicsRow, ...]
    rates: tuple[Cell, ...]  # ASR at each step that was judged
    notes: tuple[str, ...]
