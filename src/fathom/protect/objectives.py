"""Objectives of fine-tuning as small frozen parts over the same rows, and their composition by name.

    sft                     the token loss: plain, constrained (the paper's), uniform (one β everywhere)
    gate                    rows whose prompt the reference itself refuses are held to it; the rest learn freely
    replay                  a share of rows in which the reference repeats its own refusals
    answers                 rows whose answer a sentinel would break off are held, whatever they ask
    rehearse                replay made stronger: refusals sharpened and in the data's own frames, benign answers held
    mass                    the probability of safety tokens is held at every position (PACT)
    lisa, safe-lora         on the weights: a proximal term; a projection of the update

`gate+replay` is both, over plain training. What a part does to rows is done before training, so that it can be seen in
them; what it does to tokens is a pure function; only the last two touch weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.errors import UserError
from fathom.protect.answers import AnswerGate
from fathom.protect.constraint import BetaSchedule, anchored_nll
from fathom.protect.gate import Gate
from fathom.protect.rehearsal import Rehearsal
from fathom.protect.replay import Replay
from fathom.protect.weights import Proximal, SafeLora
from fathom.tuning.objective import Needs, PlainNll, ResponseLogits, TokenObjective, Tokens

__all__ = [
    "Composed",
    "Constrained",
    "HeldToReference",
    "Objective",
    "SafetyMass",
    "kl_to_reference",
    "mass_divergence",
    "parse_objective",
]

CALM = 0.1
TOP = 64  # ids of the reference that are kept at each held position; the rest is one bucket


@dataclass(frozen=True)
class Constrained:
    """The token-wise constraint, as cross-entropy at the start. Source: the paper's Eq. 3."""

    schedule: BetaSchedule = field(default_factory=BetaSchedule)

    @property
    def needs(self) -> Needs:
        return Needs(logprobs=1)

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> Float[Tensor, "tokens"]:
        assert tokens.reference_logprobs is not None
        beta = self.schedule(tokens.positions)
        return tokens.loss_weight * anchored_nll(logits.logprobs(tokens.labels), tokens.reference_logprobs, beta)


@dataclass(frozen=True)
class HeldToReference:
    """KL(reference ‖ model) at the positions of held rows, times each row's `held`."""

    top: int = TOP

    @property
    def needs(self) -> Needs:
        return Needs(top=self.top)

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> Float[Tensor, "tokens"]:
        found = torch.zeros_like(tokens.held)
        index = (tokens.held > 0).nonzero()[:, 0]
        if tokens.reference_ids is None or tokens.reference_top is None or not len(index):
            return found
        kl = kl_to_reference(logits.at(index), tokens.reference_ids[index], tokens.reference_top[index])
        return found.index_put((index,), tokens.held[index] * kl)


def kl_to_reference(
    logits: ResponseLogits, ids: Int[Tensor, "tokens top"], reference: Float[Tensor, "tokens top"]
) -> Float[Tensor, "tokens"]:
    """KL(reference ‖ model) in nats over the reference's most probable ids and one bucket for all others.

    Never above the KL over the whole vocabulary, and equal to it where the ids are the whole vocabulary.
    """
    ours = logits.logprobs_of(ids)
    kept = (reference.exp() * (reference - ours)).sum(-1)
    # Both rests are small differences of sums near 1, known to a few 1e-7.
    rest, our_rest = (1 - part.exp().sum(-1) for part in (reference, ours))
    rest, our_rest = rest.clamp_min(1e-6), our_rest.clamp_min(1e-6)
    return kept + rest * (rest.log() - our_rest.log())


@dataclass(frozen=True)
class SafetyMass:
    """The probability of safety tokens is held to the reference's at every learned position; the target is learned.

    KL between two coins, "a safety token comes next" or not, times `weight`. `ids` are the tokens by which the
    reference's refusals begin and go on, and that its other answers lack.

    Source: PACT (arXiv 2603.07445), as a penalty on that probability alone.
    """

    weight: float = 1.0
    ids: tuple[int, ...] = ()

    @property
    def needs(self) -> Needs:
        return Needs(mass=self.ids)

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> Float[Tensor, "tokens"]:
        assert tokens.reference_mass is not None
        mass = logits.mass(torch.tensor(self.ids, device=tokens.labels.device)).exp()
        return self.weight * mass_divergence(tokens.reference_mass, mass)


def mass_divergence(reference: Float[Tensor, "*tokens"], ours: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """KL in nats between the events "a safety token" under reference and model."""
    p, q = (value.clamp(1e-6, 1 - 1e-6) for value in (reference, ours))
    return p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())


@dataclass(frozen=True)
class Composed:
    """The sum of several token objectives."""

    parts: tuple[TokenObjective, ...]

    @property
    def needs(self) -> Needs:
        return Needs.union(part.needs for part in self.parts)

    def __call__(self, logits: ResponseLogits, tokens: Tokens) -> Float[Tensor, "tokens"]:
        first, *others = (part(logits, tokens) for part in self.parts)
        for other in others:
            first = first + other
        return first


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What fine-tuning minimises, as its parts; `token` is the loss of rows that nothing holds."""

    token: PlainNll | Constrained = field(default_factory=PlainNll)
    gate: Gate | None = None
    answers: AnswerGate | None = None
    replay: Replay | None = None
    rehearsal: Rehearsal | None = None
    mass: SafetyMass | None = None
    proximal: Proximal | None = None
    projection: SafeLora | None = None

    @property
    def calm(self) -> float:
        """How large a gradient makes half a step, of the norm at which it is clipped (`tuning.settings`); 0: any.

        Where rows are held there may be nothing to learn, and Adam makes steps of what noise there is.
        """
        held = (self.gate, self.answers, self.replay, self.rehearsal)
        return CALM if any(part is not None for part in held) else 0.0

    @property
    def name(self) -> str:
        """The parts, as `parse_objective` reads them; plain training is named where it stands alone."""
        parts = []
        if isinstance(self.token, Constrained):
            schedule = self.token.schedule
            uniform = schedule.first == schedule.next4 == schedule.rest
            parts.append(f"uniform:{schedule.first:g}" if uniform else "constrained")
        parts += [
            name
            for name, part in (
                ("gate", self.gate),
                ("answers", self.answers),
                ("replay", self.replay),
                ("rehearse", self.rehearsal),
                ("mass", self.mass),
                ("lisa", self.proximal),
                ("safe-lora", self.projection),
            )
            if part is not None
        ]
        return "+".join(parts) or "sft"

    def per_token(self, safety_ids: Sequence[int] = ()) -> TokenObjective:
        """The pure function that a trainer minimises; `safety_ids` are those of the `mass` part.

        Raises:
            UserError: the `mass` part has no safety tokens.
        """
        parts: list[TokenObjective] = [self.token]
        if any(part is not None for part in (self.gate, self.answers, self.replay, self.rehearsal)):
            parts.append(HeldToReference())
        if self.mass is not None:
            ids = self.mass.ids or tuple(safety_ids)
            if not ids:
                raise UserError("the mass objective found no safety tokens: the reference refuses none of the prompts")
            parts.append(replace(self.mass, ids=ids))
        return parts[0] if len(parts) == 1 else Composed(tuple(parts))

    def having(self, name: str, value: float | None) -> Self:
        """With one more part, by name; `value` is its one number, where it has one.

        Raises:
            UserError: there is no such part, or it takes no number.
        """
        if name not in _PARTS:
            raise UserError(f"there is no objective called {name!r}; join some of {', '.join(_PARTS)} by +")
        place, make = _PARTS[name]
        return replace(self, **{place: make(value)})  # type: ignore[arg-type]


def _plain(value: float | None) -> PlainNll:
    if value is not None:
        raise UserError(f"sft takes no number, and was given {value:g}")
    return PlainNll()


def _constrained(value: float | None) -> Constrained:
    if value is not None:
        raise UserError(f"constrained takes no number, and was given {value:g}: give uniform:{value:g}, or --beta")
    return Constrained()


_Make = Callable[[float | None], object]
_PARTS: Mapping[str, tuple[str, _Make]] = {
    "sft": ("token", _plain),
    "constrained": ("token", _constrained),
    "uniform": ("token", lambda value: Constrained(BetaSchedule.uniform(0.5 if value is None else value))),
    "gate": ("gate", lambda value: Gate() if value is None else Gate(weight=value)),
    "answers": ("answers", lambda value: AnswerGate() if value is None else AnswerGate(broken=value)),
    "rehearse": ("rehearsal", lambda value: Rehearsal() if value is None else Rehearsal(refusal_weight=value)),
    "replay": ("replay", lambda value: Replay() if value is None else Replay(share=value)),
    "mass": ("mass", lambda value: SafetyMass() if value is None else SafetyMass(weight=value)),
    "lisa": ("proximal", lambda value: Proximal() if value is None else Proximal(strength=value)),
    "safe-lora": ("projection", lambda value: SafeLora() if value is None else SafeLora(threshold=value)),
}


def parse_objective(text: str) -> Objective:
    """`gate+replay`, `constrained`, `uniform:0.5+replay:0.2`, …: parts joined by +, a number after a colon.

    Raises:
        UserError: a part is unknown, given twice, or its number is none.
    """
    objective, seen = Objective(), set[str]()
    for part in text.split("+"):
        name, colon, number = part.strip().partition(":")
        try:
            value = float(number) if colon else None
        except ValueError:
            raise UserError(f"--objective {text}: {number!r} is no number; give {name}:0.5") from None
        if value is not None and not math.isfinite(value):
            raise UserError(f"--objective {text}: {number} is no finite number; give {name}:0.5")
        objective = objective.having(name, value)
        place = _PARTS[name][0]
        if place in seen:
            raise UserError(f"--objective {text}: {name} takes the place of an earlier part; name one of them")
        seen.add(place)
    return objective
