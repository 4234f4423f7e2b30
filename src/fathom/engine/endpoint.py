"""Run attempts on a server that speaks the OpenAI API's `/v1/completions` with token ids, as vLLM does.

A prompt is sent as the list of its ids and ids are asked back (`return_token_ids`): a prefill of k tokens stays k
tokens, and nothing is decoded and tokenised again on the way. A server that answers with text alone is refused. What it
makes of a seed, and of batches, is its own affair: greedy completions of the same weights in float32 are those of the
`TransformersEngine`, sampled ones come from the same distribution by other draws.
"""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

import msgspec

from fathom.chat import ChatFormat
from fathom.engine.rows import Row, check_length, completions, make_rows
from fathom.errors import UserError
from fathom.records import Attempt, Completion, Finish
from fathom.schema import ModelInfo

__all__ = ["API_KEY", "EndpointEngine", "ServedModel", "connect"]

_Kind = TypeVar("_Kind", bound=msgspec.Struct)

API_KEY = "FATHOM_API_KEY"  # the environment's name of the key; its own, so that no other service's key is sent along
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
_SHOWN = 200  # characters of what a server said, in an error


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that a server runs under the name `served`; `chat` and `info` come from its files, weights apart."""

    url: str
    served: str
    chat: ChatFormat
    info: ModelInfo

    @property
    def context(self) -> int | None:
        return self.info.context


class _Choice(msgspec.Struct):
    """What is read of an answer; servers add fields of their own."""

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


class _Outcome(NamedTuple):
    row: Row
    error: BaseException | None


@dataclass(frozen=True, eq=False)
class EndpointEngine:
    """Completes attempts on a server. `width` requests are in flight at once; each is tried `tries` times.

    Between tries it waits `patience` seconds, twice as long each time, or as long as the server asks for.
    """

    model: ServedModel
    width: int = 16
    tries: int = 6
    patience: float = 1.0
    timeout: float = 600.0  # seconds; a long answer on a busy server takes minutes
    sleep: Callable[[float], None] = time.sleep

    def complete(self, attempts: Sequence[Attempt]) -> Iterator[Completion]:
        """Yield one completion per attempt, each as soon as it is there, in no particular order.

        Raises:
            UserError: an attempt does not fit into the context (before anything runs), the server cannot be reached,
                refuses a request, or gives no ids back.
        """
        check_length(attempts, self.model.context, "the server takes", self.model.chat)
        return self._complete(make_rows(attempts))

    def _complete(self, rows: list[Row]) -> Iterator[Completion]:
        """Daemon threads, so that Ctrl-C does not wait for a server that does not answer."""
        waiting: SimpleQueue[Row] = SimpleQueue()
        outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        stopped = threading.Event()
        for row in rows:
            waiting.put(row)

        def work() -> None:
            while not stopped.is_set():
                try:
                    row = waiting.get_nowait()
                except Empty:
                    return
                try:
                    self._run(row)
                except BaseException as error:  # raised again where the completions are awaited
                    outcomes.put(_Outcome(row, error))
                else:
                    outcomes.put(_Outcome(row, None))

        for _ in range(min(self.width, len(rows))):
            threading.Thread(target=work, name="endpoint", daemon=True).start()
        try:
            for _ in rows:
                outcome = outcomes.get()
                if outcome.error is not None:
                    raise outcome.error
                yield from completions(outcome.row, self.model.chat)
        finally:
            stopped.set()

    def _run(self, row: Row) -> None:
        answer = self._ask("completions", _request(row, self.model), _Answer)
        if not answer.choices or answer.choices[0].token_ids is None:
            raise UserError(
                f"{self.model.url} answers with text and no token ids, so that the answer would not be exact; serve "
                "the model with a vLLM that knows `return_token_ids` (0.10.2 and newer), or another server that does"
            )
        choice = answer.choices[0]
        sent = list(row.ids)
        if choice.prompt_token_ids is not None and choice.prompt_token_ids != sent:
            raise UserError(
                f"{self.model.url} changed the prompt: {len(sent)} ids were sent, and it ran "
                f"{len(choice.prompt_token_ids)} or others; switch off whatever adds tokens to prompts there"
            )
        for token in choice.token_ids or []:
            if row.finish is None:
                row.accept(token, self.model.chat.stop_ids)
        if row.finish is None:  # shorter than its budget, and the stop token is not shown
            row.finish = Finish.STOP if choice.finish_reason == "stop" else Finish.LENGTH

    def _ask(self, path: str, content: dict[str, object] | None, kind: type[_Kind]) -> _Kind:
        """One request and its answer, tried again while the server is busy, away, or restarting."""
        for tried in range(1, self.tries + 1):
            try:
                return _decoded(_sent(f"{self.model.url}/{path}", content, self.timeout), kind, self.model.url)
            except _BusyError as busy:
                if tried == self.tries:
                    raise UserError(
                        f"{self.model.url}: {busy.reason}; tried {tried} times. What was answered so far is kept: "
                        "give the same command again when the server is there"
                    ) from None
                self.sleep(min(_LONGEST_WAIT, busy.wait or self.patience * 2 ** (tried - 1)))
        raise AssertionError("unreachable: the last try returns or raises")


def connect(
    url: str, chat: ChatFormat, info: ModelInfo, *, name: str | None = None, timeout: float = 30
) -> ServedModel:
    """Find the model at a server, and how long its inputs may be there.

    `name` is the model's name at the server; without it `info.name` where it is served, or the only one there is.

    Raises:
        UserError: the server cannot be reached, or does not serve the model.
    """
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--endpoint is {url!r}; give a URL such as http://localhost:8000/v1")
    try:
        cards = _decoded(_sent(f"{url}/models", None, timeout), _Cards, url)
    except _BusyError as busy:
        raise UserError(f"{url}: {busy.reason}; is the server up, and does the URL end in /v1?") from None
    served = {card.id: card for card in cards.data}
    wanted = name or (info.name if info.name in served else None) or (next(iter(served)) if len(served) == 1 else None)
    if wanted not in served or wanted is None:
        raise UserError(
            f"{url} does not serve {wanted or info.name}; it serves {', '.join(sorted(served)) or 'nothing'}: "
            "name one with --endpoint-model"
        )
    limits = [limit for limit in (info.context, served[wanted].max_model_len) if limit is not None]
    info = msgspec.structs.replace(info, context=min(limits, default=None), endpoint=url)
    return ServedModel(url=url, served=wanted, chat=chat, info=info)


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


class _BusyError(Exception):
    """The server did not answer this time. `wait`: the seconds that it asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


def _sent(url: str, content: dict[str, object] | None, timeout: float) -> bytes:
    """The body of the answer to a POST of JSON, or to a GET where there is no content."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(API_KEY):
        headers["Authorization"] = f"Bearer {key}"
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            read: bytes = answer.read()
            return read
    except urllib.error.HTTPError as error:
        said = _one_line(error)
        if error.code in _RETRIED:
            raise _BusyError(
                f"the server answers {error.code} ({said})", _seconds(error.headers.get("Retry-After"))
            ) from None
        hint = f"; the key is read from {API_KEY}" if error.code in (401, 403) else ""
        raise UserError(f"{url} refuses with {error.code}: {said}{hint}") from None
    except (OSError, http.client.HTTPException) as error:  # away, cut off, too slow
        reason = getattr(error, "reason", None) or error
        raise _BusyError(f"no answer ({' '.join(str(reason).split())[:_SHOWN] or type(error).__name__})") from None


def _one_line(error: urllib.error.HTTPError) -> str:
    """What the server says went wrong, where it says so in the usual places."""
    text = error.read().decode("utf-8", errors="replace")
    try:
        content = json.loads(text)
        inner = content.get("error", content)
        text = str(inner.get("message", text) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError):
        pass
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:_SHOWN] or error.reason


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:  # a date
        return None


def _decoded(body: bytes, kind: type[_Kind], url: str) -> _Kind:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise UserError(
            f"{url} does not answer as the OpenAI API does ({error}); the URL should be that of its /v1"
        ) from None
