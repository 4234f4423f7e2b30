"""The fast way: each trunk is computed once, and all rows of a wave then advance together, one token per forward pass.

Rows that have written the very same so far share a lane: one place in the cache, one row of each product, one sorting
of logits, from which each row draws with its own noise. A lane splits where its rows draw differently, so a wave of
many samples of one prompt is the trie of what they write. A row whose ids leave the trunk before their end is given the
rest of them token by token. Rows that finish leave at once and the last lanes take their places, so that the products
stay dense. `obstacle` says beforehand, by trying, whether an architecture can be run like this.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from fathom.engine.attention import NAME, Plan, Segment, StepPlan, TrunkCache, TrunkPlan
from fathom.engine.memory import is_out_of_memory
from fathom.engine.rows import Group, Row
from fathom.engine.sampling import check_numbers, choose
from fathom.precision import doubled
from fathom.records import Sampling

__all__ = ["SharedDecoder", "obstacle", "shared_attention"]

_PACKED_CPU, _PACKED = 1024, 8192  # trunk tokens per forward pass: enough for wide products, little to hold at once

# Largest |difference| / standard deviation of logits between the two ways that rounding explains; a wrong mask or
# position is some 0.1 and more.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True, eq=False)
class SharedDecoder:
    """Completes waves of groups with one model."""

    model: PreTrainedModel
    stop_ids: frozenset[int]

    def run(self, wave: Sequence[Group]) -> Iterator[Row]:
        """Complete every row of a wave in place and yield each as soon as it has finished."""
        state = _Wave(self.model, wave)
        logits = state.start()
        while True:
            writing = [(place, row) for place, lane in enumerate(state.lanes) for row in lane.rows if state.writes(row)]
            rows, places = [row for _, row in writing], [place for place, _ in writing]
            for row, token in zip(rows, choose(logits, rows, places) if rows else (), strict=True):
                row.accept(token, self.stop_ids)
            del logits
            yield from (row for row in rows if row.finish)
            state.branch()
            if not state.lanes:
                return
            logits = state.step([state.taken(lane.rows[0]) for lane in state.lanes])


@dataclass(frozen=True, eq=False, slots=True)
class _Lane:
    """Rows of one group that left its trunk after as many tokens, with the same tokens since."""

    group: int
    branch: int
    rows: list[Row]

    def branches(self, taken: Callable[[Row], int]) -> list["_Lane"]:
        """The rows that go on, parted by the token that they took last."""
        parted: dict[int, list[Row]] = {}
        for row in self.rows:
            if row.finish is None:
                parted.setdefault(taken(row), []).append(row)
        return [_Lane(self.group, self.branch, rows) for rows in parted.values()]


class _Wave:
    """The lanes that are being written, in the order in which they lie in the cache."""

    def __init__(self, model: PreTrainedModel, wave: Sequence[Group]) -> None:
        self.model = model
        self.device = model.device
        self.trunks = [group.trunk for group in wave]
        self.lanes = [lane for number, group in enumerate(wave) for lane in _lanes(number, group)]
        rows = [row for group in wave for row in group.rows]
        self.given = {row: row.ids[lane.branch :] for lane in self.lanes for row in lane.rows}  # behind the trunk
        self.cache = TrunkCache(
            groups=len(wave),
            trunk=max(len(trunk) for trunk in self.trunks),
            rows=len(rows),  # as many lanes as there can come to be
            new=max(len(self.given[row]) + row.sampling.max_new_tokens for row in rows) - 1,
        )
        self.plan: StepPlan | None = None
        self.steps = 0

    def writes(self, row: Row) -> bool:
        """Whether the row's next token is its own to choose, not one of its ids."""
        return self.steps >= len(self.given[row])

    def taken(self, row: Row) -> int:
        """The token that the row has taken at this step, or been given."""
        return row.output[-1] if self.writes(row) else self.given[row][self.steps]

    @torch.inference_mode()
    def start(self) -> Float[Tensor, "lanes vocabulary"]:
        """Compute the trunks; the logits are those after each lane's own ids."""
        wanted = [(lane.group, lane.branch - 1) for lane in self.lanes]
        distinct = {place: number for number, place in enumerate(sorted(set(wanted)))}
        limit = _PACKED_CPU if self.device.type == "cpu" else _PACKED
        parts = [self._trunk_logits(groups, list(distinct)) for groups in _packs([len(t) for t in self.trunks], limit)]
        return torch.cat(parts)[[distinct[place] for place in wanted]]

    def _trunk_logits(self, groups: range, wanted: Sequence[tuple[int, int]]) -> Tensor:
        """Run some trunks as one packed sequence; logits at the wanted (group, position) places among them."""
        segments: list[Segment] = []
        packed: list[int] = []
        for group in groups:
            segments.append(Segment(group, len(packed), len(packed) + len(self.trunks[group])))
            packed += self.trunks[group]
        start_of = {segment.group: segment.start for segment in segments}
        positions = torch.cat([torch.arange(stop - start) for _, start, stop in segments])
        kept = [start_of[group] + position for group, position in wanted if group in start_of]
        plan = TrunkPlan(self.cache, segments)
        return _forward(self.model, torch.tensor([packed]), positions[None], torch.tensor(kept), plan)[0]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Float[Tensor, "lanes vocabulary"]:
        """Append one token to every lane; the logits are those after it."""
        if self.plan is None:
            self.plan = self._plan()
        positions = torch.tensor([lane.branch for lane in self.lanes]) + self.steps
        logits = _forward(self.model, torch.tensor(tokens)[:, None], positions[:, None], 0, self.plan)[:, -1]
        self.plan.advance()
        self.steps += 1
        return logits

    @torch.inference_mode()
    def branch(self) -> None:
        """Split lanes whose rows took different tokens, take out those that have finished, and empty groups with them.

        The first branch of a lane stays where it is; the others, and the last lanes, fill the places that are free.
        """
        branches = [lane.branches(self.taken) for lane in self.lanes]
        if all(len(parts) == 1 for parts in branches):
            self.lanes = [parts[0] for parts in branches]
            return
        count = sum(map(len, branches))
        staying = {place: parts[0] for place, parts in enumerate(branches) if parts and place < count}
        moving = [
            (place, lane)
            for place, parts in enumerate(branches)
            for number, lane in enumerate(parts)
            if number or place >= count
        ]
        free = [place for place in range(count) if place not in staying]
        if moving and self.steps:
            self.cache.move_rows([source for source, _ in moving], free, self.steps)
        lanes = staying | {place: lane for place, (_, lane) in zip(free, moving, strict=True)}
        self.lanes = [lanes[place] for place in range(count)]
        self._drop_groups()
        self.plan = None

    def _drop_groups(self) -> None:
        alive = sorted({lane.group for lane in self.lanes})
        if 0 < len(alive) <= self.cache.groups // 2:
            self.cache.keep_groups(alive)
            renumbered = {old: new for new, old in enumerate(alive)}
            self.lanes = [_Lane(renumbered[lane.group], lane.branch, lane.rows) for lane in self.lanes]

    def _plan(self) -> StepPlan:
        places: list[int] = []
        filled = [0] * self.cache.groups
        for lane in self.lanes:
            places.append(filled[lane.group])
            filled[lane.group] += 1
        width = max(filled)
        slots = torch.tensor([lane.group * width + place for lane, place in zip(self.lanes, places, strict=True)])
        lengths = torch.tensor([lane.branch for lane in self.lanes])
        branch = torch.zeros(self.cache.groups * width, dtype=torch.long)
        branch[slots] = lengths
        return StepPlan(
            cache=self.cache,
            slots=slots.to(self.device),
            branch=branch.view(self.cache.groups, width).to(self.device),
            deepest=int(lengths.max()),
            step=self.steps,
        )


def _lanes(number: int, group: Group) -> list[_Lane]:
    """One lane for each place at which rows leave the trunk."""
    parted: dict[int, list[Row]] = {}
    for row in group.rows:
        parted.setdefault(group.branch(row), []).append(row)
    return [_Lane(number, branch, rows) for branch, rows in parted.items()]


def _packs(lengths: Sequence[int], limit: int) -> Iterator[range]:
    """Consecutive runs of at most `limit` tokens, one trunk at least."""
    start = total = 0
    for i, length in enumerate(lengths):
        if i > start and total + length > limit:
            yield range(start, i)
            start, total = i, 0
        total += length
    yield range(start, len(lengths))


def _forward(model: PreTrainedModel, ids: Tensor, positions: Tensor, keep: Tensor | int, plan: Plan) -> Tensor:
    device = model.device
    with shared_attention(model):
        return model(  # type: ignore[no-any-return]
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            logits_to_keep=keep.to(device) if isinstance(keep, Tensor) else keep,
            use_cache=False,
            fathom_plan=plan,
        ).logits


@contextmanager
def shared_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let every layer call our attention, for one forward pass: between two, the model is anyone's."""
    configs: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            configs[id(config)] = config
    own = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in own:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, name in own:
            config._attn_implementation_internal = name


def obstacle(model: PreTrainedModel, ids: Sequence[int], length: int) -> str | None:
    """Why trunks cannot be shared in this model, or None: the shared way is tried and compared with a plain forward.

    `ids` is any input, `length` the longest row that will be run. Out-of-memory errors pass through.
    """
    changing = _changing_positions(model, length)
    if changing:
        return changing
    probe = (tuple(ids) * -(-length // len(ids)))[: max(length, 2)]
    try:
        return _disagreement(model, probe)
    except Exception as error:  # whatever an architecture answers to an unusual call, it only means: not this way
        if is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines() or [type(error).__name__]
        return f"{type(model).__name__} cannot share them ({first[0][:200]})"


def _changing_positions(model: PreTrainedModel, length: int) -> str | None:
    """Rotary encodings that depend on the longest row of a batch would make rows depend on each other."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for kind in kinds:
        if kind.get("rope_type") in ("dynamic", "longrope"):
            limit = kind.get("original_max_position_embeddings") or config.max_position_embeddings
            if length > limit:
                return f"its rotary encoding ({kind['rope_type']}) changes beyond {limit} tokens"
    return None


@torch.inference_mode()
def _disagreement(model: PreTrainedModel, probe: tuple[int, ...]) -> str | None:
    """Two groups of unequal trunks, three rows, some forced steps, against one plain forward pass over the probe."""
    steps = min(4, len(probe) - 1)
    deep, middle = len(probe) - steps, max(1, (len(probe) - steps) // 2)
    groups = [Group(probe[:deep], (_probe_row(probe, deep, steps), _probe_row(probe, middle, steps)))]
    groups.append(Group(probe[:middle], (_probe_row(probe, middle, steps),)))
    wave = _Wave(model, groups)
    seen = [wave.start()]
    seen += [wave.step([probe[lane.branch + i] for lane in wave.lanes]) for i in range(steps)]
    places = [[lane.branch - 1 + i for lane in wave.lanes] for i in range(steps + 1)]
    distinct = sorted({place for step in places for place in step})
    device = model.device
    plain = model(
        input_ids=torch.tensor([probe], device=device),
        logits_to_keep=torch.tensor(distinct, device=device),
        use_cache=False,
    ).logits[0]
    check_numbers(plain)
    number = {place: i for i, place in enumerate(distinct)}
    expected = doubled(plain[[number[place] for step in places for place in step]])
    spread = expected.std(dim=-1).clamp(min=1e-9)
    worst = float(((doubled(torch.cat(seen)) - expected).abs().amax(dim=-1) / spread).max())
    tolerance = _TOLERANCE.get(model.dtype, 2e-1)
    if worst <= tolerance:  # a NaN of the shared way disagrees
        return None
    return f"sharing them changes {type(model).__name__}'s logits by {worst:.2g} standard deviations"


def _probe_row(probe: tuple[int, ...], length: int, steps: int) -> Row:
    return Row([], probe[:length], Sampling(max_new_tokens=steps + 1), None)
