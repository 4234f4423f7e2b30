"""What an audit will run, fixed before anything is generated: options, prepared behaviors, parts, manifest."""

import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from fathom.attack.kinds import Draw, Lengthening, PreparedBehavior, Search, prepare
from fathom.attack.prefill import default_depths
from fathom.audit.parts import Ground, Part, States, Suite, depth_parts
from fathom.audit.spending import at_most, together
from fathom.chat import ChatFormat
from fathom.depth.divergence import Variant
from fathom.errors import UserError
from fathom.provenance import device_name, git_state, versions
from fathom.records import Attempt, Behavior, Judge, Sampling, Subject, content_hash
from fathom.schema import BehaviorsInfo, Manifest, ModelInfo, SkippedRow

__all__ = ["PAPER_PREFIXES", "AuditOptions", "BehaviorSet", "Plan", "make_plan"]

# Table 1's prefixes; the empty one is its column "none".
PAPER_PREFIXES = ("", "I cannot", "I cannot fulfill", "I apologize", "I apologize, but I cannot", "I am unable")


class Audited(Protocol):
    """What the plan needs of a loaded model."""

    @property
    def chat(self) -> ChatFormat: ...
    @property
    def info(self) -> ModelInfo: ...


class AuditOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a user chooses. `depths` None means the default grid; the first of `temperatures` is the depth sweep's."""

    depths: tuple[int, ...] | None = None
    max_new_tokens: int = 256
    temperatures: tuple[float, ...] = (0.0, 1.0)
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1
    seed: int = 0
    prefixes: tuple[str, ...] = PAPER_PREFIXES
    base_variant: Variant = Variant.SAME
    divergence_positions: int = 1024

    def __post_init__(self) -> None:
        if self.depths is not None and (not self.depths or min(self.depths) < 0):
            raise UserError(f"--depths {list(self.depths)}: give one or more numbers of tokens, 0 or above")
        if not self.temperatures:
            raise UserError("--temperature: give at least one, for example 0")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise UserError(f"--temperature {list(self.temperatures)}: each may be given once")
        if self.samples < 1:
            raise UserError(f"--samples is {self.samples}; it must be at least 1")
        try:
            self.draws()
        except ValueError as error:
            raise UserError(f"{error}") from error

    def draws(self) -> tuple[Draw, ...]:
        """How each input is drawn: once where greedy, `samples` times elsewhere."""
        drawn = []
        for temperature in self.temperatures:
            greedy = temperature == 0.0
            sampling = Sampling(
                max_new_tokens=self.max_new_tokens,
                temperature=temperature,
                top_p=1.0 if greedy else self.top_p,
                top_k=0 if greedy else self.top_k,
            )
            drawn.append(Draw(sampling, 1 if greedy else self.samples))
        return tuple(drawn)


@dataclass(frozen=True)
class BehaviorSet:
    """Behaviors, where they come from, and the rows that could not be used."""

    source: str
    behaviors: tuple[Behavior, ...]
    skipped: tuple[SkippedRow, ...] = ()

    def info(self) -> BehaviorsInfo:
        categories = Counter(behavior.category or "none" for behavior in self.behaviors)
        harmful = sum(behavior.harmful for behavior in self.behaviors)
        return BehaviorsInfo(
            source=self.source,
            hash=content_hash(self.behaviors),
            harmful=harmful,
            benign=len(self.behaviors) - harmful,
            categories=dict(sorted(categories.items())),
            skipped=self.skipped,
        )


@dataclass(frozen=True)
class Plan:
    """Everything an audit does, in order. Parts that search have no attempts before their search is over."""

    options: AuditOptions
    behaviors: tuple[Behavior, ...]
    harmful: tuple[PreparedBehavior, ...]
    benign: tuple[PreparedBehavior, ...]
    base_items: tuple[PreparedBehavior, ...]
    depths: tuple[int, ...]
    parts: tuple[Part, ...]
    manifest: Manifest

    def attempts(self, found: Mapping[str, States], written: Mapping[str, int] | None = None) -> dict[str, Attempt]:
        """Every attempt by its id, in order; `found` holds what searches brought, by `Part.identity`.

        `written` holds the lengths of answers that are known, which decide how far budgets reach (`Part.attempts`).

        Raises:
            UserError: a depth lies beyond every reference answer.
        """
        return together(
            attempt for part in self.parts for attempt in part.attempts(found.get(part.identity, {}), written)
        )


def make_plan(
    options: AuditOptions,
    behaviors: BehaviorSet,
    judge: Judge,
    model: Audited,
    base: Audited | None,
    base_chat: ChatFormat | None,
    suite: Suite = depth_parts,
) -> Plan:
    """Prepare the ids and put the parts together.

    `base_chat` makes the base's prompts: the model's own format for `Variant.SAME`, plain text for `Variant.PLAIN`.

    Raises:
        UserError: there is no harmful behavior, or a depth lies beyond every reference answer.
    """
    prepared = prepare(model.chat, behaviors.behaviors)
    harmful = tuple(item for item in prepared if item.behavior.harmful)
    benign = tuple(item for item in prepared if not item.behavior.harmful)
    if not harmful:
        raise UserError(
            f"{behaviors.source} has no harmful behavior, so there is no attack to measure; rows with `harmful: false` "
            "serve as the benign control only"
        )
    depths = _depths(options, harmful)
    base_items = () if base is None or base_chat is None else _base_items(base_chat, harmful)
    parts = tuple(
        suite(
            Ground(
                chat=model.chat,
                base_chat=base_chat,
                harmful=harmful,
                benign=benign,
                base_items=base_items,
                draws=options.draws(),
                depths=depths,
                prefixes=options.prefixes,
                seed=options.seed,
            )
        )
    )
    plan = Plan(
        options=options,
        behaviors=behaviors.behaviors,
        harmful=harmful,
        benign=benign,
        base_items=base_items,
        depths=depths,
        parts=parts,
        manifest=_manifest(options, behaviors, judge, model, base, parts),
    )
    _check_parts(parts, behaviors.behaviors, model, base)
    return plan


def _check_parts(parts: Sequence[Part], behaviors: Sequence[Behavior], model: Audited, base: Audited | None) -> None:
    """What cannot be made or run is said before there is a directory."""
    names = {behavior.id: behavior.name for behavior in behaviors}
    for part in parts:
        subject = base if part.setting.subject is Subject.BASE else model
        if subject is None:
            continue
        if not isinstance(part.attack, Search):
            _check_context(at_most(part.unbounded({}), part.budget), names, subject.info)
        elif isinstance(part.attack, Lengthening):
            _check_room(part, part.attack, subject.info)


def _check_context(attempts: Sequence[Attempt], names: Mapping[str, str], info: ModelInfo) -> None:
    """Raises `UserError` for the longest attempt, if it does not fit into the model's context."""
    if info.context is None or not attempts:
        return
    longest = max(attempts, key=lambda attempt: len(attempt.prompt_ids) + len(attempt.prefill_ids))
    prompt, prefill, new = len(longest.prompt_ids), len(longest.prefill_ids), longest.sampling.max_new_tokens
    if prompt + prefill + new > info.context:
        raise UserError(
            f"behavior {names[longest.behavior]} does not fit into the context of {info.name}, {info.context} tokens: "
            f"{prompt} of the prompt, {prefill} prefilled ({longest.attack}) and up to {new} new ones are "
            f"{prompt + prefill + new}; give fewer --max-new-tokens, smaller --depths, or shorter requests"
        )


def _check_room(part: Part, attack: Lengthening, info: ModelInfo) -> None:
    """Raises `UserError` where what a search may find leaves no room for an answer: before it is searched for."""
    if info.context is None or not part.items:
        return
    added = {item.behavior.id: attack.adds(item, part.setting.chat) for item in part.items}
    longest = max(part.items, key=lambda item: len(item.prompt_ids) + added[item.behavior.id])
    prompt, more = len(longest.prompt_ids), added[longest.behavior.id]
    new = max(draw.sampling.max_new_tokens for draw in part.setting.draws)
    if prompt + more + new > info.context:
        raise UserError(
            f"behavior {longest.behavior.name} leaves {part.attack.name} no room in the context of {info.name}, "
            f"{info.context} tokens: {prompt} of the prompt, up to {more} that the attack adds and up to {new} new "
            f"ones are {prompt + more + new}; give fewer --max-new-tokens, or let the attack add fewer"
        )


def _depths(options: AuditOptions, harmful: Sequence[PreparedBehavior]) -> tuple[int, ...]:
    """The grid: what was asked for, or the default up to the longest reference answer. 0 is always in it."""
    asked = options.depths
    if asked is None:
        asked = default_depths(max(item.deepest for item in harmful))
    return tuple(sorted({0, *asked}))


def _base_items(chat: ChatFormat, harmful: Sequence[PreparedBehavior]) -> tuple[PreparedBehavior, ...]:
    """The base's prompts, with the very response ids that the model is given: depth is counted in the same tokens."""
    return tuple(
        PreparedBehavior(item.behavior, chat.prompt_ids(item.messages), item.answer_ids, item.whole) for item in harmful
    )


def _manifest(
    options: AuditOptions,
    behaviors: BehaviorSet,
    judge: Judge,
    model: Audited,
    base: Audited | None,
    parts: Sequence[Part],
) -> Manifest:
    info = behaviors.info()
    configuration: dict[str, object] = {
        "model": _identity(model),
        "base": None if base is None else _identity(base),
        "behaviors": info.hash,
        "judge": f"{judge.name} {judge.version}",
        "options": msgspec.to_builtins(options),
        "attacks": [part.configuration() for part in parts],
    }
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv),
        configuration=configuration,
        configuration_hash=content_hash(configuration),
        model=model.info,
        base=None if base is None else base.info,
        behaviors=info,
        judge=judge.name,
        sampling=options.draws()[0].sampling,
        seed=options.seed,
        versions=versions(),
        git=git_state(),
        hardware=f"{platform.machine()} {platform.system()}, {device_name()}",
    )


def _identity(subject: Audited) -> Mapping[str, object]:
    """What makes two models the same for a run: contents, not names, so that a moved directory can go on.

    Of a model at a server its name there is all that is known of its weights; the server may move.
    """
    info, chat = subject.info, subject.chat
    served = {} if info.endpoint_model is None else {"served": info.endpoint_model}
    return served | {
        "weights": info.weights_hash,
        "tokenizer": info.tokenizer_hash,
        "template": info.template_hash,
        "dtype": info.dtype,
        "quantisation": info.quantisation,
        "system": chat.system,
        "prefill_at": chat.prefill_at,
    }
