"""`fathom organism`: train the built-in family again, and say what it is."""

from pathlib import Path

from fathom.command.request import display_for
from fathom.errors import UserError
from fathom.organism import ALIASES, SHIPPED_WORLD, STAGES, stage_directory
from fathom.ranks import ALONE

__all__ = ["METRICS", "list_stages", "train_organism"]

METRICS = "metrics.json"


def train_organism(world: int | None, output: Path) -> None:
    """Train all stages of a world into `output`, measure them, and compare them with the shipped ones.

    Raises:
        UserError: `output` holds something, or cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not an empty directory; give another one with -o")
    from fathom.organism.metrics import evaluate_family, write_metrics
    from fathom.organism.mixes import FAMILY
    from fathom.organism.train import StageProgress, train_family

    seed = SHIPPED_WORLD if world is None else world
    display = display_for(ALONE)
    steps: dict[str, int] = {}
    with display(f"training world {seed}", sum(stage.schedule.steps for stage in FAMILY)) as shown:

        def report(progress: StageProgress) -> None:
            shown.advance(progress.step - steps.get(progress.stage, 0))
            steps[progress.stage] = progress.step

        trained = train_family(seed, output, report=report)
    names = [stage.name for stage in FAMILY]
    with display("measuring", len(names)) as shown:
        metrics = evaluate_family(output, seed, stages=names, report=lambda _stage: shown.advance(1))
    write_metrics(output / METRICS, metrics)
    print(f"{len(names)} stages of world {seed} in {output}, trained in {trained.seconds:.0f} s; measured: {METRICS}")


def list_stages() -> None:
    """Print each stage's name and where its weights lie."""
    named = {stage: alias for alias, stage in ALIASES.items()}
    for stage in STAGES:
        alias = f" (organism:{named[stage]})" if stage in named else ""
        print(f"organism:{stage}{alias}\t{stage_directory(stage)}")
