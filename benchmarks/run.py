"""Run every benchmark and print one table: medians, ratios of one interleaved run, and each target beside its figure.

    python benchmarks/run.py            what `make bench` runs; many minutes on two cores
    python benchmarks/run.py --quick    small cases, in about a minute: does it all run, and are results still equal?
    python benchmarks/run.py kl sweep   some of them

A benchmark is a function of effort and threads that yields figures; append it to `BENCHMARKS`. The exit code is 1
where a target is missed.
"""

import argparse
import datetime
import sys
from collections.abc import Callable, Iterable

import torch

import constrained_step
import decoding
import kl
import prefill_sweep
import refusal_mass
import startup
import suffix
from common import Effort, Figure, environment, table

BENCHMARKS: dict[str, Callable[[Effort, int], Iterable[Figure]]] = {
    "start": startup.figures,
    "kl": kl.figures,
    "refusals": refusal_mass.figures,
    "sweep": prefill_sweep.figures,
    "suffix": suffix.figures,
    "constrained": constrained_step.figures,
    "decoding": decoding.figures,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_const", const=Effort.QUICK, default=Effort.FULL, dest="effort")
    parser.add_argument("--threads", type=int, default=2, help="fewer than the machine has idle cores")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: list[Figure] = []
    for name in given.names or BENCHMARKS:
        print(f"\n{name}", flush=True)
        found += BENCHMARKS[name](given.effort, given.threads)
    print(f"\n{datetime.datetime.now(datetime.UTC).date()}, {environment()}\n\n{table(found)}")
    return int(any(figure.reached == "NO" for figure in found))


if __name__ == "__main__":
    sys.exit(main())
