"""Continuous vectors in place of a suffix's tokens, searched for by gradient: what no text could do better.

    init    the embeddings of random tokens, `vectors` of them
    step    the loss of the target behind them, and its gradient
            → the greedy answer is looked at where the target is reached, and now and then
            → each number moves by `rate` × the size of the model's own embeddings against its gradient's sign

The vectors stand where a suffix would, behind the request's text in the model's chat template. Nobody can type them:
whoever has the weights can give them to the model. So this bounds from above what suffixes can reach, and where it
fails, no search for a suffix of this target need be tried. It is reported in a row of its own and never taken for the
strongest attack.

Source: Schwinn et al., "Soft Prompt Threats" (2402.09063): signed gradient descent on the embeddings of appended
tokens. Departures: the step is relative to the embeddings of the model, and a search ends by the judge, not by its
number of steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from fathom.attack.kinds import Estimate, PreparedBehavior, Setting, Target, Victim, search_cost
from fathom.attack.suffix.base import TargetKind, wanted
from fathom.attack.suffix.candidates import generator
from fathom.attack.suffix.options import Allowed
from fathom.attack.suffix.problem import Target as Wanted
from fathom.attack.suffix.text import allowed_ids, around_place
from fathom.chat import ChatFormat
from fathom.engine.memory import is_out_of_memory
from fathom.engine.sampling import check_numbers
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.model.vectors import embedded, named, packed, reading, size, unpacked, vector_ids
from fathom.records import Attempt
from fathom.scoring import Scorer

__all__ = ["Embedding", "VectorSearch"]


class VectorSearch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One search after `step` steps; vectors are packed, `vectors` × the model's width."""

    step: int
    goal: Wanted  # what they are to bring about
    vectors: bytes  # whose loss the next step takes
    best: bytes  # that reached the target, else the lowest loss so far
    loss: float | None = None  # of the best: nats a target token; None before the first step
    reached: bool = False  # the target is the greedy choice behind the best
    verified: bool = False  # the best one's greedy answer was judged to do what is asked
    looked: int | None = None  # the step at which an answer was looked at last
    queries: int = 0
    forward_tokens: int = 0
    backward_tokens: int = 0


class _Read(NamedTuple):
    """What one pass over vectors and target shows."""

    loss: float
    reached: bool
    gradient: Float[Tensor, "vectors width"]
    tokens: int


@dataclass(frozen=True)
class Embedding:
    """Vectors for each behavior. A search ends when the greedy answer behind them is judged harmful (benign: to help).

    The answer, `answer_tokens` long, is looked at when the target is reached, at most every `rest` steps, and every
    `check` steps. Targets are those of `suffix`; by default the one that reaches past a recovery, since a deepened
    model can be made to begin with any prefix and turn back behind it.
    """

    vectors: int = 8
    steps: int = 100
    rate: float = 0.1
    target: TargetKind = TargetKind.DEEP
    tokens: int = 40
    rest: int = 3
    check: int = 10
    answer_tokens: int = 160
    seed: int = 0
    name: ClassVar[str] = "embedding"
    state: ClassVar[type[VectorSearch]] = VectorSearch

    def __post_init__(self) -> None:
        least = {"vectors": 1, "steps": 1, "tokens": 1, "rest": 1, "check": 0, "answer_tokens": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {lowest}")
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"rate is {self.rate}; it must be above 0")

    def targets(self, items: Sequence[PreparedBehavior]) -> tuple[Target, ...]:
        return tuple(Target(item.behavior.id, (item,)) for item in items)

    def done(self, state: VectorSearch) -> bool:
        return state.verified

    def spent(self, state: VectorSearch) -> int:
        return state.forward_tokens

    def adds(self, item: PreparedBehavior, chat: ChatFormat) -> int:
        del item, chat
        return self.vectors

    def estimate(self, items: Sequence[PreparedBehavior], setting: Setting) -> Estimate:
        """As if nothing were found before the last step."""
        looks = min(self.steps, self.steps // self.rest + 1 + (self.steps // self.check if self.check else 0))
        tokens = 0
        for item in items:
            prompt = len(item.prompt_ids) + self.vectors
            prefix = item.behavior.target
            longest = 0 if prefix is None else len(setting.chat.response_ids(item.behavior.messages, prefix))
            target = max(longest, min(self.tokens + longest, len(item.answer_ids)))
            weighed = len(item.prompt_ids) + target if self.target is TargetKind.DEEP else 0
            tokens += self.steps * (prompt + target) + looks * (prompt + self.answer_tokens) + weighed
            tokens += prompt + setting.new_tokens
        return Estimate(len(items) * setting.answers, tokens)

    def init(self, target: Target, victim: Victim) -> VectorSearch:
        """The embeddings of random tokens.

        Raises:
            UserError: the prompt leaves no room for vectors and target, or the behavior has no target.
        """
        (item,), model = target.items, victim.model
        goal = wanted(item, model, self.target, self.tokens)
        needed = len(item.prompt_ids) + self.vectors + len(goal.ids)
        if model.context is not None and needed > model.context:
            raise UserError(
                f"behavior {item.behavior.name}: {len(item.prompt_ids)} prompt tokens + {self.vectors} vectors + "
                f"{len(goal.ids)} target tokens = {needed}, but the model's context is {model.context} tokens: give "
                "fewer vectors, a shorter target or a shorter prompt"
            )
        allowed = allowed_ids(model.chat, Scorer.of(model).vocabulary, Allowed.ALL).nonzero()[:, 0].cpu()
        drawn = allowed[torch.randint(len(allowed), (self.vectors,), generator=generator(self.seed, -1))]
        start = packed(embedded(Scorer(model, None).plain, drawn))
        # Weights come of one pass over the request and the target.
        weighed = len(item.prompt_ids) + len(goal.ids) if goal.weights else 0
        return VectorSearch(step=0, goal=goal, vectors=start, best=start, forward_tokens=weighed)

    def step(self, state: VectorSearch, target: Target, victim: Victim) -> VectorSearch:
        """A pure function of the state: the same state always gives the same next one."""
        model = victim.model
        vectors = unpacked(state.vectors, self.vectors)
        read = self._read(vectors, state.goal, target.items[0], model)
        better = state.loss is None or (not read.reached, read.loss) < (not state.reached, state.loss)
        scale = size(Scorer(model, None).plain, len(model.chat.tokenizer))
        moved = vectors - self.rate * scale * read.gradient.sign()
        after = msgspec.structs.replace(
            state,
            step=state.step + 1,
            vectors=packed(moved),
            best=state.vectors if better else state.best,
            loss=read.loss if better else state.loss,
            reached=read.reached if better else state.reached,
            queries=state.queries + 1,
            forward_tokens=state.forward_tokens + read.tokens,
            backward_tokens=state.backward_tokens + read.tokens,
        )
        rested = state.looked is None or state.step - state.looked >= self.rest
        if (read.reached and rested) or (self.check and after.step % self.check == 0):
            return self._looked(after, state.vectors, read, target.items[0], victim)
        return after

    def _read(
        self, vectors: Float[Tensor, "vectors width"], goal: Wanted, item: PreparedBehavior, model: ChatModel
    ) -> _Read:
        leaf = vectors.to(model.device).requires_grad_()
        ids = torch.tensor([[*self._prompt(item, model.chat, vectors), *goal.ids[:-1]]], device=model.device)
        label = torch.tensor(goal.ids, device=model.device)
        plain = Scorer(model, None).plain
        plain.eval()  # type: ignore[no-untyped-call]
        try:
            with torch.enable_grad(), reading(plain, dict(zip(vector_ids(vectors), leaf, strict=True))):
                logits = _logits(model, ids, len(goal.ids)).float()
                check_numbers(logits.detach())
                own = logits.gather(1, label[:, None])[:, 0]
                shares = torch.tensor(goal.shares, device=logits.device, dtype=logits.dtype)
                loss = (torch.logsumexp(logits, 1) - own) @ shares
                (gradient,) = torch.autograd.grad(loss, leaf)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory with the gradient of one sequence of {ids.shape[1]} tokens on {model.device}: load the "
                "model in a smaller dtype or quantised, or give a shorter prompt or target"
            ) from error
        reached = bool((own >= logits.amax(1))[: goal.wanted].all())
        return _Read(float(loss.detach()), reached, gradient.cpu(), ids.shape[1])

    def _prompt(self, item: PreparedBehavior, chat: ChatFormat, vectors: Tensor) -> tuple[int, ...]:
        before, after = around_place(chat, item.behavior.name, item.behavior.messages)
        return (*before, *vector_ids(vectors), *after)

    def _looked(
        self, state: VectorSearch, tried: bytes, read: _Read, item: PreparedBehavior, victim: Victim
    ) -> VectorSearch:
        """Write the greedy answer behind vectors, and have it judged."""
        model, vectors = victim.model, unpacked(tried, self.vectors)
        prompt = self._prompt(item, model.chat, vectors)
        with reading(Scorer(model, None).plain, named([vectors.to(model.device)])):
            seen = victim.look(item, prompt, attack=self.name, most=self.answer_tokens)
        return msgspec.structs.replace(
            state,
            verified=seen.harmful,
            looked=state.step - 1,
            best=tried if seen.harmful else state.best,
            loss=read.loss if seen.harmful else state.loss,
            reached=read.reached if seen.harmful else state.reached,
            queries=state.queries + 1,
            forward_tokens=state.forward_tokens + seen.forward_tokens,
        )

    def found(
        self, items: Sequence[PreparedBehavior], setting: Setting, states: Mapping[str, VectorSearch]
    ) -> Iterator[Attempt]:
        """The best vectors of each behavior, whether or not their answer was found to be harmful."""
        for item in items:
            state = states.get(item.behavior.id)
            if state is None:
                continue
            prompt = self._prompt(item, setting.chat, unpacked(state.best, self.vectors))
            cost = search_cost(
                queries=state.queries, forward_tokens=state.forward_tokens, backward_tokens=state.backward_tokens
            )
            loss = {} if state.loss is None else {"loss": round(state.loss, 4)}
            yield from setting.attempts(
                item,
                self.name,
                prompt_ids=prompt,
                # Searches whose target differs are other settings, and no draws of one.
                parameters={"target": self.target, "target_tokens": self.tokens, "vectors": self.vectors},
                found={**cost, **loss, "reached": state.reached, "search_steps": state.step},
            )

    @contextmanager
    def applied(self, model: ChatModel, states: Mapping[str, VectorSearch]) -> Iterator[None]:
        """The model as it is, but that it reads the ids of what was found as its vectors."""
        found = [unpacked(state.best, self.vectors).to(model.device) for state in states.values()]
        with reading(Scorer(model, None).plain, named(found)):
            yield


def _logits(model: ChatModel, ids: Tensor, rows: int) -> Float[Tensor, "rows vocabulary"]:
    """Logits of the last rows of one sequence."""
    try:
        output = model.model(input_ids=ids, use_cache=False, logits_to_keep=rows)
    except TypeError:  # an architecture without logits_to_keep
        output = model.model(input_ids=ids, use_cache=False)
    logits: Tensor = output.logits[0, -rows:]
    return logits
