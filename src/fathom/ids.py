"""What a chat format does, to be read by a person, and whether it keeps the laws that a prefill depends on."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import msgspec

from fathom.chat import ChatFormat, PrefillAt, without_thoughts
from fathom.errors import UserError
from fathom.records import Message, content_hash

__all__ = ["IdsReport", "Law", "Part", "TokenRow", "inspect_format", "self_test"]


class Part(StrEnum):
    """What a token belongs to."""

    MESSAGES = "messages"
    OPENING = "opening"  # the generation prompt: from here to the response
    RESPONSE = "response"
    END = "end"  # of the assistant's turn, as in training; no part of a prefill


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    """One token: where it is, its id, its name in the vocabulary and its text."""

    position: int
    id: int
    token: str
    text: str
    part: Part


class IdsReport(msgspec.Struct, frozen=True, kw_only=True):
    """The exact ids of one example. The response begins at `response_start`; a prefill of k ends k ids later."""

    template_source: str
    template_hash: str | None
    prefill_at: PrefillAt
    system: str | None
    prompt_text: str
    tokens: tuple[TokenRow, ...]
    opening_start: int
    response_start: int
    end_start: int
    stop_ids: tuple[int, ...]
    notes: tuple[str, ...]  # what the format does that a reader might not expect


class Law(msgspec.Struct, frozen=True, kw_only=True):
    """One law, and whether it holds for this format; `why` says how it fails, or with what allowance it holds."""

    name: str
    passed: bool
    why: str


def inspect_format(chat: ChatFormat, messages: Sequence[Message], response: str) -> IdsReport:
    """The ids of `messages` and `response`, each with its text and its part.

    Raises:
        UserError: the template refuses these messages.
    """
    prompt, answer, end = chat.prompt_ids(messages), chat.response_ids(messages, response), chat.end_ids(messages)
    ids = (*prompt, *answer, *end)
    starts = (_opening_start(chat, messages, prompt), len(prompt), len(prompt) + len(answer))
    names = chat.tokenizer.convert_ids_to_tokens(list(ids))
    return IdsReport(
        template_source=chat.source,
        template_hash=None if chat.template is None else content_hash(chat.template),
        prefill_at=chat.prefill_at,
        system=chat.system,
        prompt_text=chat.prompt_text(messages),
        tokens=tuple(
            TokenRow(
                position=position,
                id=id_,
                token=str(name),
                text=_shown(chat, id_),
                part=tuple(Part)[sum(position >= start for start in starts)],
            )
            for position, (id_, name) in enumerate(zip(ids, names, strict=True))
        ),
        opening_start=starts[0],
        response_start=starts[1],
        end_start=starts[2],
        stop_ids=tuple(sorted(chat.stop_ids)),
        notes=tuple(_notes(chat, messages, response)),
    )


def self_test(chat: ChatFormat, messages: Sequence[Message], response: str) -> tuple[Law, ...]:
    """Whether the format keeps the laws that every attempt relies on, tried on one example."""
    laws: tuple[tuple[str, Callable[[ChatFormat, Sequence[Message], str], Law]], ...] = (
        ("k tokens are k ids", _counts),
        ("the prompt's ids are the same under any prefill", _unchanged),
        ("the generation prompt is the training prefix", _trained),
        ("no doubled BOS", _single_bos),
        ("decoding gives the response back", _round_trip),
    )
    return tuple(msgspec.structs.replace(law(chat, messages, response), name=name) for name, law in laws)


# --- laws ---


def _verdict(failure: str, allowance: str = "") -> Law:
    return Law(name="", passed=not failure, why=failure or allowance)


def _counts(chat: ChatFormat, messages: Sequence[Message], response: str) -> Law:
    """Each place to cut the response leaves the same text, and a place in it for every token."""
    ids = chat.response_ids(messages, response)
    if not ids:
        return _verdict("the response has no ids: its text is empty, or all lost on the tokenizer")
    if special := [id_ for id_ in ids if id_ in chat.special_ids]:
        return _verdict(f"the response's text holds the special token {special[0]}, which text should not make")
    whole = chat.decode(ids)
    for k in range(len(ids) + 1):
        cut = chat.continuation(ids[:k], ids[k:])
        if cut.prefill_text + cut.text != whole or len(cut.token_ends) != len(ids) - k:
            return _verdict(f"cut at {k}, prefill and continuation do not read as the whole response")
    return _verdict("")


def _unchanged(chat: ChatFormat, messages: Sequence[Message], response: str) -> Law:
    """The prompt does not depend on what follows, and the response's own ids follow it as in one text."""
    prompt = chat.prompt_ids(messages)
    if prompt != chat.prompt_ids(messages) or not prompt:
        return _verdict("the prompt's ids are none, or differ between two calls")
    if chat.template is None or chat.tokenise(chat.prompt_text(messages) + response)[: len(prompt)] == prompt:
        return _verdict("")
    return _verdict("", "the response is tokenised by itself: in one text with the prompt it would change its last ids")


def _trained(chat: ChatFormat, messages: Sequence[Message], response: str) -> Law:
    """The rendering of the whole conversation begins with the prompt: as text, and as ids."""
    if chat.template is None:
        return _verdict("", "plain text has no training rendering")
    thinking = chat.prefill_at is PrefillAt.THINKING
    prompt = chat.prompt_text(messages)
    try:
        whole = chat.training_text(messages, response, thoughts=response if thinking else None)
    except UserError as error:
        return _verdict(f"the template cannot render an answer: {error}")
    if whole.startswith(prompt):
        ids = chat.prompt_ids(messages)
        same = chat.tokenise(whole)[: len(ids)] == ids
        return _verdict("" if same else "the same text, but other ids: the tokenizer joins its end with the response")
    stem = without_thoughts(prompt)
    if stem != prompt and whole.startswith(stem):
        return _verdict("", "but for the thinking block, which the training rendering leaves out")
    at = _shared(whole, prompt)
    return _verdict(f"training goes on otherwise from character {at}: {whole[at : at + 60]!r}")


def _single_bos(chat: ChatFormat, messages: Sequence[Message], response: str) -> Law:
    bos, ids = chat.tokenizer.bos_token_id, (*chat.prompt_ids(messages), *chat.response_ids(messages, response))
    doubled = bos is not None and ids[:2] == (bos, bos)
    return _verdict(f"the ids begin with {bos} twice: template and tokenizer both write it" if doubled else "")


def _round_trip(chat: ChatFormat, messages: Sequence[Message], response: str) -> Law:
    text = chat.decode(chat.response_ids(messages, response))
    if text == response:
        return _verdict("")
    same = text.strip() == response.strip()
    return _verdict("" if same else f"it reads {text[:60]!r}", "but for white space at its ends")


# --- notes ---


def _notes(chat: ChatFormat, messages: Sequence[Message], response: str) -> Iterator[str]:
    tokenizer, prompt = chat.tokenizer, chat.prompt_ids(messages)
    if tokenizer.bos_token_id is not None and prompt[:1] != (tokenizer.bos_token_id,):
        yield f"the prompt has no BOS, as the template writes none, though the tokenizer has {tokenizer.bos_token!r}"
    special = {_shown(chat, id_) for id_ in chat.special_ids}
    if any(token in message.content for message in messages for token in special):
        yield "a message's text holds special tokens, which become ids of their own"
    if chat.template is None:
        yield "plain text: the messages and a blank line after each, no roles"
        return
    raw = chat.generation_prompt(messages)
    moved = chat.prompt_text(messages).removeprefix(raw.messages + raw.header)
    if moved:
        yield f"{moved!r} is put after the generation prompt: the response begins in the {chat.prefill_at} part"
    elif without_thoughts(raw.messages + raw.header) != raw.messages + raw.header:
        yield f"the generation prompt holds a thinking block; the response begins in the {chat.prefill_at} part"
    if chat.system is None and (default := _default_system(chat)):
        yield f"the template itself writes a system prompt, left as it is: {default!r}"
    if "strftime_now" in chat.template:
        yield "the template writes today's date: 26 July 2024 in every run, so that ids never change"
    if response not in chat.training_text(messages, response):
        yield "the training rendering changes this response (strips or rewrites it): it was tokenised as it stands"
    end = chat.end_ids(messages)
    if end and end[0] not in chat.stop_ids:
        yield f"the turn ends with {tokenizer.convert_ids_to_tokens(end[0])!r}, which does not stop generation"


def _default_system(chat: ChatFormat) -> str:
    """What stands before the first message beyond what stands before a later one."""
    mark = "fathomrequestmark"
    turns = [Message(role=role, content=mark) for role in ("user", "assistant", "user")]
    try:
        first, _, last = chat.generation_prompt(turns).messages.split(mark)[:3]
    except (UserError, ValueError):
        return ""
    # Both end with the header of the user's turn.
    while first and last and first[-1] == last[-1]:
        first, last = first[:-1], last[:-1]
    bos = chat.tokenizer.bos_token
    text = (first.removeprefix(bos) if bos else first).strip()
    return text if any(character.isspace() for character in text) else ""


# --- tokens ---


def _opening_start(chat: ChatFormat, messages: Sequence[Message], prompt: Sequence[int]) -> int:
    before = chat.tokenise(chat.generation_prompt(messages).messages)
    if chat.template is None:
        return len(prompt)
    return next(
        (i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), min(len(before), len(prompt))
    )


def _shown(chat: ChatFormat, id_: int) -> str:
    """A token's text by itself, special tokens by their names."""
    text = chat.tokenizer.decode([id_], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _shared(left: Sequence[object], right: Sequence[object]) -> int:
    """The length of the common beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
