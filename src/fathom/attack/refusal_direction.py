"""The refusal direction: found from how harmful and benign requests differ inside the model, and taken out of it.

A candidate is a layer l and one of the prompt's last tokens p: the difference, harmful minus benign, of the mean
residual stream that enters layer l at p, over training requests. Each candidate is ablated (`ablation.py`) while the
model answers development requests: the one under which it refuses the fewest harmful ones is taken, among those that
keep its predictions on benign ones (mean KL of the next token at most `kl`). Reported are the other requests: none that
a direction was made from or chosen by.

Source: Arditi et al., "Refusal in language models is mediated by a single direction" (2406.11717). Departures: refusals
are counted by the judge in answers, not by the odds of refusal tokens; ties go to the lower KL; the direction is never
added.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from fathom.attack.ablation import ablated, decoder_layers
from fathom.attack.kinds import (
    Estimate,
    PreparedBehavior,
    Setting,
    Target,
    Victim,
    direct_answers,
    search_cost,
    shared_key,
)
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.records import Attempt, Exchange, Label
from fathom.scoring import Scorer

__all__ = ["Candidate", "DirectionSearch", "RefusalDirection"]

_DEPTH = 0.8  # of the layers: directions of the last ones act on the output alone, as in the source
_FEWEST = 12  # requests of each kind: fewer leave nothing to report after training and choosing


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ablating one direction does on the development requests; `kl` in nats."""

    layer: int
    position: int  # -1 is the prompt's last token
    refused: int
    harmful: int
    of: int
    kl: float


class DirectionSearch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Candidates in the order in which they were tried, and the best one's direction (not normalised)."""

    pending: tuple[tuple[int, int], ...]
    tried: tuple[Candidate, ...] = ()
    best: int | None = None  # number of the best in `tried`
    direction: tuple[float, ...] = ()
    queries: int = 0
    forward_tokens: int = 0


@dataclass(frozen=True)
class _Split:
    """Requests to make directions from, to choose by, and to report."""

    train: tuple[PreparedBehavior, ...]
    development: tuple[PreparedBehavior, ...]
    test: tuple[PreparedBehavior, ...]


@dataclass(frozen=True)
class RefusalDirection:
    """The direct request to a model without its refusal direction.

    Of each kind, harmful and benign, the first `train` behaviors make directions and the next `development` choose; of
    few behaviors each takes a third at most. `positions` counts the prompt's last tokens that are tried, `new_tokens`
    bounds development answers, `kl` the mean change that a direction may make to benign predictions.
    """

    train: int = 32
    development: int = 16
    positions: int = 3
    new_tokens: int = 48
    kl: float = 0.1
    name: ClassVar[str] = "refusal-direction"
    state: ClassVar[type[DirectionSearch]] = DirectionSearch
    steps: ClassVar[int] = 30  # of as many candidates each as there must be

    def __post_init__(self) -> None:
        for option in ("train", "development", "positions", "new_tokens"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} is {getattr(self, option)}; it must be at least 1")
        if not self.kl > 0:
            raise ValueError(f"kl is {self.kl}; it must be above 0 nats")

    def targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        """One search on all behaviors together.

        Raises:
            UserError: there are too few harmful or benign ones to make, choose and report.
        """
        for kind, harmful in (("harmful", True), ("benign", False)):
            count = sum(item.behavior.harmful is harmful for item in items)
            if count < _FEWEST:
                raise UserError(
                    f"refusal-direction needs {_FEWEST} {kind} behaviors or more (to find a direction, to choose one "
                    f"and to report it), and was given {count}: add some, or raise --limit"
                )
        return (Target(shared_key(items), tuple(items)),)

    def init(self, target: Target, victim: Victim) -> DirectionSearch:
        del target
        layers = len(decoder_layers(Scorer(victim.model, None).plain))
        last = max(1, int(layers * _DEPTH))
        pairs = [(layer, -1 - back) for layer in range(1, last + 1) for back in range(self.positions)]
        return DirectionSearch(pending=tuple(pairs))

    def done(self, state: DirectionSearch) -> bool:
        return not state.pending

    def spent(self, state: DirectionSearch) -> int:
        return state.forward_tokens

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """For a model of 32 layers; the search grows with their number."""
        prompt = sum(len(item.prompt_ids) for item in items) / max(1, len(items))
        train, development = min(self.train, len(items) // 6), min(self.development, len(items) // 6)
        each = prompt * (2 * train + 3 * development) + development * self.new_tokens
        reported = len(items) - 2 * train - 2 * development
        rest = reported * (prompt + setting.new_tokens)
        return Estimate(reported * setting.answers, round(int(32 * _DEPTH) * self.positions * each + rest))

    def step(self, state: DirectionSearch, target: Target, victim: Victim) -> DirectionSearch:
        """Try the next candidates, a thirtieth of all."""
        for _ in range(min(len(state.pending), math.ceil((len(state.pending) + len(state.tried)) / self.steps))):
            state = self._tried(state, target, victim)
        return state

    def _tried(self, state: DirectionSearch, target: Target, victim: Victim) -> DirectionSearch:
        """One candidate more."""
        layer, position = state.pending[0]
        harmful, benign = (self._split(_of_kind(target.items, kind)) for kind in (True, False))
        direction = _mean(victim.model, harmful.train, layer, position) - _mean(
            victim.model, benign.train, layer, position
        )
        plain = [_next(victim.model, item) for item in benign.development]
        with ablated(Scorer(victim.model, None).plain, direction):
            changed = [_next(victim.model, item) for item in benign.development]
            answers = list(direct_answers(harmful.development, victim, self.new_tokens))
        labels = [
            victim.judge.judge(
                Exchange(behavior=item.behavior, prefill="", response=done.text, finish=done.finish)
            ).label
            for item, done in answers
        ]
        tried = Candidate(
            layer=layer,
            position=position,
            refused=labels.count(Label.SAFE),
            harmful=labels.count(Label.HARMFUL),
            of=len(labels),
            kl=sum(_kl(old, new) for old, new in zip(plain, changed, strict=True)) / len(plain),
        )
        prompts = [*harmful.train, *benign.train, *benign.development, *benign.development, *harmful.development]
        tokens = sum(len(item.prompt_ids) for item in prompts) + sum(len(done.output_ids) for _, done in answers)
        better = state.best is None or self._order(tried) < self._order(state.tried[state.best])
        return DirectionSearch(
            pending=state.pending[1:],
            tried=(*state.tried, tried),
            best=len(state.tried) if better else state.best,
            direction=tuple(direction.tolist()) if better else state.direction,
            queries=state.queries + len(prompts),
            forward_tokens=state.forward_tokens + tokens,
        )

    def _order(self, candidate: Candidate) -> tuple[bool, int, int, float]:
        """Within the bound first; then few refusals, much compliance, little change."""
        return candidate.kl > self.kl, candidate.refused, -candidate.harmful, candidate.kl

    def _split(self, items: Sequence[PreparedBehavior]) -> _Split:
        train = min(self.train, len(items) // 3)
        development = min(self.development, len(items) // 3)
        first, second, rest = items[:train], items[train : train + development], items[train + development :]
        return _Split(tuple(first), tuple(second), tuple(rest))

    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, DirectionSearch]
    ) -> Iterator[Attempt]:
        """The direct request, of the behaviors that are left to report."""
        for state in states.values():
            chosen = state.tried[state.best] if state.best is not None else None
            if chosen is None:
                continue
            tests = [self._split(_of_kind(items, kind)).test for kind in (True, False)]
            reported = sum(map(len, tests)) or 1
            cost = search_cost(queries=state.queries / reported, forward_tokens=state.forward_tokens / reported)
            found = {**cost, "development_refused": chosen.refused, "development": chosen.of, "kl": round(chosen.kl, 6)}
            for item in (item for test in tests for item in test):
                parameters = {"layer": chosen.layer, "position": chosen.position}
                if self.train != type(self).train:  # made of other requests: another direction at the same place
                    parameters["train"] = self.train
                yield from setting.attempts(item, self.name, parameters=parameters, found=found)

    @contextmanager
    def applied(self, model: ChatModel, states: Mapping[str, DirectionSearch]) -> Iterator[None]:
        """The model without the direction that was found."""
        (state,) = states.values()
        with ablated(Scorer(model, None).plain, torch.tensor(state.direction)):
            yield


def _of_kind(items: Sequence[PreparedBehavior], harmful: bool) -> list[PreparedBehavior]:
    return [item for item in items if item.behavior.harmful is harmful]


@torch.inference_mode()
def _mean(model: ChatModel, items: Sequence[PreparedBehavior], layer: int, position: int) -> Float[Tensor, " width"]:
    """The mean residual stream after `layer` layers, at one of the prompt's last tokens, in double precision."""
    plain = Scorer(model, None).plain
    total: Tensor | None = None
    for item in items:
        ids = torch.tensor([item.prompt_ids], device=model.device)
        states = plain.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        at = states[layer][0, max(position, -len(item.prompt_ids))].cpu().double()
        total = at if total is None else total + at
    assert total is not None
    return (total / len(items)).float()


@torch.inference_mode()
def _next(model: ChatModel, item: PreparedBehavior) -> Float[Tensor, " vocabulary"]:
    return Scorer(model, None).own_logits(item.prompt_ids, 1)[0].cpu().double().log_softmax(-1)


def _kl(old: Tensor, new: Tensor) -> float:
    return float((old.exp() * (old - new).clamp(min=-1e9)).sum())
