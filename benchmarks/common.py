"""What every benchmark here shares: interleaved timings with medians, peak memory of a fresh process, the environment,
the figure that each hands to the table of `run.py`, and its command line when it is run by itself.

Timings on a shared machine drift, so variants take turns and only ratios within one run are quoted. Processor seconds
are kept beside seconds on the clock: they do not count what else the machine does meanwhile. Memory is measured in a
process of its own per variant: an allocator that kept what an earlier variant had freed would hide what a later one
needs.
"""

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.schema import ModelInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Effort",
    "Figure",
    "Goal",
    "Memory",
    "Timed",
    "environment",
    "info_of",
    "options",
    "peak_memory",
    "run_alone",
    "show",
    "table",
    "timings",
]


class Effort(StrEnum):
    """How much a benchmark does: the shapes that are quoted, or a small case that shows in seconds that it all runs."""

    FULL = "full"
    QUICK = "quick"


class Goal(StrEnum):
    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True)
class Figure:
    """A measured number and what it should be. `baseline` and `ours` say in words what its two sides are."""

    name: str
    value: float
    unit: str = "x"
    baseline: str = ""
    ours: str = ""
    goal: Goal | None = None
    target: float = 0.0

    @property
    def reached(self) -> str:
        if self.goal is None:
            return ""
        met = self.value >= self.target if self.goal is Goal.AT_LEAST else self.value <= self.target
        return "yes" if met else "NO"

    @property
    def cells(self) -> tuple[str, ...]:
        goal = "" if self.goal is None else f"{self.goal} {_number(self.target)} {self.unit}"
        return self.name, self.baseline, self.ours, f"{_number(self.value)} {self.unit}", goal, self.reached


def options(description: str | None, *, threads: int = 2) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: `effort`, by --quick, and `threads`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_const",
        const=Effort.QUICK,
        default=Effort.FULL,
        dest="effort",
        help="a small case, in seconds: does it all run?",
    )
    parser.add_argument("--threads", type=int, default=threads, help="fewer than the machine has idle cores")
    return parser


def run_alone(description: str | None, figures: Callable[[Effort, int], Iterable[Figure]], *, threads: int = 2) -> None:
    """Read the command line, measure, and print the figures below a line on what they were measured on."""
    import torch

    given = options(description, threads=threads).parse_args()
    torch.set_num_threads(given.threads)
    print(environment())
    print(table(figures(given.effort, given.threads)))


def info_of(model: "PreTrainedModel", context: int | None) -> ModelInfo:
    """What a model of random weights is, as far as a benchmark needs to say."""
    return ModelInfo(
        name="random",
        revision=None,
        adapter=None,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        dtype="float32",
        quantisation=None,
        weights_hash="",
        tokenizer_hash="",
        template_hash=None,
        template_source="plain",
        vocabulary=model.config.vocab_size,
        context=context,
    )


def table(figures: Iterable[Figure]) -> str:
    """All figures as one Markdown table, which reads well in a terminal too."""
    head = ("figure", "baseline", "fathom", "measured", "target", "reached")
    rows = [head, *(figure.cells for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _number(value: float) -> str:
    if value == 0 or 0.1 <= abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1e}"


@dataclass(frozen=True)
class Timed:
    """Of one run: seconds on the clock, and of this process's processors."""

    clock: float
    processor: float


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process in MB: with everything loaded, and the most it had while the work ran."""

    before: float
    peak: float

    @property
    def extra(self) -> float:
        return self.peak - self.before


class Timings(dict[str, list[Timed]]):
    """Every round of every variant."""

    def clock(self, name: str) -> float:
        """Median seconds on the clock."""
        return statistics.median(timed.clock for timed in self[name])

    def processor(self, name: str) -> float:
        """Median seconds of processors."""
        return statistics.median(timed.processor for timed in self[name])


def timings(variants: Mapping[str, Callable[[], object]], rounds: int) -> Timings:
    """Seconds of each variant in each round; the variants take turns within a round."""
    seconds = Timings({name: [] for name in variants})
    for _ in range(rounds):
        for name, run in variants.items():
            clock, processor = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(Timed(time.perf_counter() - clock, time.process_time() - processor))
    return seconds


def show(seconds: Timings, baseline: str) -> None:
    """Print medians, ranges, and ratios to the baseline's median (above 1: faster)."""
    for name, values in seconds.items():
        clock = [timed.clock for timed in values]
        ratio, processor = (read(baseline) / read(name) for read in (seconds.clock, seconds.processor))
        print(
            f"{name:32} {seconds.clock(name):8.2f} s  ({min(clock):.2f} – {max(clock):.2f})  {ratio:6.2f} x   "
            f"processor {seconds.processor(name):8.2f} s {processor:6.2f} x",
            flush=True,
        )


def peak_memory(prepare: Callable[[], Callable[[], object]]) -> Memory:
    """Memory of the callable that `prepare` returns, run once in a fresh process; `prepare` may warm up first."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, prepare).result()


def _peak_memory(prepare: Callable[[], Callable[[], object]]) -> Memory:
    run = prepare()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again from here
    before = _status("VmRSS")
    run()
    return Memory(before, _status("VmHWM"))


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")


def environment() -> str:
    """One line: processor, threads, versions."""
    import torch
    import transformers

    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    return (
        f"{processor}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
