"""The outermost layer: a user's mistake is one line and exit code 2, Ctrl-C is 130, a bug keeps its traceback."""

import contextlib
import logging
import os
import sys
from collections.abc import Sequence

from fathom.errors import ProcessError, UserError

__all__ = ["main", "run"]

MISTAKEN, INTERRUPTED = 2, 130


def main() -> None:
    """Run the command line and exit."""
    from fathom.report.streams import tolerant

    tolerant(sys.stdout, sys.stderr)
    # It advises on every product that it rounds, and on kernels that it could fetch, wherever it is installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    try:
        _check_text(arguments)
        from fathom.cli import app

        code = app(args=list(arguments), prog_name="fathom", standalone_mode=False)
        # A finished command returns None; typer turns Ctrl-C and `--help` into codes.
        code = code if isinstance(code, int) else 0
        sys.stdout.flush()  # a reader that has left is met here, and not when the interpreter ends
    except ProcessError as error:
        return _fail(str(error))
    except UserError as error:
        return _fail(str(error)) if _speaks() else MISTAKEN
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader of a pipe has left (`fathom audit --json | head`): nothing is wrong, and nothing more to say.
        # Inside a command typer turns that, and nothing else, into SystemExit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        usage = getattr(error, "format_message", None)  # a wrong option or a missing argument
        if usage is None:
            raise
        if not _speaks():
            return MISTAKEN
        said = usage().rstrip(".") or "no command was given"
        return _fail(f"{said}; `fathom --help` lists the commands, `fathom COMMAND --help` their options")
    if code == INTERRUPTED and _speaks():
        _say("interrupted; what was done is kept, and the same command goes on from here")
    return code


def _check_text(arguments: Sequence[str]) -> None:
    """That the arguments are text: bytes that the locale cannot read would end in a tokenizer or a manifest.

    Raises:
        UserError: one is not.
    """
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
            raise UserError(
                f"the argument {shown!r} is no text in {sys.getfilesystemencoding()}, the encoding of this locale: "
                "give it in that encoding, or set LC_ALL=C.UTF-8 where it is UTF-8"
            ) from None


def _fail(message: str) -> int:
    _say(message)
    return MISTAKEN


def _say(message: str) -> None:
    from fathom.report.hostile import one_line

    with contextlib.suppress(OSError):  # whoever read standard error has left
        print(f"fathom: {one_line(message)}", file=sys.stderr, flush=True)


def _speaks() -> bool:
    """Whether this process says what is wrong in all of several: they were given the same."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    main()
