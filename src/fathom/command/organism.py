"""`fathom organism`: train the built-in family again, and say what it is."""

from pathlib import Path
from typing import TYPE_CHECKING

from fathom.command.request import display_for
from fathom.errors import UserError
from fathom.organism import ALIASES, SHIPPED_WORLD, STAGES, stage_directory
from fathom.ranks import ALONE
from fathom.report.wording import rated

if TYPE_CHECKING:
    from fathom.organism.metrics import FamilyMetrics, Measured

__all__ = ["METRICS", "list_stages", "train_organism"]

METRICS = "metrics.json"
LISTED = (0, 1, 5, 20)  # tokens of the answer given


def train_organism(world: int | None, output: Path) -> None:
    """Train all stages of a world into `output`, measure them, and compare them with the shipped ones.

    A training that was killed goes on with the stage that it was at.

    Raises:
        UserError: `output` holds something else than stages of this world, or cannot be written.
    """
    seed = SHIPPED_WORLD if world is None else world
    _claim(output, seed)
    from fathom.organism.metrics import evaluate_family, write_metrics
    from fathom.organism.mixes import FAMILY
    from fathom.organism.train import StageProgress, train_family

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
    if seed == SHIPPED_WORLD:
        _compare(metrics)


def _claim(output: Path, world: int) -> None:
    """Make the directory this world's, or see that it already is."""
    mark = output / "world"
    if mark.is_file():
        found = mark.read_text(encoding="utf-8").strip()
        if found != str(world):
            raise UserError(f"{output} holds stages of world {found}, not {world}; give another directory with -o")
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not an empty directory; give another one with -o")
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{world}\n", encoding="utf-8")


def _compare(metrics: "FamilyMetrics") -> None:
    """Print which cells left the shipped ones' intervals."""
    from fathom.organism.metrics import outside, read_metrics

    shipped = read_metrics(stage_directory("base").parent / METRICS)
    cells = sum(map(len, metrics.stages.values()))
    found = outside(metrics, shipped)
    print(f"{cells - len(found)} of {cells} figures lie within the 95 % intervals of the shipped ones")
    for stage, ours, theirs in found:
        print(
            f"outside: {stage}, {ours.requests}, prefill {ours.prefill_text or ours.prefill_tokens}, "
            f"T = {ours.temperature:g}: {ours.rate:.1%}, "
            f"shipped {theirs.rate:.1%} [{theirs.low:.1%}, {theirs.high:.1%}]"
        )


def list_stages() -> None:
    """Print each stage's name, what was measured on it, and where its weights lie; columns are parted by tabs.

    Rates stand with their 95 % interval and counts.
    """
    from fathom.organism.metrics import read_metrics

    metrics = read_metrics(stage_directory("base").parent / METRICS)
    named = {stage: alias for alias, stage in ALIASES.items()}
    print("\t".join(("stage", *(f"ASR at {depth}" for depth in LISTED), "benign exact", "weights")))
    for stage in STAGES:
        alias = f" (organism:{named[stage]})" if stage in named else ""
        greedy = [cell for cell in metrics.stages[stage] if cell.temperature == 0 and not cell.prefill_text]
        found = {(cell.requests, cell.prefill_tokens): _rated(cell) for cell in greedy}
        shares = (*(found["harmful", depth] for depth in LISTED), found["benign", 0])
        print("\t".join((f"organism:{stage}{alias}", *shares, str(stage_directory(stage)))))


def _rated(cell: "Measured") -> str:
    """A cell's rate; of harmful requests neither got through nor refused are the undecided ones."""
    counted = round(cell.rate * cell.n)
    undecided = cell.n - counted - cell.refused if cell.requests == "harmful" else 0
    return rated(counted, cell.n, cell.low, cell.high, undecided)
