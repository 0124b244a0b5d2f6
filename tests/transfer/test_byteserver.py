"""The server that the other tests rely on, seen by http.client."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from proxies import Proxy, make_certificate

from vllmrt.testing import ByteServer, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(index * 7 % 251 for index in range(100_000))
PATH = "/model.safetensors"


@pytest.fixture
def server() -> Iterator[ByteServer]:
    with ByteServer({PATH: CONTENT}) as server:
        yield server
        assert server.crashed == []


def ask(server: ByteServer, method: str = "GET", path: str = PATH, **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=5)) as connection:
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


def test_a_whole_object(server: ByteServer) -> None:
    status, headers, body = ask(server, path=f"{PATH}?a=b")
    assert (status, headers["ETag"], body) == (200, server.etag(PATH), CONTENT)
    assert (server.seen[0].path, server.seen[0].target) == (PATH, f"{PATH}?a=b")
    assert server.sent == {PATH: len(CONTENT)}
    assert server.accepted == 1


def test_head_has_no_body(server: ByteServer) -> None:
    status, headers, body = ask(server, "HEAD")
    assert (status, headers["Content-Length"], body, server.sent[PATH]) == (200, "100000", b"", 0)


@pytest.mark.parametrize(("asked", "start", "stop"), [("0-0", 0, 1), ("5-9", 5, 10), ("99990-200000", 99990, 100_000)])
def test_a_range(server: ByteServer, asked: str, start: int, stop: int) -> None:
    status, headers, body = ask(server, Range=f"bytes={asked}")
    assert (status, headers["Content-Range"], body) == (206, f"bytes {start}-{stop - 1}/100000", CONTENT[start:stop])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/other", {}, 404),
        (PATH, {"Range": "bytes=100000-100001"}, 416),
        (PATH, {"If_Match": '"other"'}, 412),
    ],
    ids=["missing", "beyond", "changed"],
)
def test_refusals(server: ByteServer, path: str, headers: dict[str, str], status: int) -> None:
    assert ask(server, path=path, **headers)[0] == status


def test_the_etag_that_is_there_matches(server: ByteServer) -> None:
    assert ask(server, If_Match=server.etag(PATH))[0] == 200


FAULTS: dict[str, tuple[dict[str, Any], Any]] = {
    "reset": ({"cut": "reset", "at": 50_000}, ConnectionResetError),
    "fin": ({"cut": "fin", "at": 50_000}, http.client.IncompleteRead),
    "length": ({"headers": {"Content-Length": "100001"}, "hang_up": "silent"}, http.client.IncompleteRead),
    "garbage": ({"raw": b"hello\r\n"}, http.client.BadStatusLine),
    "whole": ({"whole": True}, (200, CONTENT)),
    "chunked": ({"chunked": 777}, (206, CONTENT[:90_000])),
    "flip": ({"flip": 3}, (206, CONTENT[:3] + bytes([CONTENT[3] ^ 1]) + CONTENT[4:90_000])),
    "replace": ({"replace": b"other"}, (206, b"other")),
    "status": ({"status": 503, "body": b"later"}, (503, b"later")),
    "said": ({"hang_up": "said"}, (206, CONTENT[:90_000])),
    "slow headers": ({"header_pause": 0.01}, (206, CONTENT[:90_000])),
    "trickle": ({"rate": 1_000_000}, (206, CONTENT[:90_000])),
    "header": ({"headers": {"ETag": None}}, (206, CONTENT[:90_000])),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_happens_once(server: ByteServer, name: str) -> None:
    what, expected = FAULTS[name]
    server.fault(PATH, **what)
    if isinstance(expected, type):
        with pytest.raises(expected):
            ask(server, Range="bytes=0-89999")
    else:
        status, headers, body = ask(server, Range="bytes=0-89999")
        assert (status, body) == expected
        assert ("ETag" in headers) == (name not in {"status", "header"})
    assert ask(server, path=PATH)[0] == 200


def test_a_cut_outside_the_range_is_none(server: ByteServer) -> None:
    server.fault(PATH, cut="reset", at=50_000, times=-1)
    assert ask(server, Range="bytes=0-49999")[2] == CONTENT[:50_000]
    assert ask(server, Range="bytes=50001-50009")[2] == CONTENT[50_001:50_010]


@pytest.mark.parametrize("what", [{"cut": "silence"}, {"cut": "stall", "at": 10}], ids=["silence", "stall"])
def test_what_hangs_ends_with_the_server(what: dict[str, Any]) -> None:
    with ByteServer({PATH: CONTENT}) as server, socket.create_connection((server.host, server.port)) as client:
        server.fault(**what)
        client.settimeout(0.2)
        client.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % PATH.encode())
        with pytest.raises(TimeoutError):
            all(iter(lambda: client.recv(100), b""))
        client.settimeout(5)
        before = time.monotonic()
        server.hang_up()
        assert client.recv(100) == b""
        assert time.monotonic() - before < 1


def test_a_plan_decides_per_request() -> None:
    with ByteServer({PATH: b"x"}, plan=lambda seen: Fault(status=500) if seen.range else None) as server:
        assert ask(server, Range="bytes=0-0")[0] == 500
        assert ask(server)[0] == 200


def test_redirects_may_grow(server: ByteServer) -> None:
    server.redirect("/a", "/a?{}")
    assert [ask(server, path="/a")[1]["Location"] for _ in range(2)] == ["/a?1", "/a?2"]


def test_tls_and_ipv6(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate.chain))
    with ByteServer({PATH: CONTENT}, host="::1", tls=certificate.context()) as server:
        with closing(http.client.HTTPSConnection("::1", server.port, context=trust, timeout=5)) as connection:
            connection.request("GET", PATH)
            assert connection.getresponse().read() == CONTENT
        assert server.url("/a") == f"https://[::1]:{server.port}/a"


def test_the_proxy_leads_to_the_server(server: ByteServer) -> None:
    with Proxy(user="me:secret") as proxy, closing(http.client.HTTPConnection(proxy.host, proxy.port)) as connection:
        connection.set_tunnel(server.host, server.port, headers={"Proxy-Authorization": proxy.secret})
        connection.request("GET", PATH)
        assert connection.getresponse().read() == CONTENT
        assert [(seen.method, seen.target) for seen in proxy.seen] == [("CONNECT", f"127.0.0.1:{server.port}")]


@pytest.mark.parametrize(("options", "status"), [({"user": "me:secret"}, 407), ({"refusal": 502}, 502)])
def test_the_proxy_refuses(server: ByteServer, options: dict[str, Any], status: int) -> None:
    with Proxy(**options) as proxy, closing(http.client.HTTPConnection(proxy.host, proxy.port)) as connection:
        connection.set_tunnel(server.host, server.port)
        with pytest.raises(OSError, match=str(status)):
            connection.request("GET", PATH)
    assert server.seen == []
