"""Run attempts on a server that speaks the OpenAI API's `/v1/completions` with token ids, as vLLM does.

A prompt is sent as the list of its ids and ids are asked back (`return_token_ids`): a prefill of k tokens stays k
tokens, and nothing is decoded and tokenised again on the way. Answers that are not exact are refused: text without ids,
ids that mean something else there, an answer that the server cut short. What it makes of a seed, and of batches, is its
own affair: greedy completions of the same weights in float32 are those of the `TransformersEngine`, sampled ones come
from the same distribution by other draws. `docs/endpoint.md` tells which servers were tried.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from fathom.chat import ChatFormat
from fathom.chat.decoding import shared_start
from fathom.engine.http import BusyError, Server, Trouble, ask, check_address, decoded, in_flight
from fathom.engine.rows import Row, check_length, completions, make_rows
from fathom.errors import UserError
from fathom.records import Attempt, Completion, Finish
from fathom.schema import ModelInfo

__all__ = ["WIDTH", "EndpointEngine", "ServedModel", "connect"]

WIDTH = 128  # requests in flight: vLLM runs 128 and more at once, and what a smaller server cannot run it lets wait

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that a server runs under the name `served`; `chat` and `info` come from its files, weights apart.

    `width` requests are in flight at once.
    """

    url: str
    served: str
    chat: ChatFormat
    info: ModelInfo
    width: int = WIDTH

    @property
    def context(self) -> int | None:
        return self.info.context


class _Choice(msgspec.Struct):
    """What is read of an answer; servers add fields of their own."""

    text: str = ""
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


@dataclass(frozen=True, eq=False)
class EndpointEngine:
    """Completes attempts on a server. `model.width` requests are in flight at once; each is tried `tries` times.

    Between tries it waits `patience` seconds, twice as long each time, or as long as the server asks for. `notify` is
    told, in one line, when it begins to wait, once for all requests; by default that goes to the log.
    """

    model: ServedModel
    tries: int = 6
    patience: float = 1.0
    timeout: float = 600.0  # seconds; a long answer on a busy server takes minutes
    sleep: Callable[[float], None] = time.sleep
    notify: Callable[[str], None] = _log.warning
    _trouble: Trouble = field(init=False, repr=False, default_factory=Trouble)

    def complete(self, attempts: Sequence[Attempt]) -> Iterator[Completion]:
        """Yield one completion per attempt, each as soon as it is there, in no particular order.

        Raises:
            UserError: an attempt does not fit into the context (before anything runs), the server cannot be reached,
                refuses a request, or gives no ids back.
        """
        check_length(attempts, self.model.context, "the server takes", self.model.chat)
        return self._complete(make_rows(attempts))

    def _complete(self, rows: list[Row]) -> Iterator[Completion]:
        for done in in_flight(rows, self._run, self.model.width, "endpoint"):
            yield from completions(done.item, self.model.chat)

    def _run(self, row: Row) -> None:
        answer = self._server.ask("completions", _request(row, self.model), _Answer)
        if not answer.choices or answer.choices[0].token_ids is None:
            raise UserError(
                f"{self.model.url} answers with text and no token ids, so that the answer would not be exact; serve "
                "the model with a vLLM that knows `return_token_ids` (0.10.2 and newer), or another server that does"
            )
        choice = answer.choices[0]
        written = choice.token_ids or []
        sent = list(row.ids)
        if choice.prompt_token_ids is not None and choice.prompt_token_ids != sent:
            raise UserError(
                f"{self.model.url} changed the prompt: {len(sent)} ids were sent, and it ran "
                f"{len(choice.prompt_token_ids)} or others; switch off whatever adds tokens to prompts there"
            )
        for token in written:
            if row.finish is None:
                row.accept(token, self.model.chat.stop_ids)
        self._check_answer(row, choice, len(written))
        row.finish = row.finish or Finish.STOP  # shorter than its budget, and the stop token is not shown

    def _check_answer(self, row: Row, choice: _Choice, written: int) -> None:
        """Raises `UserError` where the ids mean something else there, or the server ended the answer itself."""
        url, info, chat = self.model.url, self.model.info, self.model.chat
        if not _reads_alike(chat, row.output, choice.text):
            raise UserError(
                f"{url} reads its answer as {_quoted(choice.text)}, and the tokenizer of {info.name} as "
                f"{_quoted(chat.decode(row.output))}: {self.model.served} there is another model, or has another "
                "tokenizer"
            )
        if row.finish is None and choice.finish_reason != "stop":
            raise UserError(
                f"{url} ended an answer after {written} of {row.sampling.max_new_tokens} tokens (finish reason: "
                f"{choice.finish_reason}), which is not the model's own end; lift the server's limit on answers (in "
                "vLLM max_new_tokens of --override-generation-config), or ask for fewer --max-new-tokens"
            )

    @property
    def _server(self) -> Server:
        return Server(
            self.model.url,
            tries=self.tries,
            patience=self.patience,
            timeout=self.timeout,
            sleep=self.sleep,
            notify=self.notify,
            trouble=self._trouble,
        )


def connect(
    url: str, chat: ChatFormat, info: ModelInfo, *, name: str | None = None, width: int = WIDTH, timeout: float = 30
) -> ServedModel:
    """Find the model at a server, and how long its inputs may be there.

    `name` is the model's name at the server; without it `info.name` where it is served, or the only one there is.

    Raises:
        UserError: the URL or the key cannot be one, the server cannot be reached, or does not serve the model.
    """
    url = url.rstrip("/")
    check_address(url)
    try:
        cards = decoded(ask(f"{url}/models", None, timeout), _Cards, url)
    except BusyError as busy:
        raise UserError(f"{url}: {busy.reason}; is the server up, and does the URL end in /v1?") from None
    served = {card.id: card for card in cards.data}
    wanted = name or (info.name if info.name in served else None) or (next(iter(served)) if len(served) == 1 else None)
    if wanted not in served or wanted is None:
        raise UserError(
            f"{url} does not serve {wanted or info.name}; it serves {', '.join(sorted(served)) or 'nothing'}: "
            "name one with --endpoint-model"
        )
    limits = [limit for limit in (info.context, served[wanted].max_model_len) if limit is not None]
    info = msgspec.structs.replace(info, context=min(limits, default=None), endpoint=url, endpoint_model=wanted)
    return ServedModel(url=url, served=wanted, chat=chat, info=info, width=width)


def _reads_alike(chat: ChatFormat, ids: Sequence[int], text: str) -> bool:
    """Whether `text`, as the server reads these ids, is what they mean here.

    Spaces, special tokens and broken characters are left out, and a server may hold back a half-written end: it is
    enough that the beginnings agree over half of the shorter text. Another vocabulary's text differs from the start.
    """
    for token in chat.special_tokens:
        text = text.replace(token, "")
    ours, theirs = ("".join(each.replace("\ufffd", "").split()) for each in (chat.decode(ids), text))
    return 2 * shared_start(ours, theirs) >= min(len(ours), len(theirs))


def _quoted(text: str) -> str:
    """How an answer begins, for one line."""
    return repr(" ".join(text.split())[:40])


def _request(row: Row, model: ServedModel) -> dict[str, object]:
    """The body of a request. What the OpenAI API lacks is in vLLM's words."""
    sampling = row.sampling
    body: dict[str, object] = {
        "model": model.served,
        "prompt": list(row.ids),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "stop_token_ids": sorted(model.chat.stop_ids),
        "return_token_ids": True,
        "skip_special_tokens": False,
        # a server's own defaults (generation_config.json) are no part of an attempt
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    if not sampling.greedy:
        body["seed"] = row.attempts[0].seed
    return body
