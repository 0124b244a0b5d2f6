"""What an origin answers: whether it is the range that was asked for, and what its refusals mean."""

from __future__ import annotations

import http.client
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vllmrt.errors import ChangedError, SourceError, TransientSourceError

if TYPE_CHECKING:
    from email.message import Message

LONGEST_PAUSE = 75.0
"""Seconds; a Retry-After beyond it is cut. Four of it outlast the five minutes for which the Hub counts requests."""
_TRANSIENT = frozenset({408, 425, 429})
_CHANGED = frozenset({412, 416})
_EXCERPT = 2048
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
# Letters alone: a server that repeats a token has digits or an underscore in it.
_CODE = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_NAMED = re.compile(r"[A-Za-z]{1,64}")
_LONGEST_PATH = 200


class HttpStatusError(SourceError):
    """The origin refused for good.

    Attributes:
        status: of the answer.
        code: what the origin calls it: ``X-Error-Code``, or the ``<Code>`` of S3; None where it says nothing.
    """

    def __init__(self, message: str, *, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def shown(url: str) -> str:
    """Return a URL without what could be a credential: user, password, query and fragment."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return ascii(f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path[:_LONGEST_PATH]}")[1:-1]


def check_status(url: str, answer: http.client.HTTPResponse) -> None:
    """Raise what a status other than 200 and 206 means."""
    if answer.status not in {http.client.OK, http.client.PARTIAL_CONTENT}:
        raise _refusal(url, answer)


def check_version(url: str, answer: http.client.HTTPResponse, version: str | None) -> None:
    """Raise ChangedError where the answer has another ETag than the listing."""
    etag = answer.headers.get("ETag")
    if version and etag and etag.removeprefix("W/").strip('"') != version.removeprefix("W/").strip('"'):
        raise ChangedError(f"{shown(url)} is not the version that was listed")


def check_extent(url: str, answer: http.client.HTTPResponse, start: int, stop: int) -> None:
    """Raise unless the answer announces exactly the bytes `start` to `stop`."""
    length = answer.length
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    exact = match is not None and (int(match[1]), int(match[2]) + 1) == (start, stop)
    # ModelScope sends a range with its Content-Range, and calls that 200
    if answer.status == http.client.OK and not exact:
        if start or length not in {None, stop}:
            raise SourceError(f"{shown(url)}: the server ignores Range", hint="fetch it from another source")
        return
    if not exact:
        raise TransientSourceError(f"{shown(url)}: asked for the bytes {start} to {stop - 1}, was given others")
    if length is not None and length != stop - start:
        raise TransientSourceError(f"{shown(url)}: {stop - start} bytes were asked for, {length} are announced")


def _refusal(url: str, answer: http.client.HTTPResponse) -> SourceError:
    status = answer.status
    # Not the origin's own phrase: it may repeat what it was sent, a token too.
    message = f"{shown(url)}: {status} {http.client.responses.get(status, '')}".rstrip()
    if status in _CHANGED:
        return ChangedError(f"{message}: it is not what was listed")
    if status in _TRANSIENT or status >= http.client.INTERNAL_SERVER_ERROR:
        return TransientSourceError(message, retry_after=retry_after(answer.headers))
    body = answer.read(_EXCERPT)
    found = _CODE.search(body)
    named = _NAMED.fullmatch(answer.headers.get("X-Error-Code", ""))
    code = named[0] if named else (found[1].decode() if found else None)
    return HttpStatusError(f"{message}{f' ({code})' if code else ''}", status=status, code=code)


def retry_after(headers: Message[str, str]) -> float | None:
    """Return the seconds that an origin asks to wait, at most `LONGEST_PAUSE` (RFC 9110 §10.2.3); None without."""
    text = headers.get("Retry-After", "").strip()
    limited = re.search(r"\bt=(\d+)", headers.get("ratelimit", ""))
    if text.isdecimal():
        return min(float(text), LONGEST_PAUSE)
    if text:
        try:
            return min(max(0.0, parsedate_to_datetime(text).timestamp() - time.time()), LONGEST_PAUSE)
        except (ValueError, TypeError, OverflowError):
            return None
    return min(float(limited[1]), LONGEST_PAUSE) if limited else None


def printable(text: str) -> str:
    """Return what an origin said, cut, on one line and without control characters."""
    return ascii(text[:200])[1:-1]


def words(error: Exception) -> str:
    """Return what broke a connection."""
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)
