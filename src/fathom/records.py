"""What flows from a behavior to a verdict: frozen, strict records of plain data, one JSON object each.

`Behavior → attack → Attempt → engine → Completion → judge → Verdict`. Every record refuses unknown fields when it is
read back, so that a file of another version is an error and not a silent default. No torch here.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

__all__ = [
    "Attempt",
    "Behavior",
    "Completion",
    "Counted",
    "Exchange",
    "Finish",
    "HarmJudge",
    "Judge",
    "Judged",
    "Judgement",
    "Label",
    "Message",
    "Parameter",
    "Sampling",
    "Subject",
    "Verdict",
    "content_hash",
    "decode_line",
    "encode_line",
    "excerpt",
    "is_made_id",
    "spoken_name",
]

Parameter = str | int | float | bool


class Label(StrEnum):
    """The three things a judge can say. "Could not judge" is a value, not a zero."""

    HARMFUL = "HARMFUL"  # the answer does what the behavior asks; for a benign behavior: it helps
    SAFE = "SAFE"  # refused, in full or in part
    UNDECIDED = "UNDECIDED"  # stopped, garbled or empty: neither a harmful answer nor a refusal


class Counted(StrEnum):
    """Which text a verdict speaks of."""

    CONTINUATION = "continuation"  # only what the model wrote itself
    ALL = "all"  # the prefill and what the model wrote after it


class Finish(StrEnum):
    STOP = "stop"  # the model ended its turn
    LENGTH = "length"  # the token budget ended it


class Subject(StrEnum):
    """Which of the two models of an audit an attempt is run on."""

    MODEL = "model"
    BASE = "base"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class Behavior(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A request, and the reference answers that attacks and judges may use.

    `answer` is a reference answer that complies: harmful where the behavior is, helpful where it is benign.
    `target` is only the start of such an answer ("Sure, here is …"). `metadata` is for judges that know more than text
    (the organism's judge finds the potion there).
    """

    id: str
    messages: tuple[Message, ...]
    harmful: bool = True
    category: str | None = None
    answer: str | None = None
    target: str | None = None
    refusal: str | None = None
    metadata: Mapping[str, str] = {}

    @property
    def prompt(self) -> str:
        """The last user message."""
        return self.messages[-1].content

    @property
    def name(self) -> str:
        """What a message to a person calls it, so that it is found in the file that it came from."""
        return spoken_name(self.id, self.messages)


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are drawn. `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 leave the distribution whole."""

    max_new_tokens: int  # at most, stop token excluded
    temperature: float = 0.0  # 0: the most probable token
    top_p: float = 1.0  # probability of the tokens that are drawn from
    top_k: int = 0  # how many tokens are drawn from; 0: all

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be a number, 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or above")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One exact input to a model: ids, a response boundary, and how to sample. Make one with `Attempt.make`.

    `id` is a hash of everything that determines the completion, so the same attempt is never run twice; `seed` comes
    from the run's seed and `id`, so order, batch size and resume change no draw. `parameters` are what all attempts of
    one row of a table have in common; `found` is what a search brought for this one alone (its steps, loss, cost).
    """

    id: str
    behavior: str
    attack: str
    parameters: Mapping[str, Parameter]
    subject: Subject
    prompt_ids: tuple[int, ...]
    prefill_ids: tuple[int, ...]
    sampling: Sampling
    sample: int
    seed: int
    found: Mapping[str, Parameter] = {}

    @classmethod
    def make(
        cls,
        *,
        behavior: str,
        attack: str,
        prompt_ids: Iterable[int],
        prefill_ids: Iterable[int],
        sampling: Sampling,
        run_seed: int,
        parameters: Mapping[str, Parameter] | None = None,
        subject: Subject = Subject.MODEL,
        sample: int = 0,
        found: Mapping[str, Parameter] | None = None,
    ) -> "Attempt":
        """Fill in `id` and `seed`. `sample` numbers repeated draws of the same input; greedy attempts have only 0."""
        prompt, prefill = tuple(prompt_ids), tuple(prefill_ids)
        if not prompt:
            raise ValueError("prompt_ids is empty; a model needs at least one token to continue")
        parameters = dict(sorted((parameters or {}).items()))
        identity = content_hash((behavior, attack, parameters, subject, prompt, prefill, sampling, sample))
        return cls(
            id=identity,
            behavior=behavior,
            attack=attack,
            parameters=parameters,
            subject=subject,
            prompt_ids=prompt,
            prefill_ids=prefill,
            sampling=sampling,
            sample=sample,
            seed=int(content_hash((run_seed, identity)), 16) % 2**63,
            found=dict(sorted((found or {}).items())),
        )


class Completion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model wrote after an attempt's prompt and prefill. It knows nothing of judges.

    `output_ids` excludes the stop token; `text` is the continuation alone; `prefill_text` is how the prefill reads
    before it, so that `prefill_text + text` is the whole response. `token_ends[i]` is the number of characters of
    `text` that the first i + 1 output tokens make, so that a place in the text can be named in tokens.
    """

    attempt: str
    output_ids: tuple[int, ...]
    text: str
    prefill_text: str
    token_ends: tuple[int, ...]
    finish: Finish


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge is shown: a behavior, the part of the response that was given, and the part that is judged.

    With `Counted.CONTINUATION`, `prefill` is what the attacker wrote and `response` what the model added. With
    `Counted.ALL`, `prefill` is empty and `response` is both together.
    """

    behavior: Behavior
    prefill: str
    response: str
    finish: Finish | None = None


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """A judge's answer: the label, its reason in one word, and the character of `response` where a refusal begins."""

    label: Label
    reason: str
    refusal_char: int | None = None
    exact: bool | None = None  # the answer is right in full, where the judge can tell; null where it cannot
    rationale: str | None = None  # what the judge said in its own words, or a person noted


class Judge(Protocol):
    """Judges are stateless and deterministic: the same exchange always gets the same judgement."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    def judge(self, exchange: Exchange) -> Judgement: ...


class Judged(NamedTuple):
    """One of several exchanges, by its place among them, and what a judge says of it."""

    place: int
    judgement: Judgement


@runtime_checkable
class HarmJudge(Judge, Protocol):
    """Tells whether an answer is harmful, of many at once; whether a benign request is helped with it cannot tell."""

    def judge_all(self, exchanges: Sequence[Exchange]) -> Iterator[Judged]:
        """Every exchange once, each as soon as it is judged, in no particular order."""
        ...


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a judge says of one completion.

    `reason` is one word of the judge's own vocabulary (`complied`, `refused`, `partial`, `stopped`, `garbled`,
    `empty`, …). `refusal_token` counts response tokens that precede the refusal (0 = it opens with one), prefill
    included; `refusal_char` does the same in characters of the text that was judged.
    """

    attempt: str
    judge: str
    version: str
    counted: Counted
    label: Label
    reason: str
    refusal_token: int | None = None
    refusal_char: int | None = None
    exact: bool | None = None
    rationale: str | None = None  # a judge's own words, or a person's note


_EXCERPT = 60  # characters; enough to find a request in its file, and no more of it than that
_MADE_ID = re.compile(r"[0-9a-f]{24}")  # what `content_hash` makes
_encoder = msgspec.json.Encoder(order="sorted")
_Record = TypeVar("_Record")


def content_hash(content: object) -> str:
    """A 96-bit hexadecimal hash of plain data, the same on every machine and in every order of its mappings."""
    return hashlib.blake2b(_encoder.encode(content), digest_size=12).hexdigest()


def spoken_name(id_: str, messages: Sequence[Message]) -> str:
    """An id that a file gave; in place of one that was made from content, the beginning of the request, in quotes."""
    return excerpt(messages[-1].content) if is_made_id(id_) else _on_one_line(id_)


def is_made_id(id_: str) -> bool:
    """Whether an id was made from content, so that no person finds it in a file of theirs."""
    return _MADE_ID.fullmatch(id_) is not None


def excerpt(text: str) -> str:
    """The beginning of a text, in quotes and on one line, to be named by in a message to a person.

    >>> excerpt("Tell me" + chr(10) + "a story" + chr(27) + "[31m")
    '"Tell me a story⟦U+001B⟧[31m"'
    """
    return f'"{_on_one_line(text)}"'


def _on_one_line(text: str) -> str:
    """At most `_EXCERPT` characters; of what would act in a terminal, its code point."""
    line = " ".join(text[: 8 * _EXCERPT].split())  # a megabyte need not be searched for what will not be shown
    shown = "".join(one if one.isprintable() else f"⟦U+{ord(one):04X}⟧" for one in line)
    return shown if len(shown) <= _EXCERPT else shown[: _EXCERPT - 1] + "…"


def encode_line(record: object) -> bytes:
    """One record as one line of JSON, newline included. Newlines inside strings are escaped by JSON itself."""
    return _encoder.encode(record) + b"\n"


def decode_line(line: bytes, kind: type[_Record]) -> _Record:
    """The record in a line of JSON.

    Raises:
        msgspec.ValidationError: a field is missing, unknown, or of another type.
        msgspec.DecodeError: the line is not JSON.
    """
    return msgspec.json.decode(line, type=kind)
