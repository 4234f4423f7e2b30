"""Requests to a server that speaks the OpenAI API: an answer, "busy", or an error's line; tried again, many at once."""

import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

import msgspec

from fathom.errors import UserError

__all__ = [
    "API_KEY",
    "BusyError",
    "Done",
    "RefusedError",
    "Server",
    "Trouble",
    "ask",
    "check_address",
    "decoded",
    "in_flight",
]

_Kind = TypeVar("_Kind", bound=msgspec.Struct)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

API_KEY = "FATHOM_API_KEY"  # the environment's name of the key; its own, so that no other service's key is sent along
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_SHOWN = 200  # characters of what a server said, in an error
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
_QUIET = 60.0  # seconds without a failure after which the next one is told of anew

_log = logging.getLogger(__name__)


class BusyError(Exception):
    """The server did not answer this time. `wait`: the seconds that it asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class RefusedError(UserError):
    """The server refuses this request for good. `status` is HTTP's, `said` what the server wrote."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


@dataclass(eq=False)
class Trouble:
    """When a request last failed, of all threads' requests."""

    last: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begins(self) -> bool:
        """Whether this failure is the first for a while; it is noted."""
        with self.lock:
            before, self.last = self.last, time.monotonic()
        return before is None or self.last - before > _QUIET


@dataclass(frozen=True)
class Server:
    """A server, and how often and how long a request to it is tried.

    Between tries it waits `patience` seconds, twice as long each time, or as long as the server asks for. `key` is the
    name of the environment's variable that holds the key. `notify` is told, in one line, when requests begin to wait,
    once for all of them; by default that goes to the log.
    """

    url: str
    key: str = API_KEY
    tries: int = 6
    patience: float = 1.0
    timeout: float = 600.0  # seconds; a long answer on a busy server takes minutes
    sleep: Callable[[float], None] = time.sleep
    notify: Callable[[str], None] = _log.warning
    trouble: Trouble = field(repr=False, compare=False, default_factory=Trouble)

    def ask(self, path: str, content: dict[str, object] | None, kind: type[_Kind]) -> _Kind:
        """One request and its answer, tried again while the server is busy, away, or restarting.

        Raises:
            UserError: the server refuses (`RefusedError`), stays away, or answers in another form.
        """
        for tried in range(1, self.tries + 1):
            try:
                return decoded(ask(f"{self.url}/{path}", content, self.timeout, self.key), kind, self.url)
            except BusyError as busy:
                if tried == self.tries:
                    raise UserError(
                        f"{self.url}: {busy.reason}; tried {tried} times. What was answered so far is kept: "
                        "give the same command again when the server is there"
                    ) from None
                self._tell(busy, tried)
                self.sleep(self._wait(busy, tried))
        raise AssertionError("unreachable: the last try returns or raises")

    def _wait(self, busy: BusyError, tried: int) -> float:
        """Seconds until the next try."""
        return min(_LONGEST_WAIT, busy.wait or self.patience * 2 ** (tried - 1))

    def _tell(self, busy: BusyError, tried: int) -> None:
        """That requests wait, unless it has been said of this trouble: others wait for the same server."""
        if not self.trouble.begins():
            return
        waits = [self._wait(busy, later) for later in range(tried, self.tries)]
        self.notify(f"{self.url}: {busy.reason}; trying again, up to {len(waits)} times over {sum(waits):.0f} seconds")


class Done(NamedTuple, Generic[_Item, _Result]):
    """A piece of work and what came of it."""

    item: _Item
    result: _Result


class _Outcome(NamedTuple, Generic[_Item, _Result]):
    item: _Item
    result: _Result | None
    error: BaseException | None


def in_flight(
    items: Sequence[_Item], work: Callable[[_Item], _Result], width: int, name: str
) -> Iterator[Done[_Item, _Result]]:
    """Do the work for all items, `width` at once, each yielded as soon as it is done; the first error ends it.

    Daemon threads, so that Ctrl-C does not wait for a server that does not answer.
    """
    waiting: SimpleQueue[_Item] = SimpleQueue()
    outcomes: SimpleQueue[_Outcome[_Item, _Result]] = SimpleQueue()
    stopped = threading.Event()
    for item in items:
        waiting.put(item)

    def run() -> None:
        while not stopped.is_set():
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                outcomes.put(_Outcome(item, work(item), None))
            except BaseException as error:  # raised again where the results are awaited
                stopped.set()  # what would be begun now would be asked, perhaps paid for, and lost
                outcomes.put(_Outcome(item, None, error))

    for _ in range(min(width, len(items))):
        threading.Thread(target=run, name=name, daemon=True).start()
    try:
        for _ in items:
            outcome = outcomes.get()
            if outcome.error is not None:
                raise outcome.error
            yield Done(outcome.item, outcome.result)  # type: ignore[arg-type]  # None only where the work returns it
    finally:
        stopped.set()


def check_address(url: str, option: str = "--endpoint", key: str = API_KEY) -> None:
    """Raises `UserError` for a URL that is none, and for a key that fits into no header."""
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:  # of the port, or of the brackets of an IPv6 address
        known = False
    if not known or not url.isprintable() or " " in url:
        raise UserError(f"{option} is {url!r}; give a URL such as http://localhost:8000/v1")
    value = os.environ.get(key, "")
    if not value.isascii() or not value.isprintable():
        raise UserError(
            f"the key in {key} has a line break or a character that no key has; set it again (a file's last line "
            "break is not part of a key)"
        )


def ask(url: str, content: dict[str, object] | None, timeout: float, key: str = API_KEY) -> bytes:
    """The body of the answer to a POST of JSON, or to a GET where there is no content.

    Raises:
        BusyError: no answer this time.
        RefusedError: the server refuses.
    """
    headers = {"Content-Type": "application/json"}
    if value := os.environ.get(key):
        headers["Authorization"] = f"Bearer {value}"
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            read: bytes = answer.read()
            return read
    except urllib.error.HTTPError as error:
        said = _one_line(error)
        if error.code in _RETRIED:
            raise BusyError(
                f"the server answers {error.code} ({said})", _seconds(error.headers.get("Retry-After"))
            ) from None
        message = f"{url} refuses with {error.code}: {said}{_hint(error.code, said, url, key)}"
        raise RefusedError(message, error.code, said) from None
    except (OSError, http.client.HTTPException) as error:  # away, cut off, too slow
        reason = getattr(error, "reason", None) or error
        raise BusyError(f"no answer ({' '.join(str(reason).split())[:_SHOWN] or type(error).__name__})") from None


def _hint(status: int, said: str, url: str, key: str) -> str:
    """What is most likely wrong, where a refusal tells."""
    if status in (401, 403):
        return f"; the key is read from {key}"
    if status in (404, 405) and not url.endswith(("/v1/models", "/v1/completions", "/v1/chat/completions")):
        return "; the URL should end in /v1, as in http://localhost:8000/v1"
    if "vocab" in said.lower():
        return "; the model there has another vocabulary than MODEL"
    return ""


def _one_line(error: urllib.error.HTTPError) -> str:
    """What the server says went wrong, where it says so in the usual places."""
    text = error.read().decode("utf-8", errors="replace")
    try:
        content = json.loads(text)
        inner = content.get("error", content)
        text = str(inner.get("message", inner.get("detail", text)) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError):
        pass
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:_SHOWN] or error.reason


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:  # a date
        return None


def decoded(body: bytes, kind: type[_Kind], url: str) -> _Kind:
    """Raises `UserError` for an answer of another form."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise UserError(
            f"{url} does not answer as the OpenAI API does ({error}); the URL should be that of its /v1"
        ) from None
