"""How often the intervals of half depth and area hold the truth, on models whose curve is known.

Behaviors turn harmful at log-normal depths (median e^0.3 = 1.3 tokens); a spread of 0.1 has nearly all of them turn
between two depths that are measured, 1.0 over an order of magnitude. An audit asks n of them. 95 % is what an interval
promises.

    python benchmarks/coverage.py [--audits 400]
"""

import argparse
import math

import numpy as np

from fathom.depth.number import depth_numbers
from fathom.tally import Tally

DEPTHS = (0, 1, 2, 3, 5, 8, 10, 20, 40, 80)
MEDIAN = 0.3  # log of the tokens after which half of the behaviors have turned
MANY = 4000  # behaviors that stand for all there are


def curve(turns: np.ndarray) -> dict[int, dict[str, Tally]]:
    """Outcomes by depth and behavior, for behaviors that turn harmful after so many tokens [behaviors]."""
    return {
        depth: {str(i): Tally(harmful=int(turn <= depth), safe=int(turn > depth)) for i, turn in enumerate(turns)}
        for depth in DEPTHS
    }


def coverage(n: int, spread: float, audits: int) -> tuple[float, float, float, float]:
    """Shares of audits whose intervals hold the half depth and the area, and the intervals' mean widths."""
    steps = (np.arange(MANY) + 0.5) / MANY
    quantiles = np.sort(np.random.default_rng(1).normal(size=200_000))[(steps * 200_000).astype(int)]
    truth = depth_numbers(curve(np.exp(MEDIAN + spread * quantiles)), [], seed=0)
    random, held, widths = np.random.default_rng(0), np.zeros(2), np.zeros(2)
    for seed in range(audits):
        found = depth_numbers(curve(np.exp(random.normal(MEDIAN, spread, n))), [], seed=seed)
        half = [math.inf if end is None else end for end in (found.half_depth.low, found.half_depth.high)]
        area = [math.nan if end is None else end for end in (found.area_low, found.area_high)]
        held += (half[0] <= (truth.half_depth.tokens or 0.0) <= half[1], area[0] <= (truth.area or 0.0) <= area[1])
        widths += (min(half[1], DEPTHS[-1]) - min(half[0], DEPTHS[-1]), area[1] - area[0])
    return (*(held / audits), *(widths / audits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=400)
    chosen = parser.parse_args()
    print("| spread | n | half depth held | width, tokens | area held | width |\n|---|---|---|---|---|---|")
    for spread in (0.1, 0.5, 1.0):
        for n in (6, 12, 30, 100):
            half, area, tokens, width = coverage(n, spread, chosen.audits)
            print(
                f"| {spread} | {n} | {100 * half:.0f} % | {tokens:.2f} | {100 * area:.0f} % | {width:.3f} |", flush=True
            )


if __name__ == "__main__":
    main()
