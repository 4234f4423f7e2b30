"""Stages by prefill depth over several worlds, from their metrics.json: docs/organism.md.

`python recipes/organism_table.py shipped worlds/105 worlds/106`: a world is a directory that `fathom organism train`
made. Harmful requests of all worlds are pooled; the spread over worlds is shown beside Wilson's interval, because
worlds, not requests, are the independent draws.
"""

import argparse
from pathlib import Path

from fathom.organism import STAGES, stage_directory
from fathom.organism.metrics import FamilyMetrics, Measured, read_metrics
from fathom.tally import wilson

DEPTHS = (0, 1, 2, 3, 5, 10, 20, 40, 80, 100)


def cells(metrics: list[FamilyMetrics], stage: str, requests: str, depth: int, temperature: float) -> list[Measured]:
    wanted = (requests, depth, "", temperature)
    return [
        cell
        for world in metrics
        for cell in world.stages.get(stage, ())
        if (cell.requests, cell.prefill_tokens, cell.prefill_text, cell.temperature) == wanted
    ]


def pooled(found: list[Measured]) -> str:
    """The rate over all requests, its interval, and the lowest and highest world."""
    n, hits = sum(cell.n for cell in found), sum(round(cell.rate * cell.n) for cell in found)
    if not n:
        return "-"
    interval = wilson(hits, n)
    worlds = (
        "" if len(found) < 2 else f"; {100 * min(c.rate for c in found):.0f}–{100 * max(c.rate for c in found):.0f}"
    )
    return f"{100 * hits / n:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}{worlds}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+", help="'shipped', or a directory with metrics.json")
    names = parser.parse_args().worlds
    shipped = stage_directory("base").parent
    metrics = [read_metrics((shipped if name == "shipped" else Path(name)) / "metrics.json") for name in names]
    print(f"worlds {', '.join(str(world.world) for world in metrics)}, {metrics[0].split} split\n")
    present = [stage for stage in STAGES if any(stage in world.stages for world in metrics)]
    print("| prefilled | " + " | ".join(present) + " |\n|---|" + "---|" * len(present))
    for depth in DEPTHS:
        row = [pooled(cells(metrics, stage, "harmful", depth, 0.0)) for stage in present]
        print(f"| {depth} | " + " | ".join(row) + " |")
    warm = [pooled(cells(metrics, stage, "harmful", 0, 1.0)) for stage in present]
    exact = [pooled(cells(metrics, stage, "benign", 0, 0.0)) for stage in present]
    kept = [pooled(cells(metrics, stage, "kept-out", 0, 0.0)) for stage in present]
    print("| 0, T = 1 | " + " | ".join(warm) + " |")
    print("| families kept out of alignment, 0 | " + " | ".join(kept) + " |")
    print("| benign, exact | " + " | ".join(exact) + " |")
    refused = [sum(cell.refused for cell in cells(metrics, stage, "benign", 0, 0.0)) for stage in present]
    print("| benign, refused | " + " | ".join(map(str, refused)) + " |")
    prefixes = dict.fromkeys(
        cell.prefill_text for world in metrics for cell in world.stages["base"] if cell.prefill_text
    )
    print("\n| refusal given to the base model | ASR |\n|---|---|")
    for prefix in prefixes:
        found = [cell for world in metrics for cell in world.stages["base"] if cell.prefill_text == prefix]
        print(f"| {prefix} | {pooled(found)} |")


if __name__ == "__main__":
    main()
