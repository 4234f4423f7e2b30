"""What every benchmark here shares: interleaved timings with medians, peak memory of a fresh process, the environment.

Timings on a shared machine drift, so variants take turns and only ratios within one run are quoted. Memory is measured
in a process of its own per variant: an allocator that kept what an earlier variant had freed would hide what a later
one needs.
"""

import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Memory", "environment", "peak_memory", "show", "timings"]


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process in MB: with everything loaded, and the most it had while the work ran."""

    before: float
    peak: float

    @property
    def extra(self) -> float:
        return self.peak - self.before


def timings(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round; the variants take turns within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def show(seconds: Mapping[str, list[float]], baseline: str) -> None:
    """Print medians, ranges, and ratios to the baseline's median (above 1: faster)."""
    reference = statistics.median(seconds[baseline])
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.2f} – {max(values):.2f}"
        print(f"{name:32} {median:8.2f} s  ({spread})  {reference / median:6.2f} x", flush=True)


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
