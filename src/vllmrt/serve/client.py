"""Short HTTP requests to a server that may do anything: bounded in bytes and in time.

Only `http.client`: no proxy is asked, and no redirect is followed.
"""

from __future__ import annotations

import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from vllmrt.errors import ConfigError

if TYPE_CHECKING:
    import socket

LARGEST = 8 << 20


class Failed(Exception):
    """The server did not do what it should; the text says what it did."""


class Refused(Failed):
    """Nothing listens at the address."""


class Server(NamedTuple):
    """Where a server is.

    Attributes:
        secure: True for https.
        host: a name or an address, without brackets.
        port: None for that of the scheme.
        prefix: the path before ``/health`` and ``/v1``.
    """

    secure: bool
    host: str
    port: int | None
    prefix: str


class Reply(NamedTuple):
    """The status and the body of an answer."""

    status: int
    body: bytes


def parse_url(url: str) -> Server:
    """Take the address of a server apart.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname and not parts.query:
            return Server(parts.scheme == "https", parts.hostname, parts.port, parts.path.rstrip("/"))
    except ValueError:
        pass
    raise ConfigError("that is no address of a server", hint="write it as http://127.0.0.1:8000")


def url_of(host: str, port: int) -> str:
    """Return where a client reaches what listens on `host`: a wildcard is no address, and IPv6 wants brackets."""
    host = host.strip("[]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ask(server: Server, path: str, *, key: str | None, body: bytes | None, seconds: float) -> Reply:
    """GET `path`, or POST a JSON `body` to it.

    Args:
        server: where.
        path: below the server's prefix.
        key: the bearer token, or None for none.
        body: JSON, or None.
        seconds: that everything may take together, from connecting to the last byte.

    Raises:
        Failed: no answer, a broken one, one of more than 8 MiB, or one that is not complete in time.
        Refused: nothing listens.
    """
    deadline = time.monotonic() + seconds
    connection = (HTTPSConnection if server.secure else HTTPConnection)(server.host, server.port, timeout=seconds)
    try:
        reply = _exchange(connection, server.prefix + path, _headers(key, body), body, seconds)
    except ConnectionRefusedError:
        raise Refused("connection refused") from None
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
            raise Failed(f"no complete answer in {seconds:g} s") from None
        raise Failed(f"broken connection: {type(error).__name__}") from None
    finally:
        connection.close()
    # What was cut off at the deadline looks like an answer that ends there.
    if time.monotonic() >= deadline:
        raise Failed(f"no complete answer in {seconds:g} s")
    if len(reply.body) > LARGEST:
        raise Failed(f"an answer of more than {LARGEST >> 20} MiB")
    return reply


def _headers(key: str | None, body: bytes | None) -> dict[str, bytes | str]:
    headers: dict[str, bytes | str] = {"Connection": "close"}
    if key:
        headers["Authorization"] = b"Bearer " + key.encode()
    if body is not None:
        headers["Content-Type"] = "application/json"
    return headers


def _exchange(
    connection: HTTPConnection, path: str, headers: dict[str, bytes | str], body: bytes | None, seconds: float
) -> Reply:
    from threading import Timer

    connection.connect()
    # A socket's own time-out starts again with every byte: one that trickles would never end.
    timer = Timer(seconds, _cut, (connection.sock,))
    timer.daemon = True
    timer.start()
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        with connection.getresponse() as response:
            return Reply(response.status, response.read(LARGEST + 1))
    finally:
        timer.cancel()
        timer.join()


def _cut(sock: socket.socket) -> None:
    import socket
    from contextlib import suppress

    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
