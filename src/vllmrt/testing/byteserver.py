"""Bytes over HTTP on loopback, with faults on demand.

`ByteServer` serves a dictionary of path to bytes and remembers what it was asked. Everything runs in threads of the
test's process and ends with its ``with`` block.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from collections import Counter
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from vllmrt.testing.faults import Fault, Seen
from vllmrt.testing.loopback import Listening, RecordingServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

PIECE = 1 << 20
_LONGEST_STALL = 60.0


class ByteServer(Listening):
    """Serves `files`; use it as a context manager.

    Args:
        files: path to bytes; may be changed while it runs.
        host: address to listen on.
        tls: speaks HTTPS with this context.
        plan: called with each request; its fault goes before those of `fault`.

    Attributes:
        sent: bytes of bodies that left, by path.
    """

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        plan: Callable[[Seen], Fault | None] | None = None,
    ) -> None:
        self.files = dict(files or {})
        self.sent: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self._plan = plan
        self._lock = threading.Lock()
        super().__init__(type("_Bound", (_Handler,), {"owner": self}), host, tls)
        shown = f"[{host}]" if ":" in host else host
        self.origin = f"{'https' if tls else 'http'}://{shown}:{self.port}"

    def url(self, path: str) -> str:
        """Return where a path is."""
        return self.origin + path

    def etag(self, path: str) -> str:
        """Return the ETag of a path, quotes included."""
        return f'"{md5(self.files[path])}"'

    def fault(self, path: str | None = None, **what: Any) -> Fault:
        """Let something go wrong, see `Fault`."""
        fault = Fault(path, **what)
        with self._lock:
            self.faults.append(fault)
        return fault

    def redirect(self, path: str, location: str, *, times: int = -1, status: int = 302) -> Fault:
        """Send a path elsewhere; to itself with ``{}`` in the location for a number that grows."""
        return self.fault(path, times=times, status=status, headers={"Location": location})

    def note(self, seen: Seen) -> Fault | None:
        """Record a request and return what is to go wrong with it."""
        with self._lock:
            self.seen.append(seen)
            planned = self._plan(seen) if self._plan else None
            if planned is not None:
                return planned
            for fault in self.faults:
                if fault.times and fault.path in {None, seen.path}:
                    fault.times -= 1
                    return fault
        return None

    def count(self, path: str, count: int) -> None:
        """Add to the bytes that left."""
        with self._lock:
            self.sent[path] += count


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RecordingServer
    owner: ByteServer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen = Seen(self.command, self.path, headers, self.client_address[1])
        fault = self.owner.note(self.seen) or Fault()
        if fault.raw is not None:
            self.wfile.write(fault.raw)
            self.close_connection = True
        elif fault.cut == "silence":
            self.server.stopping.wait(_LONGEST_STALL)
            self.close_connection = True
        elif fault.status is not None:
            self._head(fault.status, {"Content-Length": str(len(fault.body))}, fault)
            self.wfile.write(fault.body)
        else:
            self._object(fault)
        if fault.hang_up:
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815 - the base class looks for it

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Stay silent: the server remembers in `seen`."""

    def _object(self, fault: Fault) -> None:
        path, files = self.seen.path, self.owner.files
        if fault.replace is not None:
            files[path] = fault.replace
        content = files.get(path)
        wanted = None if fault.whole else self.seen.range
        if content is None:
            self._head(404, {"Content-Length": "0"}, fault)
        elif self.headers["If-Match"] not in {None, "*", self.owner.etag(path)}:
            self._head(412, {"Content-Length": "0"}, fault)
        elif wanted and wanted[0] >= len(content):
            self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(content)}"}, fault)
        else:
            start, stop = (wanted[0], min(wanted[1], len(content))) if wanted else (0, len(content))
            facts = {"ETag": self.owner.etag(path), "Accept-Ranges": "bytes"}
            facts |= {"Transfer-Encoding": "chunked"} if fault.chunked else {"Content-Length": str(stop - start)}
            facts |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"} if wanted else {}
            self._head(206 if wanted else 200, facts, fault)
            if self.command == "GET":
                self._body(content, start, stop, fault)

    def _head(self, status: int, facts: Mapping[str, str], fault: Fault) -> None:
        self.send_response(status)
        closing = {"Connection": "close"} if fault.hang_up == "said" else {}
        for name, value in {**facts, **closing, **fault.headers}.items():
            if fault.header_pause:
                self.flush_headers()
                self.server.stopping.wait(fault.header_pause)
            if value is not None:
                self.send_header(name, value.replace("{}", str(len(self.owner.seen))))
        self.end_headers()

    def _body(self, content: bytes, start: int, stop: int, fault: Fault) -> None:
        if fault.flip is not None:
            content = content[: fault.flip] + bytes([content[fault.flip] ^ 1]) + content[fault.flip + 1 :]
        cuts = fault.cut is not None and start <= fault.at < stop
        end = fault.at if cuts else stop
        length = fault.chunked or (max(1, fault.rate // 10) if fault.rate else PIECE)
        for position in range(start, end, length):
            if fault.rate:
                self.server.stopping.wait(length / fault.rate)
            self._piece(memoryview(content)[position : min(position + length, end)], fault)
        if cuts:
            self._cut(str(fault.cut))
        elif fault.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _piece(self, piece: memoryview, fault: Fault) -> None:
        # Counted first: the client may have the bytes, and a test look at the count, before sendall returns.
        self.owner.count(self.seen.path, len(piece))
        try:
            if fault.chunked:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)))
            else:
                self.connection.sendall(piece)
        except OSError:
            self.owner.count(self.seen.path, -len(piece))
            raise

    def _cut(self, how: str) -> None:
        self.close_connection = True
        if how == "stall":
            self.server.stopping.wait(_LONGEST_STALL)
        elif how == "reset":
            # Closing with a linger of 0 sends RST; shutdown_request would send FIN first.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.open.discard(self.connection)
            os.close(self.connection.detach())


@lru_cache(maxsize=8)
def md5(content: bytes) -> str:
    """Return the MD5 of an object in hexadecimal; asked again and again for the same ones."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
