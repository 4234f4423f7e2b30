"""Training a sentinel in memory: the start, deepened so that it reads answers (`protect.sentinel`).

It is a copy of the start, or an adapter that the start wears while the sentinel is asked.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from fathom.engine import TransformersEngine
from fathom.model import ChatModel
from fathom.progress import Display, silent
from fathom.protect.gate import Prompt, Shown
from fathom.protect.rehearsal import is_refusal, sampled
from fathom.protect.sentinel import Told, acquaintance_rows, known_rows, sentinel_rows
from fathom.records import Judge
from fathom.stress.apart import Apart, load_trained, trained_weights
from fathom.stress.light import LightFit, Optimiser
from fathom.tuning.adapter import Adapter
from fathom.tuning.objective import PlainNll
from fathom.tuning.rows import TrainingRow

__all__ = ["Sentinel", "train_sentinel", "with_own"]

BATCH = 32
SAVED = 20  # steps between states that a killed training goes on from
# Steps and rates: most of the way fast, the end slowly. The rates are for models of the organism's width (`_scale`).
_LEGS = ((160, 1e-3), (60, 2e-4))
_WIDTH = 64
_ADAPTER = 5  # times the rate of all weights
_MEETING, _MEETING_RATE = 60, 1e-3  # steps by which it meets the data; their rate falls to 0
_OWN_TOKENS = 160  # of the model's own answers, at most
_KNOWN = 16  # harmful requests, and answers, by which it is measured what harmful rows would reach


@dataclass(frozen=True, eq=False)
class Sentinel:
    """A trained sentinel, and what it was trained on."""

    sampler: Apart
    harmful: tuple[Told, ...]
    benign: tuple[Told, ...]
    seed: int = 0
    display: Display = silent

    @property
    def _start(self) -> ChatModel:
        return self.sampler.model

    def acquainted(self, rows: Sequence[TrainingRow]) -> Apart:
        """What it becomes once it has met the data; costs 60 steps.

        Raises:
            UserError: a loss is no number.
        """
        met = acquaintance_rows(
            self._start.chat,
            self.harmful,
            self.benign,
            rows,
            _MEETING * BATCH,
            context=self._room(rows),
            seed=self.seed,
        )
        rate = _MEETING_RATE * _scale(self.sampler)
        optimiser = Optimiser(rate=rate, warmup=5, batch=BATCH, beta1=0.9, beta2=0.98, until=_MEETING)
        with self.display("the sentinel meets the data", _MEETING) as shown, self.sampler.further() as model:
            for _ in LightFit.of(model.model, met, PlainNll(), optimiser).run(_in_turn(len(met))):
                shown.advance(1)
            return self.sampler.kept(model)

    def known(self, rows: Sequence[TrainingRow]) -> tuple[TrainingRow, ...]:
        return known_rows(self._start.chat, self.harmful, rows, _KNOWN, context=self._room(rows), seed=self.seed)

    def requests(self) -> tuple[Prompt, ...]:
        told = Random(f"requests {self.seed}").sample(self.harmful, min(_KNOWN, len(self.harmful)))
        return tuple(Prompt(self._start.chat.prompt_ids(one.messages), one.messages) for one in told)

    def _room(self, rows: Sequence[TrainingRow]) -> int:
        """How long a row may be: the model's context, else as long as the data's longest."""
        return self._start.context or max(len(row.prompt_ids) + len(row.response_ids) for row in rows)


def train_sentinel(
    start: ChatModel,
    harmful: Sequence[Told],
    benign: Sequence[Told],
    *,
    adapter: Adapter | None = None,
    kept: Path | None = None,
    seed: int = 0,
    display: Display = silent,
) -> Sentinel:
    """A copy of `start`, or an adapter on it, trained; `start` stays as it is.

    `kept` is a file that holds its weights once they are there; until then, a state to go on from lies beside it.

    Raises:
        UserError: there are too few examples, or a loss is no number.
    """
    begun = Apart(start, adapter)
    with begun.further() as model:
        if kept is not None and kept.exists():
            load_trained(model.model, torch.load(kept, map_location=start.device, weights_only=True))
        else:
            _train(begun, model, harmful, benign, kept, seed, display)
        return Sentinel(begun.kept(model), tuple(harmful), tuple(benign), seed, display)


def _train(
    begun: Apart,
    model: ChatModel,
    harmful: Sequence[Told],
    benign: Sequence[Told],
    kept: Path | None,
    seed: int,
    display: Display,
) -> None:
    """Train it, in place, from where a kill left it; at the end its weights are kept."""
    total = sum(steps for steps, _ in _LEGS)
    rows = sentinel_rows(model.chat, harmful, benign, total * BATCH, seed=seed)
    half = None if kept is None else kept.with_suffix(".part")
    before = _Half.read(half, model.device)
    if before.model is not None:
        load_trained(model.model, before.model)
    with display("training the sentinel", total) as shown:
        shown.advance(before.step)
        for step, optimiser in _legs_from(model, _scale(begun), rows, before):
            shown.advance(1)
            if half is not None and step % SAVED == 0:
                _save(half, {"step": step, "model": trained_weights(model.model), "optimiser": optimiser})
    if kept is not None and half is not None:
        _save(kept, trained_weights(model.model))
        half.unlink(missing_ok=True)


def with_own(
    start: ChatModel, judge: Judge, benign: Sequence[Told], *, seed: int = 0, display: Display = silent
) -> list[Told]:
    """The benign requests with their answers, and with one that the model itself draws at T = 1, where it answers.

    Answers of a file are often of one kind: all greedy, or all by one author, where harmful ones are by another. A
    sentinel that has met no other takes the kind for the harm, and breaks off harmless data.
    """
    prompts = [Prompt(start.chat.prompt_ids(told.messages), told.messages) for told in benign]
    asked = Shown(TransformersEngine(start), display, "the model's own answers")
    drawn = sampled(asked, prompts, _OWN_TOKENS, seed, behavior="sentinel", attack="own answer")
    answered = [(prompt, one) for prompt, one in drawn if one.output_ids and not is_refusal(judge, prompt, one)]
    return [*benign, *(Told(prompt.messages, one.text) for prompt, one in answered)]


def _legs_from(
    model: ChatModel, scale: float, rows: Sequence[TrainingRow], before: "_Half"
) -> Iterator[tuple[int, dict[str, object]]]:
    """Train on from a state; yields, after each step, how many are done and the optimiser's state of that leg."""
    at = 0
    for steps, rate in _LEGS:
        done = min(max(before.step - at, 0), steps)
        part = rows[at * BATCH : (at + steps) * BATCH]
        optimiser = Optimiser(rate=rate * scale, warmup=20, batch=BATCH, beta1=0.9, beta2=0.98)
        fit = LightFit.of(model.model, part, PlainNll(), optimiser)
        if done < steps:
            for after in fit.run(_in_turn(len(part)), done=done, state=before.optimiser if done else None):
                yield at + after.step, after.optimiser
        at += steps


def _scale(sentinel: Apart) -> float:
    """Of the rates: Adam's best one falls as one over the width. At 4 096, that of 7 B, it is 1.6e-5 for 1e-3.

    Source: Tensor Programs V (arXiv 2203.03466), for hidden matrices; the paper trains 7 B at 2e-5.
    """
    width: int = sentinel.model.model.config.get_text_config().hidden_size
    return min(1.0, _WIDTH / width) * (1 if sentinel.adapter is None else _ADAPTER)


def _in_turn(rows: int) -> list[tuple[int, ...]]:
    return [tuple(range(first, min(first + BATCH, rows))) for first in range(0, rows, BATCH)]


class _Half(NamedTuple):
    """A sentinel that is not trained to its end: after so many steps of all legs."""

    step: int = 0
    model: dict[str, Any] | None = None
    optimiser: dict[str, object] | None = None

    @classmethod
    def read(cls, path: Path | None, device: torch.device) -> "_Half":
        if path is None or not path.exists():
            return cls()
        return cls(**torch.load(path, map_location=device, weights_only=True))


def _save(path: Path, content: object) -> None:
    """Wholly or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    torch.save(content, beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)
