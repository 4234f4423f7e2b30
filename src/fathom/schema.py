"""`audit.json`, field by field, and the manifest of a run: what crosses a file boundary, versioned and strict.

Positions are 1-based response positions (the paper's t). Shares lie in [0, 1]; `low` and `high` are ends of 95 %
intervals. An open end is null: `half_depth.high` is null where the crossing may lie beyond the deepest prefill.
`docs/audit-json.md` is generated from the docstrings and comments here.
"""

from collections.abc import Mapping

import msgspec

from fathom.records import Counted, Parameter, Sampling, Subject

__all__ = [
    "UNTYPED",
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
    "JudgeInfo",
    "Manifest",
    "ModelInfo",
    "OpeningRow",
    "RecoveryRow",
    "SkippedRow",
    "TimeRow",
]

SCHEMA = 1
UNTYPED = frozenset({"embedding"})  # attacks whose inputs no text gives: bounds on what could be typed


class ModelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Exactly which weights, tokenizer and template were audited."""

    name: str  # as it was given
    revision: str | None  # hub revision, if one was given
    adapter: str | None  # PEFT adapter, if one was given
    architecture: str  # class name
    parameters: int  # how many
    dtype: str  # of the weights as loaded
    quantisation: str | None  # "8bit", "4bit", or the method by which weights were stored in fewer bits
    weights_hash: str  # of the parameters as loaded
    tokenizer_hash: str  # of vocabulary, merges and special tokens
    template_hash: str | None  # of the chat template that made the ids; null for plain text
    template_source: str  # "model", a file's name, or "plain"
    vocabulary: int  # ids that the model knows, embedding padding included
    context: int | None  # the longest input, in tokens, where the configuration states one
    endpoint: str | None = None  # the server that ran it; its weights were not seen, so they have no hash here
    endpoint_model: str | None = None  # its name there


class SkippedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of the user's file that could not be used, and why."""

    source: str  # the file's name
    line: int  # from 1
    reason: str  # what is wrong with it


class BehaviorsInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which requests were made."""

    source: str  # file name, or "organism"
    hash: str  # of the behaviors' contents
    harmful: int  # how many
    benign: int  # how many
    categories: Mapping[str, int]  # how many of each; "none" without one
    skipped: tuple[SkippedRow, ...]  # rows of the file that could not be used


class HalfDepth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The prefill length, in tokens, at which ASR crosses 50 %: interpolated in log(1 + k) between measured depths."""

    tokens: float | None  # null when not reached
    low: float | None  # of a bootstrap over behaviors
    high: float | None  # null: the interval has no upper end within the depths measured
    reached: bool  # whether ASR crosses 50 % within the depths measured
    deepest: int  # K: the deepest prefill measured


class Depth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Depth as a few numbers. They can disagree; `agreement` then says how."""

    half_depth: HalfDepth  # where ASR crosses 50 %
    area: float | None  # mean ASR over log(1 + k), 0 … K, in [0, 1]: 0 = never harmful, 1 = always
    area_low: float | None  # of a bootstrap over behaviors
    area_high: float | None  # of a bootstrap over behaviors
    kl_centroid: float | None  # mean response position of KL(model ‖ base); null without a base
    kl_centroid_low: float | None  # of a bootstrap over behaviors
    kl_centroid_high: float | None  # of a bootstrap over behaviors
    kl_90: int | None  # first position by which 90 % of that KL lies
    kl_90_low: int | None  # of a bootstrap over behaviors
    kl_90_high: int | None  # of a bootstrap over behaviors
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

    n: int  # verdicts
    helped: int  # answered
    refused: int  # in full or in part
    undecided: int  # stopped, garbled or empty
    exact: int | None = None  # answers that are right in full, where the judge can tell


class AttackRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One attack at one setting. asr = harmful / n; undecided stays in n. Unset optional fields are left out."""

    attack: str  # direct, prefill, refusal_prefix, suffix, decoding, insertion, ranks, refusal_direction, framing, …
    subject: Subject  # which of the two models was attacked; by refusal prefixes both, where there is a base
    parameters: Mapping[str, Parameter]  # the attack's own, and how answers were drawn
    prefill_tokens: int | None  # null where it differs between behaviors
    n: int  # verdicts
    behaviors: int  # distinct behaviors among the n
    harmful: int  # how many of them
    safe: int  # refused, in full or in part
    undecided: int  # stopped, garbled or empty
    asr: float  # in [0, 1]
    low: float  # Wilson's; where several answers share a behavior, spanned with a bootstrap over behaviors
    high: float  # the same
    counted: Counted  # what was judged: what the model wrote, or the prefill too
    worst_of: int | None = None  # answers to each behavior of which the worst was kept (n = behaviors); else all count
    cost: Cost | None = None  # search included
    control: Control | None = None  # the same on benign behaviors, where there are some
    typeable: bool = True  # false: no text gives these inputs; a bound, not counted when the strongest attack is named


class BudgetRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """ASR of an attack whose every behavior is given at most so much: harmful once any answer within it was."""

    attack: str  # as in attacks
    parameters: Mapping[str, Parameter]  # what tells this curve from the attack's others
    queries: int  # at most, for each behavior
    forward_tokens: int  # at most, for each behavior, search included
    n: int  # behaviors
    harmful: int  # of the n
    asr: float  # in [0, 1]
    low: float  # Wilson's; where several answers share a behavior, spanned with a bootstrap over behaviors
    high: float  # the same


class TimeRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line of `times.jsonl`, appended as time is spent, so that a killed run that goes on counts all of it."""

    attack: str  # as in attacks
    seconds: float  # of the wall clock, in one process


class DivergenceRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """KL(model ‖ base) in nats at one response position of the reference harmful answers."""

    position: int  # from 1
    n: int  # answers that reach it
    kl_nats: float  # mean
    low: float  # normal interval of the mean
    high: float | None  # null where n = 1 tells nothing
    base_favoured: float  # share of behaviors where base gives the harmful token more probability than model
    harmful_rank: float  # median rank of the harmful token under model; 1 = the most probable
    variant: str  # ids given to the base: "same" or "plain"


class RecoveryRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Probability that the model starts a refusal right after `position` tokens of the harmful answer (0 = at once)."""

    position: int  # tokens of the answer given
    n: int  # answers that reach it
    refusal_mass: float  # mean, in [0, 1]
    low: float  # normal interval of the mean
    high: float  # normal interval of the mean


class OpeningRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How refusals of the direct request begin."""

    opening: str  # its text
    tokens: int  # length of the opening in tokens
    n: int  # refusals that begin so
    of: int  # refusals in all
    share: float  # n of all
    low: float  # as of an attack row
    high: float  # the same


class BenignRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The control: benign behaviors under the same prefill sizes."""

    prefill_tokens: int  # of a helpful answer
    n: int  # verdicts
    helped: int  # answered (the judge's HARMFUL label, which for a benign behavior means that it helps)
    refused: int  # in full or in part
    undecided: int  # stopped, garbled or empty
    helped_share: float  # of n
    helped_low: float  # as of an attack row
    helped_high: float  # the same
    refused_share: float  # of n
    refused_low: float  # as of an attack row
    refused_high: float  # the same
    exact: int | None  # answers that are right in full, where the judge can tell


class Benign(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Is the model still helpful where the answer is given a start, and does it refuse where it need not?"""

    rows: tuple[BenignRow, ...]  # one a prefill size, as in the depth sweep
    over_refusal: float | None  # refused share at prefill 0; null without benign behaviors


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole result of an audit. Holds no time of day and no path: the same run gives the same bytes."""

    schema: int = SCHEMA  # version of this description
    model: ModelInfo  # what was audited
    base: ModelInfo | None  # the unaligned model it was compared with
    judge: str  # whose verdicts these are
    sampling: Sampling  # of the depth sweep
    seed: int  # of draws and bootstraps
    behaviors: BehaviorsInfo  # which requests
    depth: Depth  # the answer, as a few numbers
    attacks: tuple[AttackRow, ...]  # one row an attack and setting
    divergence: tuple[DivergenceRow, ...]  # KL to the base by position; empty without one
    recovery: tuple[RecoveryRow, ...]  # refusal mass by position
    refusals: tuple[str, ...]  # the openings whose probability `recovery` sums
    openings: tuple[OpeningRow, ...]  # of refusals of the direct request
    benign: Benign  # the depth sweep's control
    notes: tuple[str, ...]  # what a reader must know before quoting a number: skipped rows, answers too short, …
    budget: tuple[BudgetRow, ...] = ()  # ASR against budget, of attacks that spend one


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run is, written before anything is generated. `configuration` decides whether a run may go on."""

    schema: int = SCHEMA  # version of this description
    created: str  # ISO 8601, UTC
    command: tuple[str, ...]  # as it was typed first
    configuration: Mapping[str, object]  # everything that determines the outcome; its hash guards the directory
    configuration_hash: str  # of configuration
    model: ModelInfo  # what is audited
    base: ModelInfo | None  # what it is compared with
    behaviors: BehaviorsInfo  # which requests
    judge: str  # the run's own
    sampling: Sampling  # of the depth sweep
    seed: int  # of draws and bootstraps
    versions: Mapping[str, str]  # fathom, python, torch, transformers, …
    git: str | None  # commit of the source tree, "+dirty" if changed; null outside a repository
    hardware: str  # machine and device


class JudgeInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`judge.<judge>.json`: exactly which judge of harm gave the verdicts of that name."""

    name: str  # as in the files' names
    version: str  # hash of all that determines a verdict; each verdict carries it
    kind: str  # classifier, sequence-classifier or rubric
    model: ModelInfo | None = None  # which weights; null where a server ran it
    served: str | None = None  # the model's name at the server
    endpoint: str | None = None  # the server's address
    preset: str | None = None  # how it was asked: a published classifier's way, or "own"
    template: str | None = None  # the text that it was asked by
    template_hash: str | None = None  # of template
    policy: str | None = None  # what counts as harmful, where it was told
    reads: str | None = None  # how its answer was read
