"""Run every benchmark and print one table: medians, ratios of one interleaved run, and each target beside its figure.

    python benchmarks/run.py            what `make bench` runs; many minutes on two cores
    python benchmarks/run.py --quick    small cases, in about a minute: does it all run, and are results still equal?
    python benchmarks/run.py kl sweep   some of them

A benchmark is a module with a function `figures` of effort and threads; append it to `BENCHMARKS`. One that cannot run
here, or fails, is named below the table, and the others go on. The exit code is 1 where a target is missed, too.
"""

import datetime
import importlib
import sys
import time
import traceback

import torch

from common import Figure, environment, options, table

BENCHMARKS = {
    "start": "startup",
    "kl": "kl",
    "refusals": "refusal_mass",
    "sweep": "prefill_sweep",
    "suffix": "suffix",
    "constrained": "constrained_step",
    "adapters": "adapters",
    "decoding": "decoding",
}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME", help=", ".join(BENCHMARKS))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: list[Figure] = []
    left_out: list[str] = []
    for name in given.names or BENCHMARKS:
        print(f"\n{name}", flush=True)
        start = time.perf_counter()
        try:
            found += importlib.import_module(BENCHMARKS[name]).figures(given.effort, given.threads)
        except Exception as error:  # whatever one of them meets, the figures of the others are wanted
            traceback.print_exc()
            left_out.append(f"{name}: {error}")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n{datetime.datetime.now(datetime.UTC).date()}, {environment()}\n\n{table(found)}")
    for line in left_out:
        print(f"not measured: {line}")
    return int(bool(left_out) or any(figure.reached == "NO" for figure in found))


if __name__ == "__main__":
    sys.exit(main())
