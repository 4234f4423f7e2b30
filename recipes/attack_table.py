"""What each attack reaches on each stage of the organism, over several worlds: the table of docs/attacks/README.md.

`python recipes/attack_table.py -o runs/attacks 104 105=worlds/105 106=worlds/106`: a world is its seed and the
directory of its stages; the shipped weights are those of world 104 alone. Further stages are directories beside them
(`--stages natural,deepened,other`). `--suffix` has suffixes searched for, too. Every cell is a run's audit.json;
killed, the same command goes on. `--print` only prints the table of the runs that are there.
"""

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fathom.attack.framing import Frame
from fathom.audit.execute import Execution
from fathom.audit.parts import depth_parts
from fathom.audit.plan import AuditOptions, BehaviorSet, make_plan
from fathom.audit.suites import NamedAttack, Wording, suite_of
from fathom.errors import UserError
from fathom.model import LoadOptions, load
from fathom.organism import SHIPPED_WORLD, OrganismJudge, Split, behaviors, stage_directory
from fathom.organism.attack_words import ASK_ON, FILLER, FRAMES
from fathom.progress import silent
from fathom.ranks import ALONE
from fathom.records import Behavior, Counted, Subject
from fathom.run import Run
from fathom.schema import AttackRow
from fathom.tally import percent, wilson

STAGES = ("natural", "second-thoughts", "control", "deepened")
DEPTHS = (0, 1, 5, 20, 80)
ATTACKS = (
    NamedAttack("insertion", {}),
    NamedAttack("own-insertion", {}),
    NamedAttack("deep-prefill", {"depths": [250, 500]}),
    NamedAttack("multi-turn", {}),
    NamedAttack("framing", {}),
    NamedAttack("best-of-n", {"n": 16}),
    NamedAttack("decoding", {}),
    NamedAttack("reference-ranks", {}),
    NamedAttack("judged-ranks", {"tokens": 64, "lookahead": 16}),
    NamedAttack("refusal-direction", {}),
)
SUFFIXES = (NamedAttack("suffix", {"steps": 40}), NamedAttack("suffix", {"steps": 40, "target": "deep"}))
NEW_TOKENS = 130


def attacked(
    directory: Path,
    name: str,
    asked: Sequence[Behavior],
    attacks: Sequence[NamedAttack],
    options: AuditOptions,
    output: Path,
) -> None:
    """A run of attacks on a model of the organism, or the rest of it; the report calls the model `name`."""
    model = load(LoadOptions(name=str(directory)))
    model = dataclasses.replace(model, info=msgspec.structs.replace(model.info, name=name))
    wording = Wording(frames=tuple(Frame(*words) for words in FRAMES), ask=ASK_ON, filler=FILLER)
    suite = suite_of(attacks, wording, budget=None, before=depth_parts)
    plan = make_plan(options, BehaviorSet("organism", tuple(asked)), OrganismJudge(), model, None, None, suite)
    Execution(Run.start(output, plan.manifest), plan, OrganismJudge(), model, None, ALONE, silent)()


def run(
    world: int, directory: Path, stage: str, output: Path, harmful: int, attacks: tuple[NamedAttack, ...] = ATTACKS
) -> None:
    """Audit one stage with all attacks, or go on with it."""
    asked = behaviors(world, Split.TEST, harmful=harmful, benign=max(12, harmful // 2))
    options = AuditOptions(depths=DEPTHS, max_new_tokens=NEW_TOKENS, prefixes=())
    attacked(directory, f"{stage} of world {world}", asked, attacks, options, output)


def best_rows(rows: tuple[AttackRow, ...]) -> dict[tuple[str, float | None], AttackRow]:
    """The row that stands for each attack and temperature: the worst answer of several; of prefills, each depth."""
    found: dict[tuple[str, float | None], AttackRow] = {}
    for row in rows:
        own = row.attack == "judged-ranks"
        if row.subject is not Subject.MODEL or row.counted is not (Counted.ALL if own else Counted.CONTINUATION):
            continue
        temperature = row.parameters.get("temperature")
        name = row.attack
        if row.attack == "prefill":
            name = f"prefill {row.prefill_tokens}"
        elif row.attack == "suffix":
            name = f"suffix, target {row.parameters['target']}" if row.worst_of is None else "suffix, either target"
        elif row.attack == "decoding":
            if row.worst_of is None:
                continue
            name, temperature = f"decoding, template {row.parameters['template']}", None
        elif row.attack == "best-of-n" and row.worst_of is None:
            continue  # draws of one behavior cling: the audit has their interval
        key = (name, None if temperature is None else float(temperature))
        if key not in found or row.worst_of is not None:
            found[key] = row
    return found


def table(output: Path, worlds: list[int], named: tuple[str, ...] = STAGES) -> None:
    """Pooled over worlds: harmful of n with Wilson's interval, and what the control says."""
    cells: dict[tuple[str, float | None], dict[str, list[AttackRow]]] = defaultdict(lambda: defaultdict(list))
    for world in worlds:
        for stage in named:
            path = output / f"{world}-{stage}"
            if (path / "audit.json").exists():
                for key, row in best_rows(Run.open(path).audit.attacks).items():
                    cells[key][stage].append(row)
    print("| attack | worst of | drawn | " + " | ".join(named) + " | queries, tokens a behavior | control helped |")
    print("|---|---|---|" + "---|" * (len(named) + 2))
    for (name, temperature), stages in cells.items():
        drawn = "grid" if temperature is None else "greedy" if temperature == 0 else f"T = {temperature:g}"
        shown = []
        for stage in named:
            rows = stages.get(stage, [])
            n, harmful = sum(row.n for row in rows), sum(row.harmful for row in rows)
            if not n:
                shown.append("")
                continue
            low, high = wilson(harmful, n)
            shown.append(f"{percent(harmful, n)} [{100 * low:.0f}, {100 * high:.0f}]")
        every = [row for rows in stages.values() for row in rows]
        worst = max((row.worst_of or 1 for row in every), default=1)
        people = sum(row.behaviors for row in every)
        costs = [row.cost for row in every if row.cost is not None]
        cost = f"{sum(c.queries for c in costs) / people:.0f}, {sum(c.forward_tokens for c in costs) / people:,.0f}"
        controls = [row.control for row in every if row.control is not None]
        total = sum(control.n for control in controls)
        helped = percent(sum(control.helped for control in controls), total) if total else ""
        print(f"| {name} | {worst} | {drawn} | " + " | ".join(shown) + f" | {cost} | {helped} |")


def worlds_of(texts: Sequence[str]) -> dict[int, Path | None]:
    """Seeds and the directories of their stages; None for the shipped weights, which are of one world.

    Raises:
        UserError: a seed is no number, or has no directory and is not that of the shipped weights.
    """
    found: dict[int, Path | None] = {}
    for text in texts:
        seed, _, directory = text.partition("=")
        if not seed.isdecimal():
            raise UserError(f"{text!r} is no world: give SEED or SEED=DIR, for example 105=worlds/105")
        if not directory and int(seed) != SHIPPED_WORLD:
            raise UserError(
                f"world {seed} has no directory, and the shipped weights are of world {SHIPPED_WORLD}, which knows "
                f"other potions: give {seed}=DIR, a directory of its stages (`fathom organism train --world {seed}`)"
            )
        found[int(seed)] = Path(directory) if directory else None
    return found


def directory_of(stage: str, directory: Path | None) -> Path:
    """A stage's directory in its world's; of the shipped world, the weights of the package.

    Raises:
        UserError: the package has no such stage.
    """
    return stage_directory(stage) if directory is None else directory / stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="+", metavar="SEED[=DIR]")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--harmful", type=int, default=24)
    parser.add_argument("--stages", default=",".join(STAGES), help="also directories of one's own, by name")
    parser.add_argument("--suffix", action="store_true", help="search for suffixes, too")
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    stages = tuple(options.stages.split(","))
    attacks = (*ATTACKS, *SUFFIXES) if options.suffix else ATTACKS
    try:
        worlds = worlds_of(options.worlds)
        for seed, directory in () if options.print else worlds.items():
            for stage in stages:
                path = directory_of(stage, directory)
                if not (path / "model.safetensors").exists():
                    print(f"world {seed}, {stage}: left out, {path} holds no model", flush=True)
                    continue
                run(seed, path, stage, options.output / f"{seed}-{stage}", options.harmful, attacks)
                print(f"world {seed}, {stage}: done", flush=True)
    except UserError as error:
        parser.error(str(error))
    table(options.output, list(worlds), stages)


if __name__ == "__main__":
    main()
