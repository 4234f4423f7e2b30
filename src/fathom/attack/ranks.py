"""Rank-Assisted Prefilling: an answer put together from tokens that the model itself ranks among its best k.

A model that was taught to refuse at every depth still ranks the words of an answer right behind those of a refusal. An
attacker who sees ranks takes them. Two guides say which:

    ReferenceRanks   a reference answer: its token where that is among the best k, else the model's own best
    JudgedRanks      the judge: the model writes; where its refusal begins, or where it ends without having answered,
                     the other k - 1 best tokens are each followed a little way, and the one after which it keeps on
                     longest is taken

Both are `init` and `step` over a frozen state. Every token of what they find is among the model's best k, so the whole
text is the attack's outcome: verdicts on "all" tell how often it succeeds, those on "continuation" only what the model
adds. With a reference as the guide, though, the attacker knew the answer before: it shows what the ranks hold, and not
what somebody without it could get.

Source: arXiv 2512.05518, whose attacker chooses by hand or by another model among the top 20; k = 20 here as there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import torch
from torch import Tensor

from fathom.attack.kinds import Draw, Estimate, PreparedBehavior, Setting, Target, Victim, search_cost, shared_key
from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.records import Attempt, Completion, Exchange, Finish, Label, Sampling
from fathom.scoring import Scorer

__all__ = ["JudgedRanks", "RankWalk", "RankWalks", "ReferenceRanks"]

TOGETHER = 16  # behaviors a target: their continuations run as one batch


class RankWalk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One behavior's text so far, and what it took.

    `guided` counts tokens that the guide chose against the model's best one, `worst_rank` is the lowest rank taken
    (1 = the model's best), `misses` counts reference tokens that were beyond the best k.
    """

    behavior: str
    ids: tuple[int, ...] = ()
    guided: int = 0
    misses: int = 0
    worst_rank: int = 1
    ended: bool = False
    queries: int = 0
    forward_tokens: int = 0


class RankWalks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The texts of a target's behaviors."""

    walks: tuple[RankWalk, ...]


@dataclass(frozen=True)
class _Ranks:
    """What both guides have in common: k ranks, and at most `tokens` tokens."""

    top: int = 20
    tokens: int = 256
    state: ClassVar[type[RankWalks]] = RankWalks

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top is {self.top}; at least the best token must be allowed")
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}; at least 1 must be chosen")

    @property
    def steps(self) -> int:
        return self.tokens

    def init(self, target: Target, victim: Victim) -> RankWalks:
        del victim
        return RankWalks(walks=tuple(RankWalk(behavior=item.behavior.id) for item in target.items))

    def done(self, state: RankWalks) -> bool:
        return all(walk.ended for walk in state.walks)

    def spent(self, state: RankWalks) -> int:
        return sum(walk.forward_tokens for walk in state.walks)

    def adds(self, item: PreparedBehavior, chat: ChatFormat) -> int:
        del item, chat
        return self.tokens

    def _estimate(self, items: Sequence[PreparedBehavior], setting: Setting, tokens: int) -> Estimate:
        prompts = sum(len(item.prompt_ids) for item in items)
        each = self.tokens + setting.new_tokens
        return Estimate(len(items) * setting.answers, prompts + len(items) * each + tokens)

    def _targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        parts = [tuple(items[start : start + TOGETHER]) for start in range(0, len(items), TOGETHER)]
        return tuple(Target(shared_key(part), part) for part in parts)

    def _found(
        self, name: str, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, RankWalks]
    ) -> Iterator[Attempt]:
        walks = {walk.behavior: walk for state in states.values() for walk in state.walks}
        for item in items:
            walk = walks.get(item.behavior.id)
            if walk is None or not walk.ids:
                continue
            cost = search_cost(queries=walk.queries, forward_tokens=walk.forward_tokens)
            how = {"guided": walk.guided, "misses": walk.misses, "worst_rank": walk.worst_rank}
            yield from setting.attempts(
                item, name, prefill_ids=walk.ids, parameters={"top": self.top}, found={**cost, **how}
            )


@dataclass(frozen=True)
class ReferenceRanks(_Ranks):
    """The reference's token wherever the model ranks it among its best `top`, else the model's own best.

    Its own best is the best that begins none of the refusals that come with the behaviors.
    """

    name: ClassVar[str] = "reference-ranks"

    def targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        """Raises `UserError` where no behavior has a reference answer."""
        guided = [item for item in items if item.deepest]
        if not guided:
            raise UserError(
                "reference-ranks needs behaviors with a reference answer, and there is none: add harmful_response, or "
                "use judged-ranks"
            )
        return self._targets(guided)

    def adds(self, item: PreparedBehavior, chat: ChatFormat) -> int:
        return min(super().adds(item, chat), item.deepest)

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """As if every reference token were missed, one in a pass over all of them."""
        guided = [(item, min(self.tokens, item.deepest)) for item in items if item.deepest]
        each = [wanted * (len(item.prompt_ids) + wanted) for item, wanted in guided]
        return self._estimate([item for item, _ in guided], setting, sum(each))

    def step(self, state: RankWalks, target: Target, victim: Victim) -> RankWalks:
        """Each text goes on to its next miss, from one forward pass."""
        items = {item.behavior.id: item for item in target.items}
        barred = _refusal_starts(target.items, victim.model)
        return RankWalks(
            walks=tuple(
                walk if walk.ended else self._walk(walk, items[walk.behavior], victim.model, barred)
                for walk in state.walks
            )
        )

    def _walk(self, walk: RankWalk, item: PreparedBehavior, model: ChatModel, barred: frozenset[int]) -> RankWalk:
        wanted = item.answer_ids[: min(self.tokens, item.deepest)]
        rest = wanted[len(walk.ids) :]
        logits = _logits(model, (*item.prompt_ids, *walk.ids, *rest[:-1]), len(rest))
        ranks = _ranks(logits, rest)
        taken = next((i for i, rank in enumerate(ranks) if rank > self.top), len(rest))
        ids, misses = (*walk.ids, *rest[:taken]), walk.misses
        if taken < len(rest):
            own = _best(logits[taken], model, self.top)
            ids, misses = (*ids, next((token for token in own if token not in barred), own[0])), misses + 1
        return RankWalk(
            behavior=walk.behavior,
            ids=ids,
            guided=walk.guided + sum(rank > 1 for rank in ranks[:taken]),
            misses=misses,
            worst_rank=max(walk.worst_rank, *ranks[:taken], 1),
            ended=len(ids) >= len(wanted),
            queries=walk.queries + 1,
            forward_tokens=walk.forward_tokens + len(item.prompt_ids) + len(walk.ids) + len(rest),
        )

    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, RankWalks]
    ) -> Iterator[Attempt]:
        yield from self._found(self.name, items, setting, states)


@dataclass(frozen=True)
class _Opened:
    """A continuation as the judge reads it: how many of its tokens come before it turns away (None: it does not).

    It turns where a refusal begins. One that ends without the answer being given has turned somewhere: at its start,
    for all that is known.
    """

    ids: tuple[int, ...]
    turn: int | None
    stopped: bool

    @property
    def late(self) -> int:
        return len(self.ids) + 1 if self.turn is None else self.turn


@dataclass(frozen=True)
class JudgedRanks(_Ranks):
    """The model's own words, turned away from each refusal by a token among its best `top`; no reference is needed.

    `lookahead` tokens are written after each candidate for the judge to see whether a refusal has begun.
    """

    lookahead: int = 24
    name: ClassVar[str] = "judged-ranks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 2:
            raise ValueError("top is 1; judged-ranks chooses among the others, so it needs 2 or more")
        if self.lookahead < 2:
            raise ValueError(f"lookahead is {self.lookahead}; a refusal cannot be told from fewer than 2 tokens")

    def targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        return self._targets(items)

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """As if the model refused after every token."""
        written = self.lookahead + (self.top - 1) * (1 + self.lookahead)
        # A step reads what is there twice: before the model goes on, and before the others are tried.
        each = [self.tokens * (2 * len(item.prompt_ids) + self.tokens + written) for item in items]
        return self._estimate(items, setting, sum(each))

    def step(self, state: RankWalks, target: Target, victim: Victim) -> RankWalks:
        """Each text goes on with what the model writes before it turns; where it turns at once, with a choice."""
        items = {item.behavior.id: item for item in target.items}
        live = [walk for walk in state.walks if not walk.ended]
        plain = self._continue([(items[w.behavior], w.ids) for w in live], victim)
        at_once = [walk for walk, opened in zip(live, plain, strict=True) if opened.turn == 0]
        choices = iter(self._choose([(items[walk.behavior], walk) for walk in at_once], victim))
        moved = {}
        for walk, opened in zip(live, plain, strict=True):
            item = items[walk.behavior]
            asked = len(item.prompt_ids) + len(walk.ids) + len(opened.ids)
            spent = msgspec.structs.replace(walk, queries=walk.queries + 1, forward_tokens=walk.forward_tokens + asked)
            moved[walk.behavior] = next(choices)(spent) if opened.turn == 0 else self._taken(spent, opened)
        return RankWalks(walks=tuple(moved.get(walk.behavior, walk) for walk in state.walks))

    def _taken(self, walk: RankWalk, opened: _Opened) -> RankWalk:
        """The model's own words up to its refusal."""
        ids = (*walk.ids, *opened.ids[: opened.late])[: self.tokens]
        ended = len(ids) >= self.tokens or (opened.turn is None and opened.stopped)
        return msgspec.structs.replace(walk, ids=ids, ended=ended)

    def _choose(self, walks: Sequence[tuple[PreparedBehavior, RankWalk]], victim: Victim) -> "list[_Choice]":
        """For each text the candidate after which the turn comes latest; of equals the model's better one.

        The model's best token is none of them: it has been followed, and turned.
        """
        ranked = [
            _best(_logits(victim.model, (*item.prompt_ids, *walk.ids), 1)[0], victim.model, self.top)[1:]
            for item, walk in walks
        ]
        tried = [
            (item, (*walk.ids, token)) for (item, walk), tokens in zip(walks, ranked, strict=True) for token in tokens
        ]
        opened = iter(self._continue(tried, victim, given=1))
        chosen = []
        for (item, walk), tokens in zip(walks, ranked, strict=True):
            ways = [next(opened) for _ in tokens]
            best = max(range(len(ways)), key=lambda i: (ways[i].late, -i))
            cost = len(item.prompt_ids) + len(walk.ids) + sum(len(way.ids) for way in ways)
            chosen.append(_Choice(ways[best], best + 2, len(ways) + 1, cost, self.tokens))
        return chosen

    def _continue(
        self, texts: Sequence[tuple[PreparedBehavior, tuple[int, ...]]], victim: Victim, given: int = 0
    ) -> list[_Opened]:
        """What the model writes after each text, judged together with the text's last `given` tokens."""
        setting = Setting(victim.model.chat, (Draw(Sampling(max_new_tokens=self.lookahead)),), victim.seed)
        asked = [next(setting.attempts(item, self.name, prefill_ids=ids)) for item, ids in texts]
        distinct = {attempt.id: attempt for attempt in asked}
        done = {one.attempt: one for one in victim.engine.complete(list(distinct.values()))}
        return [
            _opened(item, ids, given, done[attempt.id], victim)
            for (item, ids), attempt in zip(texts, asked, strict=True)
        ]

    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, RankWalks]
    ) -> Iterator[Attempt]:
        yield from self._found(self.name, items, setting, states)


@dataclass(frozen=True)
class _Choice:
    """A candidate and its continuation, chosen for one text."""

    opened: _Opened
    rank: int
    queries: int
    forward_tokens: int
    tokens: int

    def __call__(self, walk: RankWalk) -> RankWalk:
        """At least the candidate itself; behind it what the model wrote before it refused."""
        ids = (*walk.ids, *self.opened.ids[: max(1, self.opened.late)])[: self.tokens]
        return msgspec.structs.replace(
            walk,
            ids=ids,
            guided=walk.guided + (self.rank > 1),
            worst_rank=max(walk.worst_rank, self.rank),
            ended=len(ids) >= self.tokens or (self.opened.turn is None and self.opened.stopped),
            queries=walk.queries + self.queries,
            forward_tokens=walk.forward_tokens + self.forward_tokens,
        )


def _opened(item: PreparedBehavior, ids: tuple[int, ...], given: int, done: Completion, victim: Victim) -> _Opened:
    before, written = ids[: len(ids) - given], (*ids[len(ids) - given :], *done.output_ids)
    text = victim.model.chat.continuation(before, written)
    exchange = Exchange(behavior=item.behavior, prefill=text.prefill_text, response=text.text, finish=done.finish)
    judgement = victim.judge.judge(exchange)
    stopped = done.finish is Finish.STOP
    if judgement.label is Label.SAFE and judgement.refusal_char is not None:
        turn = next((i for i, end in enumerate(text.token_ends) if end > judgement.refusal_char), len(written))
        return _Opened(written, turn, stopped)
    if stopped:
        whole = victim.model.chat.continuation((), (*before, *written)).text
        answered = victim.judge.judge(msgspec.structs.replace(exchange, prefill="", response=whole)).label
        if answered is not Label.HARMFUL:
            return _Opened(written, given, stopped)
    return _Opened(written, None, stopped)


def _logits(model: ChatModel, ids: Sequence[int], rows: int) -> Tensor:
    with torch.inference_mode():
        return Scorer(model, None).own_logits(ids, rows).float()


def _refusal_starts(items: Sequence[PreparedBehavior], model: ChatModel) -> frozenset[int]:
    texts = [(item.messages, item.behavior.refusal) for item in items if item.behavior.refusal is not None]
    return frozenset(id_ for messages, text in texts for id_ in model.chat.response_ids(messages, text)[:1])


def _ranks(logits: Tensor, tokens: Sequence[int]) -> list[int]:
    """The rank of each row's token; 1 is the best."""
    own = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    return [int(rank) for rank in (logits > own).sum(dim=1) + 1]


def _best(logits: Tensor, model: ChatModel, top: int) -> list[int]:
    """The ids of the best `top` tokens that are words, best first: nothing that ends the turn, nothing unseen."""
    barred = model.chat.stop_ids | model.chat.special_ids
    order = logits.topk(min(len(logits), top + len(barred))).indices.tolist()
    return [token for token in order if token not in barred][:top]
