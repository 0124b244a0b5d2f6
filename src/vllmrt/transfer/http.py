"""Ranges of anything that has a URL.

For source plugins: ``RangeClient().open(url, start, stop)`` is an ``open()``.
"""

from __future__ import annotations

import http.client
import re
import ssl
from traceback import clear_frames
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from vllmrt.errors import SourceError, TransientSourceError
from vllmrt.transfer.answers import HttpStatusError, check_extent, check_status, check_version, shown, words
from vllmrt.transfer.body import HttpRange, Reply
from vllmrt.transfer.connection import Origin, Pool, proxy_headers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

    from vllmrt.transfer.connection import Link

__all__ = ["HttpRange", "HttpStatusError", "RangeClient"]

REDIRECTS = 5
_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_FORBIDDEN = re.compile(r"[^\x21-\x7e]")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_OURS = frozenset({"range", "accept-encoding", "host", "connection", "content-length", "transfer-encoding"})
_PUBLIC = frozenset({"range", "accept-encoding", "user-agent", "if-match", "accept", "accept-language"})
_TUNNEL = re.compile(r"Tunnel connection failed: (4\d\d)\b")
_MAY_PASS = frozenset({"408", "425", "429"})


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
            headers: further headers; to another origin than the URL's own only those go that can hold no credential.
            version: the ETag of the listing. The origin is asked for no other, and an answer with another is refused.

        Raises:
            HttpStatusError: the origin refuses for good.
            ChangedError: what is there now is not what was listed.
            TransientSourceError: it may go through later.
            SourceError: a URL, header or proxy that cannot be used, redirects without end, an origin that ignores
                ranges.
        """
        first = Origin.of(_checked(url))
        asked = _headers(start, stop, headers or {}, version)
        seen = {url}
        for _ in range(REDIRECTS + 1):
            reply = self._ask(url, asked if Origin.of(urlsplit(url)) == first else _public(asked))
            if reply.answer.status not in _REDIRECTED:
                _judge(url, reply, start, stop, version)
                return HttpRange(url, reply, stop - start, self._pool)
            location = reply.answer.headers.get("Location")
            reply.discard(self._pool)
            url = _next(url, location)
            if url in seen:
                raise SourceError(f"{shown(url)}: redirects in a circle")
            seen.add(url)
        raise SourceError(f"{shown(url)}: more than {REDIRECTS} redirects")

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def _ask(self, url: str, headers: Mapping[str, str]) -> Reply:
        parts = _checked(url)
        origin = Origin.of(parts)
        link = self._pool.take(origin)
        while True:
            try:
                return _send(link, parts, headers)
            except (OSError, http.client.HTTPException, ValueError) as error:
                # http.client before 3.11.4 leaves the answer of a proxy that refused CONNECT open in a frame
                clear_frames(error.__traceback__)
                link.connection.close()
                # an idle connection may have been closed by the other side: that is no failure
                if not link.used or isinstance(error, TimeoutError):
                    raise _unreachable(url, error) from None
                link = self._pool.take(origin, fresh=True)
            except BaseException:
                link.connection.close()
                raise


def _headers(start: int, stop: int, given: Mapping[str, str], version: str | None) -> dict[str, str]:
    """Return what is sent to the first origin; the caller decides over everything but how the answer is framed."""
    asked = {"user-agent": "vllmrt"}
    if version and not version.startswith("W/"):
        asked["if-match"] = version if version.startswith('"') else f'"{version}"'
    asked.update({name.lower(): value for name, value in given.items() if name.lower() not in _OURS})
    for name, value in asked.items():
        # http.client lets folded lines pass, and quotes what it refuses: that may be a token.
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise SourceError(f"the header {name!a} cannot be sent: it holds control characters or others than Latin-1")
    return {**asked, "range": f"bytes={start}-{stop - 1}", "accept-encoding": "identity"}


def _public(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name in _PUBLIC}


def _checked(url: str) -> SplitResult:
    """Return a URL's parts; one that has none is not shown, for its query cannot be told from its path."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise SourceError("a URL that cannot be used: its host or port is none") from None
    if _FORBIDDEN.search(url):
        raise SourceError(f"{shown(url)}: a URL has no spaces, control characters or letters beyond ASCII")
    if not usable:
        raise SourceError(f"{shown(url)}: only http and https are fetched")
    return parts


def _send(link: Link, parts: SplitResult, headers: Mapping[str, str]) -> Reply:
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    if link.via_proxy:
        target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
        headers = {**headers, **proxy_headers(link.origin)}
    host = f"[{link.origin.host}]" if ":" in link.origin.host else link.origin.host
    connection = link.connection
    connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", f"{host}:{parts.port}" if parts.port else host)
    for name, value in headers.items():
        connection.putheader(name.title(), value)
    connection.endheaders()
    sock = connection.sock
    return Reply(link, sock, connection.getresponse())


def _judge(url: str, reply: Reply, start: int, stop: int, version: str | None) -> None:
    answer = reply.answer
    try:
        check_status(url, answer)
        check_version(url, answer, version)
        _check_coding(url, answer)
        check_extent(url, answer, start, stop)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reply.drop()
        raise _unreachable(url, error) from None
    except BaseException:
        reply.drop()
        raise


def _check_coding(url: str, answer: http.client.HTTPResponse) -> None:
    """Raise unless the body is the object's own bytes; they are hashed, so nothing is unpacked."""
    coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    framing = answer.headers.get("Transfer-Encoding", "chunked").strip().lower()
    if coding not in {"", "identity"} or framing != "chunked":
        raise SourceError(f"{shown(url)}: the server packs the bytes, though it was asked not to")


def _next(url: str, location: str | None) -> str:
    try:
        target = urljoin(url, location) if location else ""
    except ValueError:
        target = ""
    if not target:
        raise SourceError(f"{shown(url)}: redirects to nowhere")
    parts = _checked(target)
    if urlsplit(url).scheme == "https" and parts.scheme != "https":
        raise SourceError(f"{shown(url)}: redirects from https to {shown(target)}")
    return target


def _unreachable(url: str, error: Exception) -> SourceError:
    """Say what is wrong with a connection; what http.client says of an answer quotes it, and so is left out."""
    where = shown(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"{where}: its certificate is not trusted: {error.verify_message}"
        return SourceError(text, hint="name the certificates of your authority with SSL_CERT_FILE")
    if isinstance(error, UnicodeError):
        return SourceError(f"{where}: no host can have this name")
    if not isinstance(error, OSError) or isinstance(error, http.client.HTTPException):
        ended = isinstance(error, http.client.RemoteDisconnected)
        return TransientSourceError(f"{where}: {'the server hung up' if ended else 'it speaks no HTTP'}")
    refused = _TUNNEL.match(str(error))
    if refused and refused[1] not in _MAY_PASS:
        hint = "check HTTPS_PROXY with its user and password, or name the host in NO_PROXY"
        return SourceError(f"{where}: the proxy refuses it: {refused[1]}", hint=hint)
    return TransientSourceError(f"{where}: {words(error)}")
