"""Conversations as a chat template writes them: the user's own words, or one clear error."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import jinja2

from fathom.chat.thinking import PrefillAt
from fathom.errors import UserError
from fathom.records import Message, excerpt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendering"]

_PROBE = "fathomprobe"  # letters only, so that no template trims, splits or escapes it
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)

# Some templates write today's date. Ids that change overnight would change what a resumed run measures, so the date
# is the one that those templates fall back to themselves.
_FIXED_DATE = (("%d", "26"), ("%b", "Jul"), ("%B", "July"), ("%m", "07"), ("%Y", "2024"), ("%y", "24"))
_FIXED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in _FIXED_DATE)
    + " }}{% endmacro %}\n"
)


@dataclass(frozen=True, eq=False)
class Rendering:
    """One template with the tokenizer that applies it; `system` is put before conversations."""

    tokenizer: "PreTrainedTokenizerBase"
    template: str | None
    source: str
    system: str | None
    prefill_at: PrefillAt

    def conversation(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        if not turns:
            raise UserError("a conversation has no messages: give each behavior a prompt")
        if self.system is None:
            return turns
        if any(turn["role"] == "system" for turn in turns):
            raise UserError(
                f"a system prompt was given, and the messages of {excerpt(_request(turns))} hold one already: leave "
                "one of them out"
            )
        return [{"role": "system", "content": self.system}, *turns]

    def render(self, conversation: list[dict[str, str]], *, generate: bool) -> str:
        try:
            text = self._apply(conversation, generate=generate, parts=self.reads_parts)
        except _TEMPLATE_ERRORS as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the chat template ({self.source}) cannot render the messages of {excerpt(_request(conversation))}: "
                f"{reason}; leave out what it does not know (often the system prompt), or give another one with "
                "--chat-template FILE"
            ) from error
        request = _request(conversation)
        if request.strip() not in text:
            raise UserError(
                f"the chat template ({self.source}) leaves out or rewrites the user's message {excerpt(request)}: "
                "give another one with --chat-template FILE"
            )
        return text

    @cached_property
    def reads_parts(self) -> bool:
        """Whether the template reads a content as a list of parts, as vision models' do; they drop or refuse text."""
        probe = [{"role": "user", "content": _PROBE}]
        try:
            return _PROBE not in self._apply(probe, generate=True, parts=False)
        except _TEMPLATE_ERRORS:
            with suppress(*_TEMPLATE_ERRORS):
                return _PROBE in self._apply(probe, generate=True, parts=True)
            return False

    def _apply(self, conversation: list[dict[str, str]], *, generate: bool, parts: bool) -> str:
        assert self.template is not None
        thinking = self.prefill_at is PrefillAt.THINKING
        clock = _FIXED_CLOCK if "strftime_now" in self.template else ""
        whole: list[dict[str, object]] = [
            {**turn, "content": [{"type": "text", "text": turn["content"]}] if parts else turn["content"]}
            for turn in conversation
        ]
        text = self.tokenizer.apply_chat_template(
            whole,  # type: ignore[arg-type]
            chat_template=clock + self.template,
            add_generation_prompt=generate,
            tokenize=False,
            enable_thinking=thinking,
            thinking=thinking,
        )
        assert isinstance(text, str)  # tokenize=False
        return text


def _request(conversation: Sequence[Mapping[str, str]]) -> str:
    """The user's last message."""
    return next((turn["content"] for turn in reversed(conversation) if turn["role"] == "user"), "")
