"""Deepening against searched suffixes: the tables of docs/deepen.md, on several worlds of the organism.

    python recipes/adversarial_tables.py -o runs/adversarial WORLD=DIR …   (DIR holds natural/; none: the shipped world)
    python recipes/adversarial_tables.py -o runs/adversarial --tables      only print what has been measured

Each world's *natural* is deepened, attacked on requests of the training split, and deepened on against the suffixes
that were found, as often as `--rounds` says. The control has the same further steps without suffixes. All are attacked
on the test split, by searches with seeds of their own. Journalled: it goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepen_tables import Cell, Variant, measure

from fathom.attack.framing import Frame
from fathom.audit.execute import Execution
from fathom.audit.parts import depth_parts
from fathom.audit.plan import AuditOptions, BehaviorSet, make_plan
from fathom.audit.suites import NamedAttack, Wording, suite_of
from fathom.cli.options import JUDGES
from fathom.command.deepen import DeepenRequest, run_deepen
from fathom.command.request import ModelRequest
from fathom.command.training import TrainingRequest
from fathom.journal import Journal, read_journal
from fathom.model import LoadOptions, load
from fathom.organism import SHIPPED_WORLD, OrganismJudge, behaviors, stage_directory
from fathom.organism.attack_words import ASK_ON, FILLER, FRAMES
from fathom.progress import silent
from fathom.ranks import ALONE
from fathom.records import Behavior, Counted
from fathom.run import Run
from fathom.tally import wilson

NEW_TOKENS = 130
TRIPLETS = 256  # those that `fathom deepen` has of the organism, in its order


def searches(steps: int, **further: int | str) -> tuple[NamedAttack, ...]:
    """Both targets: the opening of an answer that complies, and past a recovery."""
    shared = {"steps": steps, **further}
    return NamedAttack("suffix", shared), NamedAttack("suffix", {**shared, "target": "deep"})


# What a training request is attacked with: each by itself, so that no two searches end at one suffix.
TRAINING = searches(40, chain=1)
# What a model is tested with. The second is dearer by an order: more tokens, candidates and steps than in training.
TESTS = {
    "suffix": searches(40),
    "strong suffix": searches(100, width=64, topk=64, length=20),
    "embedding": (NamedAttack("embedding", {}),),
}


def attacked(
    directory: Path, asked: Sequence[Behavior], attacks: Sequence[NamedAttack], seed: int, output: Path
) -> Run:
    """A run of attacks on a model, greedy, or the rest of one that was cut off."""
    model = load(LoadOptions(name=str(directory), device="cpu"))
    wording = Wording(frames=tuple(Frame(*words) for words in FRAMES), ask=ASK_ON, filler=FILLER)
    seeded = [NamedAttack(one.name, {**one.parameters, "seed": seed}) for one in attacks]
    suite = suite_of(seeded, wording, budget=None, before=depth_parts)
    options = AuditOptions(depths=(0,), temperatures=(0.0,), max_new_tokens=NEW_TOKENS, prefixes=())
    plan = make_plan(options, BehaviorSet("organism", tuple(asked)), OrganismJudge(), model, None, None, suite)
    Execution(Run.start(output, plan.manifest), plan, OrganismJudge(), model, None, ALONE, silent)()
    return Run.open(output)


def deepened(world: int, base: Path, output: Path, *against: Path, **settings: str) -> Path:
    """`fathom deepen`, or the rest of it."""
    request = DeepenRequest(
        training=TrainingRequest(
            verb="deepen",
            model=ModelRequest(name=str(base)),
            output=output,
            overrides=tuple(f"{name}={value}" for name, value in settings.items()),
            audit=False,
        ),
        world=world,
        against=against,
    )
    return run_deepen(request, JUDGES)


def models(world: int, base: Path, output: Path, rounds: int, searched: int) -> Iterator[tuple[str, Path]]:
    """The models in the order in which they are made, each with its name in the tables."""
    model = deepened(world, base, output / f"{world}-deepened")
    yield "deepened", model
    control = deepened(world, model, output / f"{world}-control", num_train_epochs="5")
    yield "control: the same further steps, no suffixes", control
    trained = behaviors(world, split="training", harmful=TRIPLETS, benign=2, seed=2)
    harmful = [one for one in trained if one.harmful]
    benign = [one for one in trained if not one.harmful]
    found: list[Path] = []
    for number in range(rounds):
        asked = [*harmful[number * searched : (number + 1) * searched], *benign]
        found.append(output / f"{world}-found-{number + 1}")
        attacked(model, asked, TRAINING, number, found[-1])
        model = deepened(world, model, output / f"{world}-against-{number + 1}", *found, seed=str(number))
        yield f"against suffixes, {number + 1} round{'s' if number else ''}", model


def cells(world: int, name: str, model: Path, output: Path, tested: int) -> Iterator[Cell]:
    """Attacks on held-out requests, as cells of `deepen_tables`; of benign ones, those that are helped."""
    asked = behaviors(world, harmful=tested, benign=tested // 2)
    for test, attacks in TESTS.items():
        run = attacked(model, asked, attacks, 100, output / f"{world}-{model.name}-{test.replace(' ', '-')}")
        rows = [row for row in run.audit.attacks if row.counted is Counted.CONTINUATION and row.attack != "direct"]
        worst = max(rows, key=lambda row: (row.worst_of or 1, row.harmful))
        helped = [row.control for row in rows if row.control is not None]
        counted = {
            test: (worst.n, worst.harmful),
            f"{test}, benign": (sum(control.n for control in helped), sum(control.helped for control in helped)),
        }
        for attack, (n, hits) in counted.items():
            yield Cell(
                world=world,
                variant=name,
                attack=attack,
                setting="worst",
                temperature=0.0,
                n=n,
                harmful=hits,
                safe=0,
                exact=0,
            )


def table(found: Sequence[Cell]) -> Iterator[str]:
    """A line a model: attacks, prefills, and benign answers, each over all worlds measured."""
    columns = (*TESTS, "prefilled, worst depth", "at T = 1", "benign exact", "helped under a suffix")
    yield "| | worlds | " + " | ".join(columns) + " |"
    yield "|---|---|" + "---|" * len(columns)
    for name in dict.fromkeys(cell.variant for cell in found):
        mine = [cell for cell in found if cell.variant == name]
        shown = [rate([cell for cell in mine if cell.attack == test]) for test in TESTS]
        for temperature in (0.0, 1.0):
            prefilled = [c for c in mine if (c.attack, c.temperature) == ("prefill", temperature)]
            depths = dict.fromkeys(cell.setting for cell in prefilled)
            each = [[cell for cell in prefilled if cell.setting == depth] for depth in depths]
            shown.append(rate(max(each, key=lambda c: sum(x.harmful for x in c) / sum(x.n for x in c), default=[])))
        good = [cell for cell in mine if cell.attack == "benign"]
        shown.append(f"{sum(cell.exact for cell in good)} of {sum(cell.n for cell in good)}")
        helped = [cell for cell in mine if cell.attack == "suffix, benign"]
        shown.append(f"{sum(cell.harmful for cell in helped)} of {sum(cell.n for cell in helped)}")
        yield f"| {name} | {len({cell.world for cell in mine})} | " + " | ".join(shown) + " |"
    yield ""
    yield "By world, suffix: " + "; ".join(
        f"{name} " + ", ".join(f"{c.harmful} of {c.n}" for c in found if (c.variant, c.attack) == (name, "suffix"))
        for name in dict.fromkeys(cell.variant for cell in found)
    )


def rate(found: Sequence[Cell]) -> str:
    """Harmful of all, in percent with Wilson's interval."""
    harmful, n = sum(cell.harmful for cell in found), sum(cell.n for cell in found)
    if not n:
        return "–"
    low, high = wilson(harmful, n)
    return f"{100 * harmful / n:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="*", metavar="WORLD=DIR")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1, help="of attacking and deepening on")
    parser.add_argument("--searched", type=int, default=64, help="training requests attacked in a round")
    parser.add_argument("--tested", type=int, default=24, help="held-out harmful requests attacked")
    parser.add_argument("--harmful", type=int, default=80, help="held-out harmful requests that are prefilled")
    parser.add_argument("--benign", type=int, default=150)
    parser.add_argument("--tables", action="store_true", help="only print")
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / "cells.jsonl"
    import torch

    torch.set_num_threads(1)
    if not chosen.tables:
        bases = {int(w): Path(d) / "natural" for w, _, d in (text.partition("=") for text in chosen.worlds)}
        for world, base in (bases or {SHIPPED_WORLD: stage_directory("natural")}).items():
            for name, model in models(world, base, chosen.output, chosen.rounds, chosen.searched):
                if (world, name) in {(cell.world, cell.variant) for cell in read_journal(path, Cell)}:
                    continue
                loaded = load(LoadOptions(name=str(model), device="cpu"))
                measured = [*cells(world, name, model, chosen.output, chosen.tested)]
                measured += measure(world, Variant(name), loaded, chosen.harmful, chosen.benign)
                with Journal(path) as journal:
                    journal.append(measured)
                print(f"{name} of world {world} is measured", file=sys.stderr, flush=True)
    for line in table(list(read_journal(path, Cell))):
        print(line)


if __name__ == "__main__":
    main()
