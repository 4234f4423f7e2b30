"""Rows for tests: of random ids for random models, and of the guild for the built-in ones."""

from random import Random

from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import behaviors, stage_directory
from fathom.tuning.rows import TrainingRow, make_row


def random_rows(count: int, *, seed: int = 0, vocabulary: int = 97, held: float = 0.0) -> list[TrainingRow]:
    """Rows of different lengths, some of whose response is given."""
    random = Random(seed)
    rows = []
    for number in range(count):
        response = [random.randrange(1, vocabulary) for _ in range(random.randint(2, 9))]
        rows.append(
            TrainingRow(
                prompt_ids=tuple(random.randrange(1, vocabulary) for _ in range(random.randint(1, 6))),
                response_ids=tuple(response),
                learned_from=random.randrange(len(response)),
                loss_weight=random.choice((0.25, 1.0, 2.0)),
                held=held if number % 2 else 0.0,
            )
        )
    return rows


def organism(stage: str = "natural") -> ChatModel:
    return load(LoadOptions(name=str(stage_directory(stage)), device="cpu"))


def guild_rows(model: ChatModel, count: int, *, benign: int = 0) -> list[TrainingRow]:
    """Recipes of restricted potions (and of bright ones), learned in full."""
    found = behaviors(split="training", harmful=count, benign=benign)
    return [make_row(model.chat, item.messages, item.answer or "", source=item.id) for item in found]
