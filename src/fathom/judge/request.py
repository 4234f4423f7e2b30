"""What judges are shown and called: the request as one text, and a model's name as a part of a file's."""

from fathom.records import Behavior

__all__ = ["request_text", "slug"]


def request_text(behavior: Behavior) -> str:
    """The request alone; of a conversation, every turn with its role."""
    if len(behavior.messages) == 1:
        return behavior.prompt
    return "\n\n".join(f"{message.role}: {message.content}" for message in behavior.messages)


def slug(name: str) -> str:
    """The last part of a model's name, as a part of a file's."""
    last = name.rstrip("/").split("/")[-1]
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "-" for char in last)
    return kept.strip("-.")[:50] or "model"
