"""Exact probabilities of a tree of continuations at many depths of an answer, from one cache and a few forwards.

Used by `recovery`, which states the quantity. A *node* is a depth and an inner prefix of the openings' `tree`. All
nodes of a level, at all depths of a group, go through the model's body in one forward over the cached answer: each sees
prompt and answer up to its depth, its ancestors, and itself, by a 4-D mask and position ids of its own. What a mask
must hide differs between architectures, so one node of every answer is compared with a plain forward; where they
differ, or the architecture takes no such mask, the answer is measured by plain forwards: slower, the same numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from fathom.depth.recovery import NEGLIGIBLE
from fathom.depth.tree import Level, OpeningTree
from fathom.model import ChatModel
from fathom.precision import doubled
from fathom.scoring import Logits, Scorer, log_normaliser

__all__ = ["Context", "TreeReader"]

NODES = 384  # nodes of a level in one forward, unless a single depth has more: bounds the mask and the wasted attention
TOLERANCE = 2e-3  # nats between tree and plain forward in float32
COARSE_TOLERANCE = 0.3  # in 16-bit dtypes, whose logits carry two to three digits


@runtime_checkable
class NodeReader(Protocol):
    def logprobs(self, level: Level, nodes: Int[Tensor, "nodes 2"]) -> Float64[Tensor, "nodes ids"]:
        """Log-probability of each of the level's ids after each node, a (depth place, prefix place) pair."""
        ...


@dataclass(frozen=True, eq=False)
class Context:
    """What the nodes stand on: prompt, answer, and the answer tokens before each depth place (ascending)."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    depths: tuple[int, ...]

    def before(self, place: int) -> tuple[int, ...]:
        return (*self.prompt_ids, *self.answer_ids[: self.depths[place]])


class _Unfit(Exception):  # noqa: N818 - a finding, not an error
    """The architecture does not take a tree."""


@dataclass(frozen=True, eq=False)
class TreeReader:
    """Reads masses of opening trees from one model; make one with `TreeReader.of`."""

    scorer: Scorer

    @classmethod
    def of(cls, model: ChatModel) -> "TreeReader":
        return cls(Scorer.of(model))

    @torch.inference_mode()
    def masses(self, context: Context, tree: OpeningTree) -> tuple[float, ...]:
        """Probability of the tree's openings after each depth."""
        if not context.depths or not tree.levels:
            return (0.0,) * len(context.depths)
        try:
            return self._tree_masses(context, tree)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever an unknown architecture makes of a tree, plain forwards serve
            return self.plain_masses(context, tree)

    @torch.inference_mode()
    def plain_masses(self, context: Context, tree: OpeningTree) -> tuple[float, ...]:
        """The same by one forward for each node: needs nothing but a causal model."""
        reader = _PlainNodes(self.scorer, context)
        places = torch.tensor([[place, 0] for place in range(len(context.depths))])
        root = _advance(tree.levels[0], _ones(len(places)), reader.logprobs(tree.levels[0], places), places)
        return _clipped(root.mass + _descend(tree.levels[1:], root.reach, reader))

    def _tree_masses(self, context: Context, tree: OpeningTree) -> tuple[float, ...]:
        if self.scorer.head is None:
            raise _Unfit
        cache = DynamicCache()
        ids = context.before(len(context.depths) - 1)
        hidden = self.scorer.hidden(
            torch.tensor([ids], device=self.scorer.model.device), past_key_values=cache, use_cache=True
        )[0]
        first = len(context.prompt_ids) - 1
        rows = hidden[torch.tensor([first + depth for depth in context.depths], device=hidden.device)]
        places = torch.tensor([[place, 0] for place in range(len(context.depths))])
        logprobs = _logprobs(self.scorer.head_logits(rows), tree.levels[0].ids)
        root = _advance(tree.levels[0], _ones(len(places)), logprobs, places)
        mass, latest = root.mass.clone(), None
        for group in _groups(root.reach):
            shifted = Context(context.prompt_ids, context.answer_ids, context.depths[group])
            reader = _TreeNodes(self.scorer, shifted, cache, len(ids))
            mass[group] += _descend(tree.levels[1:], root.reach[group], reader)
            reader.forget()
            latest = reader.latest or latest
        if latest is not None:
            self._check(latest)
        return _clipped(mass)

    def _check(self, latest: "_Reading") -> None:
        logits = self.scorer.next_logits(latest.ids)
        plain = _logprobs(logits, latest.next_ids)[0]
        tolerance = TOLERANCE if self.scorer.model.model.dtype in (torch.float32, torch.float64) else COARSE_TOLERANCE
        # Compared where it matters: what is improbable either way may differ.
        likely = (plain > -14) | (latest.logprobs > -14)
        if not bool(((plain - latest.logprobs).abs() <= tolerance)[likely].all()):
            raise _Unfit


class _Reading(NamedTuple):
    ids: tuple[int, ...]  # what was read, from the prompt's first id on
    next_ids: Int[Tensor, "ids"]
    logprobs: Float64[Tensor, "ids"]


class _Step(NamedTuple):
    mass: Float64[Tensor, "depths"]  # openings that end here
    reach: Float64[Tensor, "depths next"]  # probability of each prefix of the next level


def _advance(
    level: Level,
    reach: Float64[Tensor, "depths prefixes"],
    logprobs: Float64[Tensor, "nodes ids"],
    nodes: Int[Tensor, "nodes 2"],
) -> _Step:
    joint = torch.zeros(*reach.shape, len(level.ids), dtype=torch.float64)
    depth, prefix = nodes.unbind(1)
    joint[depth, prefix] = reach[depth, prefix, None] * logprobs.exp()
    return _Step((joint * level.opens).sum((1, 2)), joint[:, level.inner[:, 0], level.inner[:, 1]])


def _descend(
    levels: Sequence[Level], reach: Float64[Tensor, "depths prefixes"], reader: NodeReader
) -> Float64[Tensor, "depths"]:
    """Mass of the openings below the first level, without following negligible branches."""
    mass = torch.zeros(len(reach), dtype=torch.float64)
    for level in levels:
        nodes = (reach >= NEGLIGIBLE).nonzero()
        if not len(nodes):
            break
        step = _advance(level, reach, reader.logprobs(level, nodes), nodes)
        mass, reach = mass + step.mass, step.reach
    return mass


def _groups(reach: Float64[Tensor, "depths prefixes"]) -> Iterator[slice]:
    """Runs of depths whose first level fits one forward."""
    start, size = 0, 0
    for place, count in enumerate((reach >= NEGLIGIBLE).sum(1).tolist()):
        if size and size + count > NODES:
            yield slice(start, place)
            start, size = place, 0
        size += count
    yield slice(start, len(reach))


@dataclass(frozen=True, eq=False)
class _PlainNodes:
    """One forward for each node."""

    scorer: Scorer
    context: Context

    def logprobs(self, level: Level, nodes: Int[Tensor, "nodes 2"]) -> Float64[Tensor, "nodes ids"]:
        rows = [
            _logprobs(self.scorer.next_logits((*self.context.before(depth), *level.prefixes[prefix])), level.ids)
            for depth, prefix in nodes.tolist()
        ]
        return torch.cat(rows)


@dataclass(eq=False)
class _TreeNodes:
    """All nodes of a level in one forward, behind what the cache holds already; the cache grows until `forget`."""

    scorer: Scorer
    context: Context
    cache: DynamicCache
    answered: int  # tokens of prompt and answer in the cache
    latest: _Reading | None = None
    _positions: Int[Tensor, "tree"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    _sees: Bool[Tensor, "tree tree"] = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    _places: Int[Tensor, "depths prefixes"] | None = None  # of the level above, among the tree's tokens

    def logprobs(self, level: Level, nodes: Int[Tensor, "nodes 2"]) -> Float64[Tensor, "nodes ids"]:
        depth, prefix = nodes.unbind(1)
        head = self.scorer.head_logits  # the tokens' own rows alone reach the head
        before = torch.tensor([len(self.context.before(place)) for place in range(len(self.context.depths))])[depth]
        positions = before + len(level.prefixes[0]) - 1
        self._extend(level, nodes, positions)
        device = self.scorer.model.device
        hidden = self.scorer.hidden(
            level.last_ids()[prefix][None].to(device),
            attention_mask=self._masks(before, positions),
            position_ids=positions[None].to(device),
            past_key_values=self.cache,
            use_cache=True,
        )[0]
        found = _logprobs(head(hidden), level.ids)
        place, last = nodes[-1].tolist()
        self.latest = _Reading((*self.context.before(place), *level.prefixes[last]), level.ids, found[-1])
        return found

    def forget(self) -> None:
        """Take the tree out of the cache again."""
        if len(self._positions):
            self.cache.crop(-len(self._positions))

    def _extend(self, level: Level, nodes: Int[Tensor, "nodes 2"], positions: Int[Tensor, "nodes"]) -> None:
        """Note where the new nodes lie and which tree tokens each one sees: its parent's, and itself."""
        old, new = len(self._positions), len(nodes)
        depth, prefix = nodes.unbind(1)
        sees = torch.zeros(old + new, old + new, dtype=torch.bool)
        sees[:old, :old] = self._sees
        if self._places is not None:
            sees[old:, :old] = self._sees[self._places[depth, level.parents[prefix]]]
        sees[old:, old:] = torch.eye(new, dtype=torch.bool)
        self._places = torch.full((len(self.context.depths), len(level.prefixes)), -1)
        self._places[depth, prefix] = torch.arange(old, old + new)
        self._sees, self._positions = sees, torch.cat([self._positions, positions])

    def _masks(self, before: Int[Tensor, "nodes"], positions: Int[Tensor, "nodes"]) -> object:
        """The additive 4-D mask of each kind of attention that the configuration names."""
        answer = torch.arange(self.answered)
        seen = torch.cat([answer < before[:, None], self._sees[-len(before) :]], dim=1)
        keys = torch.cat([answer, self._positions])
        config = self.scorer.plain.config.get_text_config()
        kinds, window = _attention_kinds(config), getattr(config, "sliding_window", None) or len(keys)
        masks: dict[str, Tensor] = {}
        for kind in kinds:
            near = positions[:, None] - keys < window if kind == "sliding_attention" else torch.ones_like(seen)
            masks[kind] = self._additive(seen & near)
        return masks if len(masks) > 1 else masks[kinds[0]]

    def _additive(self, seen: Bool[Tensor, "nodes keys"]) -> Float[Tensor, "1 1 nodes keys"]:
        dtype = self.scorer.plain.dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        return mask[None, None].to(self.scorer.model.device)


def _attention_kinds(config: PreTrainedConfig) -> tuple[str, ...]:
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    if not kinds:
        kinds = ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise _Unfit
    return tuple(kinds)


def _logprobs(logits: Logits, ids: Int[Tensor, "ids"]) -> Float64[Tensor, "rows ids"]:
    columns = doubled(logits.columns(ids.to(logits.device)))
    return (columns - log_normaliser(logits)[:, None]).cpu()


def _ones(depths: int) -> Float64[Tensor, "depths 1"]:
    return torch.ones(depths, 1, dtype=torch.float64)


def _clipped(mass: Float64[Tensor, "depths"]) -> tuple[float, ...]:
    return tuple(mass.clamp_max(1.0).tolist())  # above 1 is rounding
