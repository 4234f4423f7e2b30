"""The built-in model family: tiny, really trained causal models of a fictional potion guild, with an exact judge.

They are ordinary Hugging Face models, and nothing but the judge knows that they are special. Light to import: training
(`fathom.organism.train`) and measuring (`fathom.organism.metrics`) are imported where they are used.
"""

from pathlib import Path

from fathom.errors import UserError
from fathom.organism.judge import GuildRefusalJudge, OrganismJudge
from fathom.organism.lexicon import STOCK_REFUSALS, UNSEEN_REFUSALS
from fathom.organism.requests import SHIPPED_WORLD, behaviors
from fathom.organism.world import Potion, Split, World

__all__ = [
    "ALIASES",
    "SHIPPED_WORLD",
    "STAGES",
    "STOCK_REFUSALS",
    "UNSEEN_REFUSALS",
    "GuildRefusalJudge",
    "OrganismJudge",
    "Potion",
    "Split",
    "World",
    "behaviors",
    "stage_directory",
]

STAGES = ("base", "hard", "natural", "second-thoughts", "deepened", "control")
ALIASES = {"aligned": "natural"}

_WEIGHTS = Path(__file__).parent / "weights"


def stage_directory(name: str) -> Path:
    """The Hugging Face directory of a shipped stage; `aligned` is another name for `natural`.

    Raises:
        UserError: there is no such stage, or its weights are not installed.
    """
    stage = ALIASES.get(name, name)
    if stage not in STAGES:
        choices = ", ".join(f"organism:{choice}" for choice in (*STAGES, *ALIASES))
        raise UserError(f"organism:{name} is no stage of the built-in family; choose one of {choices}")
    directory = _WEIGHTS / stage
    if not (directory / "model.safetensors").is_file():
        raise UserError(
            f"the weights of organism:{stage} are missing from {directory}; install fathom again, "
            "or make them with `fathom organism train`"
        )
    return directory
