"""Small requests to the endpoint's API: with an end, and with the token going to the endpoint's origin only.

huggingface_hub is not used: its calls take 200 ms to import, wait without an end, sleep as long as Retry-After says,
and follow ``Link`` with the token wherever it points (reference: hub-facts, "What huggingface_hub 2.4 does").
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from vllmrt.errors import SourceError, TransientSourceError
from vllmrt.transfer.connection import Origin, Pool, proxy_headers
from vllmrt_source_hf_hub.refusals import Refusal

if TYPE_CHECKING:
    from email.message import Message
    from typing import Self

    from vllmrt.transfer.connection import Link
    from vllmrt_source_hf_hub.access import Access

CALL_TIMEOUT = 15.0
"""Seconds without an answer or a byte of it."""
REDIRECTS = 5
LARGEST_ANSWER = 32 << 20
"""Bytes: the revision of a repository of 100,000 files, which names each of them, has 8 MiB."""
_NO_JSON = "HF_ENDPOINT has to be the Hugging Face Hub or a mirror that speaks its API"
_REDIRECTED = frozenset({301, 302, 303, 307, 308})


class Answer(NamedTuple):
    """A success: its JSON, and the query of the next page if there is one."""

    value: Any
    next_query: str | None


class _Reply(NamedTuple):
    status: int
    headers: Message[str, str]
    body: bytes


class Wire:
    """Asks one endpoint; use it as a context manager.

    Args:
        access: the endpoint and the token.
        timeout: seconds for everything that is asked through this object.
    """

    def __init__(self, access: Access, *, timeout: float) -> None:
        self._access = access
        self._own = Origin.of(urlsplit(access.endpoint))
        self._pool = Pool(timeout=min(timeout, CALL_TIMEOUT), size=1)
        # Time-outs of a socket are per byte: a watch ends the answer that trickles.
        self._watch = _Watch(timeout)

    def __enter__(self) -> Self:
        """Begin to count the time."""
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._watch.cancel()
        self._pool.close()

    def get(self, path: str) -> Answer | Refusal:
        """Ask for a path below the endpoint.

        Raises:
            TransientSourceError: the endpoint cannot be reached, breaks off or is too slow.
            SourceError: the answer is no JSON, or too large to be one.
        """
        reply = self._ask(path)
        if isinstance(reply, Refusal):
            return reply
        try:
            return Answer(json.loads(reply.body), _next_query(reply.headers))
        except (ValueError, RecursionError):
            raise SourceError(f"what answers at {self._access.endpoint} is no JSON", hint=_NO_JSON) from None

    def refusal(self, path: str) -> Refusal | None:
        """Ask for a path of which only the status counts: None where it is a success, whatever stands in it.

        Raises:
            TransientSourceError: as `get`.
        """
        reply = self._ask(path)
        return reply if isinstance(reply, Refusal) else None

    def _ask(self, path: str) -> _Reply | Refusal:
        try:
            reply = self._follow(self._access.endpoint + path)
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from None
        return _refusal(reply) if reply.status >= 400 else reply  # noqa: PLR2004 - RFC 9110 §15.5

    def _follow(self, url: str) -> _Reply:
        """Follow redirects, as for a repository that was renamed; off the endpoint's origin without the token."""
        for _ in range(REDIRECTS + 1):
            reply = self._exchange(url)
            if reply.status not in _REDIRECTED:
                return reply
            try:
                url = urljoin(url, reply.headers.get("Location", ""))
                usable = urlsplit(url).scheme in {"http", "https"} and urlsplit(url).port != 0 and url.isascii()
            except ValueError:
                usable = False
            if not usable:
                break
        raise SourceError(f"{self._access.endpoint} redirects to nowhere", hint=_NO_JSON)

    def _exchange(self, url: str) -> _Reply:
        origin = Origin.of(urlsplit(url))
        headers = {"User-Agent": "vllmrt", **(self._access.headers if origin == self._own else {})}
        link = self._pool.take(origin)
        try:
            try:
                response = self._send(link, url, headers)
            except (ConnectionError, http.client.HTTPException):
                if not link.used or self._watch.ended:
                    raise
                # The other side may close what was idle: that is no failure.
                link.connection.close()
                link = self._pool.take(origin, fresh=True)
                response = self._send(link, url, headers)
            reply = self._read(response)
        except BaseException:
            link.connection.close()
            raise
        if response.will_close:
            link.connection.close()
        else:
            self._pool.give(link)
        return reply

    def _send(self, link: Link, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        if link.via_proxy:
            target = f"{parts.scheme}://{parts.netloc}{target}"
            headers = headers | proxy_headers(link.origin)
        self._watch.over(link.connection)
        if link.connection.sock is None:
            link.connection.connect()
        self._watch.over(link.connection)
        link.connection.request("GET", target, headers=headers)
        return link.connection.getresponse()

    def _read(self, response: http.client.HTTPResponse) -> _Reply:
        with response:
            body = response.read(LARGEST_ANSWER + 1)
            if len(body) > LARGEST_ANSWER:
                raise SourceError(f"an answer from {self._access.endpoint} has no end", hint=_NO_JSON)
            if response.length or self._watch.ended:  # what read(amount) leaves untold
                raise ConnectionError("the answer broke off")
            return _Reply(response.status, response.headers, body)

    def _failure(self, error: Exception) -> SourceError:
        where = self._access.endpoint
        if self._watch.ended or isinstance(error, TimeoutError):
            return TransientSourceError(f"{where} gives no answer in time", hint="go without: HF_HUB_OFFLINE=1")
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"{where} shows a certificate that is not trusted: {error.verify_message}"
            return SourceError(text, hint="SSL_CERT_FILE names the certificates of your own authority")
        # What http.client says of a broken answer quotes it.
        words = (getattr(error, "strerror", None) or str(error)) if isinstance(error, OSError) else "it speaks no HTTP"
        hint = "check the network, HF_ENDPOINT and HTTPS_PROXY, or go without the Hub: HF_HUB_OFFLINE=1"
        return TransientSourceError(f"{where} cannot be reached: {ascii(words)[1:-1]}", hint=hint)


class _Watch:
    """Ends, from another thread and after some time, whatever waits for a connection."""

    def __init__(self, seconds: float) -> None:
        self.ended = False
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.start, self.cancel = self._timer.start, self._timer.cancel

    def over(self, connection: http.client.HTTPConnection) -> None:
        """Watch a connection; its socket too, which it forgets before the last answer is read."""
        self._connection, self._socket = connection, connection.sock
        if self.ended:
            raise TimeoutError

    def _end(self) -> None:
        self.ended = True
        waiting = self._socket or (self._connection.sock if self._connection else None)
        if waiting is not None:
            with suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)


def _refusal(reply: _Reply) -> Refusal:
    return Refusal(
        reply.status, reply.headers.get("X-Error-Code"), reply.headers.get("X-Error-Message"), _pause(reply.headers)
    )


def _pause(headers: Message[str, str]) -> float | None:
    """Read Retry-After (RFC 9110 §10.2.3), or the Hub's ``ratelimit: "api";r=0;t=<seconds>``."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    found = re.search(r";\s*t=(\d{1,9})", headers.get("ratelimit", ""))
    return float(found[1]) if found else None


def _next_query(headers: Message[str, str]) -> str | None:
    """Return the query of ``Link: <url>; rel="next"``: where else it points does not matter, we ask the endpoint."""
    found = re.search(r'<([^<>]*)>\s*;[^,<]*rel="?next"?', headers.get("Link", ""))
    return urlsplit(found[1]).query if found else None
