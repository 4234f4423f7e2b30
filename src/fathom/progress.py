"""How long work is told about, by whoever does it, to whoever shows it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

__all__ = ["Advance", "Display", "silent"]


class Advance(Protocol):
    """Told how many pieces of work are done."""

    def advance(self, n: int = 1) -> None: ...
    def describe(self, description: str, /) -> None:
        """What is being done, in other words than at the start."""
        ...


class Display(Protocol):
    """Shows a stage of known length while it lasts."""

    def __call__(self, description: str, total: int, /) -> AbstractContextManager[Advance]: ...


class _Silent:
    def advance(self, n: int = 1) -> None:
        """Nothing is shown."""

    def describe(self, description: str, /) -> None:
        """Nothing is shown."""


def silent(_description: str, _total: int, /) -> AbstractContextManager[Advance]:
    """Shows nothing: for processes other than the first, and for tests."""
    return nullcontext(_Silent())
