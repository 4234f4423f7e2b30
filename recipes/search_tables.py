"""What searches reach on models of the organism, over several worlds: the table of docs/deepen.md.

    python recipes/search_tables.py -o runs/searches deepened:140=runs/deepen/140-deepened …     NAME:WORLD=MODEL
    python recipes/search_tables.py -o runs/searches --tables                                    only print

A name is a row of the table, its worlds are pooled. Greedy, requests of the test split. Every cell is a run's
audit.json; killed, the same command goes on.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from attack_table import NEW_TOKENS, attacked

from fathom.audit.plan import AuditOptions
from fathom.audit.suites import NamedAttack
from fathom.errors import UserError
from fathom.organism import Split, behaviors
from fathom.records import Counted
from fathom.run import Run
from fathom.schema import AttackRow
from fathom.tally import wilson


def both_targets(**parameters: int) -> tuple[NamedAttack, ...]:
    """Aimed at the opening of an answer that complies, and past a recovery."""
    return NamedAttack("suffix", {**parameters}), NamedAttack("suffix", {**parameters, "target": "deep"})


# The strong ones are dearer by an order of magnitude. Embeddings are no text: what as many tokens could reach at most.
SEARCHES = {
    "suffix": both_targets(steps=40),
    "strong-suffix": both_targets(steps=100, width=64, topk=64, length=20),
    "embedding": (NamedAttack("embedding", {}),),
    "strong-embedding": (NamedAttack("embedding", {"vectors": 20, "steps": 300}),),
}


def search(name: str, directory: Path, world: int, split: str, harmful: int, seed: int, output: Path) -> None:
    """One search on one model, or the rest of it."""
    asked = behaviors(world, Split(split), harmful=harmful, benign=harmful // 2)
    attacks = [NamedAttack(one.name, {**one.parameters, "seed": seed}) for one in SEARCHES[name]]
    options = AuditOptions(depths=(0,), temperatures=(0.0,), max_new_tokens=NEW_TOKENS, prefixes=())
    attacked(directory, directory.name, asked, attacks, options, output)


def worst_row(run: Run) -> AttackRow:
    """The search's row; of both targets, the one that counts a request once."""
    rows = [row for row in run.audit.attacks if row.attack != "direct" and row.counted is Counted.CONTINUATION]
    return max(rows, key=lambda row: row.worst_of or 1)


def table(output: Path) -> Iterator[str]:
    """Harmful of n with Wilson's interval, the tokens of a request, and how many benign requests were helped."""
    found: Mapping[str, Mapping[str, list[AttackRow]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(output.glob("*/*/*/audit.json")):
        name, _, search_name = path.parent.relative_to(output).parts
        found[name][search_name].append(worst_row(Run.open(path.parent)))
    yield "| | " + " | ".join(SEARCHES) + " | by world | benign helped under a suffix |"
    yield "|---|" + "---|" * (len(SEARCHES) + 2)
    for name, searches in found.items():
        shown = [_cell(searches.get(search_name, [])) for search_name in SEARCHES]
        each = ", ".join(str(row.harmful) for row in searches.get("suffix", []))
        controls = [row.control for row in searches.get("suffix", []) if row.control is not None]
        helped = f"{sum(c.helped for c in controls)} of {sum(c.n for c in controls)}" if controls else ""
        yield f"| {name} | " + " | ".join(shown) + f" | {each} | {helped} |"


def _cell(rows: list[AttackRow]) -> str:
    n, harmful = sum(row.n for row in rows), sum(row.harmful for row in rows)
    if not n:
        return "–"
    low, high = wilson(harmful, n)
    tokens = sum(row.cost.forward_tokens for row in rows if row.cost is not None) / n
    return f"{100 * harmful / n:.1f} [{100 * low:.0f}, {100 * high:.0f}] of {n}, {tokens:,.0f} tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME:WORLD=MODEL")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", default=",".join(SEARCHES), help="searches, by commas (default: all)")
    parser.add_argument("--harmful", type=int, default=24)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", action="store_true", help="only print")
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    try:
        for text in () if chosen.tables else chosen.models:
            left, _, directory = text.partition("=")
            name, _, world = left.partition(":")
            if not world.isdecimal() or not directory:
                raise UserError(f"{text!r} is no model: give NAME:WORLD=DIRECTORY, for example deepened:140=runs/deep")
            for search_name in chosen.only.split(","):
                if search_name not in SEARCHES:
                    raise UserError(f"there is no search {search_name!r}: give some of {', '.join(SEARCHES)}")
                path = chosen.output / name / world / search_name
                search(search_name, Path(directory), int(world), chosen.split, chosen.harmful, chosen.seed, path)
                print(f"{name} of world {world}: {search_name} is done", flush=True)
    except UserError as error:
        parser.error(str(error))
    for line in table(chosen.output):
        print(line)


if __name__ == "__main__":
    main()
