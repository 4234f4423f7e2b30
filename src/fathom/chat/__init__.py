"""Messages to token ids and back, through the model's own chat template, with a known response boundary.

`prompt_ids + response_ids[:k]` is a prefill of exactly k tokens: the prompt's ids never change with what follows them,
and nothing is decoded and tokenised again on the way. `docs/ids.md` tells which ids every kind of template gets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from fathom.chat.decoding import Decoder, shared_start
from fathom.chat.rendering import Rendering
from fathom.chat.thinking import THINKING_TAGS, PrefillAt, open_block, without_thoughts
from fathom.errors import UserError
from fathom.records import Message, excerpt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FIRST_VECTOR", "ChatFormat", "Continuation", "GenerationPrompt", "PrefillAt", "without_thoughts"]

# Never in a user's text; letters only, so that no template trims, splits or escapes it.
_ANSWER_MARK = "fathomanswermark"
_THOUGHT_MARK = "fathomthoughtmark"
FIRST_VECTOR = 1 << 32  # tokenizers count in 32 bits; ids from here on name vectors that an attack made
_REQUEST_MARK = "fathomrequestmark"


class Continuation(NamedTuple):
    """A prefill and what a model wrote after it, as text: `prefill_text + text` is the whole response.

    `token_ends[i]` is the number of characters of `text` that the first i + 1 output tokens make.
    """

    prefill_text: str
    text: str
    token_ends: tuple[int, ...]


class GenerationPrompt(NamedTuple):
    """Rendered text: the messages, and the header that opens the assistant's turn."""

    messages: str
    header: str


@dataclass(frozen=True, eq=False)
class ChatFormat:
    """One tokenizer and one template: everything that turns messages into ids.

    `template` is Jinja, or None for plain text; `source` says where it came from ("model", a file's name, "plain").
    `stop_ids` end the model's turn. `system` is put before conversations; without it, a default that the template
    itself injects is left as it is.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: str | None
    source: str
    stop_ids: frozenset[int]
    system: str | None = None
    prefill_at: PrefillAt = PrefillAt.ANSWER

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids up to and including the generation prompt, where the response begins.

        Raises:
            UserError: the template refuses these messages, or has no thinking block to put a prefill into.
        """
        text = self.prompt_text(messages)
        if self.template is not None:
            return self.tokenise(text)
        bos = self.tokenizer.bos_token_id
        return (() if bos is None else (bos,)) + self._plain_ids(text)

    def response_ids(self, messages: Sequence[Message], response: str) -> tuple[int, ...]:
        """The ids that `response` has right after `prompt_ids(messages)`, without the end of the turn.

        They are those of the template's training rendering where that begins with the prompt; else those of the text
        put after the prompt; and where that would change the prompt's own ids, those of the text alone.
        """
        if not response:
            return ()
        prompt = self.prompt_text(messages)
        head = self.tokenise(prompt) if self.template is not None else self._plain_ids(prompt)
        for lead in dict.fromkeys((self._lead(messages, prompt, response), "")):
            ids = self.tokenise(prompt + lead + response)
            if ids[: len(head)] == head and len(ids) > len(head):
                return ids[len(head) :]
        return self.tokenise(response)

    def end_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What follows the response in the template's training rendering; the end-of-text token where nothing does."""
        if self.template is not None:
            _, mark, after = self.training_text(messages, _ANSWER_MARK).rpartition(_ANSWER_MARK)
            if mark and after:
                return self.tokenise(after)
        eos = self.tokenizer.eos_token_id
        return () if eos is None else (eos,)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens skipped, no space cleaned up."""
        return self._decoder.decode(ids)

    def excerpt(self, prompt_ids: Sequence[int]) -> str:
        """The beginning of a prompt in quotes, for an error to name it by, without what the template puts around it."""
        text = self.prompt_text((Message(role="user", content=_REQUEST_MARK),))
        # Each side by itself: a tokenizer of few words does not know the mark.
        before, after = (self.decode(self.tokenise(side)).strip() for side in text.split(_REQUEST_MARK, 1))
        known = [id_ for id_ in prompt_ids if id_ < FIRST_VECTOR]
        return excerpt(self.decode(known).strip().removeprefix(before).removesuffix(after))

    def continuation(self, prefill_ids: Sequence[int], output_ids: Sequence[int]) -> Continuation:
        """Prefill and output as they read together.

        A character that the prefill begins and the output completes belongs to the output.
        """
        ids = (*prefill_ids, *output_ids)
        whole = self.decode(ids)
        start, *ends = self._decoder.ends(ids, len(prefill_ids), whole)
        return Continuation(whole[:start], whole[start:], tuple(end - start for end in ends))

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What `prompt_ids` tokenises (plain text: without the BOS, which is put before it as an id)."""
        raw = self.generation_prompt(messages)
        if self.template is None:
            return raw.messages
        tags = open_block(raw.header)
        if self.prefill_at is PrefillAt.ANSWER:
            return self._at_answer(messages, raw.messages + raw.header, tags)
        return raw.messages + raw.header if tags else self._at_thoughts(messages, raw.messages + raw.header)

    def generation_prompt(self, messages: Sequence[Message]) -> GenerationPrompt:
        """What the template writes when an answer is to be generated, before a prefill's place is chosen in it."""
        conversation = self._rendering.conversation(messages)
        if self.template is None:
            return GenerationPrompt("".join(turn["content"] + "\n\n" for turn in conversation), "")
        opening = self._rendering.render(conversation, generate=True)
        closed = self._rendering.render(conversation, generate=False)
        # Where both go on with a special token of their own, they share its first characters.
        before = opening[: shared_start(opening, closed)].rstrip("<|[") if not opening.startswith(closed) else closed
        return GenerationPrompt(before, opening[len(before) :])

    def training_text(self, messages: Sequence[Message], response: str, thoughts: str | None = None) -> str:
        """The template's rendering of the whole conversation, the assistant's turn included."""
        turn = {"role": "assistant", "content": response}
        if thoughts is not None:
            turn["reasoning_content"] = thoughts
        return self._rendering.render([*self._rendering.conversation(messages), turn], generate=False)

    def _at_answer(self, messages: Sequence[Message], opening: str, tags: tuple[str, str] | None) -> str:
        """The generation prompt, moved past a thinking block or into the channel of the visible answer."""
        if tags:  # the generation prompt opens a block: close it as the template does, or as models of its kind do
            thought = self._between(messages, _THOUGHT_MARK, _ANSWER_MARK)
            return opening + (thought if tags[1] in thought else f"\n{tags[1]}\n\n")
        before, mark, _ = self.training_text(messages, _ANSWER_MARK).rpartition(_ANSWER_MARK)
        if not mark or not before.startswith(opening):
            return opening
        # A header beyond the generation prompt (an empty thinking block, a channel's name) is not the answer. White
        # space alone is, unless it ends such a block: sentencepiece writes it into the answer's first token.
        beyond = before[len(opening) :].strip() or without_thoughts(opening) != opening
        return before if beyond else opening

    def _at_thoughts(self, messages: Sequence[Message], opening: str) -> str:
        """The generation prompt with a thinking block opened."""
        before, mark, _ = self._with_thoughts(messages).rpartition(_THOUGHT_MARK)
        if mark and before.startswith(opening):
            return before
        for opens, _ in THINKING_TAGS:
            if opens in (self.template or ""):
                return opening + opens + "\n"
        raise UserError(
            f"a prefill was asked for in the thinking block, but the chat template ({self.source}) has none: "
            f"use --prefill-at {PrefillAt.ANSWER}"
        )

    def _with_thoughts(self, messages: Sequence[Message]) -> str:
        try:
            return self.training_text(messages, _ANSWER_MARK, thoughts=_THOUGHT_MARK)
        except UserError:  # templates that know no reasoning may refuse the key
            return ""

    def _between(self, messages: Sequence[Message], first: str, second: str) -> str:
        """What the training rendering writes between two marks; empty where it does not show both."""
        after = self._with_thoughts(messages).rpartition(first)[2]
        between, mark, _ = after.partition(second)
        return between if mark else ""

    def _lead(self, messages: Sequence[Message], prompt: str, response: str) -> str:
        """White space that the training rendering puts between generation prompt and response."""
        if self.template is None:
            return ""
        try:
            rest = self.training_text(messages, response).removeprefix(prompt)
        except UserError:
            return ""
        lead, found, _ = rest.partition(response)
        return lead if found and lead.isspace() else ""

    def tokenise(self, text: str) -> tuple[int, ...]:
        """The ids of rendered text. No special tokens are added: the template has written them."""
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False)
        ids: list[int] = encoded["input_ids"]
        bos, token = self.tokenizer.bos_token_id, self.tokenizer.bos_token
        if bos is not None and ids[:2] == [bos, bos] and not text.startswith(f"{token}{token}"):
            ids = ids[1:]  # the tokenizer adds a BOS whatever it is told
        return tuple(ids)

    def _plain_ids(self, text: str) -> tuple[int, ...]:
        """The ids of text that goes on after it.

        Byte-level tokenizers write a closing blank line as one token at the end of a text, and as two within one.
        """
        alone, followed = self.tokenise(text), self.tokenise(text + "A")
        within = followed[: -len(self.tokenise("A"))]
        return within if self.decode(within) == self.decode(alone) else alone

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that `decode` leaves out."""
        return self._decoder.special_ids

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """What they are in the text of whoever does not leave them out."""
        return tuple(filter(None, map(str, self.tokenizer.convert_ids_to_tokens(sorted(self.special_ids)))))

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.tokenizer)

    @cached_property
    def _rendering(self) -> Rendering:
        return Rendering(self.tokenizer, self.template, self.source, self.system, self.prefill_at)
