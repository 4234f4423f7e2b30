"""The errors that a user can cause and mend."""

__all__ = ["PeerError", "ProcessError", "UserError"]


class UserError(Exception):
    """A mistake in what was given; the command line prints it as one line and exits with code 2.

    The text says what was given, why it cannot work, and what to do. A bug is never a
    `UserError`: it keeps its traceback.
    """


class ProcessError(UserError):
    """What went wrong in one of several processes, and perhaps not in the others: each such process says it."""


class PeerError(UserError):
    """Another of the processes has ended, which says why itself if it can."""
