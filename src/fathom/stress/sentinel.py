"""Training a sentinel in memory: a deepened copy of the start that reads answers (`protect.answers`)."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fathom.model import ChatModel
from fathom.progress import Display, silent
from fathom.protect.answers import Told, sentinel_rows
from fathom.stress.light import LightFit, Optimiser
from fathom.tuning.objective import PlainNll

__all__ = ["train_sentinel"]

BATCH = 32
# Steps and rates: most of the way fast, the end slowly. The rates are for models of the organism's size.
_LEGS = ((160, 1e-3), (60, 2e-4))


def train_sentinel(
    start: ChatModel,
    harmful: Sequence[Told],
    benign: Sequence[Told],
    *,
    kept: Path | None = None,
    scale: float = 1.0,
    seed: int = 0,
    display: Display = silent,
) -> ChatModel:
    """A copy of `start`, trained; `kept` is a file that holds its weights once they are there. `scale` is of the rates.

    Raises:
        UserError: there are too few examples, or a loss is no number.
    """
    model = copy.deepcopy(start.model)
    if kept is not None and kept.exists():
        model.load_state_dict(torch.load(kept, map_location=start.device, weights_only=True))
        model.train(False)
        return replace(start, model=model)
    total = sum(steps for steps, _ in _LEGS)
    rows = sentinel_rows(start.chat, harmful, benign, total * BATCH, seed=seed)
    at = 0
    with display("training the sentinel", total) as shown:
        for steps, rate in _LEGS:
            part = rows[at * BATCH : (at + steps) * BATCH]
            optimiser = Optimiser(rate=rate * scale, warmup=20, batch=BATCH, beta1=0.9, beta2=0.98)
            order = [tuple(range(first, first + BATCH)) for first in range(0, len(part), BATCH)]
            for _ in LightFit.of(model, part, PlainNll(), optimiser).run(order):
                shown.advance(1)
            at += steps
    model.train(False)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(".new")
        torch.save(model.state_dict(), beside)
        beside.replace(kept)
    return replace(start, model=model)
