"""The thinking blocks of published templates, and where a prefill goes in them."""

from enum import StrEnum

__all__ = ["THINKING_TAGS", "PrefillAt", "open_block", "without_thoughts"]

# How the thinking blocks of published templates open and close.
THINKING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)


class PrefillAt(StrEnum):
    """Where a prefill goes in templates with a thinking block."""

    ANSWER = "answer"  # the block is skipped or closed, empty: response ids are the visible answer
    THINKING = "thinking"  # the block is open: response ids are the model's thoughts


def open_block(header: str) -> tuple[str, str] | None:
    """The tags of the thinking block that a generation prompt leaves open, if it does."""
    for opens, closes in THINKING_TAGS:
        if header.rfind(opens) > header.rfind(closes):
            return opens, closes
    return None


def without_thoughts(prompt: str) -> str:
    """A prompt without the empty or just opened thinking block at its end."""
    for opens, closes in THINKING_TAGS:
        stem, found, block = prompt.rpartition(opens)
        if found and block.replace(closes, "", 1).isspace() | (block in ("", closes)):
            return stem
    return prompt
