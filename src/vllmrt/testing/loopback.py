"""The base of HTTP servers for tests: on a free port of loopback, and all its connections end with it."""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from typing import Self

    from vllmrt.testing.faults import Seen


class LoopbackServer(ThreadingHTTPServer):
    """A server that knows its open connections.

    Attributes:
        accepted: how many connections there were.
        crashed: what went wrong in the server itself; a test may assert that it is empty.
    """

    request_queue_size = 128
    block_on_close = False

    def __init__(self, handler: type[BaseHTTPRequestHandler], host: str, tls: ssl.SSLContext | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.tls = tls
        self.accepted = 0
        self.open: set[socket.socket] = set()
        self.crashed: list[str] = []
        super().__init__((host, 0), handler)

    def server_bind(self) -> None:
        """Bind without asking a name server who we are."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; the handshake is left to the connection's own thread."""
        connection, address = super().get_request()
        self.accepted += 1
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, and serve it."""
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget it."""
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class has them
        """Keep what is no fault of the connection."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.crashed.append(f"{type(error).__name__}: {error}")

    def hang_up(self) -> None:
        """End every connection, so that no thread is left."""
        for connection in list(self.open):
            with suppress(OSError):
                # that of SSLSocket would let the thread go on without encryption
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


class RecordingServer(LoopbackServer):
    """A server that remembers what it was asked, and can tell its handlers to stop."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], host: str, tls: ssl.SSLContext | None) -> None:
        self.seen: list[Seen] = []
        self.stopping = threading.Event()
        super().__init__(handler, host, tls)


class Listening:
    """A server for the length of a ``with`` block.

    Attributes:
        seen: every request, in order.
        crashed: what went wrong in the server itself; a test may assert that it is empty.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler], host: str, tls: ssl.SSLContext | None = None) -> None:
        self._server = RecordingServer(handler, host, tls)
        self.host = host
        self.port = self._server.server_port
        self.seen = self._server.seen
        self.crashed = self._server.crashed

    def __enter__(self) -> Self:
        """Begin to serve."""
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every connection, and the server."""
        self._server.stopping.set()
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()

    @property
    def accepted(self) -> int:
        """How many connections there were."""
        return self._server.accepted

    def hang_up(self) -> None:
        """End every connection, as a server does with those that were idle for long."""
        self._server.hang_up()
