"""Messages to token ids and back, through the model's own chat template, with a known response boundary.

`prompt_ids + response_ids[:k]` is a prefill of exactly k tokens: the prompt's ids never change with what follows them,
and nothing is decoded and tokenised again on the way. `docs/ids.md` tells which ids every kind of template gets.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from fathom.errors import UserError
from fathom.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatFormat", "Continuation", "GenerationPrompt", "PrefillAt", "without_thoughts"]

# Never in a user's text; letters only, so that no template trims, splits or escapes it.
_ANSWER_MARK = "fathomanswermark"
_THOUGHT_MARK = "fathomthoughtmark"

_BROKEN = "\ufffd"  # how a decoder shows bytes that are no character, or not yet
_WINDOW = 32  # tokens; several times what the longest character takes

_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)

# How the thinking blocks of published templates open and close.
_THINKING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)

# Some templates write today's date. Ids that change overnight would change what a resumed run measures, so the date
# is the one that those templates fall back to themselves.
_FIXED_DATE = (("%d", "26"), ("%b", "Jul"), ("%B", "July"), ("%m", "07"), ("%Y", "2024"), ("%y", "24"))
_FIXED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in _FIXED_DATE)
    + " }}{% endmacro %}\n"
)


class PrefillAt(StrEnum):
    """Where a prefill goes in templates with a thinking block."""

    ANSWER = "answer"  # the block is skipped or closed, empty: response ids are the visible answer
    THINKING = "thinking"  # the block is open: response ids are the model's thoughts


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
        return self._decoder(list(ids))

    def continuation(self, prefill_ids: Sequence[int], output_ids: Sequence[int]) -> Continuation:
        """Prefill and output as they read together.

        A character that the prefill begins and the output completes belongs to the output.
        """
        ids = (*prefill_ids, *output_ids)
        whole = self.decode(ids)
        start, *ends = self._ends(ids, len(prefill_ids), whole)
        return Continuation(whole[:start], whole[start:], tuple(end - start for end in ends))

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What `prompt_ids` tokenises (plain text: without the BOS, which is put before it as an id)."""
        raw = self.generation_prompt(messages)
        if self.template is None:
            return raw.messages
        tags = _open_block(raw.header)
        if self.prefill_at is PrefillAt.ANSWER:
            return self._at_answer(messages, raw.messages + raw.header, tags)
        return raw.messages + raw.header if tags else self._at_thoughts(messages, raw.messages + raw.header)

    def generation_prompt(self, messages: Sequence[Message]) -> GenerationPrompt:
        """What the template writes when an answer is to be generated, before a prefill's place is chosen in it."""
        conversation = self._conversation(messages)
        if self.template is None:
            return GenerationPrompt("".join(turn["content"] + "\n\n" for turn in conversation), "")
        opening = self._render(conversation, generate=True)
        closed = self._render(conversation, generate=False)
        # Where both go on with a special token of their own, they share its first characters.
        before = opening[: _shared(opening, closed)].rstrip("<|[") if not opening.startswith(closed) else closed
        return GenerationPrompt(before, opening[len(before) :])

    def training_text(self, messages: Sequence[Message], response: str, thoughts: str | None = None) -> str:
        """The template's rendering of the whole conversation, the assistant's turn included."""
        turn = {"role": "assistant", "content": response}
        if thoughts is not None:
            turn["reasoning_content"] = thoughts
        return self._render([*self._conversation(messages), turn], generate=False)

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
        for opens, _ in _THINKING_TAGS:
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

    def _conversation(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        if not turns:
            raise UserError("a conversation has no messages: give each behavior a prompt")
        if self.system is None:
            return turns
        if any(turn["role"] == "system" for turn in turns):
            raise UserError(
                "a system prompt was given, but a behavior's messages hold one already: leave one of them out"
            )
        return [{"role": "system", "content": self.system}, *turns]

    def _render(self, conversation: list[dict[str, str]], *, generate: bool) -> str:
        try:
            text = self._apply(conversation, generate=generate, parts=self._reads_parts)
        except _TEMPLATE_ERRORS as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the chat template ({self.source}) cannot render these messages: {reason}; leave out what it does not "
                "know (often the system prompt), or give another one with --chat-template FILE"
            ) from error
        asked = next((turn["content"] for turn in reversed(conversation) if turn["role"] == "user"), "")
        if asked.strip() not in text:
            raise UserError(
                f"the chat template ({self.source}) leaves out or rewrites the user's message: "
                "give another one with --chat-template FILE"
            )
        return text

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template reads a content as a list of parts, as vision models' do; they drop or refuse text."""
        probe = [{"role": "user", "content": _ANSWER_MARK}]
        try:
            return _ANSWER_MARK not in self._apply(probe, generate=True, parts=False)
        except _TEMPLATE_ERRORS:
            with suppress(*_TEMPLATE_ERRORS):
                return _ANSWER_MARK in self._apply(probe, generate=True, parts=True)
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

    @cached_property
    def _decoder(self) -> Callable[[list[int]], str]:
        """What `decode` calls, some 100 times a completion: the Rust library itself, where nothing stands before it."""
        from transformers import PreTrainedTokenizerBase, TokenizersBackend

        tokenizer = self.tokenizer
        kind, usual = type(tokenizer), PreTrainedTokenizerBase.decode
        if kind.decode is usual and getattr(kind, "_decode", None) is TokenizersBackend._decode:
            rust = tokenizer.backend_tokenizer
            return lambda ids: rust.decode(ids, skip_special_tokens=True)

        def decode(ids: list[int]) -> str:
            text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert isinstance(text, str)  # one sequence, one text
            return text

        return decode

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that `decode` leaves out."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(id_ for id_, token in added.items() if token.special) | frozenset(
            self.tokenizer.all_special_ids
        )

    def _ends(self, ids: tuple[int, ...], start: int, whole: str) -> list[int]:
        """Characters of `whole` that ids[:start], ids[: start + 1], … make, in time linear in the ids.

        Naive equivalent: how much of `decode(ids[:i])` and `whole` is the same, never falling. Text is decoded in
        windows that begin one settled piece earlier, so that sentencepiece's missing first space and half-written
        characters come out right. Special tokens are not in the text and not in a window.
        """
        visible = [id_ for id_ in ids if id_ not in self.special_ids]
        stop = sum(id_ not in self.special_ids for id_ in ids[:start])
        settled, at, reached = self._settled(visible, stop, whole)
        begin = max(0, settled - _WINDOW)
        head, ends = self.decode(visible[begin:settled]), [reached]
        for id_ in ids[start:]:
            if id_ not in self.special_ids:
                stop += 1
                fresh = self.decode(visible[begin:stop])[len(head) :]
                shared = _shared(fresh, whole[at : at + len(fresh)])
                reached = max(reached, at + shared)
                # A broken character may yet be completed, so it waits for more, but not for ever.
                if fresh and shared == len(fresh) and (not fresh.endswith(_BROKEN) or stop - settled >= _WINDOW):
                    begin, settled, at = settled, stop, at + shared
                    head = self.decode(visible[begin:settled])
            ends.append(reached)
        if reached != len(whole):  # a decoder that looks further than a window
            made = (_shared(self.decode(ids[:i]), whole) for i in range(len(ids) + 1))
            return list(accumulate(made, max))[start:]
        return ends

    def _settled(self, visible: list[int], stop: int, whole: str) -> tuple[int, int, int]:
        """The last place up to `stop` where no character is cut, the characters before it, and those before `stop`."""
        reached = 0
        for place in range(stop, max(0, stop - _WINDOW), -1):
            text = self.decode(visible[:place])
            shared = _shared(text, whole)
            reached = max(reached, shared)
            if shared == len(text) and not text.endswith(_BROKEN):
                return place, shared, reached
        return 0, 0, reached


def _shared(left: str, right: str) -> int:
    """The length of the common beginning of two texts."""
    if right.startswith(left):
        return len(left)
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _open_block(header: str) -> tuple[str, str] | None:
    """The tags of the thinking block that a generation prompt leaves open, if it does."""
    for opens, closes in _THINKING_TAGS:
        if header.rfind(opens) > header.rfind(closes):
            return opens, closes
    return None


def without_thoughts(prompt: str) -> str:
    """A prompt without the empty or just opened thinking block at its end."""
    for opens, closes in _THINKING_TAGS:
        stem, found, block = prompt.rpartition(opens)
        if found and block.replace(closes, "", 1).isspace() | (block in ("", closes)):
            return stem
    return prompt
