"""How long the command line takes to answer, and the built-in audit with base and KL, each as a user starts it.

python benchmarks/startup.py
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import Effort, Figure, Goal, run_alone, timings


def run(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def run_audit() -> None:
    """Into an empty directory: a run that is there already would only be read."""
    with tempfile.TemporaryDirectory() as directory:
        run(["-m", "fathom", "audit", "--output", str(Path(directory) / "run"), "--json"])


def figures(effort: Effort, threads: int) -> list[Figure]:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    full = effort is Effort.FULL
    seconds = timings(
        {
            "fathom --help": partial(run, ["-m", "fathom", "--help"]),
            "import fathom": partial(run, ["-c", "import fathom, sys; assert 'torch' not in sys.modules"]),
        },
        5 if full else 1,
    )
    found = [
        _figure("fathom --help", seconds.clock("fathom --help"), 0.5 if full else None),
        _figure("import fathom", seconds.clock("import fathom"), None),
    ]
    if full:
        audit = timings({"fathom audit": run_audit}, 3)
        found.append(_figure("fathom audit", audit.clock("fathom audit"), 60.0))
    return found


def _figure(command: str, seconds: float, target: float | None) -> Figure:
    goal = None if target is None else Goal.AT_MOST
    return Figure(f"`{command}`", seconds, "s", goal=goal, target=target or 0)


if __name__ == "__main__":
    run_alone(__doc__, figures)
