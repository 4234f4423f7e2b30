"""A process that has imported everything and run nothing, from which tests fork others (`multiprocessing` forkserver).

Each of these is a new process, to be killed or joined to others, and none pays for imports.
"""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running

import pytest

__all__ = ["forking"]


def forking() -> ForkServerContext:
    """The context to make processes with; the server, once it runs, is the same for all tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fathom.organism.train", "fathom.tuning.fit"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # it is not told where pytest finds modules
        ensure_running()
    return context
