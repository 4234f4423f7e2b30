"""What a row says of itself: that its request, or its answer, is harmful or harmless."""

from collections.abc import Mapping
from typing import NamedTuple

from fathom.behaviors.columns import plain
from fathom.behaviors.fields import UnusableError, shortened

__all__ = ["Marks", "harm_said", "marks_of"]

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_OPPOSITE = {word: not value for word, value in _WORDS.items()}
_LABELS = {
    **dict.fromkeys(("unsafe", "harmful"), True),
    **dict.fromkeys(("safe", "benign", "harmless", "unharmful"), False),
}
_Names = Mapping[str, Mapping[str, bool]]  # columns, and what their words say: harmful or not
# The file's own column, XSTest's, WildGuard's and Aegis's.
_REQUEST: _Names = {
    "harmful": _WORDS,
    "is_harmful": _WORDS,
    "label": _LABELS,
    "prompt_harm_label": _LABELS,
    "prompt_label": _LABELS,
}
# BeaverTails', WildGuard's and Aegis's: of the answer alone. A refusal is safe, whatever was asked for.
_ANSWER: _Names = {"is_safe": _OPPOSITE, "response_harm_label": _LABELS, "response_label": _LABELS}
_COMMON = ("label", "prompt_label", "response_label")  # columns that other data sets have for something else


class Marks(NamedTuple):
    """Whether a row says that its request and its answer are harmful; None where it says nothing."""

    request: bool | None
    answer: bool | None


def marks_of(fields: Mapping[str, object]) -> Marks:
    """What a row of behaviors says.

    Raises:
        UnusableError: a column that should say it holds another word.
    """
    return Marks(_said(fields, _REQUEST), _said(fields, _ANSWER))


def harm_said(fields: Mapping[str, object]) -> str | None:
    """Why a row is not to be taken for harmless, if it says so; a mark that cannot be read is taken for one of harm."""
    for name, words in {**_REQUEST, **_ANSWER}.items():
        value = fields.get(plain(name))
        if words.get(_word(value), value is not None and name not in _COMMON):
            return f"its {name} is {shortened(value)}"
    return None


def _said(fields: Mapping[str, object], names: _Names) -> bool | None:
    for name, words in names.items():
        value = fields.get(plain(name))
        if value is None:
            continue
        word = _word(value)
        if word not in words:
            raise UnusableError(f"{name} is {shortened(value)}; it must be one of {', '.join(words)}")
        return words[word]
    return None


def _word(value: object) -> str:
    if isinstance(value, float) and value.is_integer():  # a column of pandas in which some rows say nothing
        value = int(value)
    return str(value).strip().lower() if isinstance(value, str | bool | int) else ""
