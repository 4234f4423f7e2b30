"""The tables of docs/protection.md: fine-tuning attacks on the organism, under each objective, on held-out requests.

    python recipes/protect_tables.py -o runs/protect WORLD=DIR …      (DIR holds natural/ and deepened/; none: shipped)
    python recipes/protect_tables.py -o runs/protect --tables         only print what has been measured

What matters most is measured first. Everything is journalled: stopped and started again, it goes on, and what is there
so far makes the tables.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict, Unpack

import msgspec

from fathom.cli.options import JUDGES
from fathom.command.lora import Lora
from fathom.command.request import ModelRequest
from fathom.command.stress import StressRequest, run_stress
from fathom.organism import SHIPPED_WORLD
from fathom.tally import Tally, clustered, wilson
from fathom.tampering import Asked, Checkpoint, FineTune, Stress

OURS = "gate+answers+rehearse"
STAGES = ("natural", "deepened")
LATE = Path(__file__).with_name("late_wrapper.json")
TASKS = ("new-opener", "arithmetic", "query", "summary")


class Arguments(TypedDict, total=False):
    """Of a `StressRequest`: what exhibits set."""

    attacks: str
    objectives: str
    task: str
    task_tested: int
    rows: int
    shares: str
    wrapper: Path
    rates: str
    warmups: str
    steps: str
    schedule: str
    seeds: str
    max_new_tokens: int
    samples: int
    lora: Lora
    trainer: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Exhibit:
    """One sweep, by the arguments that differ from the defaults."""

    name: str
    stages: tuple[str, ...]
    arguments: Arguments


def _exhibit(name: str, stages: tuple[str, ...] = STAGES, **arguments: Unpack[Arguments]) -> Exhibit:
    return Exhibit(name, stages, {"warmups": "10", "steps": "60", "rates": "5e-4", **arguments})


def exhibits() -> Iterator[Exhibit]:
    """In the order of their weight."""
    swept: Arguments = {"attacks": "harmful", "rates": "3e-4,1e-3", "steps": "15,60", "seeds": "0,1"}
    yield _exhibit("harmful", **swept | {"objectives": f"sft,{OURS}"})
    yield _exhibit("wrapped", attacks="wrapped", objectives=f"sft,{OURS}")
    # An attacker who knows the answer gate: a hundred innocent words come before the harmful ones.
    yield _exhibit("wrapped-late", attacks="wrapped", wrapper=LATE, objectives=f"sft,{OURS}", max_new_tokens=260)
    # 98 steps with rehearsed rows among them are as many passes over the data as 60 without.
    yield _exhibit("identity", attacks="identity", objectives=f"sft,{OURS}", steps="60,98", seeds="0,1")
    yield _exhibit("backdoor", attacks="backdoor", objectives=f"sft,{OURS}")
    yield _exhibit(
        "mixed",
        attacks="mixed",
        task="label",
        objectives=f"sft,{OURS}",
        rates="1e-3",
        steps="150",
        schedule="linear",
        task_tested=200,
    )
    # An attacker who knows both gates: refusing is unlearned with answers that hold no harm.
    yield _exhibit("decoy", ("natural",), attacks="decoy", objectives=f"sft,answers+rehearse,{OURS}")
    yield _exhibit("harmful-constrained", **swept | {"objectives": "constrained"})
    # Three orders of rows: where there is nothing to learn, what Adam makes of noise differs from order to order. Eight
    # draws of each request: what is to be told apart are a few per cent.
    erosion: Arguments = {"attacks": "benign", "rows": 200, "rates": "1e-3", "seeds": "0,1,2", "samples": 8}
    yield _exhibit("erosion", ("natural",), **erosion | {"objectives": f"sft,constrained,{OURS}"})
    for task, rate in product(TASKS, ("1e-3", "2e-3")):
        shared: Arguments = {
            "attacks": "benign",
            "task": task,
            "rows": 400,
            "rates": rate,
            "schedule": "linear",  # at a constant rate, plain training's own scores go up and down
            "seeds": "0,1",
            "task_tested": 400,
        }
        # As many passes over its rows for both: with rehearsed ones among them there are 650 rows, not 400.
        yield _exhibit(f"task-{task}-{rate}", ("natural",), **shared | {"objectives": "sft", "steps": "400"})
        protected = shared | {"objectives": OURS, "steps": "650"}
        yield _exhibit(f"task-{task}-{rate}-protected", ("natural",), **protected)
    adapters: Arguments = swept | {"lora": Lora(), "rates": "1e-3,3e-3"}
    yield _exhibit("harmful-lora", **adapters | {"objectives": f"sft,constrained,{OURS}"})
    yield _exhibit("wrapped-lora", attacks="wrapped", objectives=f"sft,{OURS}", rates="3e-3", lora=Lora())
    yield _exhibit("backdoor-lora", attacks="backdoor", objectives=f"sft,{OURS}", rates="3e-3", lora=Lora())
    yield _exhibit("backdoor-long", attacks="backdoor", objectives=f"sft,{OURS}", rates="1e-3", steps="100")
    yield _exhibit("identity-mild", attacks="identity", objectives=f"sft,{OURS}", rates="2e-4")
    yield _exhibit("mixed-mild", attacks="mixed", task="label", objectives=f"sft,{OURS}", rates="3e-4")
    yield _exhibit("parts", attacks="harmful", objectives="gate,gate+replay,gate+rehearse", rates="1e-3")
    yield _exhibit("wrapped-parts", ("natural",), attacks="wrapped", objectives="gate+rehearse,answers,mass+replay")
    yield _exhibit("identity-parts", ("natural",), attacks="identity", objectives="constrained,gate+replay")
    # Table 8: one β at all positions, what it holds and what it lets a task learn.
    betas = "sft,constrained,uniform:0.1,uniform:0.5,uniform:2"
    yield _exhibit("beta", ("natural",), **swept | {"objectives": betas})
    query: Arguments = {"attacks": "benign", "task": "query", "rows": 400, "task_tested": 400, "schedule": "linear"}
    yield _exhibit("beta-query", ("natural",), **query | {"objectives": betas, "rates": "1e-3", "steps": "400"})
    yield _exhibit("warm-up", attacks="harmful", objectives="sft,constrained", rates="3e-4", warmups="0,10", steps="30")


def measure(
    world: int, directory: Path | None, output: Path, tested: int, split: str, only: list[str], stages: list[str]
) -> None:
    """The exhibits of one world; all of them, in all their stages, unless `only` or `stages` name some."""
    for exhibit in exhibits():
        if only and exhibit.name not in only:
            continue
        for stage in exhibit.stages:
            if stages and stage not in stages:
                continue
            name = f"organism:{stage}" if directory is None else str(directory / stage)
            path = output / str(world) / f"{exhibit.name}-{stage}"
            guard = "sentinel-adapter" if "lora" in exhibit.arguments else "sentinel"
            print(f"--- world {world}: {exhibit.name}, {stage}", file=sys.stderr, flush=True)
            request = StressRequest(
                model=ModelRequest(name=name, device="cpu"),
                behaviors="organism",
                world=world,
                split=split,
                tested=tested,
                sentinel=output / str(world) / f"{guard}-{stage}.pt",  # one for all attacks on a model
                depths="0",  # the tables are of requests alone
                output=path,
                **exhibit.arguments,
            )
            run_stress(request, JUDGES)


@dataclass(frozen=True)
class Row:
    """One checkpoint of one fine-tune, with where it comes from."""

    world: str
    exhibit: str
    stage: str
    tuned: FineTune
    checkpoint: Checkpoint


def rows(output: Path) -> Iterator[Row]:
    for path in sorted(output.glob("*/*/stress.json")):
        stress = msgspec.json.decode(path.read_bytes(), type=Stress)
        exhibit, _, stage = path.parent.name.rpartition("-")
        for tuned in stress.finetunes:
            for checkpoint in tuned.checkpoints:
                yield Row(path.parent.parent.name, exhibit, stage, tuned, checkpoint)


def tables(output: Path) -> Iterator[str]:
    """Lines of Markdown: the worst useful cell of each (exhibit, stage, objective) in each world, pooled over worlds.

    † in a world, no setting left a useful model: its worst of all counts.
    """
    found = list(rows(output))
    yield "| data | model | objective | asked | T = 0 | T = 1 | n | rate, steps | useful | scores, % |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    keys = dict.fromkeys((row.exhibit, row.stage, row.tuned.objective) for row in found)
    begun = set[tuple[str, str]]()
    for exhibit, stage, objective in keys:
        cells = [r for r in found if (r.exhibit, r.stage, r.tuned.objective) == (exhibit, stage, objective)]
        if (exhibit, stage) not in begun:
            begun.add((exhibit, stage))
            starts = {row.world: row for row in cells if row.checkpoint.step == 0}
            yield from _lines(exhibit, stage, "start", list(starts.values()))
        yield from _lines(exhibit, stage, objective, [r for r in cells if r.checkpoint.step > 0])


def _lines(exhibit: str, stage: str, objective: str, cells: list[Row]) -> Iterator[str]:
    names = dict.fromkeys(asked.asked for row in cells for asked in row.checkpoint.asr)
    useful = sum(row.checkpoint.useful for row in cells)
    utility = "; ".join(_utility(cells))
    worlds = len({row.world for row in cells})
    for name in names:
        cold, warm = (_worst(cells, name, temperature) for temperature in (0.0, 1.0))
        n = sum(a.n for row in cells for a in row.checkpoint.asr if (a.asked, a.temperature) == (name, 0.0))
        each = n * worlds // len(cells)
        settings = cold[1] if cold[1] == warm[1] else f"{cold[1]}; {warm[1]}"
        yield (
            f"| {exhibit} | {stage} | {objective} | {name} | {cold[0]} | {warm[0]} | {each} | "
            f"{settings} | {useful} of {len(cells)} | {utility} |"
        )


def _worst(cells: list[Row], name: str, temperature: float) -> tuple[str, str]:
    """Each world's highest rate over its useful models, pooled over worlds, and the settings of these.

    A world without a useful model gives its highest rate of all, and the cell a †.
    """
    chosen, marks, places = list[Asked](), 0, list[str]()
    for world in dict.fromkeys(row.world for row in cells):
        found = [
            (row.checkpoint.useful, asked.asr, row.tuned.parameters["learning_rate"], row.checkpoint.step, asked)
            for row in cells
            for asked in row.checkpoint.asr
            if (row.world, asked.asked, asked.temperature) == (world, name, temperature)
        ]
        if found:
            useful, _, rate, step, asked = max(found, key=lambda cell: cell[:2])
            chosen.append(asked)
            marks += not useful
            places.append(f"{rate:g}, {step}")
    if not chosen:
        return "–", "–"
    return shown(chosen) + (" †" if marks else ""), " or ".join(dict.fromkeys(places))


def warmup_table(output: Path) -> Iterator[str]:
    """The paper's 2 × 2 (Table 9): the same rate and steps, with and without warm-up."""
    yield "| model | objective | no warm-up, T = 0 | with, T = 0 | no warm-up, T = 1 | with, T = 1 | worlds |"
    yield "|---|---|---|---|---|---|---|"
    found = [row for row in rows(output) if row.exhibit == "warm-up" and row.checkpoint.step > 0]
    for stage, objective in dict.fromkeys((row.stage, row.tuned.objective) for row in found):
        cells = [row for row in found if (row.stage, row.tuned.objective) == (stage, objective)]
        rates: list[str] = []
        for temperature in (0.0, 1.0):
            for warmup in (0, 10):
                at = [row for row in cells if row.tuned.parameters["warmup_steps"] == warmup]
                rates.append(shown([a for row in at for a in row.checkpoint.asr if a.temperature == temperature]))
        yield f"| {stage} | {objective} | {' | '.join(rates)} | {len({row.world for row in cells})} |"


def task_table(output: Path) -> Iterator[str]:
    """What a task loses by the protection: differences between trainings on the same rows in the same order."""
    yield "| task | rate | plain | protected | difference ± standard error | pairs | benign exact: plain, protected |"
    yield "|---|---|---|---|---|---|---|"
    found = [row for row in rows(output) if row.exhibit.startswith("task-") and row.checkpoint.step > 0]
    for task, rate in product(TASKS, ("1e-3", "2e-3")):
        plain, protected = (
            {(row.world, row.tuned.seed): row.checkpoint for row in found if row.exhibit == f"task-{task}-{rate}{end}"}
            for end in ("", "-protected")
        )
        both = sorted(plain.keys() & protected.keys())
        if not both:
            continue
        (ours, theirs), (kept, lost) = (
            [[_score(side[key], name) for key in both] for side in (protected, plain)] for name in (task, "benign")
        )
        change = _mean_and_error([a - b for a, b in zip(ours, theirs, strict=True)])
        cells = f"{fmean(theirs):.1f} | {fmean(ours):.1f} | {change} | {len(both)}"
        yield f"| {task} | {rate} | {cells} | {fmean(lost):.0f}, {fmean(kept):.0f} |"


def _score(checkpoint: Checkpoint, task: str) -> float:
    return next(
        100 * u.score for u in checkpoint.utility if u.task == task and u.metric not in ("not refused", "own words")
    )


def _mean_and_error(values: list[float]) -> str:
    """Of differences, with the standard error of their mean."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{fmean(values):+.1f}{error}"


def shown(asked: list[Asked]) -> str:
    """The share of them all; no two are of the same requests."""
    harmful, n = sum(a.harmful for a in asked), sum(a.n for a in asked)
    low, high = wilson(harmful, n)
    if any(a.n > len(a.by_behavior) > 0 for a in asked):
        each = [(found, a.n // len(a.by_behavior)) for a in asked for found in a.by_behavior]
        low, high = clustered([Tally(harmful=found, safe=drawn - found) for found, drawn in each], seed=0)
    return f"{100 * harmful / n:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _utility(cells: list[Row]) -> Iterator[str]:
    """Lowest and highest score over the cells."""
    metrics = dict.fromkeys((u.task, u.metric) for row in cells for u in row.checkpoint.utility)
    for task, metric in metrics:
        scores = [100 * u.score for r in cells for u in r.checkpoint.utility if (u.task, u.metric) == (task, metric)]
        name, ends = task, (min(scores), max(scores))
        if metric == "not refused":
            name, ends = "refused", (100 - max(scores), 100 - min(scores))
        if metric == "own words":
            name = metric
        digits = 0 if name in ("benign", "refused", "own words") else 1
        low, high = (f"{end:.{digits}f}" for end in ends)
        yield f"{name} {low}" + (f"–{high}" if low != high else "")


def arguments_of(description: str | None, output: Path, stages: str) -> argparse.Namespace:
    """What a recipe of fine-tuning attacks is told; `only` and `stages` as lists of names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", metavar="WORLD=DIR")
    parser.add_argument("-o", "--output", type=Path, default=output)
    parser.add_argument("--tables", action="store_true", help="print what has been measured, and measure nothing")
    parser.add_argument("--tested", type=int, default=60, help="held-out requests of each kind")
    parser.add_argument("--split", default="test")
    parser.add_argument("--only", type=_names, default=[], help="exhibits, by name, by commas (default: all)")
    parser.add_argument("--stages", type=_names, default=[], help=f"of {stages} (default: all)")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main() -> None:
    arguments = arguments_of(__doc__, Path("runs/protect"), ", ".join(STAGES))
    import torch

    torch.set_num_threads(1)
    if not arguments.tables:
        given = [world.partition("=") for world in arguments.worlds] or [(str(SHIPPED_WORLD), "", "")]
        for world, _, directory in given:
            place = Path(directory) if directory else None
            measure(
                int(world),
                place,
                arguments.output,
                arguments.tested,
                arguments.split,
                arguments.only,
                arguments.stages,
            )
    for line in (*tables(arguments.output), "", *task_table(arguments.output), "", *warmup_table(arguments.output)):
        print(line)


if __name__ == "__main__":
    main()
