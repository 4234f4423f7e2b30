"""What a fine-tuning knows of requests that are refused and of others that are answered; a sentinel made of them."""

from typing import TYPE_CHECKING

import msgspec

from fathom.command.known import benign_of
from fathom.command.request import display_for
from fathom.ranks import ALONE
from fathom.records import Behavior, Judge

if TYPE_CHECKING:
    from fathom.command.finetune import FinetuneRequest
    from fathom.model import ChatModel
    from fathom.protect.prepare import Requests
    from fathom.stress.sentinel import Sentinel
    from fathom.tuning.directory import TuningDirectory

__all__ = ["own_requests", "requests", "sentinel"]

ORGANISM_HARMFUL, ORGANISM_BENIGN = 256, 256
MOST_REQUESTS = 128  # that are rehearsed


def own_requests(request: "FinetuneRequest") -> "tuple[Behavior, ...]":
    """Behaviors that say what is refused and what is answered: of files, or the organism's own."""
    from fathom.behaviors import load_behaviors

    own: tuple[Behavior, ...] = ()
    if request.harmful is None and request.training.model.is_organism:
        from fathom.organism import behaviors

        own = behaviors(split="training", harmful=ORGANISM_HARMFUL, benign=ORGANISM_BENIGN, seed=1)
    harmful = [item for item in own if item.harmful]
    benign = [item for item in own if not item.harmful]
    if request.harmful is not None:
        harmful = list(load_behaviors(request.harmful).behaviors)
    if request.benign is not None:
        benign = list(benign_of(load_behaviors(request.benign)))
    # What stands in the file of benign prompts is benign, unless its row says otherwise.
    return (*harmful, *(msgspec.structs.replace(item, harmful=False) for item in benign))


def requests(request: "FinetuneRequest") -> "Requests":
    from fathom.protect.prepare import Requests

    own = own_requests(request)
    return Requests(
        tuple(item.messages for item in own if item.harmful)[:MOST_REQUESTS],
        tuple(item.messages for item in own if not item.harmful)[:MOST_REQUESTS],
    )


def sentinel(
    request: "FinetuneRequest", judge: Judge, model: "ChatModel", directory: "TuningDirectory", seed: int
) -> "Sentinel":
    """What the answer gate asks, trained once and kept in the model's directory: a copy, or an adapter with LoRA."""
    from fathom.protect.sentinel import Told
    from fathom.stress.sentinel import train_sentinel, with_own

    own = [item for item in own_requests(request) if item.answer is not None]
    harmful, benign = (
        [Told(item.messages, item.answer or "", item.refusal) for item in own if item.harmful is kind]
        for kind in (True, False)
    )
    if request.benign is not None:
        benign = with_own(model, judge, benign, seed=seed, display=display_for(ALONE))
    kept = directory.inner / "sentinel.pt"
    lora = request.training.lora
    adapter = None if lora is None else lora.adapter()
    return train_sentinel(model, harmful, benign, adapter=adapter, kept=kept, seed=seed, display=display_for(ALONE))
