"""How far a stage is, on standard error: a bar with the remaining time, or a plain line now and then."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from fathom.report.hostile import one_line

__all__ = ["Progress"]

LINE_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Shows a stage of `total` pieces of work while it lasts.

    >>> with Progress("judging", 3) as shown:
    ...     shown.advance(3)
    """

    def __init__(self, description: str, total: int, *, console: Console | None = None) -> None:
        self.description = one_line(description, 60)
        self.total = total
        self.done = 0
        self._said = 0
        self._console = console or Console(stderr=True)
        self._bar: RichProgress | None = None
        self._started = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        self._started = self._spoke = time.monotonic()
        if self._console.is_terminal and self.total > 0:
            self._bar = RichProgress(
                TextColumn("{task.description}", table_column=Column(no_wrap=True), markup=False),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total)
        return self

    def advance(self, n: int = 1) -> None:
        """So many more pieces are done."""
        self.done += n
        if self._bar is not None:
            self._bar.advance(self._task, n)
        elif time.monotonic() - self._spoke >= LINE_EVERY:
            self._say()

    def describe(self, description: str, /) -> None:
        """What is being done, in other words than at the start."""
        self.description = one_line(description, 60)
        if self._bar is not None:
            self._bar.update(self._task, description=self.description)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._spoke > self._started and kind is None and self._said != self.done:
            self._say()  # a stage that spoke also says that it ended

    def _say(self) -> None:
        self._spoke, self._said = time.monotonic(), self.done
        spent = self._spoke - self._started
        left = (
            ""
            if not 0 < self.done < self.total
            else f", about {_span(spent / self.done * (self.total - self.done))} left"
        )
        file = self._console.file if self._console.file is not None else sys.stderr
        print(f"{self.description}: {self.done} of {self.total}{left}", file=file, flush=True)


def _span(seconds: float) -> str:
    """A duration as a reader would say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
