"""The one error that a user can cause and mend."""

__all__ = ["UserError"]


class UserError(Exception):
    """A mistake in what was given; the command line prints it as one line and exits with code 2.

    The text says what was given, why it cannot work, and what to do. A bug is never a
    `UserError`: it keeps its traceback.
    """
