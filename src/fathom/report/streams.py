"""Standard streams in an encoding that cannot write everything: what it lacks is written otherwise, and nothing ends.

A terminal or a pipe may be cp1252 or ASCII. The typography of tables has stand-ins, as wide as itself where there is
such a one, so that columns stay columns; any other character is shown by its code point.
"""

import codecs
import io
from typing import TextIO

__all__ = ["ERRORS", "tolerant"]

ERRORS = "fathom.typography"  # the name under which `codecs` knows the handler

_STAND_INS = {
    **dict.fromkeys("–−‖", "-"),
    **dict.fromkeys("█", "#"),
    **dict.fromkeys("▏▎▍▌▋▊▉", "|"),
    **dict.fromkeys("“”", '"'),
    "…": "~",
    "→": "->",
    "·": ".",
    "×": "x",
    "≤": "<=",
    "≥": ">=",
    "’": "'",
    "⟦": "[",
    "⟧": "]",
}


def tolerant(*streams: TextIO) -> None:
    """Make these streams write what their encoding has, a stand-in for typography, and code points for the rest.

    >>> stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    >>> tolerant(stream)
    >>> stream.write("0–79 % 日"), stream.seek(0), stream.read()
    (8, 0, '0-79 % \\\\u65e5')
    """
    codecs.register_error(ERRORS, _stand_in)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # what a test or a notebook has put there writes everything
            stream.reconfigure(errors=ERRORS)


def _stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = "".join(_STAND_INS.get(character) or _code_point(character) for character in text)
    return shown, error.end


def _code_point(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")
