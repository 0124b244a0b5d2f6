"""A store that answers what a test tells it to, for what no real one can be made to say."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Reply(NamedTuple):
    """What the stub answers."""

    status: int = 200
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    date: str | None = None


class Stub:
    """An HTTP server that answers every request with what `answer` returns for it."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str], Reply] = lambda _method, _path: Reply(404)
        self.requests: list[tuple[str, str]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self) -> None:
                stub.requests.append((self.command, self.path))
                reply = stub.answer(self.command, self.path)
                body = reply.body.encode()
                self.send_response_only(reply.status)
                self.send_header("Date", reply.date or self.date_time_string())
                for name, value in reply.headers:
                    self.send_header(name, value)
                if "Content-Length" not in dict(reply.headers):
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = reply  # noqa: N815 - names of http.server

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()
