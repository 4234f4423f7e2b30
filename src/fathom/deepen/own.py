"""A model's own answers: the anchor that deepening keeps them by, and the refusals that it learns to give later."""

from collections.abc import Sequence
from typing import NamedTuple

from fathom.engine import TransformersEngine
from fathom.model import ChatModel
from fathom.progress import Display, silent
from fathom.records import Attempt, Finish, Message, Sampling

__all__ = ["OwnAnswer", "own_answers"]


class OwnAnswer(NamedTuple):
    """What a model wrote, and whether it ended its turn by itself (1) or was cut off (0)."""

    ids: tuple[int, ...]
    text: str
    whole: int


def own_answers(
    model: ChatModel,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    display: Display = silent,
) -> list[OwnAnswer]:
    """One answer to each conversation, in order; shown as they come.

    Raises:
        UserError: a prompt does not fit into the model's context.
    """
    attempts = [
        Attempt.make(
            behavior="own",
            attack="own answer",
            prompt_ids=model.chat.prompt_ids(messages),
            prefill_ids=(),
            sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature),
            run_seed=seed,
            sample=number,
        )
        for number, messages in enumerate(conversations)
    ]
    done = {}
    with display("own answers", len(attempts)) as shown:
        for completion in TransformersEngine(model).complete(attempts):
            done[completion.attempt] = completion
            shown.advance(1)
    found = (done[attempt.id] for attempt in attempts)
    return [OwnAnswer(c.output_ids, c.text, int(c.finish is Finish.STOP)) for c in found]
