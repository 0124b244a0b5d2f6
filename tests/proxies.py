"""A proxy on loopback, and a certificate made by the ``openssl`` program."""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
from base64 import b64encode
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from vllmrt.testing.faults import Seen
from vllmrt.testing.loopback import Listening, RecordingServer

if TYPE_CHECKING:
    from pathlib import Path


class Proxy(Listening):
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
    server: RecordingServer
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
