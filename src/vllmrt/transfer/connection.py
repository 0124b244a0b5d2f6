"""Connections to origins: set up by `http.client`, with the proxies and certificates that the environment names."""

from __future__ import annotations

import base64
import http.client
import os
import select
import ssl
import threading
from collections import defaultdict, deque
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from vllmrt.errors import SourceError
from vllmrt.transfer.tls import HttpsConnection, TlsSocket

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

_CA_FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Origin(NamedTuple):
    """Where a connection goes: scheme, host and port."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: SplitResult) -> Origin:
        """Return the origin of a URL (RFC 6454)."""
        return cls(url.scheme, (url.hostname or "").lower(), url.port or (443 if url.scheme == "https" else 80))


class Link(NamedTuple):
    """A connection, and whether it was used before: then it may have been closed by the other side."""

    connection: http.client.HTTPConnection
    origin: Origin
    used: bool
    via_proxy: bool


class Pool:
    """Idle connections by origin; all methods may be called from any thread.

    Args:
        timeout: seconds for each operation on a socket.
        size: how many idle connections are kept for an origin.
    """

    def __init__(self, *, timeout: float, size: int) -> None:
        self._timeout = timeout
        self._size = size
        self._idle: defaultdict[Origin, deque[Link]] = defaultdict(deque)
        self._mutex = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def take(self, origin: Origin, *, fresh: bool = False) -> Link:
        """Return an idle connection, or a new one that is not connected yet.

        Raises:
            SourceError: the environment names a proxy or certificates that cannot be used.
        """
        while not fresh and (link := self._pop(origin)) is not None:
            if _is_quiet(link.connection.sock):
                return link._replace(used=True)
            link.connection.close()
        return self._new(origin)

    def give(self, link: Link) -> None:
        """Take a connection back, whose last answer was read to its end."""
        with self._mutex:
            if len(self._idle[link.origin]) < self._size:
                self._idle[link.origin].append(link)
                return
        link.connection.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._mutex:
            idle = [link for links in self._idle.values() for link in links]
            self._idle.clear()
        for link in idle:
            link.connection.close()

    def __del__(self) -> None:
        """Close what is idle when the client that owns the pool has gone."""
        self.close()

    def _pop(self, origin: Origin) -> Link | None:
        with self._mutex:
            idle = self._idle.get(origin)
            return idle.pop() if idle else None

    def _new(self, origin: Origin) -> Link:
        proxy = _proxy(origin)
        near = Origin.of(proxy) if proxy else origin
        if origin.scheme == "http":
            plain = http.client.HTTPConnection(near.host, near.port, timeout=self._timeout)
            return Link(plain, origin, used=False, via_proxy=proxy is not None)
        where = near.host, near.port
        connection = HttpsConnection(where, name=origin.host, timeout=self._timeout, context=self._tls())
        if proxy:
            connection.set_tunnel(origin.host, origin.port, headers=credentials(proxy))
        return Link(connection, origin, used=False, via_proxy=False)

    def _tls(self) -> ssl.SSLContext:
        with self._mutex:
            if self._context is None:
                self._context = _trusting(os.environ)
            return self._context


def proxy_headers(origin: Origin) -> dict[str, str]:
    """Return what a plain request through a proxy has to carry."""
    proxy = _proxy(origin)
    return credentials(proxy) if proxy else {}


def credentials(proxy: SplitResult) -> dict[str, str]:
    """Return the header for the user and password in a proxy's URL."""
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _proxy(origin: Origin) -> SplitResult | None:
    """Return the proxy for an origin; what is wrong with it is told without its password."""
    proxies = getproxies()
    named = proxies.get(origin.scheme) or proxies.get("all")
    if not named or proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    hint = f"set {origin.scheme.upper()}_PROXY to http://HOST:PORT, or name {origin.host} in NO_PROXY"
    try:
        proxy = urlsplit(named if "://" in named else f"http://{named}")
        usable = bool(proxy.hostname) and proxy.port != 0
    except ValueError:
        raise SourceError("the proxy that the environment names is no URL", hint=hint) from None
    if proxy.scheme != "http" or not usable:
        raise SourceError(f"a proxy of the kind {proxy.scheme!a} cannot be used", hint=hint)
    return proxy


def _trusting(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that trusts what the first of the variables names, and SSL_CERT_DIR."""
    variable = next((name for name in _CA_FILES if environ.get(name)), None)
    named = environ[variable] if variable else ""
    is_folder = os.path.isdir(named)  # noqa: PTH112 - requests takes either
    folders = [folder for folder in (named if is_folder else "", environ.get("SSL_CERT_DIR", "")) if folder]
    try:
        context = ssl.create_default_context(
            cafile=None if is_folder else named or None, capath=os.pathsep.join(folders) or None
        )
    except OSError as error:
        text = f"{variable or 'SSL_CERT_DIR'} names certificates that cannot be read: {error.strerror}"
        raise SourceError(text, hint="correct the variable, or unset it") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _is_quiet(sock: socket.socket | None) -> bool:
    """Tell whether an idle connection may be used: what it has to say is its end, or what nobody asked for."""
    if sock is None or (isinstance(sock, TlsSocket) and not sock.is_idle):
        return False
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return not poller.poll(0)
