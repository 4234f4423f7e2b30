"""Requests to a server that speaks the OpenAI API: an answer, "busy", or the line of an error."""

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import TypeVar

import msgspec

from fathom.errors import UserError

__all__ = ["API_KEY", "BusyError", "ask", "check_address", "decoded"]

_Kind = TypeVar("_Kind", bound=msgspec.Struct)

API_KEY = "FATHOM_API_KEY"  # the environment's name of the key; its own, so that no other service's key is sent along
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_SHOWN = 200  # characters of what a server said, in an error


class BusyError(Exception):
    """The server did not answer this time. `wait`: the seconds that it asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


def check_address(url: str) -> None:
    """Raises `UserError` for a URL that is none, and for a key that fits into no header."""
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:  # of the port, or of the brackets of an IPv6 address
        known = False
    if not known or not url.isprintable() or " " in url:
        raise UserError(f"--endpoint is {url!r}; give a URL such as http://localhost:8000/v1")
    key = os.environ.get(API_KEY, "")
    if not key.isascii() or not key.isprintable():
        raise UserError(
            f"the key in {API_KEY} has a line break or a character that no key has; set it again (a file's last line "
            "break is not part of a key)"
        )


def ask(url: str, content: dict[str, object] | None, timeout: float) -> bytes:
    """The body of the answer to a POST of JSON, or to a GET where there is no content.

    Raises:
        BusyError: no answer this time.
        UserError: the server refuses.
    """
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
            raise BusyError(
                f"the server answers {error.code} ({said})", _seconds(error.headers.get("Retry-After"))
            ) from None
        raise UserError(f"{url} refuses with {error.code}: {said}{_hint(error.code, said, url)}") from None
    except (OSError, http.client.HTTPException) as error:  # away, cut off, too slow
        reason = getattr(error, "reason", None) or error
        raise BusyError(f"no answer ({' '.join(str(reason).split())[:_SHOWN] or type(error).__name__})") from None


def _hint(status: int, said: str, url: str) -> str:
    """What is most likely wrong, where a refusal tells."""
    if status in (401, 403):
        return f"; the key is read from {API_KEY}"
    if status in (404, 405) and not url.endswith(("/v1/models", "/v1/completions")):
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
