"""Losses of candidates and the gradient of one suffix, for one case, on one model.

`SharedEvaluator` holds the keys of the case's fixed beginning once and computes of a candidate only what differs from
the current suffix. `PlainEvaluator` runs every candidate whole and needs nothing of an architecture but that it is
causal. Both give the same numbers; `evaluator` tries the first and falls back to the second.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from fathom.attack.suffix.evaluation import Evaluator, Gradient, Spent
from fathom.attack.suffix.options import Objective
from fathom.attack.suffix.plain import PlainEvaluator
from fathom.attack.suffix.problem import Case
from fathom.attack.suffix.sharing import SharedEvaluator
from fathom.engine.memory import is_out_of_memory
from fathom.errors import UserError
from fathom.scoring import Scorer

__all__ = ["Evaluator", "Gradient", "PlainEvaluator", "SharedEvaluator", "Spent", "evaluator"]

PACKED_CPU, PACKED_GPU = 1088, 32_768  # tokens of candidates in one forward pass
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3}  # nats a token between both ways; coarser dtypes: 0.3
COARSE = 0.3


def evaluator(
    scorer: Scorer, case: Case, start: Sequence[int], objective: Objective, notify: Callable[[str], None]
) -> Evaluator:
    """The fast way where it reproduces the plain one on this model and case, else the plain one, and says so.

    Raises:
        UserError: prompt, suffix and target are longer than the model's context, or not even one fits into memory.
    """
    limit, needed = scorer.model.context, case.length(len(start))
    if limit is not None and needed > limit:
        raise UserError(
            f"behavior {case.behavior}: {len(case.before_ids) + len(case.after_ids)} prompt + {len(start)} suffix + "
            f"{len(case.target.ids)} target tokens = {needed}, but the model's context is {limit} tokens: "
            + ("give a shorter target" if len(case.target.ids) > limit // 2 else "give a shorter prompt or suffix")
        )
    packed = PACKED_CPU if scorer.model.device.type == "cpu" else PACKED_GPU
    plain = PlainEvaluator(scorer, case, notify, packed)
    shared = SharedEvaluator(scorer, case, notify, packed)
    known = _checked.get(scorer.plain)
    if known is None or (known.reason is None and needed > known.length):
        # Decided once for a model, and again for what is longer: a window or a rotary encoding may end in between.
        known = _checked[scorer.plain] = _Checked(needed, _obstacle(shared, plain, start, objective))
        if known.reason is not None:  # said once for a model, not for each of many cases and searches
            notify(
                "candidates are computed whole, which is slower and takes more forward tokens than were foreseen: "
                f"{known.reason}"
            )
    return shared if known.reason is None else plain


class _Checked(NamedTuple):
    length: int  # of the longest case that was tried
    reason: str | None


_checked: WeakKeyDictionary[PreTrainedModel, _Checked] = WeakKeyDictionary()


def _obstacle(shared: SharedEvaluator, plain: PlainEvaluator, start: Sequence[int], objective: Objective) -> str | None:
    """Why nothing can be shared between candidates of this model, or None: both ways are tried and compared."""
    if shared.scorer.head is None:
        return "the model's head is no plain projection"
    try:
        found = shared.gradient(start, objective)
        if shared.layers < shared.scorer.plain.config.get_text_config(decoder=True).num_hidden_layers:
            return "not all of its layers leave keys behind that candidates could share"
        # Two changes in one candidate, none in the other: parts of trunk and of own tokens on both.
        trial = torch.tensor([start, start])
        trial[1, len(start) // 2 :] = trial[1, len(start) // 2 :].flip(0)
        ours, theirs = shared.scores(trial).reading.nll, plain.scores(trial).reading.nll
    except UserError:
        raise
    except Exception as error:  # whatever an architecture answers to an unusual call, it only means: not this way
        if is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines() or [type(error).__name__]
        return first[0][:200]
    worst = float(torch.maximum((ours - theirs).abs().max(), (found.reading.nll.cpu() - theirs[:1]).abs().max()))
    if worst <= TOLERANCE.get(shared.scorer.plain.dtype, COARSE):
        return None
    return f"sharing changes the losses of {type(shared.scorer.plain).__name__} by {worst:.2g} nats"
