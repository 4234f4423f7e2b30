"""The real entry point in real processes, without paying for imports in each: forked, killed, joined to others.

A forked child runs `fathom.__main__.run` with its own standard streams, directory and environment, and ends without
returning to pytest. It can be killed with any signal at any moment, as a process started by a shell can.
"""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Imported here, so that children have them.
import torch

import fathom.audit.execute
import fathom.cli
import fathom.command.audit
import fathom.command.ids
import fathom.command.judge
import fathom.report.page
import fathom.report.terminal  # noqa: F401
from fathom.__main__ import run
from fathom.report import plot

plot.script()  # some seconds, once

PATIENCE = 120.0  # seconds


@dataclass
class Child:
    """A running command."""

    pid: int
    out: Path
    err: Path
    code: int | None = None

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, patience: float = PATIENCE) -> int:
        until = time.monotonic() + patience
        while not self.poll():
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"still running after {patience} s; it said: {self.err.read_text()}")
            time.sleep(0.005)
        assert self.code is not None
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        if not self.poll():
            os.kill(self.pid, number)
            if number == signal.SIGKILL:
                self.wait()


def start(arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Child:
    """Begin a command in `folder`; what it writes to its streams goes to files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in folder.glob(".stream*.out"))
    out, err = folder / f".stream{number}.out", folder / f".stream{number}.err"
    out.touch()
    err.touch()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, out, err)
    code = 70
    try:
        # Handlers of pytest and its plug-ins are the parent's.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv = ["fathom", *arguments]
        os.chdir(folder)
        os.environ.update({"COLUMNS": "80", **(environment or {})})
        torch.set_num_threads(1)
        code = run(list(arguments))
        sys.stdout.flush()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def together(arguments: Sequence[str], folder: Path, processes: int, **environment: str) -> list[Child]:
    """Begin a command in several processes that meet, as `torchrun` would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), **environment}
    return [
        start(arguments, folder, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)
    ]


def until(seen: Callable[[], bool], child: Child, patience: float = PATIENCE) -> bool:
    """Wait until something is seen; False if the command ended first."""
    deadline = time.monotonic() + patience
    while not seen():
        if child.poll():
            return False
        if time.monotonic() > deadline:
            child.kill()
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.001)
    return True


def lines(path: Path) -> Iterator[bytes]:
    """Whole lines of a journal; none where there is no file."""
    if path.exists():
        yield from (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
