"""Bytes over HTTP on loopback, with faults on demand; a proxy; and a certificate made by the ``openssl`` program.

`ByteServer` serves a dictionary of path to bytes and remembers what it was asked. Everything runs in threads of the
test's process and ends with its ``with`` block.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import socket
import ssl
import struct
import subprocess
import threading
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from loopback import LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Self

PIECE = 1 << 20
_LONGEST_STALL = 60.0


class Seen(NamedTuple):
    """A request, as it came.

    Attributes:
        method: GET, HEAD or CONNECT.
        target: with the query; for a proxy the absolute form, or host and port.
        headers: names in lower case.
        client: port of the client: the same for the requests of one connection.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    client: int

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition("?")[0]

    @property
    def range(self) -> tuple[int, int] | None:
        """First byte, and the one behind the last."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2]) + 1) if found else None


@dataclass
class Fault:
    """What is to go wrong with requests for `path`; positions are bytes of the object.

    Attributes:
        path: without the query; None for all.
        times: how often; -1 for always.
        status: answer with this status, `headers` and `body`, and nothing else.
        headers: replace or add to those of the true answer; None takes one away.
        body: of `status`.
        raw: send these bytes instead of an answer, and close.
        cut: ``reset``, ``fin`` or ``stall`` when the byte `at` is reached; ``silence`` never answers.
        at: see `cut`.
        rate: bytes a second.
        flip: byte whose lowest bit is turned.
        whole: ignore Range, answer 200 with all bytes.
        replace: the object's bytes from this request on.
        chunked: send the body in chunks of this many bytes.
        header_pause: seconds before every line of the headers.
        hang_up: close after the answer: ``said`` in it, or ``silent``.
    """

    path: str | None = None
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes | None = None
    cut: str | None = None
    at: int = 0
    rate: int | None = None
    flip: int | None = None
    whole: bool = False
    replace: bytes | None = None
    chunked: int = 0
    header_pause: float = 0.0
    hang_up: str | None = None


class _Server(LoopbackServer):
    def __init__(self, handler: type[BaseHTTPRequestHandler], host: str, tls: ssl.SSLContext | None) -> None:
        self.seen: list[Seen] = []
        self.stopping = threading.Event()
        super().__init__(handler, host, tls)


class _Listening:
    """A server for the length of a ``with`` block.

    Attributes:
        seen: every request, in order.
        crashed: what went wrong in the server itself; a test may assert that it is empty.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler], host: str, tls: ssl.SSLContext | None = None) -> None:
        self._server = _Server(handler, host, tls)
        self.host = host
        self.port = self._server.server_port
        self.seen = self._server.seen
        self.crashed = self._server.crashed

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
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


class ByteServer(_Listening):
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
    server: _Server
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


class Proxy(_Listening):
    """A proxy: CONNECT for https, the absolute form for http.

    Args:
        user: ``name:password`` that it wants; 407 without.
        refusal: status with which it refuses every CONNECT.
        to: host and port that every CONNECT is led to, whatever the client names.
    """

    def __init__(self, *, user: str = "", refusal: int = 0, to: tuple[str, int] | None = None) -> None:
        self.secret = f"Basic {b64encode(user.encode()).decode()}" if user else None
        self.refusal = refusal
        self.to = to
        super().__init__(type("_Bound", (_ProxyHandler,), {"owner": self}), "127.0.0.1")

    def url(self, user: str = "") -> str:
        """Return what stands in HTTPS_PROXY."""
        return f"http://{f'{user}@' if user else ''}127.0.0.1:{self.port}"


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    owner: Proxy

    def do_GET(self) -> None:
        """Fetch what the absolute form names, over a connection of its own, and close."""
        parts = urlsplit(self.path)
        if self._is_let_in():
            with socket.create_connection((parts.hostname, parts.port or 80)) as there:
                lines = [f"{self.command} {parts.path}{f'?{parts.query}' if parts.query else ''} HTTP/1.1"]
                kept = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
                lines += [f"{name}: {value}" for name, value in (kept | {"Connection": "close"}).items()]
                there.sendall("\r\n".join([*lines, "", ""]).encode())
                self._relay(there)

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        if self._is_let_in():
            with socket.create_connection(self.owner.to or (host.strip("[]"), int(port))) as there:
                self.send_response(200)
                self.end_headers()
                self._relay(there)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Stay silent: the proxy remembers in `seen`."""

    def _is_let_in(self) -> bool:
        self.close_connection = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.seen.append(Seen(self.command, self.path, headers, self.client_address[1]))
        wrong = 407 if self.owner.secret not in {None, headers.get("proxy-authorization")} else 0
        status = wrong or (self.owner.refusal if self.command == "CONNECT" else 0)
        if status:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
        return not status

    def _relay(self, there: socket.socket) -> None:
        ways = {self.connection: there, there: self.connection}
        while not self.server.stopping.is_set():
            for source in select.select(list(ways), [], [], 0.05)[0]:
                data = source.recv(1 << 16)
                if not data:
                    return
                ways[source].sendall(data)


class Certificate(NamedTuple):
    """A certificate that vouches for itself, for localhost, 127.0.0.1 and ::1.

    Attributes:
        chain: what a client has to trust.
        key: of the server.
    """

    chain: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return what a server speaks TLS with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


def make_certificate(directory: Path, name: str = "localhost") -> Certificate:
    """Make a certificate with the ``openssl`` program; two with one `name` get into each other's way."""
    made = Certificate(directory / "chain.pem", directory / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-keyout", str(made.key), "-out", str(made.chain)]
    command += ["-addext", "subjectAltName=DNS:localhost,DNS:origin.test,IP:127.0.0.1,IP:::1"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return made
