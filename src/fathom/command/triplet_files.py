"""The files of a directory of triplets, line by line, and whose directory it is.

triplets.jsonl    prompt, harmful_response, refusal
utility.jsonl     messages, the last of which is the model's own answer: greedy, and another that is drawn at T = 1
answers.jsonl     harmful answers that the base wrote: not asked for again
skipped.jsonl     prompts that gave no triplet (how they begin), and why
build.json        a hash of what was asked for, which guards what may be added
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fathom.errors import UserError
from fathom.journal import Journal, read_journal, write_whole
from fathom.records import Behavior, Message, excerpt
from fathom.run import holds_others

__all__ = ["AnswerRow", "Output", "SkippedPrompt", "TripletRow", "UtilityRow", "claim_build"]


class TripletRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of triplets.jsonl: a behavior, in the field names that behaviors' files have."""

    id: str
    messages: tuple[Message, ...]
    harmful_response: str
    refusal: str


class UtilityRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of utility.jsonl: a conversation that ends with the model's own answer."""

    id: str
    messages: tuple[Message, ...]

    @classmethod
    def of(cls, behavior: Behavior, text: str, id_: str) -> "UtilityRow":
        return cls(id=id_, messages=(*behavior.messages, Message(role="assistant", content=text)))


class SkippedPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt that gave no row. Its id is one of its file's: the other file may have the same."""

    id: str
    reason: str
    file: str = ""  # harmful or utility; not known of lines that an earlier version wrote
    prompt: str = ""  # how it begins, to be found by; as above


class AnswerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of answers.jsonl."""

    id: str
    harmful_response: str


@dataclass(frozen=True)
class Output:
    """Where what is made of one file's prompts goes."""

    file: str  # harmful or utility
    rows: Journal
    skipped: Journal

    def seen(self, kind: type[TripletRow] | type[UtilityRow]) -> set[str]:
        """Ids of prompts that are done."""
        records: Iterable[TripletRow | UtilityRow] = read_journal(self.rows.path, kind)
        without = read_journal(self.skipped.path, SkippedPrompt)
        return {record.id for record in records} | {one.id for one in without if one.file in (self.file, "")}

    def skip(self, behavior: Behavior, reason: str) -> SkippedPrompt:
        return SkippedPrompt(id=behavior.id, reason=reason, file=self.file, prompt=excerpt(behavior.prompt))


def claim_build(path: Path, asked: str) -> None:
    """Write the hash of what was asked for, or check that the directory's is the same.

    Raises:
        UserError: the directory holds triplets that were made another way, or other files.
    """
    mark = path / "build.json"
    if mark.exists():
        if mark.read_text(encoding="utf-8").strip() != f'"{asked}"':
            raise UserError(
                f"{path} holds triplets made another way; nothing was overwritten: give another directory with -o"
            )
        return
    if holds_others(path, mark.name):
        raise UserError(
            f"{path} holds files that are no triplets; nothing was overwritten: give another directory with -o"
        )
    write_whole(mark, f'"{asked}"\n'.encode())
