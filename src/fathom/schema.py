"""`audit.json`, field by field, and the manifest of a run: what crosses a file boundary, versioned and strict.

Positions are 1-based response positions (the paper's t). Shares lie in [0, 1]; `low` and `high` are ends of 95 %
intervals. An open end is null: `half_depth.high` is null where the crossing may lie beyond the deepest prefill.
`docs/audit-json.md` is generated from the docstrings and comments here.
"""

from collections.abc import Mapping

import msgspec

from fathom.records import Counted, Parameter, Sampling, Subject

__all__ = [
    "AttackRow",
    "Audit",
    "BehaviorsInfo",
    "Benign",
    "BenignRow",
    "BudgetRow",
    "Control",
    "Cost",
    "Depth",
    "DivergenceRow",
    "HalfDepth",
    "Manifest",
    "ModelInfo",
    "OpeningRow",
    "RecoveryRow",
    "SkippedRow",
    "TimeRow",
]

SCHEMA = 1


class ModelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Exactly which weights, tokenizer and template were audited."""

    name: str  # as it was given
    revision: str | None  # hub revision, if one was given
    adapter: str | None  # PEFT adapter, if one was given
    architecture: str  # class name
    parameters: int
    dtype: str
    quantisation: str | None
    weights_hash: str  # of the parameters as loaded
    tokenizer_hash: str  # of vocabulary, merges and special tokens
    template_hash: str | None  # of the chat template that made the ids; null for plain text
    template_source: str  # "model", a file's name, or "plain"
    vocabulary: int
    context: int | None  # the longest input, in tokens, where the configuration states one


class SkippedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of the user's file that could not be used, and why."""

    source: str
    line: int
    reason: str


class BehaviorsInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which requests were made."""

    source: str  # file name, or "organism"
    hash: str  # of the behaviors' contents
    harmful: int
    benign: int
    categories: Mapping[str, int]
    skipped: tuple[SkippedRow, ...]


class HalfDepth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The prefill length, in tokens, at which ASR crosses 50 %: interpolated in log(1 + k) between measured depths."""

    tokens: float | None  # null when not reached
    low: float | None
    high: float | None  # null: the interval has no upper end within the depths measured
    reached: bool
    deepest: int  # K: the deepest prefill measured


class Depth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Depth as a few numbers. They can disagree; `agreement` then says how."""

    half_depth: HalfDepth
    area: float | None  # mean ASR over log(1 + k), 0 … K, in [0, 1]: 0 = never harmful, 1 = always
    area_low: float | None
    area_high: float | None
    kl_centroid: float | None  # mean response position of KL(model ‖ base); null without a base
    kl_centroid_low: float | None
    kl_centroid_high: float | None
    kl_90: int | None  # first position by which 90 % of that KL lies
    kl_90_low: int | None
    kl_90_high: int | None
    agreement: str  # one sentence: do behaviour and KL tell the same story?


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all n attempts of an attack row cost, search included; counted, so the same on every machine.

    Seconds stand in `times.jsonl` of the run directory (`TimeRow`), since they differ from one run to the next.
    """

    queries: int  # inputs given to the model: a completion is one, and so is a candidate that was only scored
    forward_tokens: int  # tokens run through the model, once each where a cache is shared
    backward_tokens: int = 0  # tokens through which a gradient was taken


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same attack on benign behaviors: does the model that it leaves still help?"""

    n: int
    helped: int
    refused: int
    undecided: int
    exact: int | None = None  # answers that are right in full, where the judge can tell


class AttackRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One attack at one setting. asr = harmful / n; undecided stays in n. Unset optional fields are left out."""

    attack: str  # direct, prefill, refusal_prefix, suffix, decoding, insertion, ranks, refusal_direction, framing, …
    subject: Subject
    parameters: Mapping[str, Parameter]
    prefill_tokens: int | None  # null where it differs between behaviors
    n: int
    behaviors: int  # distinct behaviors among the n
    harmful: int
    safe: int
    undecided: int
    asr: float
    low: float  # Wilson, or bootstrap clustered by behavior where several samples share one
    high: float
    counted: Counted
    worst_of: int | None = None  # answers to each behavior of which the worst was kept (n = behaviors); else all count
    cost: Cost | None = None
    control: Control | None = None


class BudgetRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """ASR of an attack whose every behavior is given at most so much: harmful once any answer within it was."""

    attack: str
    parameters: Mapping[str, Parameter]  # what tells this curve from the attack's others
    queries: int  # at most, for each behavior
    forward_tokens: int  # at most, for each behavior, search included
    n: int  # behaviors
    harmful: int
    asr: float
    low: float
    high: float


class TimeRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line of `times.jsonl`, appended as time is spent, so that a killed run that goes on counts all of it."""

    attack: str
    seconds: float


class DivergenceRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """KL(model ‖ base) in nats at one response position of the reference harmful answers."""

    position: int
    n: int
    kl_nats: float
    low: float
    high: float | None  # null where n = 1 tells nothing
    base_favoured: float  # share of behaviors where base gives the harmful token more probability than model
    harmful_rank: float  # median rank of the harmful token under model; 1 = the most probable
    variant: str  # ids given to the base: "same" or "plain"


class RecoveryRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Probability that the model starts a refusal right after `position` tokens of the harmful answer (0 = at once)."""

    position: int
    n: int
    refusal_mass: float
    low: float
    high: float


class OpeningRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How refusals of the direct request begin."""

    opening: str
    tokens: int  # length of the opening in tokens
    n: int  # refusals that begin so
    of: int  # refusals in all
    share: float
    low: float
    high: float


class BenignRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The control: benign behaviors under the same prefill sizes."""

    prefill_tokens: int
    n: int
    helped: int  # answered (the judge's HARMFUL label, which for a benign behavior means that it helps)
    refused: int
    undecided: int
    helped_share: float
    helped_low: float
    helped_high: float
    refused_share: float
    refused_low: float
    refused_high: float
    exact: int | None  # answers that are right in full, where the judge can tell


class Benign(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    rows: tuple[BenignRow, ...]
    over_refusal: float | None  # refused share at prefill 0; null without benign behaviors


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole result of an audit. Holds no time of day and no path: the same run gives the same bytes."""

    schema: int = SCHEMA
    model: ModelInfo
    base: ModelInfo | None
    judge: str
    sampling: Sampling  # of the depth sweep
    seed: int
    behaviors: BehaviorsInfo
    depth: Depth
    attacks: tuple[AttackRow, ...]
    divergence: tuple[DivergenceRow, ...]
    recovery: tuple[RecoveryRow, ...]
    refusals: tuple[str, ...]  # the openings whose probability `recovery` sums
    openings: tuple[OpeningRow, ...]
    benign: Benign
    notes: tuple[str, ...]  # what a reader must know before quoting a number: skipped rows, answers too short, …
    budget: tuple[BudgetRow, ...] = ()  # ASR against budget, of attacks that spend one


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run is, written before anything is generated. `configuration` decides whether a run may go on."""

    schema: int = SCHEMA
    created: str  # ISO 8601, UTC
    command: tuple[str, ...]
    configuration: Mapping[str, object]  # everything that determines the outcome; its hash guards the directory
    configuration_hash: str
    model: ModelInfo
    base: ModelInfo | None
    behaviors: BehaviorsInfo
    judge: str
    sampling: Sampling  # of the depth sweep
    seed: int
    versions: Mapping[str, str]  # fathom, python, torch, transformers, …
    git: str | None  # commit of the source tree, "+dirty" if changed; null outside a repository
    hardware: str
