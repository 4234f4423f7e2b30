"""A suffix as text: which ids it may be made of, where it goes in a conversation, and whether it can be typed.

The law: the chat format's ids of the messages with the suffix's text in them are exactly the ids that were scored. Of
every candidate the neighbourhood of the suffix is tokenised, of the one that is chosen the whole conversation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fathom.attack.suffix.candidates import generator
from fathom.attack.suffix.options import Allowed
from fathom.attack.suffix.problem import PLACE, Case, Joined, Target
from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.records import Message

__all__ = [
    "Typed",
    "Typist",
    "after_suffix",
    "allowed_ids",
    "around_place",
    "ending_in_place",
    "place_suffix",
    "start_ids",
    "suffix_text",
    "typed_messages",
    "with_suffix",
]

_MARK = "fathomsuffixmark"
_STARTS = 256  # random suffixes tried as a start


@lru_cache(maxsize=8)
def allowed_ids(chat: ChatFormat, vocabulary: int, allowed: Allowed) -> Bool[Tensor, "vocabulary"]:
    """Which ids a suffix may hold: those that read as text of their own, and never a special token.

    Nor one that was added to the vocabulary: templates' marks (`<think>`, `<tool_call>`) often are not called special.
    """
    size = min(vocabulary, len(chat.tokenizer))
    barred = chat.special_ids | chat.tokenizer.added_tokens_decoder.keys()
    texts = chat.tokenizer.batch_decode([[id_] for id_ in range(size)], clean_up_tokenization_spaces=False)
    found = torch.zeros(vocabulary, dtype=torch.bool)
    for id_, text in enumerate(texts):
        ascii_ = text.isascii() and text.isprintable() if allowed is Allowed.ASCII else "\ufffd" not in text
        found[id_] = bool(text) and ascii_ and id_ not in barred
    unknown = chat.tokenizer.unk_token_id
    if unknown is not None:
        found[unknown] = False
    return found


def suffix_text(chat: ChatFormat, ids: Sequence[int]) -> str:
    """What a user types to give the model these ids."""
    text = chat.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # one sequence, one text
    return text


def with_suffix(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The messages with the suffix's text at its place."""
    return tuple(Message(role=one.role, content=one.content.replace(PLACE, text)) for one in messages)


def ending_in_place(messages: Sequence[Message], joined: Joined) -> tuple[Message, ...]:
    """The messages with `PLACE` at the end of the last one."""
    *head, last = messages
    return (*head, Message(role=last.role, content=last.content + joined.text + PLACE))


class Sides(NamedTuple):
    """A request's ids before and behind the place of a suffix."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Placed(NamedTuple):
    """Rendered text on both sides of the suffix, and the messages that it comes from."""

    joined: Joined | None  # None where the messages name the place
    messages: tuple[Message, ...]
    before: str
    after: str


def place_suffix(
    chat: ChatFormat,
    behavior: str,
    messages: Sequence[Message],
    target: Target,
    start: Sequence[int],
) -> Case:
    """The case of a conversation: its ids on both sides of the suffix `start`.

    Messages without `PLACE` get it at the end of the last one, behind a space where the tokenizer keeps a suffix apart
    so, else directly behind its text.

    Raises:
        UserError: `PLACE` stands there twice, the template repeats or drops it, or no placing keeps the suffix's ids.
    """
    for placed in placings(chat, behavior, messages):
        sides = _sides(chat, placed, start)
        if sides is not None:
            before, after = sides
            return Case(
                behavior=behavior,
                before_ids=before,
                after_ids=after,
                target=target,
                messages=placed.messages,
                joined=placed.joined,
            )
    raise UserError(
        f"behavior {behavior}: the tokenizer does not give the suffix {suffix_text(chat, start)!a} its own ids back "
        "where it stands; give another start, more of its own room around {suffix}, or other allowed tokens"
    )


class Typed(NamedTuple):
    """Messages with a suffix's text in them, and how it is joined to the request (None: at a place they name)."""

    messages: tuple[Message, ...]
    joined: Joined | None


def typed_messages(
    chat: ChatFormat, messages: Sequence[Message], suffix: Sequence[int], joined: Joined | None = None
) -> Typed:
    """The messages as they are typed with this suffix; where its ids cannot be kept there, at the first place.

    `joined` is how the search had it: elsewhere the suffix may keep its ids too, in a conversation that was not scored.
    """
    options = sorted(placings(chat, "", messages), key=lambda placed: placed.joined is not joined)
    kept = [placed for placed in options if _sides(chat, placed, suffix) is not None]
    placed = (kept or options)[0]
    return Typed(with_suffix(placed.messages, suffix_text(chat, suffix)), placed.joined)


def placings(chat: ChatFormat, behavior: str, messages: Sequence[Message]) -> list[Placed]:
    """Where the suffix can go: where the user wants it, or else at the end in two ways."""
    given = sum(message.content.count(PLACE) for message in messages)
    named = f"behavior {behavior}" if behavior else f"the request {messages[-1].content[:60]!r}"
    if given > 1:
        raise UserError(f"{named} has {given} places {PLACE}: one suffix goes to one place")
    options: dict[Joined | None, tuple[Message, ...]] = {None: tuple(messages)}
    if given == 0:
        options = {joined: ending_in_place(messages, joined) for joined in (Joined.SPACE, Joined.DIRECTLY)}
    placed = []
    for joined, option in options.items():
        before, *rest = chat.prompt_text(with_suffix(option, _MARK)).split(_MARK)
        if len(rest) != 1:
            raise UserError(f"{named}: the chat template shows the suffix's message {len(rest)} times, not once")
        placed.append(Placed(joined, option, before, rest[0]))
    return placed


def around_place(chat: ChatFormat, behavior: str, messages: Sequence[Message]) -> Sides:
    """The ids of the request as it is asked without a suffix, parted where one would stand, directly behind its text.

    Raises:
        UserError: `PLACE` stands there twice, or the template repeats or drops it.
    """
    placed = placings(chat, behavior, messages)[-1]
    whole = chat.prompt_ids(with_suffix(placed.messages, ""))
    marked = chat.prompt_ids(with_suffix(placed.messages, _MARK))
    same = (place for place in range(min(len(whole), len(marked))) if whole[-1 - place] != marked[-1 - place])
    cut = len(whole) - next(same, len(whole))
    return Sides(whole[:cut], whole[cut:])


def _sides(chat: ChatFormat, placed: Placed, suffix: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The ids before and after the suffix, where the whole conversation is tokenised to them and it."""
    whole = chat.prompt_ids(with_suffix(placed.messages, suffix_text(chat, suffix)))
    before = chat.tokenise(placed.before)
    if chat.template is None and chat.tokenizer.bos_token_id is not None:
        before = (chat.tokenizer.bos_token_id, *before)
    # Text that ends where the suffix begins may be tokenised otherwise alone, so the split is looked for around there.
    for cut in sorted(range(max(0, len(before) - 3), len(before) + 4), key=lambda cut: abs(cut - len(before))):
        if whole[cut : cut + len(suffix)] == tuple(suffix):
            return whole[:cut], whole[cut + len(suffix) :]
    return None


def after_suffix(chat: ChatFormat, messages: Sequence[Message]) -> int:
    """How many tokens of the conversation stand behind the place of a suffix, whichever suffix it is."""
    return max(len(chat.tokenise(placed.after)) for placed in placings(chat, "", messages))


def start_ids(
    chat: ChatFormat,
    messages: Sequence[Message],
    allowed: Bool[Tensor, "vocabulary"],
    length: int,
    seed: int,
    turn: int = 0,
) -> tuple[int, ...]:
    """A random suffix of allowed ids that can be typed behind these messages; each `turn` has its own.

    Raises:
        UserError: none of many can: the tokenizer does not tokenise its own output back.
    """
    ids = allowed.nonzero()[:, 0]
    if not len(ids):
        raise UserError("no token of the vocabulary may be used in a suffix: allow more than ASCII")
    random = generator(seed, -1 - turn)
    options = placings(chat, "", messages)
    for _ in range(_STARTS):
        suffix = tuple(ids[torch.randint(len(ids), (length,), generator=random)].tolist())
        if any(_sides(chat, placed, suffix) is not None for placed in options):
            return suffix
    return _grown(chat, options, ids, length, random)


def _grown(
    chat: ChatFormat, options: Sequence[Placed], ids: Tensor, length: int, random: torch.Generator
) -> tuple[int, ...]:
    """A suffix that can be typed, token by token: where few random ones can, each of its beginnings must."""
    suffix: tuple[int, ...] = ()
    while len(suffix) < length:
        for token in ids[torch.randperm(len(ids), generator=random)[:_STARTS]].tolist():
            if any(_sides(chat, placed, (*suffix, token)) is not None for placed in options):
                suffix = (*suffix, token)
                break
        else:
            raise UserError(
                "the tokenizer does not tokenise its own output back: no suffix of its allowed tokens, typed into the "
                "conversation, has the ids that it is made of; give a start that keeps its ids, or allow more tokens"
            )
    return suffix


@dataclass(frozen=True)
class _Neighbourhood:
    """As little text around the suffix as is tokenised like the whole conversation, and its ids."""

    before: str
    after: str
    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]


class Typist:
    """Checks candidates of one problem. Cases whose suffix stands in the same neighbourhood are checked once."""

    def __init__(self, chat: ChatFormat, cases: Sequence[Case], start: Sequence[int]) -> None:
        self._chat = chat
        self._cases = [case for case in cases if case.messages]
        self._around = list(dict.fromkeys(_neighbourhood(chat, case, start) for case in self._cases))

    def typeable(self, candidates: Int[Tensor, "candidates suffix"]) -> Bool[Tensor, "candidates"]:
        """Which candidates keep their ids as text, as far as their neighbourhood shows."""
        kept = torch.ones(len(candidates), dtype=torch.bool)
        if not len(candidates) or not self._around:
            return kept
        rows = candidates.tolist()
        texts = self._chat.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        for around in self._around:
            encoded = self._chat.tokenizer(
                [around.before + text + around.after for text in texts], add_special_tokens=False, verbose=False
            )["input_ids"]
            kept &= torch.tensor(
                [
                    tuple(ids) == (*around.before_ids, *row, *around.after_ids)
                    for ids, row in zip(encoded, rows, strict=True)
                ]
            )
        return kept

    def typed(self, suffix: Sequence[int], case: Case) -> bool:
        """Whether a case's whole conversation, typed with this suffix, has exactly the ids that were scored."""
        if not case.messages:
            return True
        text = suffix_text(self._chat, suffix)
        return self._chat.prompt_ids(with_suffix(case.messages, text)) == case.prompt_ids(suffix)

    def typed_everywhere(self, suffix: Sequence[int]) -> bool:
        return all(self.typed(suffix, case) for case in self._cases)


def _neighbourhood(chat: ChatFormat, case: Case, start: Sequence[int]) -> _Neighbourhood:
    text = suffix_text(chat, start)
    before, after = chat.prompt_text(with_suffix(case.messages, _MARK)).split(_MARK)
    words = 1
    while True:
        left, right = _last_words(before, words), _first_words(after, words)
        ids = chat.tokenise(left + text + right)
        for cut in range(len(ids) - len(start) + 1):
            head, own, tail = ids[:cut], ids[cut : cut + len(start)], ids[cut + len(start) :]
            if own == tuple(start) and _ends(case.before_ids, head) and case.after_ids[: len(tail)] == tail:
                return _Neighbourhood(left, right, head, tail)
        if left == before and right == after:
            # Plain text is tokenised by halves; the whole conversation is still checked for each choice.
            return _Neighbourhood("", "", (), ()) if chat.template is None else _whole(before, after, case)
        words *= 2


def _whole(before: str, after: str, case: Case) -> _Neighbourhood:
    return _Neighbourhood(before, after, case.before_ids, case.after_ids)


def _ends(ids: Sequence[int], tail: Sequence[int]) -> bool:
    return len(tail) <= len(ids) and tuple(ids[len(ids) - len(tail) :]) == tuple(tail)


def _last_words(text: str, count: int) -> str:
    """The end of a text from its last but `count` space on, that space left out."""
    place = len(text)
    for _ in range(count + (1 if text.endswith(" ") else 0)):
        place = text.rfind(" ", 0, place)
        if place < 0:
            return text
    return text[place + 1 :]


def _first_words(text: str, count: int) -> str:
    place = -1
    for _ in range(count + (1 if text.startswith(" ") else 0)):
        place = text.find(" ", place + 1)
        if place < 0:
            return text
    return text[:place]
