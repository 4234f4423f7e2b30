"""Makes text that nobody vouches for safe to look at: what would act or hide is replaced by its code point.

Model text, behaviors and names may carry escape codes, bidirectional overrides or invisible characters. They are shown
as `⟦U+202E⟧`, never passed on and never dropped in silence. Markup is not this module's business: HTML is escaped where
it is written, and terminal text is written without a markup parser.
"""

import re

__all__ = ["HIDDEN_RANGES", "one_line", "passage", "sanitise"]

# Code points that move the cursor, reorder the line, or cannot be seen. Newline and tab are text. The joiners U+200C
# and U+200D stay: Persian, Indic scripts and emoji are written with them.
HIDDEN_RANGES: tuple[tuple[int, int], ...] = (
    (0x0000, 0x0008),
    (0x000B, 0x001F),
    (0x007F, 0x009F),  # delete, and the C1 controls, which some terminals obey as escapes
    (0x00AD, 0x00AD),  # soft hyphen
    (0x034F, 0x034F),  # combining grapheme joiner
    (0x061C, 0x061C),  # Arabic letter mark
    (0x115F, 0x1160),  # Hangul fillers
    (0x180E, 0x180E),
    (0x200B, 0x200B),  # zero-width space
    (0x200E, 0x200F),  # direction marks
    (0x2028, 0x202E),  # line and paragraph separators, embeddings and overrides
    (0x2060, 0x206F),  # word joiner, invisible operators, isolates
    (0x3164, 0x3164),
    (0xD800, 0xDFFF),  # lone surrogates: no encoding can write them
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF9, 0xFFFB),
    (0xE0000, 0xE01EF),  # tags and variation selectors that can smuggle whole sentences
)

_hidden = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in HIDDEN_RANGES) + "]")


def sanitise(text: str) -> str:
    """The text with every character that would act or hide replaced by its code point in brackets.

    >>> sanitise("a" + chr(27) + "[31mb" + chr(0x202E))
    'a⟦U+001B⟧[31mb⟦U+202E⟧'
    """
    return _hidden.sub(lambda found: f"⟦U+{ord(found.group()):04X}⟧", text)


def passage(text: str, width: int = 2000) -> str:
    """The text as it is, sanitised, cut to `width` characters with an ellipsis."""
    return sanitise(text if len(text) <= width else text[: width - 1] + "…")


def one_line(text: str, width: int | None = None) -> str:
    """The text on one line, sanitised, runs of white space as one space, cut to `width` characters with an ellipsis."""
    if width is not None and len(text) > 8 * width:
        text = text[: 8 * width]  # a megabyte need not be searched for what will not be shown
    line = sanitise(" ".join(text.split()))
    return line if width is None or len(line) <= width else line[: max(width - 1, 0)] + "…"
