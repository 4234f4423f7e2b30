"""Ids back to text, and which characters each of them makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Decoder", "shared_start"]

_BROKEN = "\ufffd"  # how a decoder shows bytes that are no character, or not yet
_WINDOW = 32  # tokens; several times what the longest character takes


@dataclass(frozen=True, eq=False)
class Decoder:
    """The text of one tokenizer's ids, special tokens skipped, no space cleaned up."""

    tokenizer: "PreTrainedTokenizerBase"

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens skipped, no space cleaned up."""
        return self._decoder(list(ids))

    def ends(self, ids: tuple[int, ...], start: int, whole: str) -> list[int]:
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
                shared = shared_start(fresh, whole[at : at + len(fresh)])
                reached = max(reached, at + shared)
                # A broken character may yet be completed, so it waits for more, but not for ever.
                if fresh and shared == len(fresh) and (not fresh.endswith(_BROKEN) or stop - settled >= _WINDOW):
                    begin, settled, at = settled, stop, at + shared
                    head = self.decode(visible[begin:settled])
            ends.append(reached)
        if reached != len(whole):  # a decoder that looks further than a window
            made = (shared_start(self.decode(ids[:i]), whole) for i in range(len(ids) + 1))
            return list(accumulate(made, max))[start:]
        return ends

    def _settled(self, visible: list[int], stop: int, whole: str) -> tuple[int, int, int]:
        """The last place up to `stop` where no character is cut, the characters before it, and those before `stop`."""
        reached = 0
        for place in range(stop, max(0, stop - _WINDOW), -1):
            text = self.decode(visible[:place])
            shared = shared_start(text, whole)
            reached = max(reached, shared)
            if shared == len(text) and not text.endswith(_BROKEN):
                return place, shared, reached
        return 0, 0, reached

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


def shared_start(left: str, right: str) -> int:
    """The length of the common beginning of two texts."""
    if right.startswith(left):
        return len(left)
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
