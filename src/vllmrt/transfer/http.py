"""Ranges of anything that has a URL.

For source plugins: ``RangeClient().open(url, start, stop)`` is an ``open()``. The body is received from the socket
itself into the caller's buffer, which is faster than through the buffers above it (reference: s3-facts).
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from vllmrt.errors import SourceError, TransientSourceError
from vllmrt.transfer.answers import HttpStatusError, check_extent, check_status, check_version, shown, words
from vllmrt.transfer.connection import Link, Origin, Pool, proxy_headers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

__all__ = ["HttpRange", "HttpStatusError", "RangeClient"]

REDIRECTS = 5
_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_EXCERPT = 2048
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f]")
_CREDENTIAL = re.compile(r"authorization|cookie|token|secret|x-amz-|api-?key", re.IGNORECASE)


class HttpRange:
    """The bytes of one range (`vllmrt.types.ReadableRange`).

    Attributes:
        url: where they came from, after redirects. May hold a signature.
    """

    def __init__(self, url: str, link: Link, answer: http.client.HTTPResponse, pool: Pool) -> None:
        self.url = url
        self._link: Link | None = link
        self._answer = answer
        self._pool = pool
        self._left = answer.length

    def __repr__(self) -> str:
        """Leave the URL's query out: it may be a signature."""
        return f"HttpRange({shown(self.url)})"

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` from its start, and return the number of bytes; 0 at the end.

        Raises:
            TransientSourceError: the connection broke, or nothing came in time.
        """
        link = self._link
        if link is None or self._left == 0:
            self._finish()
            return 0
        try:
            count = self._receive(link, buffer if self._left is None else buffer[: self._left])
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise TransientSourceError(f"{shown(self.url)}: {words(error)}") from None
        if self._left is not None:
            self._left -= count
            if not self._left:
                self._finish()
        return count

    def close(self) -> None:
        """Give up the connection; safe to call twice, and ends a `readinto` of another thread."""
        link, self._link = self._link, None
        if link is not None:
            sock = link.connection.sock
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._answer.close()
            link.connection.close()

    def _receive(self, link: Link, buffer: memoryview) -> int:
        reader = self._answer.fp
        if self._left is None or reader is None:
            return self._answer.readinto(buffer)
        # What came with the headers lies in the reader's buffer; only that much is taken from it.
        waiting = len(reader.peek(1)) if self._first else 0
        self._first = False
        if waiting:
            count: int = reader.readinto(buffer[:waiting])
            return count
        return link.connection.sock.recv_into(buffer)

    _first = True

    def _finish(self) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        self._answer.length = 0
        reusable = not self._answer.will_close and self._left is not None
        self._answer.close()
        if reusable:
            self._pool.give(link)
        else:
            link.connection.close()


class RangeClient:
    """Opens ranges, and keeps connections for the next ones; may be used from any thread.

    Args:
        timeout: seconds for each operation on a socket.
        connections: how many idle ones are kept for an origin.
    """

    def __init__(self, *, timeout: float = 20.0, connections: int = 16) -> None:
        self._pool = Pool(timeout=timeout, size=connections)

    def open(
        self, url: str, start: int, stop: int, *, headers: Mapping[str, str] | None = None, version: str | None = None
    ) -> HttpRange:
        """Open the bytes `start` to `stop` (exclusive) of what a URL names.

        Args:
            url: http or https.
            start: the first byte.
            stop: behind the last one.
            headers: further headers; what looks like a credential goes to the URL's own origin only.
            version: the ETag of the listing. The origin is asked for no other, and an answer with another is refused.

        Raises:
            HttpStatusError: the origin refuses for good.
            ChangedError: what is there now is not what was listed.
            TransientSourceError: it may go through later.
            SourceError: a URL that cannot be used, redirects without end, an origin that ignores ranges.
        """
        first = Origin.of(_checked(url))
        asked = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity", "User-Agent": "vllmrt"}
        asked.update(headers or {})
        if version and not version.startswith("W/"):
            asked["If-Match"] = version if version.startswith('"') else f'"{version}"'
        for _ in range(REDIRECTS + 1):
            link, answer = self._ask(url, asked if Origin.of(urlsplit(url)) == first else _public(asked))
            if answer.status not in _REDIRECTED:
                return self._judge(url, link, answer, start, stop, version)
            url = _next(url, answer)
            _discard(link, answer, self._pool)
        raise SourceError(f"{shown(url)}: more than {REDIRECTS} redirects")

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def _ask(self, url: str, headers: Mapping[str, str]) -> tuple[Link, http.client.HTTPResponse]:
        parts = _checked(url)
        origin = Origin.of(parts)
        link = self._pool.take(origin)
        while True:
            try:
                return link, _send(link, parts, headers)
            except ssl.SSLCertVerificationError as error:
                link.connection.close()
                raise SourceError(
                    f"{shown(url)}: its certificate is not trusted: {error.verify_message}",
                    hint="name the certificates of your authority with SSL_CERT_FILE",
                ) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                link.connection.close()
                # an idle connection may have been closed by the other side: that is no failure
                if not link.used:
                    raise TransientSourceError(f"{shown(url)}: {words(error)}") from None
                link = self._pool.take(origin, fresh=True)

    def _judge(
        self, url: str, link: Link, answer: http.client.HTTPResponse, start: int, stop: int, version: str | None
    ) -> HttpRange:
        try:
            check_status(url, answer)
            check_version(url, answer, version)
            check_extent(url, answer, start, stop)
        except BaseException:
            answer.close()
            link.connection.close()
            raise
        return HttpRange(url, link, answer, self._pool)


def _checked(url: str) -> SplitResult:
    parts = urlsplit(url)
    if _FORBIDDEN.search(url) or not url.isascii():
        raise SourceError(f"{shown(url)}: a URL has no spaces, control characters or letters beyond ASCII")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SourceError(f"{shown(url)}: only http and https are fetched")
    return parts


def _send(link: Link, parts: SplitResult, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    if link.via_proxy:
        target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
        headers = {**headers, **proxy_headers(link.origin)}
    host = f"[{link.origin.host}]" if ":" in link.origin.host else link.origin.host
    link.connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
    link.connection.putheader("Host", f"{host}:{parts.port}" if parts.port else host)
    for name, value in headers.items():
        link.connection.putheader(name, value)
    link.connection.endheaders()
    return link.connection.getresponse()


def _public(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if not _CREDENTIAL.search(name)}


def _next(url: str, answer: http.client.HTTPResponse) -> str:
    target = urljoin(url, answer.headers.get("Location", ""))
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise SourceError(f"{shown(url)}: redirects from https to {shown(target)}")
    return target


def _discard(link: Link, answer: http.client.HTTPResponse, pool: Pool) -> None:
    """Read the little that a redirect says, so that its connection can be used again."""
    if answer.length is not None and answer.length <= _EXCERPT and not answer.will_close:
        answer.read()
        pool.give(link)
    else:
        answer.close()
        link.connection.close()
