"""The text that a classifier is shown for an exchange, in which nothing but the template can be an instruction token.

An answer may hold what the classifier's tokenizer takes for the end of a turn. Such tokens are taken apart by a space
before the answer is put into the template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fathom.errors import UserError
from fathom.judge.request import request_text
from fathom.records import Exchange, excerpt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatAsking", "TemplateAsking", "disarmed"]

_VARIABLES = ("request", "prefill", "response", "policy", "bos_token")
_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)


def disarmed(text: str, special: Sequence[str]) -> str:
    """The text without tokens that mean something to a tokenizer, each taken apart after its first character.

    >>> disarmed("yes<|end|>", ["<|end|>"])
    'yes< |end|>'
    """
    for token in special:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


@dataclass(frozen=True)
class TemplateAsking:
    """By a template of Jinja. `source` names it in an error."""

    template: str
    source: str
    policy: str
    bos_token: str
    special: tuple[str, ...]

    def text(self, exchange: Exchange) -> str:
        """What the classifier is shown.

        Raises:
            UserError: the template cannot be rendered, or leaves the answer out.
        """
        response = disarmed(exchange.response, self.special)
        try:
            text: str = self._compiled.render(
                request=disarmed(request_text(exchange.behavior), self.special),
                prefill=disarmed(exchange.prefill, self.special),
                response=response,
                policy=self.policy,
                bos_token=self.bos_token,
            )
        except _ERRORS as error:
            raise UserError(
                f"the template {self.source} cannot be used ({' '.join(str(error).split())}); it knows "
                f"{', '.join(_VARIABLES)}"
            ) from error
        return _holding(text, response, f"the template {self.source}")

    @cached_property
    def _compiled(self) -> jinja2.Template:
        made = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        try:
            return made.from_string(self.template)
        except jinja2.TemplateError as error:
            raise UserError(f"the template {self.source} is not Jinja ({error}); mend it there") from error


@dataclass(frozen=True)
class ChatAsking:
    """By the chat template of the classifier's tokenizer: the request is the user's turn, the answer the assistant's.

    A policy is given to it as `guideline`, as ShieldGemma's calls it.
    """

    tokenizer: "PreTrainedTokenizerBase"
    policy: str | None
    special: tuple[str, ...]

    def text(self, exchange: Exchange) -> str:
        """What the classifier is shown.

        Raises:
            UserError: the template cannot be rendered, or leaves the answer out.
        """
        asked = [one for one in exchange.behavior.messages if one.role in ("user", "assistant")]
        turns = [(one.role, disarmed(one.content, self.special)) for one in asked]
        response = disarmed(exchange.response, self.special)
        turns.append(("assistant", response))
        try:
            text = self._render([{"role": role, "content": content} for role, content in turns])
            if response.strip() not in text:  # templates of models that see read a content as a list of parts
                text = self._render(
                    [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in turns]
                )
        except _ERRORS as error:
            raise UserError(
                f"the chat template of the classifier cannot render {excerpt(exchange.behavior.prompt)} with an answer "
                f"({' '.join(str(error).split())}); give template=FILE"
            ) from error
        return _holding(text, response, "the chat template of the classifier")

    def _render(self, turns: list[dict[str, object]]) -> str:
        given: dict[str, Any] = {} if self.policy is None else {"guideline": self.policy}
        text = self.tokenizer.apply_chat_template(
            turns,  # type: ignore[arg-type]
            tokenize=False,
            add_generation_prompt=True,
            **given,
        )
        assert isinstance(text, str)  # tokenize=False
        return text


def _holding(text: str, response: str, what: str) -> str:
    if response.strip() not in text:
        raise UserError(f"{what} leaves out the answer that is to be judged: it needs the response")
    return text
